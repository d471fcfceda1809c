"""Progressive freezing: slots whose decision is clear stop being searched."""

from dataclasses import dataclass, field

import torch


@dataclass
class Freezer:
    """Freezes a slot once its best candidate leads by `threshold` (DSNAS, section 3.3).

    A frozen slot keeps its logits and its choice; only `frozen` is state, so a checkpoint that
    stores it restores the decision itself and not merely the logits it was read from.

    Attributes:
        threshold: least lead of the best probability over the second.
        frozen: slot -> chosen candidate.
    """

    threshold: float
    frozen: dict[int, int] = field(default_factory=dict)

    def update(self, probabilities: torch.Tensor) -> list[int]:
        """Freeze every slot that qualifies; returns the newly frozen ones.

        Args:
            probabilities: (n_slots, n_candidates).
        """
        best, index = probabilities.topk(2, dim=1)  # (n_slots, 2)
        lead = (best[:, 0] - best[:, 1]).tolist()
        news = [
            slot
            for slot, margin in enumerate(lead)
            if slot not in self.frozen and margin >= self.threshold
        ]
        self.frozen.update((slot, int(index[slot, 0])) for slot in news)
        return news

    def apply(self, probabilities: torch.Tensor) -> torch.Tensor:
        """`probabilities` with one-hot, gradient-free rows for the frozen slots."""
        if not self.frozen:
            return probabilities
        rows = torch.tensor(list(self.frozen))
        decided = torch.zeros_like(probabilities)
        decided[rows, torch.tensor(list(self.frozen.values()))] = 1.0
        searched = torch.ones(len(probabilities), 1, dtype=probabilities.dtype)
        searched[rows] = 0.0
        return probabilities * searched + decided
