"""How good predictions are."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PredictionQuality:
    """Errors of predicted against measured latencies.

    Attributes:
        n: how many networks were compared.
        mape: mean absolute relative error.
        bias: mean relative error, positive where predictions are too high.
        within_10: share of predictions within 10 % of the measurement.
        worst_under: largest relative amount by which a measurement exceeded its prediction.
        spearman: rank correlation.
    """

    n: int
    mape: float
    bias: float
    within_10: float
    worst_under: float
    spearman: float


def prediction_quality(predicted_ms: Floats, measured_ms: Floats) -> PredictionQuality:
    """Compare predictions (n,) with measurements (n,), both in ms."""
    error = predicted_ms / measured_ms - 1.0
    return PredictionQuality(
        n=len(measured_ms),
        mape=float(np.abs(error).mean()),
        bias=float(error.mean()),
        within_10=float((np.abs(error) <= 0.10).mean()),
        worst_under=float(max(0.0, (measured_ms / predicted_ms - 1.0).max())),
        spearman=float(spearmanr(predicted_ms, measured_ms).statistic),
    )
