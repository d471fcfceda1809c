"""Progressive freezing: slots whose decision is clear stop being searched."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Freezer:
    """Freezes a slot once its best candidate leads by `threshold` (DSNAS, section 3.3).

    A frozen slot keeps its logits, the optimiser's moments of them and its choice; what is
    frozen is state of its own, so that a checkpoint restores the decision itself and not
    merely the logits it was read from.

    Attributes:
        threshold: least lead of the best probability over the second.
        frozen: slot -> chosen candidate.
        frozen_at: slot -> step.
    """

    threshold: float
    frozen: dict[int, int] = field(default_factory=dict)
    frozen_at: dict[int, int] = field(default_factory=dict)

    def update(self, probabilities: torch.Tensor, step: int = 0) -> list[int]:
        """Freeze every slot that qualifies; returns the newly frozen ones.

        Args:
            probabilities: (n_slots, n_candidates).
            step: recorded with them.
        """
        best, index = probabilities.topk(min(2, probabilities.shape[1]), dim=1)  # (n_slots, 2)
        lead = (best[:, 0] - best[:, 1:].sum(dim=1)).tolist()
        news = [
            slot
            for slot, margin in enumerate(lead)
            if slot not in self.frozen and margin >= self.threshold
        ]
        self.frozen.update((slot, int(index[slot, 0])) for slot in news)
        self.frozen_at.update(dict.fromkeys(news, step))
        return news

    def apply(self, probabilities: torch.Tensor) -> torch.Tensor:
        """`probabilities` with one-hot, gradient-free rows for the frozen slots."""
        if not self.frozen:
            return probabilities
        rows = torch.tensor(list(self.frozen))
        decided = torch.zeros_like(probabilities)
        decided[rows, torch.tensor(list(self.frozen.values()))] = 1.0
        return self.mask(probabilities) + decided

    def mask(self, rows: torch.Tensor) -> torch.Tensor:
        """`rows` (n_slots, n_candidates) with those of frozen slots at 0."""
        searched = rows.new_ones(len(rows), 1)
        searched[list(self.frozen)] = 0.0
        return rows * searched

    @contextmanager
    def holding(self, optimizer: torch.optim.Optimizer, logits: torch.Tensor) -> Iterator[None]:
        """Within it the rows of frozen slots cannot change, nor can their moments."""
        rows = list(self.frozen)
        state = optimizer.state[logits]
        held = [t for t in (logits.data, *state.values()) if torch.is_tensor(t) and t.ndim == 2]
        saved = [tensor[rows].clone() for tensor in held]
        yield
        for tensor, values in zip(held, saved, strict=True):
            tensor[rows] = values

    def report(self, n_slots: int) -> dict[str, Any]:
        """How many slots froze, how many the deadline decided, and when each froze."""
        return {
            "frozen": len(self.frozen),
            "decided_at_the_deadline": n_slots - len(self.frozen),
            "frozen_at_step": {str(slot): step for slot, step in sorted(self.frozen_at.items())},
        }

    def state_dict(self) -> dict[str, dict[int, int]]:
        """What is frozen, and since when."""
        return {"frozen": dict(self.frozen), "frozen_at": dict(self.frozen_at)}

    def load_state_dict(self, state: Mapping[str, dict[int, int]]) -> None:
        """Go on from `state_dict`'s answer."""
        self.frozen, self.frozen_at = dict(state["frozen"]), dict(state["frozen_at"])
