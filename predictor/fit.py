"""From measurements to a latency model and a report on how far to trust it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from predictor.block_table import block_table, blocks_of
from predictor.errors import MissingMeasurementsError, UnusableMeasurementsError
from predictor.evaluation import prediction_quality
from predictor.kits import calibration_architectures, held_out_architectures, network_subject
from predictor.models.affine import AffineCalibration
from predictor.network import NetworkLatencyModel
from search_core.space.blocks import BlockSpec
from search_core.space.space import Architecture, SearchSpace

_LEAST_MARGIN = 0.01
_LEAST_EFFECT = 1e-3
_LEAST_NETWORKS = 5


def fit_latency_model(
    space: SearchSpace,
    measured_ms: Mapping[str, float],
    unsupported: Collection[str] = (),
) -> tuple[NetworkLatencyModel, dict[str, Any]]:
    """Fit block table and affine calibration to a measured kit.

    Args:
        measured_ms: median latency by subject, of a whole kit.
        unsupported: subjects that the target cannot run.

    Returns:
        The model and its report: leave-one-out errors of the calibration networks, which
        neither the line nor the margin were fitted to when they were predicted, and errors
        of the held-out networks, which no part of the model has seen.

    Raises:
        MissingMeasurementsError: a subject of the kit has no measurement.
        UnusableMeasurementsError: longer block sums do not take longer.
    """
    refused = blocks_of(space, unsupported)
    table = block_table(space, measured_ms, refused)
    fixed_ms, rows_ms = space.slot_costs(lambda block: table.get(block, 0.0))  # Zero takes none
    off_limits = _price_out(space, refused, fixed_ms, rows_ms)
    networks = [a for a in calibration_architectures(space) if refused.isdisjoint(space.blocks(a))]
    missing = [s for a in networks if (s := network_subject(space, a)) not in measured_ms]
    missing = [subject for subject in missing if subject not in unsupported]
    if missing:
        raise MissingMeasurementsError(missing)
    networks = [a for a in networks if network_subject(space, a) in measured_ms]
    if len(networks) < _LEAST_NETWORKS:
        raise UnusableMeasurementsError(
            f"the target runs {len(networks)} of the calibration networks, and "
            f"{_LEAST_NETWORKS} are needed; it does not support "
            f"{', '.join(sorted(unsupported)[:3])}"
        )
    sums = np.array([[sum(table.get(b, 0.0) for b in space.blocks(a))] for a in networks])
    measured = np.array([measured_ms[network_subject(space, a)] for a in networks])
    line = AffineCalibration().fit(sums, measured)
    effect = line.scale_ * float(np.ptp(sums)) / float(np.median(measured))
    if not effect > _LEAST_EFFECT:
        raise UnusableMeasurementsError(
            "networks of larger block sums measured no slower: from the smallest to the largest "
            f"they gain {effect:.1%} of a network; measure the target again when it is quiet"
        )
    left_out = np.array(
        [
            AffineCalibration()
            .fit(np.delete(sums, i, axis=0), np.delete(measured, i))
            .predict(sums[i : i + 1])[0]
            for i in range(len(networks))
        ]
    )
    quality = prediction_quality(left_out, measured)
    model = NetworkLatencyModel(
        space_digest=space.digest,
        offset_ms=line.offset_ + line.scale_ * fixed_ms,
        table_ms=tuple(tuple(line.scale_ * ms for ms in row) for row in rows_ms),
        margin=max(_LEAST_MARGIN, min(0.25, 2.0 * quality.mape)),
        unsupported=off_limits,
    )
    held_out = [
        a for a in held_out_architectures(space) if network_subject(space, a) in measured_ms
    ]
    report: dict[str, Any] = {
        "calibration": {"offset_ms": line.offset_, "scale": line.scale_},
        "leave_one_out": asdict(quality),
        "n_blocks": len(table),
        "unsupported_blocks": sorted(map(str, refused)),
        **_on_held_out(space, model, table, held_out, measured_ms),
        "networks": [
            {
                "architecture": space.format(a),
                "measured_ms": float(m),
                "left_out_prediction_ms": float(p),
            }
            for a, m, p in zip(networks, measured, left_out, strict=True)
        ],
    }
    return model, report


def _price_out(
    space: SearchSpace,
    refused: Collection[BlockSpec],
    fixed_ms: float,
    rows_ms: list[list[float]],
) -> tuple[tuple[int, int], ...]:
    """Raise the candidates that hold a refused block to what the slowest other network takes.

    Returns:
        These candidates, as (slot, choice).

    Raises:
        UnusableMeasurementsError: no network of the space is without a refused block.
    """
    fixed, rows = space.slot_costs(lambda block: float(block in refused))
    off_limits = {(s, c) for s, row in enumerate(rows) for c, n in enumerate(row) if n}
    if fixed or any(all(row) for row in rows):
        raise UnusableMeasurementsError(
            f"the target runs no network of {space.name}: it does not support "
            f"{', '.join(sorted(map(str, refused))[:3])}"
        )
    slowest_ms = fixed_ms + sum(
        max(ms for c, ms in enumerate(row) if (s, c) not in off_limits)
        for s, row in enumerate(rows_ms)
    )
    for slot, choice in off_limits:
        rows_ms[slot][choice] = slowest_ms
    return tuple(sorted(off_limits))


def _on_held_out(
    space: SearchSpace,
    model: NetworkLatencyModel,
    table: Mapping[BlockSpec, float],
    networks: Sequence[Architecture],
    measured_ms: Mapping[str, float],
) -> dict[str, Any]:
    """Errors of the model, and of plain sums of blocks, on networks that neither has seen."""
    if len(networks) < 2:
        return {"held_out": None, "block_sum": None, "block_sum_bias": None}
    measured = np.array([measured_ms[network_subject(space, a)] for a in networks])
    predicted = np.array([model.predict_ms(a) for a in networks])
    sums = np.array([sum(table.get(b, 0.0) for b in space.blocks(a)) for a in networks])
    of_sums = prediction_quality(sums, measured)
    return {
        "held_out": asdict(prediction_quality(predicted, measured)),
        "block_sum": asdict(of_sums),
        "block_sum_bias": of_sums.bias,
        "held_out_networks": [
            {"architecture": space.format(a), "measured_ms": float(m), "predicted_ms": float(p)}
            for a, m, p in zip(networks, measured, predicted, strict=True)
        ],
    }
