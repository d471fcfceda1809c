"""From measurements to a latency model and a report on how far to trust it."""

import random
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from predictor.acquisition import network_values
from predictor.block_table import block_table, blocks_of
from predictor.errors import MissingMeasurementsError, UnusableMeasurementsError
from predictor.evaluation import prediction_quality
from predictor.held_out import judged, measured_networks
from predictor.kits import calibration_architectures, held_out_architectures, network_subject
from predictor.models.calibration import NetworkCalibration
from predictor.models.interactions import Interactions, Slots
from predictor.network import NetworkLatencyModel, Pair, Similarity
from search_core.space.blocks import BlockSpec
from search_core.space.space import Architecture, SearchSpace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_LEAST_MARGIN = 0.01
_LEAST_EFFECT = 1e-3
_LEAST_NETWORKS = 5

_ALIKE = ("kind", "kernel", "expansion", "stride", "in_channels", "resolution_px")
"""Blocks that have one of these in common are expected to be off by similar amounts."""

_NEGLIGIBLE = 1e-5

_POOL, _TOLD = 200, 5
_LOADING_SECONDS, _RUNS = 0.3, 50
"""What measuring a network takes: loading it, and running it so often."""


class _Networks(NamedTuple):
    architectures: list[Architecture]
    choices: Ints  # (n, n_slots)
    sums_ms: Floats  # (n,) of blocks
    measured_ms: Floats  # (n,)


def fit_latency_model(
    space: SearchSpace,
    measured_ms: Mapping[str, float],
    unsupported: Collection[str] = (),
    *,
    calibration: Sequence[Architecture] | None = None,
    held_out: Sequence[Architecture] | None = None,
    elsewhere: Mapping[str, Mapping[str, float]] | None = None,
    without: Sequence[str] = (),
) -> tuple[NetworkLatencyModel, dict[str, Any]]:
    """Fit block table, line, interactions and intervals to a measured kit.

    Args:
        measured_ms: median latency by subject, of a whole kit; a few of its blocks may be
            missing and are predicted.
        unsupported: subjects that the target cannot run.
        elsewhere: measured_ms of other targets, by name, to predict missing blocks from.
        calibration, held_out: networks to fit to and to judge by; None: those of the kit.
        without: kernels of the interactions to leave out, for ablations.

    Returns:
        The model and its report: leave-one-out errors of the calibration networks, which no
        line and no interaction was fitted to when they were predicted, and errors of the
        held-out networks, which only the intervals have seen. How many measurements these
        hold is told by leaving each held-out network out of them in turn.

    Raises:
        MissingMeasurementsError: a network of the kit has no measurement, or so few blocks have
            one that the others cannot be predicted.
        UnusableMeasurementsError: longer block sums do not take longer.
    """
    refused = blocks_of(space, unsupported)
    blocks = block_table(space, measured_ms, refused, elsewhere)
    table = blocks.ms
    fixed_ms, rows_ms = space.slot_costs(lambda block: table.get(block, 0.0))  # Zero takes none
    off_limits = _off_limits(space, refused)
    if calibration is None:
        calibration = calibration_architectures(space)
    if held_out is None:
        held_out = held_out_architectures(space)
    known = _known(space, calibration, table, measured_ms, refused, unsupported)

    fitted = NetworkCalibration(_slots(space, table), without)
    fitted.fit(known.choices, known.sums_ms, known.measured_ms)
    line = fitted.line_
    effect = line.scale_ * float(np.ptp(known.sums_ms)) / float(np.median(known.measured_ms))
    if not effect > _LEAST_EFFECT:
        raise UnusableMeasurementsError(
            "networks of larger block sums measured no slower: from the smallest to the largest "
            f"they gain {effect:.1%} of a network; measure the target again when it is quiet"
        )
    quality = prediction_quality(fitted.left_out_ms_, known.measured_ms)
    rows_ms = [[float(line.scale_) * ms for ms in row] for row in rows_ms]
    model = NetworkLatencyModel(
        space_digest=space.digest,
        offset_ms=line.offset_ + line.scale_ * fixed_ms,
        table_ms=tuple(map(tuple, rows_ms)),
        margin=max(_LEAST_MARGIN, min(0.25, 2.0 * quality.mape)),
        unsupported=off_limits,
        predicted=_entries(space, blocks.sigma_ms),
        outside=_entries(space, blocks.outside),
        measured_ms=(float(known.measured_ms.min()), float(known.measured_ms.max())),
    )
    if fitted.interactions_ is not None:
        model = _with_interactions(space, model, fitted.interactions_)
    model = _priced_out(model)
    unseen = measured_networks(space, held_out, measured_ms)
    model, on_held_out = judged(space, model, unseen)
    report: dict[str, Any] = {
        "calibration": {"offset_ms": line.offset_, "scale": line.scale_},
        "leave_one_out": asdict(quality),
        "interactions": {
            "kept": fitted.interactions_ is not None,
            "variances": asdict(fitted.interactions_.variances) if fitted.interactions_ else None,
            "leave_one_out_mape_without": prediction_quality(
                fitted.line_left_out_ms_, known.measured_ms
            ).mape,
        },
        "next_networks": _next_networks(space, model, fitted, known),
        "n_blocks": len(table),
        "predicted_blocks": {
            str(b): {"ms": table[b], "sigma_ms": sigma, "covered": b not in blocks.outside}
            for b, sigma in blocks.sigma_ms.items()
        },
        "unsupported_blocks": sorted(map(str, refused)),
        **on_held_out,
        **_block_sums(space, table, unseen),
        "networks": [
            {
                "architecture": space.format(a),
                "measured_ms": float(m),
                "left_out_prediction_ms": float(p),
            }
            for a, m, p in zip(
                known.architectures, known.measured_ms, fitted.left_out_ms_, strict=True
            )
        ],
    }
    return model, report


