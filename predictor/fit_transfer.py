"""A latency model of a target of which only whole networks were measured, from other targets."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor.errors import UnusableMeasurementsError
from predictor.evaluation import prediction_quality
from predictor.held_out import judged, measured_networks
from predictor.kits import calibration_architectures, held_out_architectures
from predictor.models.transfer import TransferRegressor
from predictor.models.transfer_references import Measured, References
from predictor.network import NetworkLatencyModel
from predictor.structure import structural_features
from search_core.space.space import Architecture, SearchSpace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEAST_NETWORKS = 10
_REFERENCE_NETWORKS = 400
_VERTICES = 1000
_RIDGE = 1e-2
_FOLDS = 5
_MARGIN = 0.05


def fit_by_transfer(
    space: SearchSpace,
    measured_ms: Mapping[str, float],
    references: Mapping[str, NetworkLatencyModel],
    seed: int = 0,
) -> tuple[NetworkLatencyModel, dict[str, Any]]:
    """Fit to the whole networks of a kit, with the models of other targets as references.

    A `TransferRegressor` predicts networks that nobody measured; what a search is charged is
    the additive function nearest to it on a thousand of them, because a search needs one that
    is multilinear. Every entry of the table counts as predicted, none as measured.

    Args:
        measured_ms: median latency by subject; only networks of the kit are looked at.
        references: models of this space on other targets, by any name.

    Returns:
        The model, and its report: weights of the stack, the nearest reference, a warning when
        none is alike, errors and coverage on the held-out networks where these were measured.

    Raises:
        UnusableMeasurementsError: no reference, or too few calibration networks.
    """
    known = measured_networks(space, calibration_architectures(space), measured_ms)
    unseen = measured_networks(space, held_out_architectures(space), measured_ms)
    usable = {n: m for n, m in references.items() if m.space_digest == space.digest}
    if not usable or len(known) < LEAST_NETWORKS:
        raise UnusableMeasurementsError(
            f"{len(known)} measured networks and {len(usable)} other targets with a model of "
            f"{space.name}; without measured blocks at least {LEAST_NETWORKS} and 1 are needed"
        )
    rng = random.Random(seed)
    drawn = [space.sample(rng) for _ in range(_VERTICES)]
    choices, features = _described(space, drawn)
    sources = slice(0, _REFERENCE_NETWORKS)
    devices = References().fit(
        {
            name: Measured(
                choices[sources],
                features[sources],
                np.array([model.predict_ms(a) for a in drawn[sources]]),
            )
            for name, model in usable.items()
        }
    )
    vertices = devices.encode(choices, features)

    def fitted(networks: Mapping[Architecture, float]) -> tuple[NetworkLatencyModel, _Told]:
        encoded = devices.encode(*_described(space, list(networks)))
        transfer = TransferRegressor(devices).fit(encoded, np.array(list(networks.values())))
        predicted_ms = transfer.predict(vertices).latency_ms
        model = _nearest_additive(drawn, predicted_ms, usable[transfer.nearest_])
        additive_ms = np.array([model.predict_ms(a) for a in drawn])
        told = _Told(
            references=tuple(usable),
            nearest=transfer.nearest_,
            rank_correlation=transfer.alike_,
            weights=transfer.weights_,
            warning=transfer.warning_,
            additive_mape=prediction_quality(additive_ms, predicted_ms).mape,
        )
        return model, told

    model, told = fitted(known)
    left_out: dict[Architecture, float] = {}
    for fold in range(_FOLDS):
        out = list(known)[fold::_FOLDS]
        by_rest, _ = fitted({a: ms for a, ms in known.items() if a not in out})
        left_out |= {a: by_rest.predict_ms(a) for a in out}
    everything = tuple((s, c) for s, row in enumerate(model.table_ms) for c in range(len(row)))
    model = replace(
        model,
        predicted=everything,
        outside=everything if told.warning else (),
        measured_ms=(min(known.values()), max(known.values())),
    )
    model, on_held_out = judged(space, model, unseen)
    report: dict[str, Any] = {
        "by_transfer": asdict(told),
        "n_blocks": 0,
        "leave_one_out": asdict(
            prediction_quality(
                np.array([left_out[a] for a in known]), np.array(list(known.values()))
            )
        ),
        **on_held_out,
    }
    return model, report


@dataclass(frozen=True)
class _Told:
    """What a transfer says of itself; part of the report."""

    references: tuple[str, ...]
    nearest: str
    rank_correlation: float
    weights: dict[str, float]
    warning: str
    additive_mape: float


def _nearest_additive(
    drawn: Sequence[Architecture], predicted_ms: Floats, prior: NetworkLatencyModel
) -> NetworkLatencyModel:
    """The additive model of least relative error on `drawn`, near the prior's proportions."""
    prior_ms = np.array([prior.predict_ms(a) for a in drawn])
    scale = float(np.median(predicted_ms / prior_ms))
    widths = [len(row) for row in prior.table_ms]
    starts = np.cumsum([1, *widths[:-1]])
    x = np.zeros((len(drawn), 1 + sum(widths)))
    x[:, 0] = 1.0
    for row, architecture in enumerate(drawn):
        x[row, starts + np.array(architecture.choices)] = 1.0
    before = scale * np.array([prior.offset_ms, *(ms for row in prior.table_ms for ms in row)])
    relative = x / predicted_ms[:, None]
    missing = 1.0 - relative @ before
    weight = np.diag(np.full(x.shape[1], _RIDGE * float((relative**2).sum(axis=0).mean())))
    found = before + np.linalg.solve(relative.T @ relative + weight, relative.T @ missing)
    table = [tuple(found[s : s + w].tolist()) for s, w in zip(starts, widths, strict=True)]
    return NetworkLatencyModel(
        space_digest=prior.space_digest,
        offset_ms=float(found[0]),
        table_ms=tuple(table),
        margin=_MARGIN,
        unsupported=prior.unsupported,
    )


def _described(space: SearchSpace, networks: Sequence[Architecture]) -> tuple[Ints, Floats]:
    features = [structural_features(space, space.graph(a)) for a in networks]
    return np.array([a.choices for a in networks]), np.array(features, float)
