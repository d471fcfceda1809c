"""BatchNorm: which statistics it follows, and what it tells about the gate behind it."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def batch_statistics_only(*modules: nn.Module) -> Iterator[None]:
    """Within it BatchNorm uses the statistics of the batch and leaves the running ones alone."""
    norms = [
        m
        for module in modules
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


def affine_parameters(norms: Iterable[nn.BatchNorm2d]) -> list[torch.Tensor]:
    """Scale and shift of each of `norms`, one after the other."""
    return [parameter for norm in norms for parameter in (norm.weight, norm.bias)]


def gate_gradients(
    parameters: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor | None],
    slots: Sequence[int],
    *,
    out: torch.Tensor,
) -> None:
    """Adds to `out` the gradient that a gate of value 1 behind each slot's output would have.

    The output of an affine BatchNorm is homogeneous of degree one in its scale and shift, so
    by Euler's theorem ``<dL/dy, y> = sum_c (gamma_c dL/dgamma_c + beta_c dL/dbeta_c)``: what
    backward has computed for the weights is all that a gate could tell. A ReLU behind it
    changes nothing, being homogeneous itself. Neither the multiplication by the gate nor the
    output that it would keep for backward is needed.

    Args:
        parameters: scales and shifts, see `affine_parameters`.
        gradients: of the loss in each of them; None counts as 0.
        slots: for each of them, whose output it makes.
        out: (n_slots,) on the device of the parameters.
    """
    known = [
        (parameter.detach(), gradient, slot)
        for parameter, gradient, slot in zip(parameters, gradients, slots, strict=True)
        if gradient is not None
    ]
    if not known:
        return
    values, slopes, owners = zip(*known, strict=True)
    products = torch.cat(values) * torch.cat(slopes)
    lengths = torch.tensor([len(value) for value in values])
    rows = torch.tensor(owners).repeat_interleave(lengths)
    out.index_add_(0, rows.to(out.device, non_blocking=True), products.to(out))