def _known(
    space: SearchSpace,
    architectures: Sequence[Architecture],
    table: Mapping[BlockSpec, float],
    measured_ms: Mapping[str, float],
    refused: AbstractSet[BlockSpec],
    unsupported: Collection[str],
) -> _Networks:
    """The calibration networks.

    Raises:
        MissingMeasurementsError: one that the target runs has no measurement.
        UnusableMeasurementsError: the target runs too few of them.
    """
    able = [a for a in architectures if refused.isdisjoint(space.blocks(a))]
    missing = [s for a in able if (s := network_subject(space, a)) not in measured_ms]
    missing = [subject for subject in missing if subject not in unsupported]
    if missing:
        raise MissingMeasurementsError(missing)
    known = _measured(space, able, table, measured_ms)
    if len(known.architectures) < _LEAST_NETWORKS:
        raise UnusableMeasurementsError(
            f"the target runs {len(known.architectures)} of the calibration networks, and "
            f"{_LEAST_NETWORKS} are needed; it does not support "
            f"{', '.join(sorted(unsupported)[:3])}"
        )
    return known


def _measured(
    space: SearchSpace,
    architectures: Sequence[Architecture],
    table: Mapping[BlockSpec, float],
    measured_ms: Mapping[str, float],
) -> _Networks:
    """Those of `architectures` that have a measurement."""
    found = measured_networks(space, architectures, measured_ms)
    return _Networks(
        list(found),
        np.array([a.choices for a in found], dtype=np.int64).reshape(len(found), len(space.slots)),
        np.array([sum(table.get(b, 0.0) for b in space.blocks(a)) for a in found]),
        np.array(list(found.values())),
    )


def _slots(space: SearchSpace, table: Mapping[BlockSpec, float]) -> Slots:
    """The block sums of every candidate, and what part of them blocks that are alike have."""
    shape = len(space.slots), max(len(slot.candidates) for slot in space.slots)
    groups: dict[tuple[str, object], Floats] = {}
    ms = np.zeros(shape)
    for layer in space.layers:
        if layer.slot is None:
            continue
        for choice, block in enumerate(layer.blocks):
            block_ms = table.get(block, 0.0)
            ms[layer.slot, choice] += block_ms
            for group in (("block", block), *((name, getattr(block, name)) for name in _ALIKE)):
                groups.setdefault(group, np.zeros(shape))[layer.slot, choice] += block_ms
    return Slots(ms, np.stack(list(groups.values()), axis=2), _adjacent(space))


