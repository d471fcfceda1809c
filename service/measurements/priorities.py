"""Which blocks of a kit to measure first; only attempts import this."""

from collections.abc import Mapping, Sequence
from typing import Any

from predictor.acquisition import block_values
from predictor.kits import chains, subject_weights
from search_core.space.space import SearchSpace
from service.searches.effort import measuring_seconds


def block_priorities(
    space: SearchSpace,
    report: Mapping[str, Any],
    probabilities: Sequence[Sequence[float]] | None = None,
) -> dict[str, float]:
    """What measuring each block is worth to a search that draws from `probabilities`, by subject.

    Where the latency model predicted blocks: the variance they bring into the expected latency, a
    second. Where it did not: how many copies an average network holds.

    Args:
        report: of the latency model.
        probabilities: one row a slot; None: every candidate alike.
    """
    predicted = report.get("predicted_blocks")
    if not predicted:
        return subject_weights(space, probabilities)
    sigma_ms, seconds = {}, {}
    for block in space.distinct_blocks:
        guess = predicted.get(str(block), {"ms": 0.0, "sigma_ms": 0.0})  # measured: nothing to gain
        sigma_ms[block] = guess["sigma_ms"]
        seconds[block] = sum(measuring_seconds("table", n * guess["ms"]) for n in chains(block))
    return block_values(space, probabilities, sigma_ms, seconds)
