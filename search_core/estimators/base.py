"""What every estimator of the architecture gradient promises."""

from dataclasses import dataclass
from typing import Protocol

import torch

from search_core.data.dataset import Batch
from search_core.nn.supernet import Supernet


@dataclass(frozen=True)
class Estimate:
    """One step's outcome.

    Attributes:
        choices: the sampled path, one candidate a slot.
        gradient: (n_slots, n_candidates) float64, of the task loss with respect to the logits.
        loss: the task loss of the sampled path.
        signal: mean absolute per-slot cost; near zero means that the search learns nothing.
    """

    choices: tuple[int, ...]
    gradient: torch.Tensor
    loss: float
    signal: float


class Estimator(Protocol):
    """Samples a path and estimates the gradient of the expected loss in the logits.

    Guarantees of every implementation:

    - exactly one candidate a layer is executed;
    - each row of the gradient sums to 0, and is 0 at absent candidates and frozen slots;
    - the gradients of the weights on the sampled path are left in ``.grad``, those of all
      other weights stay None (`joint` estimators train weights and logits in one pass);
    - the draw is a function of `generator` alone.
    """

    name: str

    def estimate(
        self,
        supernet: Supernet,
        probabilities: torch.Tensor,
        batch: Batch,
        label_smoothing: float,
        generator: torch.Generator,
    ) -> Estimate:
        """One forward and one backward pass on `batch`.

        Args:
            probabilities: (n_slots, n_candidates) float64, rows of frozen slots one-hot.
        """
        ...

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What the next estimates depend on besides their arguments."""
        ...

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from `state_dict`'s answer."""
        ...


def sample_path(probabilities: torch.Tensor, generator: torch.Generator) -> tuple[int, ...]:
    """One candidate a slot, drawn from `probabilities` (n_slots, n_candidates)."""
    return tuple(torch.multinomial(probabilities, 1, generator=generator)[:, 0].tolist())
