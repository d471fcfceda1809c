"""Milliseconds of single blocks: measured where they were measured, otherwise predicted."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np

from predictor.errors import MissingMeasurementsError
from predictor.kits import CHAIN, block_subject, chains
from predictor.models.block_regressor import LEAST_BLOCKS, BlockRegressor
from search_core.errors import BlockSyntaxError
from search_core.space.blocks import BlockSpec
from search_core.space.space import SearchSpace

_HERE = "this target"

_CONTRADICTED = 2.0
"""Standard deviations by which a block may be predicted below one that asks for no more."""


@dataclass(frozen=True)
class BlockTable:
    """What each distinct block of a space takes inside a network.

    Attributes:
        ms: by block.
        sigma_ms: how far a predicted entry may be off, one standard deviation; measured blocks
            have none.
        outside: predicted blocks of a sort, or of a size, that the target has measured none of.
    """

    ms: dict[BlockSpec, float]
    sigma_ms: dict[BlockSpec, float]
    outside: frozenset[BlockSpec]


def blocks_of(space: SearchSpace, subjects: Collection[str]) -> set[BlockSpec]:
    """The blocks of `space` that any of these subjects is about."""
    return {
        block
        for block in space.distinct_blocks
        if any(block_subject(block, copies) in subjects for copies in chains(block))
    }


def measured_blocks(measured_ms: Mapping[str, float]) -> dict[BlockSpec, float]:
    """Milliseconds of every block whose chains were measured, whatever space it is of.

    A block chained once and four times gives ``(t4 - t1) / 3``: call overhead and the layout
    reorders at entry and exit cancel. What they amount to, the median of ``t1`` minus that,
    is subtracted from the blocks that cannot follow themselves. Never below zero.

    Args:
        measured_ms: median latency by subject; subjects that are no chain are passed over.
    """
    once: dict[BlockSpec, float] = {}
    for subject, latency_ms in measured_ms.items():
        kind, _, rest = subject.partition(":")
        text, _, copies = rest.rpartition(":x")
        if kind != "block" or copies != "1":
            continue
        try:
            block = BlockSpec.parse(text)
        except BlockSyntaxError:
            continue  # of a later version's grammar
        if all(block_subject(block, n) in measured_ms for n in chains(block)):
            once[block] = latency_ms
    chained = {
        block: (measured_ms[block_subject(block, CHAIN)] - ms) / (CHAIN - 1)
        for block, ms in once.items()
        if CHAIN in chains(block)
    }
    overhead_ms = median([once[block] - ms for block, ms in chained.items()] or [0.0])
    return {block: max(0.0, chained.get(block, ms - overhead_ms)) for block, ms in once.items()}


def block_table(
    space: SearchSpace,
    measured_ms: Mapping[str, float],
    unsupported: Collection[BlockSpec] = (),
    elsewhere: Mapping[str, Mapping[str, float]] | None = None,
) -> BlockTable:
    """What each distinct block of `space` takes inside a network, in ms.

    Blocks without a measurement are predicted by a `BlockRegressor` fitted to every block that
    this target and the others have measured.

    Args:
        measured_ms: median latency by subject on this target.
        unsupported: blocks that the target cannot run; they are left out.
        elsewhere: the same of other targets, by any name.

    Raises:
        MissingMeasurementsError: blocks are missing, and too few are measured to predict them;
            it names every subject that is absent.
    """
    here = measured_blocks(measured_ms)
    wanted = [b for b in space.distinct_blocks if b not in unsupported]
    missing = [b for b in wanted if b not in here]
    known = {b: ms for b, ms in here.items() if ms > 0.0}
    if missing and len(known) < LEAST_BLOCKS:
        needed = [block_subject(b, copies) for b in wanted for copies in chains(b)]
        raise MissingMeasurementsError([s for s in needed if s not in measured_ms])
    table, sigma_ms, outside = {b: here[b] for b in wanted if b in here}, {}, set()
    if missing:
        rows = [(_HERE, b, ms) for b, ms in known.items()]
        for name, measured in (elsewhere or {}).items():
            rows += [(name, b, ms) for b, ms in measured_blocks(measured).items() if ms > 0.0]
        devices, blocks, latency_ms = zip(*rows, strict=True)
        regressor = BlockRegressor().fit(blocks, devices, np.array(latency_ms))
        found = regressor.predict(missing, _HERE)
        for block, ms, sigma, covered in zip(missing, *found, strict=True):
            smaller = (known_ms for other, known_ms in known.items() if _asks_no_more(other, block))
            table[block] = max(float(ms), max(smaller, default=0.0) - _CONTRADICTED * sigma)
            sigma_ms[block] = float(sigma)
            if not covered:
                outside.add(block)
    return BlockTable(table, sigma_ms, frozenset(outside))


def _asks_no_more(one: BlockSpec, other: BlockSpec) -> bool:
    """Whether `one` is of the same sort as `other` and smaller or equal in every size."""
    if (one.kind, one.stride, one.has_shortcut) != (other.kind, other.stride, other.has_shortcut):
        return False
    return all(
        getattr(one, size) <= getattr(other, size)
        for size in ("kernel", "expansion", "in_channels", "out_channels", "resolution_px")
    )
