"""What networks that no fit has seen say of a latency model: its errors, and its intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from predictor.evaluation import PredictionQuality, prediction_quality
from predictor.intervals import conformal_intervals, realised_coverage
from predictor.kits import held_out_architectures, network_subject
from predictor.network import NetworkLatencyModel
from search_core.space.space import Architecture, SearchSpace

_LEAST_FOR_INTERVALS = 9
"""Fewer say too little about how far a measurement may lie from its prediction."""

_LEAST_FOR_ERRORS = 2
"""A rank correlation needs as many."""


def measured_networks(
    space: SearchSpace, architectures: Sequence[Architecture], measured_ms: Mapping[str, float]
) -> dict[Architecture, float]:
    """Those of `architectures` that have a measurement, with it."""
    subjects = {a: network_subject(space, a) for a in architectures}
    return {a: measured_ms[s] for a, s in subjects.items() if s in measured_ms}


def quality_of(
    space: SearchSpace, model: NetworkLatencyModel, measured_ms: Mapping[str, float]
) -> PredictionQuality | None:
    """Errors of a model on the held-out networks of a kit as they are measured now.

    Two models are compared by these; None where fewer than two are measured.
    """
    unseen = measured_networks(space, held_out_architectures(space), measured_ms)
    if len(unseen) < _LEAST_FOR_ERRORS:
        return None
    predicted = np.array([model.predict_ms(a) for a in unseen])
    return prediction_quality(predicted, np.array(list(unseen.values())))


def judged(
    space: SearchSpace, model: NetworkLatencyModel, unseen: Mapping[Architecture, float]
) -> tuple[NetworkLatencyModel, dict[str, Any]]:
    """The model with intervals from networks it has not seen, and its errors on them.

    How many measurements the intervals hold is told by leaving each network out of them in turn.

    Args:
        unseen: measured latency in ms of each network; too few give neither errors nor intervals.

    Returns:
        The model, and `held_out`, `intervals` and `held_out_networks` for its report.
    """
    report: dict[str, Any] = {"held_out": None, "intervals": None}
    if len(unseen) < _LEAST_FOR_ERRORS:
        return model, report
    predicted, measured = [model.predict_ms(a) for a in unseen], list(unseen.values())
    report["held_out"] = asdict(prediction_quality(np.array(predicted), np.array(measured)))
    report["held_out_networks"] = [
        {"architecture": space.format(a), "measured_ms": float(m), "predicted_ms": float(p)}
        for a, m, p in zip(unseen, measured, predicted, strict=True)
    ]
    if len(unseen) >= _LEAST_FOR_INTERVALS:
        intervals = conformal_intervals(predicted, measured)
        model = replace(model, intervals=intervals)
        report["intervals"] = {
            **asdict(intervals),
            "coverage": realised_coverage(predicted, measured),
            "mean_half_width": float(np.mean([intervals.of(p)[1] / p - 1.0 for p in predicted])),
        }
    return model, report
