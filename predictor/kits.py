"""Kits: the model files that make a search space known on a target.

A subject is the string that names what one file measures:

- ``block:mbconv_k3_e6_s1_i24_o24_r8:x4``, a block chained four times;
- ``network:micro@1:k3e1c24 ...``, a whole network of a space.
"""

import random
from dataclasses import dataclass

from search_core.onnx_graph import build_model, random_weights
from search_core.space.blocks import BlockSpec
from search_core.space.graph import Graph
from search_core.space.space import Architecture, SearchSpace

CHAIN = 4
"""A block that can follow itself is measured once and this many times in a row."""

N_CALIBRATION_NETWORKS = 10


@dataclass(frozen=True)
class KitItem:
    """One model file to measure: its subject and the network of blocks it holds."""

    subject: str
    graph: Graph

    def build(self) -> bytes:
        """The ONNX file, with random weights; the same bytes each time."""
        return build_model(self.graph, random_weights(self.graph))


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


def network_item(space: SearchSpace, architecture: Architecture) -> KitItem:
    """The whole network of `architecture`."""
    return KitItem(network_subject(space, architecture), space.graph(architecture))


def calibration_architectures(space: SearchSpace, seed: int = 0) -> list[Architecture]:
    """The networks a latency model is calibrated on: both extremes in MACs, the rest random."""
    _, macs = space.slot_costs(lambda block: block.macs)
    extremes = [space.architecture([row.index(pick(row)) for row in macs]) for pick in (min, max)]
    rng = random.Random(seed)
    chosen: dict[Architecture, None] = dict.fromkeys(extremes)
    while len(chosen) < min(N_CALIBRATION_NETWORKS, space.size):
        chosen.setdefault(space.sample(rng))
    return list(chosen)


def plan_kit(space: SearchSpace) -> list[KitItem]:
    """Everything to measure before `space` can be searched on a new target."""
    networks = [network_item(space, a) for a in calibration_architectures(space)]
    return [*networks, *block_items(space)]


def anchor_item(space: SearchSpace) -> KitItem:
    """The network whose steadiness tells whether the device is quiet: the smallest one."""
    smallest = calibration_architectures(space)[0]
    return network_item(space, smallest)
