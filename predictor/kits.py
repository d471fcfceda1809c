"""Kits: the model files that make a search space known on a target.

A subject is the string that names what one file measures:

- ``block:mbconv_k3_e6_s1_i24_o24_r8:x4``, a block chained four times;
- ``network:micro@1:k3e1c24 ...``, a whole network of a space.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from search_core.onnx_graph import build_model, random_weights
from search_core.space.blocks import BlockSpec
from search_core.space.graph import Graph
from search_core.space.space import Architecture, SearchSpace

CHAIN = 4
"""A block that can follow itself is measured once and this many times in a row."""

N_CALIBRATION_NETWORKS = 30
N_HELD_OUT_NETWORKS = 30

BUILDER_VERSION = 1
"""Of the files that `KitItem.build` makes; a file of another version is another file."""

Role = Literal["block", "calibration", "held_out"]


@dataclass(frozen=True)
class KitItem:
    """One model file to measure: its subject and the network of blocks it holds.

    Attributes:
        role: what its latency is for: the table, the calibration, or the test of both.
    """

    subject: str
    graph: Graph
    role: Role = "block"

    def build(self, batch: int = 1) -> bytes:
        """The ONNX file, with random weights; the same bytes each time."""
        return build_model(self.graph, random_weights(self.graph), batch=batch)


def block_subject(block: BlockSpec, copies: int) -> str:
    """The subject of `block` chained `copies` times."""
    return f"block:{block}:x{copies}"


def network_subject(space: SearchSpace, architecture: Architecture) -> str:
    """The subject of a whole network of `space`."""
    return f"network:{space.name}@{space.version}:{space.format(architecture)}"


def chains(block: BlockSpec) -> tuple[int, ...]:
    """How often `block` is chained in a kit: once, and `CHAIN` times where shapes allow."""
    repeats = block.stride == 1 and block.in_channels == block.out_channels
    return (1, CHAIN) if repeats else (1,)


def block_items(space: SearchSpace) -> list[KitItem]:
    """Every distinct block of `space` in every chain length it is measured in."""
    return [
        KitItem(block_subject(block, copies), Graph.chain((block,) * copies))
        for block in space.distinct_blocks
        for copies in chains(block)
    ]


def network_item(
    space: SearchSpace, architecture: Architecture, role: Role = "calibration"
) -> KitItem:
    """The whole network of `architecture`."""
    return KitItem(network_subject(space, architecture), space.graph(architecture), role)


def calibration_architectures(space: SearchSpace, seed: int = 0) -> list[Architecture]:
    """The networks a latency model is calibrated on: both extremes in MACs, the rest random."""
    return _architectures(space, seed)[:N_CALIBRATION_NETWORKS]


def held_out_architectures(space: SearchSpace, seed: int = 0) -> list[Architecture]:
    """Random networks that no part of a latency model may see; its errors are told by them."""
    return _architectures(space, seed)[N_CALIBRATION_NETWORKS:]


def _architectures(space: SearchSpace, seed: int) -> list[Architecture]:
    _, macs = space.slot_costs(lambda block: block.macs)
    extremes = [space.architecture([row.index(pick(row)) for row in macs]) for pick in (min, max)]
    rng = random.Random(seed)
    chosen: dict[Architecture, None] = dict.fromkeys(extremes)
    while len(chosen) < min(N_CALIBRATION_NETWORKS + N_HELD_OUT_NETWORKS, space.size):
        chosen.setdefault(space.sample(rng))
    return list(chosen)


def plan_kit(space: SearchSpace) -> list[KitItem]:
    """Everything to measure before `space` can be searched on a new target."""
    return [
        *(network_item(space, a) for a in calibration_architectures(space)),
        *block_items(space),
        *(network_item(space, a, "held_out") for a in held_out_architectures(space)),
    ]


def anchor_item() -> KitItem:
    """The file whose steadiness tells whether a device is quiet; the same for every task.

    Small enough to be looked at between two slices, large enough to feel a neighbour in
    the shared caches.
    """
    block = BlockSpec.parse("mbconv_k3_e3_s1_i24_o24_r16")
    return KitItem(block_subject(block, 2), Graph.chain((block,) * 2))


def canary_items() -> list[KitItem]:
    """Files measured again on a schedule, by every agent of a target; their drift is its drift."""
    blocks = (
        "mbconv_k3_e3_s1_i24_o24_r16",
        "mbconv_k7_e6_s1_i96_o96_r8",
        "conv_k1_e1_s1_i320_o1280_r8",
    )
    return [
        KitItem(block_subject(block, copies), Graph.chain((block,) * copies))
        for block in map(BlockSpec.parse, blocks)
        for copies in chains(block)[-1:]
    ]


def subject_weights(
    space: SearchSpace, probabilities: Sequence[Sequence[float]] | None = None
) -> dict[str, float]:
    """How much each block's latency weighs in the networks that a search would draw.

    Args:
        probabilities: one row a slot, one entry a candidate; None: every candidate alike.

    Returns:
        By subject: how many copies of the block an average network holds.
    """
    copies_of: dict[BlockSpec, float] = defaultdict(float)
    for layer in space.layers:
        if layer.slot is None:
            copies_of[layer.blocks[0]] += 1
            continue
        n = len(layer.blocks)
        chances = probabilities[layer.slot] if probabilities else [1.0 / n] * n
        for block, chance in zip(layer.blocks, chances, strict=True):
            copies_of[block] += chance
    return {
        block_subject(block, copies): copies_of[block]
        for block in space.distinct_blocks
        for copies in chains(block)
    }
