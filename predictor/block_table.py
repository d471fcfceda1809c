"""Milliseconds of single blocks, from chained measurements."""

from collections.abc import Collection, Mapping
from statistics import median

from predictor.errors import MissingMeasurementsError
from predictor.kits import CHAIN, block_subject, chains
from search_core.space.blocks import BlockSpec
from search_core.space.space import SearchSpace


def blocks_of(space: SearchSpace, subjects: Collection[str]) -> set[BlockSpec]:
    """The blocks of `space` that any of these subjects is about."""
    return {
        block
        for block in space.distinct_blocks
        if any(block_subject(block, copies) in subjects for copies in chains(block))
    }


def block_table(
    space: SearchSpace,
    measured_ms: Mapping[str, float],
    unsupported: Collection[BlockSpec] = (),
) -> dict[BlockSpec, float]:
    """What each distinct block of `space` takes inside a network, in ms.

    A block chained once and four times gives ``(t4 - t1) / 3``: call overhead and the layout
    reorders at entry and exit cancel. What they amount to, the median of ``t1`` minus that,
    is subtracted from the blocks that cannot follow themselves. Never below zero.

    Args:
        measured_ms: median latency by subject.
        unsupported: blocks that the target cannot run; they are left out.

    Raises:
        MissingMeasurementsError: naming every subject that is absent.
    """
    blocks = [b for b in space.distinct_blocks if b not in unsupported]
    needed = [block_subject(b, copies) for b in blocks for copies in chains(b)]
    missing = [subject for subject in needed if subject not in measured_ms]
    if missing:
        raise MissingMeasurementsError(missing)

    once = {b: measured_ms[block_subject(b, 1)] for b in blocks}
    table = {
        b: (measured_ms[block_subject(b, CHAIN)] - once[b]) / (CHAIN - 1)
        for b in blocks
        if CHAIN in chains(b)
    }
    overhead_ms = median([once[b] - ms for b, ms in table.items()] or [0.0])
    return {b: max(0.0, table.get(b, once[b] - overhead_ms)) for b in blocks}
