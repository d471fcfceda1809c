"""A network without its classifier, as the backbone of detection and segmentation."""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from search_core.nn.network import Network
from search_core.space.blocks import BlockKind, BlockSpec
from search_core.space.graph import Graph

_CLASSIFIERS = (BlockKind.CLASSIFIER, BlockKind.FC)
_MIXES = (BlockKind.CONV, BlockKind.CONV_RELU)


class FeatureBackbone(nn.Module):
    """The last feature map at each stride: (B, C, H, W) -> [(B, C_i, H / s_i, W / s_i), ...].

    Takes images of any size; H / s is rounded up. What only the classifier reads, and the 1x1
    convolution that widens the features before it, is left out. Weights keep the names they
    have in the network.

    Args:
        network: copied, with its weights.
        strides: pixels of the input for each pixel of a map.

    Attributes:
        strides: of the maps, fine to coarse, whatever order they were asked for in.
        channels: of the maps.

    Raises:
        ValueError: naming the strides that the network has.
    """

    def __init__(self, network: Network, strides: Sequence[int] = (4, 8, 16, 32)) -> None:
        super().__init__()
        graph = network.graph
        last_nodes = _last_nodes(graph)
        unknown = sorted(set(strides) - last_nodes.keys())
        if unknown or not strides:
            known = ", ".join(map(str, sorted(last_nodes)))
            raise ValueError(
                f"the network has feature maps at strides {known}; asked for {list(strides)}"
            )
        self.strides = tuple(sorted(set(strides)))
        self._outputs = tuple(last_nodes[stride] for stride in self.strides)
        needed = _ancestors(graph, self._outputs)
        self._steps = tuple(
            (index, graph.blocks[index], graph.edges[index])
            for index in range(len(graph.blocks))
            if graph.edges[index][1] in needed
        )
        widths = {target: block.out_channels for _, block, (_, target) in self._steps}
        self.channels = tuple(widths[node] for node in self._outputs)
        self.layers = nn.ModuleDict(
            {str(index): copy.deepcopy(network.layers[index]) for index, _, _ in self._steps}
        )

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The maps of `strides`, fine to coarse."""
        nodes = {0: images}
        for index, block, (source, target) in self._steps:
            features = nodes[source]
            output = self.layers[str(index)](features)
            if block.has_shortcut:
                output = features + output
            nodes[target] = nodes[target] + output if target in nodes else output
        return [nodes[node] for node in self._outputs]


def _last_nodes(graph: Graph) -> dict[int, int]:
    """Stride -> the last node of the network's body that has it."""
    strides, last_nodes = {0: 1}, {}
    for index, (block, (source, target)) in enumerate(zip(graph.blocks, graph.edges, strict=True)):
        if not _is_head(graph, index, block):
            strides[target] = strides[source] * block.stride
            last_nodes[strides[target]] = target
    return last_nodes


def _is_head(graph: Graph, index: int, block: BlockSpec) -> bool:
    """Whether it is a classifier, or a 1x1 convolution that a classifier reads."""
    if block.kind in _CLASSIFIERS:
        return True
    target = graph.edges[index][1]
    readers = [b for b, (s, _) in zip(graph.blocks, graph.edges, strict=True) if s == target]
    is_mix = block.kind in _MIXES and block.kernel == block.stride == 1
    return is_mix and all(reader.kind in _CLASSIFIERS for reader in readers)


def _ancestors(graph: Graph, nodes: Sequence[int]) -> set[int]:
    """`nodes` and every node that one of them is computed from."""
    found = set(nodes)
    for source, target in reversed(graph.edges):
        if target in found:
            found.add(source)
    return found
