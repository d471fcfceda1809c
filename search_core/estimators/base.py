"""What every estimator of the architecture gradient promises."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from search_core.data.dataset import Batch

Objective = Callable[[tuple[int, ...], float, float], float]
"""(path, loss, accuracy) -> what to minimise, for estimators that only see its value."""


class Paths(Protocol):
    """What an estimator needs of a supernet; see `search_core.nn.supernet.Supernet`."""

    def __call__(
        self,
        images: torch.Tensor,
        choices: Sequence[int],
        gates: Sequence[torch.Tensor | None] | None = None,
        compared: Sequence[Collection[int]] | None = None,
    ) -> torch.Tensor:
        """Class scores (B, n_classes) of one path."""
        ...

    def operations(self, choices: Sequence[int]) -> list[nn.Module]:
        """The operations that a forward pass of `choices` may run."""
        ...

    def output_parameters(self, choices: Sequence[int]) -> list[tuple[torch.Tensor, ...] | None]:
        """For each slot the parameters that tell its gate's gradient, None where none do."""
        ...


@dataclass(frozen=True)
class Estimate:
    """One step's outcome.

    Attributes:
        choices: the sampled path, one candidate a slot.
        gradient: (n_slots, n_candidates) float64, of the task loss with respect to the logits.
        loss: the task loss of the sampled path.
        signal: mean absolute value of what the gradient is made from; near zero means that
            the search learns nothing.
        moves: (n_slots, n_candidates) bool, the logits this step may move; None means all.
    """

    choices: tuple[int, ...]
    gradient: torch.Tensor
    loss: float
    signal: float
    moves: torch.Tensor | None = None


class Estimator(Protocol):
    """Samples paths and estimates the gradient of the expected loss in the logits.

    Guarantees of every implementation:

    - one candidate a layer is on the path; nothing else is recorded for backward;
    - each row of the gradient sums to 0, and is 0 at absent candidates and frozen slots;
    - where `trains_weights`, the gradients of the weights on the sampled path are left in
      ``.grad`` and those of all other weights stay None; elsewhere no weight gets a gradient;
    - what the logits need of a step leaves the device as one vector, together with the loss:
      the one time in a step that the host waits for it;
    - BatchNorm's running statistics follow the path that trains the weights and no other:
      where not `trains_weights` they stay as they are;
    - the draw is a function of `generator` and of `state_dict` alone.

    Attributes:
        name: by which `SearchConfig` asks for it.
        trains_weights: whether one backward pass serves weights and logits, on one batch
            (single level); if not, logits learn from held-out images.
        alpha_betas: Adam on the logits, as published with the method.
    """

    name: str
    trains_weights: bool
    alpha_betas: tuple[float, float]

    def estimate(
        self,
        supernet: Paths,
        probabilities: torch.Tensor,
        batch: Batch,
        label_smoothing: float,
        generator: torch.Generator,
        *,
        progress: float = 0.0,
        objective: Objective | None = None,
    ) -> Estimate:
        """The estimate on `batch`.

        Args:
            probabilities: (n_slots, n_candidates) float64, rows of frozen slots one-hot.
            progress: share of the search that is done, for what is annealed.
            objective: in place of the loss, where only values are needed (REINFORCE).
        """
        ...

    def settle(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """The logits to keep once the optimiser has moved them from `before` to `after`."""
        ...

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What the next estimates depend on besides their arguments."""
        ...

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from `state_dict`'s answer."""
        ...


class Stateless:
    """The parts of the contract of an estimator that remembers nothing."""

    def settle(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """See `Estimator.settle`."""
        return after

    def state_dict(self) -> dict[str, torch.Tensor]:
        """See `Estimator.state_dict`."""
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """See `Estimator.load_state_dict`."""


def backward(loss: torch.Tensor) -> torch.Tensor:
    """`loss` after its backward pass, free of the graph, which nothing should keep alive."""
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def sample_path(probabilities: torch.Tensor, generator: torch.Generator) -> tuple[int, ...]:
    """One candidate a slot, drawn from `probabilities` (n_slots, n_candidates)."""
    return tuple(torch.multinomial(probabilities, 1, generator=generator)[:, 0].tolist())


def one_hot(choices: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """(n_slots, n_candidates) with a 1 at each choice, of the type of `like`."""
    return torch.zeros_like(like).scatter_(1, torch.tensor(choices)[:, None], 1.0)


def centred(probabilities: torch.Tensor, gate_gradients: torch.Tensor) -> torch.Tensor:
    """``p_i (g_i - sum_j p_j g_j)``: gradients in the gates, taken through the softmax."""
    mean = (probabilities * gate_gradients).sum(dim=1, keepdim=True)
    return probabilities * (gate_gradients - mean)


def undecided(probabilities: torch.Tensor) -> list[int]:
    """The slots in which more than one candidate can be drawn."""
    return torch.nonzero((probabilities > 0.0).sum(dim=1) > 1)[:, 0].tolist()
