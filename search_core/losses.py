"""Losses of many steps, read from the device all at once."""

from typing import NamedTuple

import torch


class StepLoss(NamedTuple):
    """The loss of a step."""

    step: int
    value: float


class Losses:
    """Keeps the losses of steps where they are until somebody asks.

    Reading a number makes the host wait for everything that it has asked of the device, and
    the device then waits for the host; a step of the weights needs no number.
    """

    def __init__(self) -> None:
        self._unread: list[tuple[int, torch.Tensor | float]] = []
        self.latest = float("nan")

    def add(self, step: int, loss: torch.Tensor | float) -> None:
        """Take note of the loss of `step`, a scalar."""
        self._unread.append((step, loss.detach() if isinstance(loss, torch.Tensor) else loss))

    def first_not_finite(self) -> StepLoss | None:
        """The first loss since the last call that is NaN or infinite; waits for the device."""
        on_device = [loss for _, loss in self._unread if isinstance(loss, torch.Tensor)]
        numbers = iter(torch.stack(on_device).tolist() if on_device else ())
        read = [
            StepLoss(step, next(numbers) if isinstance(loss, torch.Tensor) else loss)
            for step, loss in self._unread
        ]
        self._unread = []
        if read:
            self.latest = read[-1].value
        return next((one for one in read if not _finite(one.value)), None)


def _finite(value: float) -> bool:
    return abs(value) < float("inf")
