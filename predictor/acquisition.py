"""What to measure next: where a second of the device tells a running search most.

A search is charged the expected latency of the networks it draws. What it does not know of that
is a variance; measuring a block or a network takes part of it away, and takes time. When to stop
is told by the intervals: once the network in question is known well enough, more does not help.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from predictor.kits import block_subject, chains, subject_weights
from predictor.models.interactions import InteractionProcess, Variances
from predictor.network import NetworkLatencyModel
from search_core.space.blocks import BlockSpec
from search_core.space.space import SearchSpace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

HALF_WIDTH = 0.03
"""Relative; an incumbent known to this is not worth more of the device's time."""


def block_values(
    space: SearchSpace,
    probabilities: Sequence[Sequence[float]] | None,
    sigma_ms: Mapping[BlockSpec, float],
    seconds: Mapping[BlockSpec, float],
) -> dict[str, float]:
    """Variance of the expected latency that measuring each block takes away, in ms^2 a second.

    An average network holds ``n_b`` copies of block b, whose latency is off by ``sigma_b``: the
    expectation has ``(n_b sigma_b)^2`` of its variance from there.

    Args:
        probabilities: of the search, one row a slot; None: every candidate alike.
        sigma_ms: of every block that was predicted; others are worth nothing.
        seconds: what measuring a block takes, all its chains together.

    Returns:
        By subject; the chains of a block are worth the same, for one says nothing alone.
    """
    copies = subject_weights(space, probabilities)
    values = {}
    for block in space.distinct_blocks:
        deviation_ms = copies[block_subject(block, 1)] * sigma_ms.get(block, 0.0)
        for n in chains(block):
            values[block_subject(block, n)] = deviation_ms**2 / seconds[block]
    return values


def network_values(
    process: InteractionProcess,
    variances: Variances,
    measured: tuple[Ints, Floats],
    offered: tuple[Ints, Floats],
    drawn: tuple[Ints, Floats],
    seconds: Floats,
) -> Floats:
    """Variance that measuring each offered network takes away, in ms^2 a second, (n_offered,).

    The mean over networks that the search draws of what knowing the offered one leaves less
    uncertain about them, under the process on residuals.

    Args:
        variances: of the process, as fitted.
        measured, offered, drawn: choices (n, n_slots) and predicted latencies (n,) in ms of the
            networks that were measured, that could be, and that the search draws.
        seconds: (n_offered,) what measuring each takes.
    """
    covariance = process.covariance_given(variances, measured, offered, drawn)
    variance = process.covariance_given(variances, measured, offered, offered).diagonal()
    noise = variances.noise * offered[1] ** 2
    taken: Floats = (covariance**2).mean(axis=1) / (variance + noise) / seconds
    return taken


def is_known_well(
    model: NetworkLatencyModel, predicted_ms: float, half_width: float = HALF_WIDTH
) -> bool:
    """Whether the interval at a prediction is narrow enough to stop measuring."""
    interval = model.interval_ms(predicted_ms)
    return interval is not None and interval[1] - predicted_ms <= half_width * predicted_ms
