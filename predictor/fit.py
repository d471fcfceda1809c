"""From measurements to a latency model and a report on how far to trust it."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from predictor.block_table import block_table
from predictor.errors import MissingMeasurementsError, UnusableMeasurementsError
from predictor.evaluation import prediction_quality
from predictor.kits import calibration_architectures, network_subject
from predictor.models.affine import AffineCalibration
from predictor.network import NetworkLatencyModel
from search_core.space.space import SearchSpace

_LEAST_MARGIN = 0.01
_LEAST_EFFECT = 1e-3


def fit_latency_model(
    space: SearchSpace, measured_ms: Mapping[str, float]
) -> tuple[NetworkLatencyModel, dict[str, Any]]:
    """Fit block table and affine calibration to a measured kit.

    Args:
        measured_ms: median latency by subject, of a whole kit.

    Returns:
        The model and its report: leave-one-out errors of the calibration networks, which
        neither the line nor the margin were fitted to when they were predicted.

    Raises:
        MissingMeasurementsError: a subject of the kit has no measurement.
        UnusableMeasurementsError: longer block sums do not take longer.
    """
    table = block_table(space, measured_ms)
    fixed_ms, rows_ms = space.slot_costs(lambda block: table.get(block, 0.0))  # Zero takes none
    networks = calibration_architectures(space)
    missing = [s for a in networks if (s := network_subject(space, a)) not in measured_ms]
    if missing:
        raise MissingMeasurementsError(missing)

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
    )
    report = {
        "calibration": {"offset_ms": line.offset_, "scale": line.scale_},
        "leave_one_out": asdict(quality),
        "n_blocks": len(table),
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
