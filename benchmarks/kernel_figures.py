"""Figures and pictures of predictions, for the benchmark of convolutions and blocks."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.records import plot_bars
from predictor.evaluation import check_latencies, prediction_quality

Floats = NDArray[np.float64]
Text = NDArray[np.str_]
Figures = dict[str, Any]

SHORT = ("n", "mape", "within_10", "spearman")
MEANS = ("mape", "within_5", "within_10", "spearman", "kendall", "rmspe", "p95", "bias")


def short(predicted_ms: Floats, measured_ms: Floats) -> Figures:
    """Figures of a part, which may hold a single block: nothing ranks then."""
    if np.ptp(measured_ms) == 0.0 or np.ptp(predicted_ms) == 0.0:
        errors = np.abs(predicted_ms / measured_ms - 1.0)
        within_10 = float((errors <= 0.10).mean())
        alike = {"n": len(errors), "mape": float(errors.mean()), "within_10": within_10}
        return alike | {"spearman": None}
    quality = prediction_quality(predicted_ms, measured_ms)
    return {name: getattr(quality, name) for name in SHORT}


def summary(predicted_ms: Floats, measured_ms: Floats, targets: Text) -> Figures:
    """Figures over everything, ending in ``_mean``, and by target."""
    check_latencies(measured_ms, "of the test", at_least=2)
    quality = prediction_quality(predicted_ms, measured_ms)
    return {
        "n": quality.n,
        **{f"{name}_mean": getattr(quality, name) for name in MEANS},
        "targets": {
            str(name): short(predicted_ms[targets == name], measured_ms[targets == name])
            for name in np.unique(targets)
        },
    }


def by_target(
    targets: Text, measured_ms: Floats, predicted_ms: Floats
) -> dict[str, tuple[Floats, Floats]]:
    """What `plot_parity` draws, a panel for each target."""
    return {
        str(name): (measured_ms[targets == name], predicted_ms[targets == name])
        for name in np.unique(targets)
    }


def beside(out: Path, what: str) -> Path:
    """Where a picture of a record goes."""
    return out.with_name(f"{out.stem}_{what}.svg")


def plot_errors(sorts: list[str], predicted_ms: Floats, measured_ms: Floats, out: Path) -> None:
    """Mean absolute error by sort of row, as bars."""
    errors, named = 100.0 * np.abs(predicted_ms / measured_ms - 1.0), np.array(sorts)
    bars = {str(name): float(errors[named == name].mean()) for name in np.unique(named)}
    plot_bars(bars, beside(out, "errors"), "Mean absolute error", "%")


def say(text: str) -> None:
    """Tell people how far it is."""
    print(text, file=sys.stderr, flush=True)
