"""A network with every decision made, as one module."""

from collections.abc import Sequence

import torch
from torch import nn

from search_core.nn.ops import BN_EPS_TRAIN, build_operation, initialise
from search_core.space.blocks import BlockSpec
from search_core.space.graph import Graph


class Network(nn.Module):
    """A graph of blocks: (B, C, H, W) -> (B, n_classes).

    Args:
        graph: the blocks and the nodes between them; a bare sequence of blocks is a chain.
        operations: modules to adopt instead of fresh ones, one a block.
        bn_eps: BatchNorm epsilon of fresh operations.
    """

    def __init__(
        self,
        graph: Graph | Sequence[BlockSpec],
        operations: Sequence[nn.Module] | None = None,
        bn_eps: float = BN_EPS_TRAIN,
    ) -> None:
        super().__init__()
        self.graph = Graph.of(graph)
        self.layers = nn.ModuleList(
            operations or [build_operation(block, bn_eps) for block in self.graph.blocks]
        )
        self._last_uses = self.graph.last_uses()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def initialised(
        cls,
        graph: Graph | Sequence[BlockSpec],
        generator: torch.Generator,
        bn_eps: float = BN_EPS_TRAIN,
    ) -> "Network":
        """A network whose weights are drawn from `generator`."""
        network = cls(graph, bn_eps=bn_eps)
        initialise(network, generator)
        return network

    @property
    def blocks(self) -> tuple[BlockSpec, ...]:
        """The blocks in the order in which they run."""
        return self.graph.blocks

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores (B, n_classes) of normalised images (B, C, H, W)."""
        nodes = {0: images}
        for index, (block, (source, target), operation) in enumerate(
            zip(self.graph.blocks, self.graph.edges, self.layers, strict=True)
        ):
            features = nodes[source] if self._last_uses[source] > index else nodes.pop(source)
            output = operation(features)
            if block.has_shortcut:
                output = features + output
            nodes[target] = nodes[target] + output if target in nodes else output
        return nodes[target]
