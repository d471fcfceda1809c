"""Gradients of gates on the operations of a path: the two ways to have them without a gate."""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from search_core.nn.batch_norm import batch_statistics_only
from search_core.nn.ops import Zero


@torch.no_grad()
def gate_gradients(
    parameters: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor | None],
    slots: Sequence[int],
    *,
    out: torch.Tensor,
) -> None:
    """Adds to `out` the gradient that a gate of value 1 behind each slot's output would have.

    Where the output y is proportional to parameters w taken together, Euler's theorem gives
    ``<dL/dy, y> = <dL/dw, w>``; for a BatchNorm at the end ``sum_c (gamma_c dL/dgamma_c +
    beta_c dL/dbeta_c)``. So backward has computed already all that a gate could tell, and
    neither the multiplication by it nor the output that it would keep is needed.

    Args:
        parameters: see `search_core.nn.ops`.
        gradients: of the loss in each of them; None counts as 0.
        slots: for each of them, whose output it makes.
        out: (n_slots,) on the device of the parameters.
    """
    known = [
        (parameter.reshape(-1), gradient.reshape(-1), slot)
        for parameter, gradient, slot in zip(parameters, gradients, slots, strict=True)
        if gradient is not None
    ]
    if not known:
        return
    values, slopes, owners = zip(*known, strict=True)
    rows = _rows(owners, tuple(map(len, values)), out.device)
    out.index_add_(0, rows, (torch.cat(values) * torch.cat(slopes)).to(out))


@lru_cache(maxsize=1024)
def _rows(slots: tuple[int, ...], lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Each slot as often as its length says; few paths of a space differ in them."""
    rows = torch.tensor(slots).repeat_interleave(torch.tensor(lengths))
    return rows.to(device, non_blocking=True)


def _autocast_as_now(kind: str) -> AbstractContextManager[object]:
    """For backward, which may run in a thread that knows nothing of the forward pass's."""
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return nullcontext()
    return torch.autocast(kind, torch.get_autocast_dtype(kind), cache_enabled=False)


class GateGradients(torch.autograd.Function):
    """The layer's output unchanged; backward gives every compared gate ``<dL/dy, o_k(x)>``.

    ProxylessNAS, equation 4: the gradient of a binary gate is the inner product of the
    layer's output gradient with that candidate's output, chosen or not. A shortcut beside
    the operation does not change the former.
    """

    @staticmethod
    def forward(  # noqa: D102
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
        ctx.autocast = _autocast_as_now(output.device.type)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # noqa: D102
        features, chosen = ctx.saved_tensors
        gate_gradients = gradient.new_zeros(
            ctx.n_gates, dtype=torch.promote_types(gradient.dtype, torch.float32)
        )
        with torch.no_grad(), ctx.autocast:
            for k in ctx.compared:
                operation = ctx.candidates[k]
                if isinstance(operation, Zero):
                    continue
                with batch_statistics_only(operation):
                    other = chosen if k == ctx.choice else operation(features)
                gate_gradients[k] = (gradient * other).sum(dtype=gate_gradients.dtype)
        return gradient, None, None, gate_gradients, None, None, None
