"""What the architecture strings of a latency table mean: choices, and what they cost on paper."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor.errors import BadTableError
from predictor.structure import (
    canonical_digest,
    feature_names,
    is_degenerate,
    structural_features,
)
from search_core.errors import ArchitectureSyntaxError
from search_core.space.blocks import BlockSpec
from search_core.space.graph import Graph
from search_core.space.presets import get_space
from search_core.space.primitives import Primitive, Program, Step
from search_core.space.space import SearchSpace

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FBNET = "fbnet"
"""FBNet's space as HELP measured it; no space of `search_core`, for its grouped convolutions."""


@dataclass(frozen=True)
class Networks:
    """The networks of a table, row by row.

    Attributes:
        choices: (n, n_slots), the candidate chosen in each slot.
        features: (n, n_features), what each network costs without any device; no column is
            constant.
        feature_names: of the columns of `features`.
        digests: equal for networks that are one graph under two names.
        degenerate: (n,), whether a network's output does not depend on its input.
    """

    choices: Integers
    features: Floats
    feature_names: tuple[str, ...]
    digests: tuple[str, ...]
    degenerate: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.choices)


def networks_of(
    space_name: str, texts: Sequence[str], rows: Sequence[int] | None = None
) -> Networks:
    """Parse the architecture strings of one table.

    Args:
        space_name: ``fbnet``, or a space of `search_core` by name.
        texts: one a row; tokens in the space's notation, or for ``fbnet`` 22 digits 0-8
            joined by ``-``.
        rows: those wanted, in this order; all of them where it is left out.

    Raises:
        BadTableError: a string is no architecture of the space; it names the row.
        UnknownSpaceError: there is no such space.
    """
    wanted = range(len(texts)) if rows is None else rows
    if space_name == FBNET:
        return _fbnet(texts, wanted)
    return _searchable(get_space(space_name), texts, wanted)


def _searchable(space: SearchSpace, texts: Sequence[str], rows: Sequence[int]) -> Networks:
    architectures = []
    for row, text in enumerate(texts):
        try:
            architectures.append(space.parse(text))
        except ArchitectureSyntaxError as error:
            raise BadTableError(str(error), row=row) from None
    graphs = [space.graph(architectures[row]) for row in rows]
    choices = np.array([architectures[row].choices for row in rows], np.int64)
    costs = np.array([_graph_costs(graph) for graph in graphs])
    structural = np.array([structural_features(space, graph) for graph in graphs])
    counts = {f"choices of {k}": (choices == k).sum(1) for k in range(int(choices.max()) + 1)}
    counts |= dict(zip(feature_names(space), structural.T, strict=True))
    return _networks(
        choices,
        costs,
        counts,
        tuple(canonical_digest(graph) for graph in graphs),
        np.array([is_degenerate(graph) for graph in graphs]),
    )


def _graph_costs(graph: Graph) -> Floats:
    return sum((_block_costs(block) for _, block in graph.live), np.zeros(len(_COSTS)))


@lru_cache(maxsize=4096)
def _block_costs(block: BlockSpec) -> Floats:
    return _costs(block.steps)


# FBNet's macro architecture on 32 x 32 pixels: (channels, blocks, stride of the first)
# (Wu et al. 2019, table 1, with the strides that HW-NAS-Bench uses for CIFAR).
_FBNET_STAGES = (
    (16, 1, 1),
    (24, 4, 1),
    (32, 4, 2),
    (64, 4, 2),
    (112, 4, 1),
    (184, 4, 2),
    (352, 1, 1),
)
# (kernel, expansion, groups) of each candidate but the last, which skips
_FBNET_CANDIDATES = (
    (3, 1, 1),
    (3, 1, 2),
    (3, 3, 1),
    (3, 6, 1),
    (5, 1, 1),
    (5, 1, 2),
    (5, 3, 1),
    (5, 6, 1),
)
_FBNET_SKIP = len(_FBNET_CANDIDATES)
_FBNET_SLOTS = sum(blocks for _, blocks, _ in _FBNET_STAGES)


