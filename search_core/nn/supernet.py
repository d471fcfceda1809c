"""The single-path supernet: every candidate's weights, one candidate computed per layer."""

import copy
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn

from search_core.nn.gates import GateGradients
from search_core.nn.network import Network
from search_core.nn.ops import BN_EPS_SEARCH, PROPORTIONAL, Zero, build_operation, initialise
from search_core.space.space import Architecture, Layer, SearchSpace

ALL = -1
"""In place of a choice: every candidate of the slot, averaged (TuNAS's operation warm-up)."""


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
        self._last_uses = {source: index for index, (source, _) in enumerate(space.edges)}
        self._of_outputs: dict[tuple[int, int], tuple[torch.Tensor, ...] | None] = {}
        initialise(self, generator)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self,
        images: torch.Tensor,
        choices: Sequence[int],
        gates: Sequence[torch.Tensor | None] | None = None,
        compared: Sequence[Collection[int]] | None = None,
    ) -> torch.Tensor:
        """Class scores of the path `choices`; no other candidate is executed.

        Args:
            images: (B, C, H, W), normalised.
            choices: one candidate index a slot, or `ALL`.
            gates: without `compared` a scalar for each slot, multiplied into the chosen
                operation's output, or None where nothing is; with it (n_candidates,) for each
                slot, the binary gates of ProxylessNAS, whose values are not read but whose
                gradients are made.
            compared: for each slot the candidates whose gate gradient is wanted. Backward
                computes the ones that are not on the path anew, without recording them, so
                that memory stays that of one path; the one that is on it costs keeping its
                output, which can be had for nothing where `output_parameters` tell it.

        Returns:
            (B, n_classes).
        """
        nodes: dict[int, torch.Tensor] = {0: images}
        for index, (layer, (source, target), candidates) in enumerate(
            zip(self.space.layers, self.space.edges, self.layers, strict=True)
        ):
            assert isinstance(candidates, nn.ModuleList)
            choice = 0 if layer.slot is None else choices[layer.slot]
            operation, shortcut = candidates[choice], layer.blocks[choice].has_shortcut
            features = nodes[source] if self._last_uses[source] > index else nodes.pop(source)
            wanted: Collection[int] = ()
            if compared is not None and layer.slot is not None:
                wanted = compared[layer.slot]

            read = features
            if choice in wanted and isinstance(operation, PROPORTIONAL):
                # <dL/dy, o(x)> = <dL/dx, x>, and x is kept once for all layers that read it
                read = _gated(
                    features, features, features, gates, candidates, layer, choice, (choice,)
                )
                wanted = [k for k in wanted if k != choice]
            output: torch.Tensor | None = None  # nothing
            if choice == ALL:
                output = _mean_output(candidates, features)
            elif not isinstance(operation, Zero):
                output = operation(read)
                if compared is None and gates is not None and layer.slot is not None:
                    gate = gates[layer.slot]
                    output = output if gate is None else output * gate
            chosen = output
            if shortcut:
                output = features if output is None else features + output
            if wanted:
                output = torch.zeros_like(features) if output is None else output
                output = _gated(output, chosen, features, gates, candidates, layer, choice, wanted)
            if target not in nodes:
                nodes[target] = torch.zeros_like(features) if output is None else output
            elif output is not None:
                nodes[target] = nodes[target] + output
        return nodes[target]

    def operations(self, choices: Sequence[int]) -> list[nn.Module]:
        """The operations that a forward pass of `choices` may run, the fixed ones included."""
        return [
            operation
            for layer, candidates in zip(self.space.layers, self.layers, strict=True)
            for operation in _chosen(layer, candidates, choices)
        ]

    def output_parameters(self, choices: Sequence[int]) -> list[tuple[torch.Tensor, ...] | None]:
        """For each slot the parameters that the outputs of its chosen operations are made of.

        None where some output is not proportional to any, so that only a gate can tell its
        cost; empty where the slot computes nothing. See `search_core.nn.ops`. Operations are
        not to be replaced once this was asked.
        """
        return [self._output_parameters(slot, choice) for slot, choice in enumerate(choices)]

    def _output_parameters(self, slot: int, choice: int) -> tuple[torch.Tensor, ...] | None:
        if (slot, choice) not in self._of_outputs:
            parameters: tuple[torch.Tensor, ...] | None = ()
            for layer, candidates in zip(self.space.layers, self.layers, strict=True):
                if layer.slot == slot and parameters is not None:
                    (operation,) = _chosen(layer, candidates, {slot: choice})
                    own: tuple[torch.Tensor, ...] = getattr(operation, "output_parameters", ())
                    told = bool(own) or isinstance(operation, Zero)
                    parameters = (*parameters, *own) if told else None
            self._of_outputs[slot, choice] = parameters
        return self._of_outputs[slot, choice]

    def derive(self, architecture: Architecture) -> Network:
        """The network of `architecture` with a copy of the weights trained here."""
        choices = architecture.choices
        operations = []
        for layer, candidates in zip(self.space.layers, self.layers, strict=True):
            assert isinstance(candidates, nn.ModuleList)
            operations.append(candidates[0 if layer.slot is None else choices[layer.slot]])
        return Network(self.space.graph(architecture), copy.deepcopy(operations))


def _chosen(
    layer: Layer, candidates: nn.Module, choices: Sequence[int] | Mapping[int, int]
) -> Sequence[nn.Module]:
    assert isinstance(candidates, nn.ModuleList)
    choice = 0 if layer.slot is None else choices[layer.slot]
    return list(candidates) if choice == ALL else [candidates[choice]]


def _mean_output(candidates: nn.ModuleList, features: torch.Tensor) -> torch.Tensor:
    outputs = [c(features) for c in candidates if not isinstance(c, Zero)]
    total: torch.Tensor = torch.stack(outputs).sum(dim=0)
    return total / len(candidates)


def _gated(
    output: torch.Tensor,
    chosen: torch.Tensor | None,
    features: torch.Tensor,
    gates: Sequence[torch.Tensor | None] | None,
    candidates: nn.ModuleList,
    layer: Layer,
    choice: int,
    compared: Collection[int],
) -> torch.Tensor:
    assert gates is not None
    assert layer.slot is not None
    gated: torch.Tensor = GateGradients.apply(  # type: ignore[no-untyped-call]
        output, chosen, features, gates[layer.slot], candidates, choice, compared
    )
    return gated
