"""The single-path supernet: every candidate's weights, one candidate computed per layer."""

import copy
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from search_core.nn.network import Network
from search_core.nn.ops import BN_EPS_SEARCH, Zero, build_operation, initialise
from search_core.space.space import Architecture, SearchSpace

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
        initialise(self, generator)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self,
        images: torch.Tensor,
        choices: Sequence[int],
        gates: torch.Tensor | None = None,
        compared: Sequence[Collection[int]] | None = None,
    ) -> torch.Tensor:
        """Class scores of the path `choices`; no other candidate is executed.

        Args:
            images: (B, C, H, W), normalised.
            choices: one candidate index a slot, or `ALL`.
            gates: without `compared` (n_slots,), multiplied into the chosen operation's output
                of each slot; with it (n_slots, n_candidates), the binary gates of ProxylessNAS,
                whose values are not read but whose gradients are made. None: all ones.
            compared: for each slot the candidates whose gate gradient is wanted. Backward
                computes the ones that are not on the path anew, without recording them, so
                that memory stays that of one path.

        Returns:
            (B, n_classes).
        """
        nodes: dict[int, torch.Tensor] = {0: images}
        for layer, (source, target), candidates in zip(
            self.space.layers, self.space.edges, self.layers, strict=True
        ):
            assert isinstance(candidates, nn.ModuleList)
            choice = 0 if layer.slot is None else choices[layer.slot]
            features, shortcut = nodes[source], layer.blocks[choice].has_shortcut
            output: torch.Tensor | None = None  # nothing
            if choice == ALL:
                output = _mean_output(candidates, features)
            elif compared is not None and layer.slot is not None:
                assert gates is not None
                output = _GateGradients.apply(  # type: ignore[no-untyped-call]
                    candidates[choice](features),
                    features,
                    gates[layer.slot],
                    candidates,
                    choice,
                    compared[layer.slot],
                )
            elif not isinstance(candidates[choice], Zero):
                output = candidates[choice](features)
                if gates is not None and layer.slot is not None:
                    output = output * gates[layer.slot]
            if shortcut:
                output = features if output is None else features + output
            if target not in nodes:
                nodes[target] = torch.zeros_like(features) if output is None else output
            elif output is not None:
                nodes[target] = nodes[target] + output
        return nodes[target]

    def derive(self, architecture: Architecture) -> Network:
        """The network of `architecture` with a copy of the weights trained here."""
        choices = architecture.choices
        operations = []
        for layer, candidates in zip(self.space.layers, self.layers, strict=True):
            assert isinstance(candidates, nn.ModuleList)
            operations.append(candidates[0 if layer.slot is None else choices[layer.slot]])
        return Network(self.space.graph(architecture), copy.deepcopy(operations))


def _mean_output(candidates: nn.ModuleList, features: torch.Tensor) -> torch.Tensor:
    outputs = [c(features) for c in candidates if not isinstance(c, Zero)]
    total: torch.Tensor = torch.stack(outputs).sum(dim=0)
    return total / len(candidates)


class _GateGradients(torch.autograd.Function):
    """The chosen output unchanged; backward gives every compared gate ``<dL/dy, o_k(x)>``.

    ProxylessNAS, equation 4: the gradient of a binary gate is the inner product of the
    layer's output gradient with that candidate's output, chosen or not.
    """

    @staticmethod
    def forward(
        ctx: Any,
        output: torch.Tensor,
        features: torch.Tensor,
        gates: torch.Tensor,
        candidates: nn.ModuleList,
        choice: int,
        compared: Collection[int],
    ) -> torch.Tensor:
        ctx.save_for_backward(features, output, gates)
        ctx.candidates, ctx.choice, ctx.compared = candidates, choice, compared
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        features, output, gates = ctx.saved_tensors
        gate_gradients = torch.zeros_like(gates)
        with torch.no_grad():
            for k in ctx.compared:
                operation = ctx.candidates[k]
                if isinstance(operation, Zero):
                    continue
                with batch_statistics_only(operation):
                    other = output if k == ctx.choice else operation(features)
                gate_gradients[k] = (gradient * other).sum()
        return gradient, None, gate_gradients, None, None, None


class _HasModules(Protocol):
    def modules(self) -> Iterator[nn.Module]: ...


@contextmanager
def batch_statistics_only(module: "_HasModules") -> Iterator[None]:
    """Within it BatchNorm uses the statistics of the batch and leaves the running ones alone."""
    norms = [
        m
        for m in module.modules()
        if isinstance(m, nn.BatchNorm2d) and m.training and m.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
