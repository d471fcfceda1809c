"""How good predictions are."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictor.errors import BadTableError

Floats = NDArray[np.float64]

_LEAST = 1e-6


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
        within_5: share of predictions within 5 % of the measurement.
        rmspe: root of the mean squared relative error.
        p95: absolute relative error that 95 % of the predictions stay below.
        kendall: rank correlation by pairs, tau-b.
    """

    n: int
    mape: float
    bias: float
    within_10: float
    worst_under: float
    spearman: float
    within_5: float
    rmspe: float
    p95: float
    kendall: float


def prediction_quality(predicted_ms: Floats, measured_ms: Floats) -> PredictionQuality:
    """Compare predictions (n,) with measurements (n,), both in ms."""
    from scipy.stats import kendalltau, spearmanr  # the API prices files without it

    error = predicted_ms / measured_ms - 1.0
    size = np.abs(error)
    floor_ms = np.maximum(predicted_ms, _LEAST * measured_ms)  # a prediction may be 0
    return PredictionQuality(
        n=len(measured_ms),
        mape=float(size.mean()),
        bias=float(error.mean()),
        within_10=float((size <= 0.10).mean()),
        worst_under=float(max(0.0, (measured_ms / floor_ms - 1.0).max())),
        spearman=float(spearmanr(predicted_ms, measured_ms).statistic),
        within_5=float((size <= 0.05).mean()),
        rmspe=float(np.sqrt((error**2).mean())),
        p95=float(np.percentile(size, 95)),
        kendall=float(kendalltau(predicted_ms, measured_ms).statistic),
    )


def check_latencies(latency_ms: Floats, name: str, *, at_least: int) -> None:
    """Refuse what no model can be fitted to.

    Args:
        latency_ms: (n,) as they came.
        name: of the column, for the message.
        at_least: fewest samples that the model can be fitted to.

    Raises:
        BadTableError: too few, not finite, not positive, or all alike; it names the row.
    """
    if len(latency_ms) < at_least:
        raise BadTableError(
            f"{len(latency_ms)} samples, and at least {at_least} are needed", column=name
        )
    wrong = np.flatnonzero(~(np.isfinite(latency_ms) & (latency_ms > 0.0)))
    if len(wrong):
        row = int(wrong[0])
        raise BadTableError(
            f"a latency is a positive number of ms, got {latency_ms[row]}", row=row, column=name
        )
    if float(np.ptp(latency_ms)) <= 1e-9 * float(latency_ms.max()):
        raise BadTableError(
            f"all {len(latency_ms)} latencies are {latency_ms[0]:g} ms: nothing can be learnt "
            "from them",
            column=name,
        )