def _adjacent(space: SearchSpace) -> Ints:
    """Pairs of slots, the first of which decides what the second reads, (n_pairs, 2)."""
    made: dict[int, set[int]] = {}
    for layer, (_, target) in zip(space.layers, space.edges, strict=True):
        if layer.slot is not None:
            made.setdefault(target, set()).add(layer.slot)
    pairs = {
        (first, layer.slot)
        for layer, (source, _) in zip(space.layers, space.edges, strict=True)
        if layer.slot is not None
        for first in made.get(source, ())
        if first != layer.slot
    }
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def _with_interactions(
    space: SearchSpace, model: NetworkLatencyModel, found: Interactions
) -> NetworkLatencyModel:
    """The additive part joins the table; pairs and similarities stay as they are."""
    widths = [len(slot.candidates) for slot in space.slots]
    table = tuple(
        tuple(ms + float(extra) for ms, extra in zip(row, extras, strict=False))
        for row, extras in zip(model.table_ms, found.table_ms, strict=True)
    )
    least_ms = _NEGLIGIBLE * float(np.median([sum(map(max, table)), *(model.measured_ms or ())]))
    pairs = [
        Pair(i, j, tuple(map(tuple, ms[: widths[i], : widths[j]].tolist())))
        for (i, j), ms in zip(found.pairs.tolist(), found.pairs_ms, strict=True)
        if np.abs(ms).max() > least_ms
    ]
    similarity = Similarity(
        found.similarity,
        tuple(map(tuple, found.networks.tolist())),
        tuple(found.weights_ms.tolist()),
    )
    has_effect = np.abs(found.weights_ms).sum() > least_ms
    joined = replace(
        model, table_ms=table, pairs=tuple(pairs), similarity=similarity if has_effect else None
    )
    return replace(joined, extremes_ms=joined.find_extremes())


def _next_networks(
    space: SearchSpace,
    model: NetworkLatencyModel,
    fitted: NetworkCalibration,
    known: _Networks,
) -> list[dict[str, Any]]:
    """The networks whose measurement would tell most about random ones; none without interactions.

    Of a random pool, by the variance that each takes away a second (`network_values`).
    """
    if fitted.interactions_ is None:
        return []
    rng = random.Random(0)
    pool = [space.sample(rng) for _ in range(_POOL)]
    predicted_ms = np.array([model.predict_ms(a) for a in pool])
    offered = np.array([a.choices for a in pool], dtype=np.int64), predicted_ms
    before = known.choices, fitted.predict(known.choices, known.sums_ms)
    values = network_values(
        fitted.process,
        fitted.interactions_.variances,
        before,
        offered,
        offered,
        _LOADING_SECONDS + _RUNS * 1e-3 * predicted_ms,
    )
    most = np.argsort(-values)[:_TOLD]
    return [
        {
            "architecture": space.format(pool[i]),
            "predicted_ms": float(predicted_ms[i]),
            "variance_ms2_per_second": float(values[i]),
        }
        for i in most
    ]


def _entries(space: SearchSpace, blocks: Collection[BlockSpec]) -> tuple[tuple[int, int], ...]:
    """The candidates that hold one of these blocks, as (slot, choice)."""
    _, rows = space.slot_costs(lambda block: float(block in blocks))
    return tuple((s, c) for s, row in enumerate(rows) for c, n in enumerate(row) if n)


def _off_limits(space: SearchSpace, refused: Collection[BlockSpec]) -> tuple[tuple[int, int], ...]:
    """The candidates that hold a refused block, as (slot, choice).

    Raises:
        UnusableMeasurementsError: no network of the space is without one.
    """
    fixed, rows = space.slot_costs(lambda block: float(block in refused))
    if fixed or any(all(row) for row in rows):
        raise UnusableMeasurementsError(
            f"the target runs no network of {space.name}: it does not support "
            f"{', '.join(sorted(map(str, refused))[:3])}"
        )
    return _entries(space, refused)


def _priced_out(model: NetworkLatencyModel) -> NetworkLatencyModel:
    """`model` with every unsupported candidate at what the slowest other network takes."""
    if not model.unsupported:
        return model
    _, slowest_ms = model.band_ms
    refused = set(model.unsupported)
    rows = [
        tuple(slowest_ms if (s, c) in refused else ms for c, ms in enumerate(row))
        for s, row in enumerate(model.table_ms)
    ]
    return replace(model, table_ms=tuple(rows))


def _block_sums(
    space: SearchSpace, table: Mapping[BlockSpec, float], unseen: Mapping[Architecture, float]
) -> dict[str, Any]:
    """Errors of plain sums of blocks on the held-out networks, for the report."""
    if len(unseen) < 2:  # a rank correlation needs as many
        return {"block_sum": None, "block_sum_bias": None}
    sums = np.array([sum(table.get(b, 0.0) for b in space.blocks(a)) for a in unseen])
    quality = prediction_quality(sums, np.array(list(unseen.values())))
    return {"block_sum": asdict(quality), "block_sum_bias": quality.bias}
