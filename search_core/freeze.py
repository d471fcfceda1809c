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
        frozen: slot -> chosen candidate, by the threshold.
        frozen_at: slot -> step.
        finished: slot -> chosen candidate, of the slots that only the deadline decided.
    """

    threshold: float
    frozen: dict[int, int] = field(default_factory=dict)
    frozen_at: dict[int, int] = field(default_factory=dict)
    finished: dict[int, int] = field(default_factory=dict)

    def update(self, probabilities: torch.Tensor, step: int = 0) -> list[int]:
        """Freeze every slot that qualifies; returns the newly frozen ones.

        A slot with one candidate has nothing to decide and qualifies at once.

        Args:
            probabilities: (n_slots, n_candidates).
            step: recorded with them.
        """
        best, index = probabilities.topk(min(2, probabilities.shape[1]), dim=1)  # (n_slots, 2)
        lead = (best[:, 0] - best[:, 1:].sum(dim=1)).tolist()
        news = [
            slot
            for slot, margin in enumerate(lead)
            if slot not in self.decided and margin >= self.threshold
        ]
        self.frozen.update((slot, int(index[slot, 0])) for slot in news)
        self.frozen_at.update(dict.fromkeys(news, step))
        return news

    def finish(self, probabilities: torch.Tensor) -> list[int]:
        """The deadline: decide every slot that is left for its best; returns those slots.

        They are kept apart from the frozen ones, because the search never made up its mind
        about them. A decision under a budget may still overrule them.

        Args:
            probabilities: (n_slots, n_candidates).
        """
        best = probabilities.argmax(dim=1).tolist()
        news = [slot for slot in range(len(best)) if slot not in self.decided]
        self.finished.update((slot, best[slot]) for slot in news)
        return news

    @property
    def decided(self) -> dict[int, int]:
        """Slot -> chosen candidate, by the threshold or by the deadline."""
        return self.frozen | self.finished

    def apply(self, probabilities: torch.Tensor) -> torch.Tensor:
        """`probabilities` with one-hot, gradient-free rows for the decided slots."""
        decided = self.decided
        if not decided:
            return probabilities
        one_hot = torch.zeros_like(probabilities)
        one_hot[list(decided), list(decided.values())] = 1.0
        return self.mask(probabilities) + one_hot

    def mask(self, rows: torch.Tensor) -> torch.Tensor:
        """`rows` (n_slots, n_candidates) with those of decided slots at 0."""
        if not self.decided:
            return rows
        searched = rows.new_ones(len(rows), 1)
        searched[list(self.decided)] = 0.0
        return rows * searched

    @contextmanager
    def holding(self, optimizer: torch.optim.Optimizer, logits: torch.Tensor) -> Iterator[None]:
        """Within it the rows of decided slots cannot change, nor can their moments.

        Not to the last bit, whatever the optimiser: momentum and weight decay move a
        parameter whose gradient is 0.
        """
        rows = list(self.decided)
        if not rows:
            yield
            return

        def held() -> dict[Any, torch.Tensor]:
            state = optimizer.state.get(logits, {})
            moments = {k: t for k, t in state.items() if torch.is_tensor(t)}
            return {k: t for k, t in moments.items() if t.shape == logits.shape}

        before = {name: tensor[rows].clone() for name, tensor in held().items()}
        values = logits.detach()[rows].clone()
        yield
        logits.data[rows] = values
        for name, tensor in held().items():  # moments that the first step made start at 0
            tensor[rows] = before.get(name, torch.zeros_like(values))

    def report(self, n_slots: int) -> dict[str, Any]:
        """How many slots froze, how many the deadline decided, and when each froze."""
        return {
            "frozen": len(self.frozen),
            "decided_at_the_deadline": n_slots - len(self.frozen),
            "frozen_at_step": {str(slot): step for slot, step in sorted(self.frozen_at.items())},
        }

    def state_dict(self) -> dict[str, dict[int, int]]:
        """What is decided, and since when."""
        return {
            "frozen": dict(self.frozen),
            "frozen_at": dict(self.frozen_at),
            "finished": dict(self.finished),
        }

    def load_state_dict(self, state: Mapping[str, dict[int, int]]) -> None:
        """Go on from `state_dict`'s answer."""
        self.frozen, self.frozen_at = dict(state["frozen"]), dict(state["frozen_at"])
        self.finished = dict(state.get("finished", {}))
