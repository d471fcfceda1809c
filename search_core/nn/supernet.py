"""The single-path supernet: every candidate's weights, one candidate computed per layer."""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from search_core.nn.network import Network
from search_core.nn.ops import BN_EPS_SEARCH, Zero, build_operation, initialise
from search_core.space.space import Architecture, SearchSpace


class Supernet(nn.Module):
    """Holds one operation for each candidate of each layer of a space.

    The chosen path is an argument of `forward`, never a state of the module: two
    searches, or a search and an evaluation, can share one supernet.
    """

    def __init__(
        self, space: SearchSpace, generator: torch.Generator, bn_eps: float = BN_EPS_SEARCH
    ) -> None:
        super().__init__()
        self.space = space
        self.bn_eps = bn_eps
        self.layers = nn.ModuleList(
            nn.ModuleList(build_operation(block, bn_eps) for block in layer.blocks)
            for layer in space.layers
        )
        initialise(self, generator)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self, images: torch.Tensor, choices: Sequence[int], gates: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Class scores of the path `choices`; no other candidate is executed.

        Args:
            images: (B, C, H, W), normalised.
            choices: one candidate index a slot.
            gates: (n_slots,), multiplied into the chosen operation's output of each slot;
                all ones when None.

        Returns:
            (B, n_classes).
        """
        features = images
        for layer, candidates in zip(self.space.layers, self.layers, strict=True):
            assert isinstance(candidates, nn.ModuleList)
            choice = 0 if layer.slot is None else choices[layer.slot]
            operation, shortcut = candidates[choice], layer.blocks[choice].has_shortcut
            if shortcut and isinstance(operation, Zero):
                continue
            output = operation(features)
            if gates is not None and layer.slot is not None:
                output = output * gates[layer.slot]
            features = features + output if shortcut else output
        return features

    def derive(self, architecture: Architecture) -> Network:
        """The network of `architecture` with a copy of the weights trained here."""
        choices = architecture.choices
        operations = []
        for layer, candidates in zip(self.space.layers, self.layers, strict=True):
            assert isinstance(candidates, nn.ModuleList)
            operations.append(candidates[0 if layer.slot is None else choices[layer.slot]])
        return Network(self.space.blocks(architecture), copy.deepcopy(operations))