def _fbnet(texts: Sequence[str], rows: Sequence[int]) -> Networks:
    choices = np.empty((len(texts), _FBNET_SLOTS), np.int64)
    for row, text in enumerate(texts):
        tokens = text.split("-")
        known = all(len(t) == 1 and t in "012345678" for t in tokens)
        if len(tokens) != _FBNET_SLOTS or not known:
            raise BadTableError(
                f"{FBNET} writes an architecture as {_FBNET_SLOTS} digits 0-{_FBNET_SKIP} joined "
                f"by '-', got {text!r}",
                row=row,
            )
        choices[row] = [int(token) for token in tokens]
    choices = choices[list(rows)]
    table, stage = _fbnet_table()
    costs = table[np.arange(_FBNET_SLOTS), choices].sum(1)
    counts = {f"choices of {k}": (choices == k).sum(1) for k in range(_FBNET_SKIP + 1)}
    counts |= {
        f"blocks of stage {s}": ((choices != _FBNET_SKIP) & (stage == s)).sum(1)
        for s in range(len(_FBNET_STAGES))
    }
    digests = tuple(texts[row] for row in rows)
    return _networks(choices, costs, counts, digests, np.zeros(len(choices), bool))


def _fbnet_table() -> tuple[Floats, Integers]:
    """Costs of every candidate, (n_slots, n_candidates, n_costs), and the stage of each slot."""
    rows, stages = [], []
    channels, resolution_px = 16, 32
    for stage, (out_channels, blocks, first_stride) in enumerate(_FBNET_STAGES):
        for position in range(blocks):
            stride = 1 if position else first_stride
            shape = (channels, out_channels, stride, resolution_px)
            candidates = [_fbnet_block(*shape, *kind) for kind in _FBNET_CANDIDATES]
            rows.append([_costs(steps) for steps in (*candidates, _fbnet_skip(*shape))])
            stages.append(stage)
            channels, resolution_px = out_channels, resolution_px // stride
    return np.array(rows), np.array(stages)


def _fbnet_block(
    channels: int,
    out_channels: int,
    stride: int,
    resolution_px: int,
    kernel: int,
    expansion: int,
    groups: int,
) -> list[Step]:
    program, hidden = Program(channels, resolution_px), channels * expansion
    value = program.conv("expand", 0, hidden, groups=groups)
    if groups > 1:
        value = program.channels(Primitive.SHUFFLE_CHANNELS, value, hidden)
    value = program.conv("depthwise", value, hidden, kernel=kernel, stride=stride, groups=hidden)
    program.conv("project", value, out_channels, groups=groups)
    return program.steps


def _fbnet_skip(channels: int, out_channels: int, stride: int, resolution_px: int) -> list[Step]:
    """Nothing, but a convolution 1 x 1 where the shape changes."""
    program = Program(channels, resolution_px)
    if (channels, 1) != (out_channels, stride):
        program.conv("project", 0, out_channels, stride=stride)
    return program.steps


_COSTS = ("dense MACs", "depthwise MACs", "weights", "values", "launches")
_FUSED = {Primitive.BATCH_NORM, Primitive.RELU, Primitive.RELU6}


def _costs(steps: Sequence[Step]) -> Floats:
    """What steps cost, in the order of `_COSTS`; what runtimes fuse launches nothing."""
    total = np.zeros(len(_COSTS))
    for step in steps:
        depthwise = step.groups == step.in_channels > 1
        launches = step.primitive not in _FUSED
        values = step.in_channels * step.resolution_px**2 + step.out_elements
        total += (
            step.macs * (not depthwise),
            step.macs * depthwise,
            step.parameters,
            values * launches,
            launches,
        )
    return total


def _networks(
    choices: Integers,
    costs: Floats,
    counts: dict[str, Any],
    digests: tuple[str, ...],
    degenerate: NDArray[np.bool_],
) -> Networks:
    named = {f"log {name}": np.log1p(costs[:, i]) for i, name in enumerate(_COSTS)}
    named |= {name: costs[:, i] for i, name in enumerate(_COSTS)}
    named |= {name: count.astype(float) for name, count in counts.items()}
    vary = {name: column for name, column in named.items() if np.ptp(column) > 0.0}
    columns = [*vary.values()] or [np.zeros(len(choices))]
    return Networks(choices, np.stack(columns, axis=1), tuple(vary), digests, degenerate)
