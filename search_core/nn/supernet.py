"""The single-path supernet: every candidate's weights, one candidate computed per layer."""

import copy
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from search_core.nn.batch_norm import batch_statistics_only
from search_core.nn.network import Network
from search_core.nn.ops import BN_EPS_SEARCH, Zero, build_operation, initialise
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
                output, which can be had for nothing where `final_norms` tells it.

        Returns:
            (B, n_classes).
        """
        nodes: dict[int, torch.Tensor] = {0: images}
        for index, (layer, (source, target), candidates) in enumerate(
            zip(self.space.layers, self.space.edges, self.layers, strict=True)
        ):
            assert isinstance(candidates, nn.ModuleList)
            choice = 0 if layer.slot is None else choices[layer.slot]
            features = nodes[source] if self._last_uses[source] > index else nodes.pop(source)
            output: torch.Tensor | None = None  # nothing
            if choice == ALL:
                output = _mean_output(candidates, features)
            elif not isinstance(candidates[choice], Zero):
                output = candidates[choice](features)
                if compared is None and gates is not None and layer.slot is not None:
                    gate = gates[layer.slot]
                    output = output if gate is None else output * gate
            chosen = output
            if layer.blocks[choice].has_shortcut:
                output = features if output is None else features + output
            if compared is not None and layer.slot is not None and compared[layer.slot]:
                assert gates is not None
                output = _GateGradients.apply(  # type: ignore[no-untyped-call]
                    torch.zeros_like(features) if output is None else output,
                    chosen,
                    features,
                    gates[layer.slot],
                    candidates,
                    choice,
                    compared[layer.slot],
                )
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

    def final_norms(self, choices: Sequence[int]) -> list[tuple[nn.BatchNorm2d, ...] | None]:
        """For each slot the BatchNorms that make the outputs of its chosen operations.

        None where something else makes one of them, so that only a gate can tell its cost;
        empty where the slot computes nothing. See `search_core.nn.ops`.
        """
        found: list[tuple[nn.BatchNorm2d, ...] | None] = [()] * len(choices)
        for layer, candidates in zip(self.space.layers, self.layers, strict=True):
            if layer.slot is None or found[layer.slot] is None:
                continue
            (operation,) = _chosen(layer, candidates, choices)
            norms: tuple[nn.BatchNorm2d, ...] = getattr(operation, "final_norms", ())
            told = bool(norms) or isinstance(operation, Zero)
            found[layer.slot] = (*(found[layer.slot] or ()), *norms) if told else None
        return found

    def derive(self, architecture: Architecture) -> Network:
        """The network of `architecture` with a copy of the weights trained here."""
        choices = architecture.choices
        operations = []
        for layer, candidates in zip(self.space.layers, self.layers, strict=True):
            assert isinstance(candidates, nn.ModuleList)
            operations.append(candidates[0 if layer.slot is None else choices[layer.slot]])
        return Network(self.space.graph(architecture), copy.deepcopy(operations))


def _chosen(layer: Layer, candidates: nn.Module, choices: Sequence[int]) -> Sequence[nn.Module]:
    assert isinstance(candidates, nn.ModuleList)
    choice = 0 if layer.slot is None else choices[layer.slot]
    return list(candidates) if choice == ALL else [candidates[choice]]


def _mean_output(candidates: nn.ModuleList, features: torch.Tensor) -> torch.Tensor:
    outputs = [c(features) for c in candidates if not isinstance(c, Zero)]
    total: torch.Tensor = torch.stack(outputs).sum(dim=0)
    return total / len(candidates)


class _GateGradients(torch.autograd.Function):
    """The layer's output unchanged; backward gives every compared gate ``<dL/dy, o_k(x)>``.

    ProxylessNAS, equation 4: the gradient of a binary gate is the inner product of the
    layer's output gradient with that candidate's output, chosen or not. A shortcut beside
    the operation does not change the former.
    """

    @staticmethod
    def forward(
        ctx: Any,
        output: torch.Tensor,
        chosen: torch.Tensor | None,
        features: torch.Tensor,
        gates: torch.Tensor,
        candidates: nn.ModuleList,
        choice: int,
        compared: Collection[int],
    ) -> torch.Tensor:
        ctx.save_for_backward(features, chosen if choice in compared else None)
        ctx.candidates, ctx.choice, ctx.compared = candidates, choice, compared
        ctx.n_gates = len(gates)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        features, chosen = ctx.saved_tensors
        gate_gradients = gradient.new_zeros(ctx.n_gates)
        with torch.no_grad():
            for k in ctx.compared:
                operation = ctx.candidates[k]
                if isinstance(operation, Zero):
                    continue
                with batch_statistics_only(operation):
                    other = chosen if k == ctx.choice else operation(features)
                gate_gradients[k] = (gradient * other).sum()
        return gradient, None, None, gate_gradients, None, None, None
