"""A network with every decision made: a chain of blocks."""

from collections.abc import Sequence

import torch
from torch import nn

from search_core.nn.ops import BN_EPS_TRAIN, build_operation, initialise
from search_core.space.blocks import BlockSpec


class Network(nn.Module):
    """The chain of `blocks` as one module: (B, C, H, W) -> (B, n_classes).

    Args:
        blocks: the layers in order.
        operations: modules to adopt instead of fresh ones, one a block.
        bn_eps: BatchNorm epsilon of fresh operations.
    """

    def __init__(
        self,
        blocks: Sequence[BlockSpec],
        operations: Sequence[nn.Module] | None = None,
        bn_eps: float = BN_EPS_TRAIN,
    ) -> None:
        super().__init__()
        self.blocks = tuple(blocks)
        self.layers = nn.ModuleList(
            operations or [build_operation(block, bn_eps) for block in self.blocks]
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def initialised(
        cls, blocks: Sequence[BlockSpec], generator: torch.Generator, bn_eps: float = BN_EPS_TRAIN
    ) -> "Network":
        """A network whose weights are drawn from `generator`."""
        network = cls(blocks, bn_eps=bn_eps)
        initialise(network, generator)
        return network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores (B, n_classes) of normalised images (B, C, H, W)."""
        features = images
        for block, operation in zip(self.blocks, self.layers, strict=True):
            output = operation(features)
            features = features + output if block.has_shortcut else output
        return features
