"""Whether a search is alive: entropy, what it puts on nothing, and collapse."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from search_core.estimators.base import Estimate
from search_core.events import Notice
from search_core.space.blocks import FREE, WEIGHTLESS, BlockKind
from search_core.space.space import SearchSpace

_DEAD_SIGNAL = 1e-8
_FADED = 1e-3  # of the first epoch's signal


@dataclass(frozen=True)
class Collapse:
    """What a search has collapsed to.

    Attributes:
        kind: ``nothing``, ``no_weights`` or ``one_operation``.
        text: which slots, and what can be done.
    """

    kind: str
    text: str


class Health:
    """Statistics of one search, epoch by epoch."""

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._free = marked(space, FREE)
        self._weightless = marked(space, WEIGHTLESS)
        self._first_signal = 0.0
        self._signals: list[float] = []
        self._metrics: dict[str, float] = {}
        self._told: list[str] = []

    def observe(self, estimate: Estimate) -> None:
        """Take note of one step of the logits."""
        self._signals.append(estimate.signal)

    def end_epoch(self, probabilities: torch.Tensor) -> list[Notice]:
        """What has to be said about the epoch that ends; each kind is said once.

        Args:
            probabilities: (n_slots, n_candidates) float64.
        """
        signal = sum(self._signals) / len(self._signals) if self._signals else math.nan
        self._first_signal = self._first_signal or (signal if self._signals else 0.0)
        self._metrics = {
            "signal": signal if self._signals else 0.0,
            "entropy": entropy(probabilities),
            "nothing_share": share(probabilities, self._free),
        }
        notices = []
        searched = bool((probabilities.max(dim=1).values < 1.0).any())
        if self._signals and searched and signal < max(_DEAD_SIGNAL, _FADED * self._first_signal):
            text = (
                f"the mean |cost| of a choice is {signal:.2g}, against "
                f"{self._first_signal:.2g} at first: the logits learn from noise. A BatchNorm "
                "right behind the gate with a small epsilon does this, and so does a loss at 0"
            )
            notices.append(Notice("dead_signal", text))
        collapse = self.verdict(probabilities) if self._signals else None
        if collapse is not None:
            notices.append(Notice(f"collapsed_to_{collapse.kind}", collapse.text))
        self._signals = []
        fresh = [notice for notice in notices if notice.code not in self._told]
        self._told += [notice.code for notice in fresh]
        return fresh

    def verdict(self, probabilities: torch.Tensor) -> Collapse | None:
        """What the most probable architecture has collapsed to, if it has."""
        choices = probabilities.argmax(dim=1).tolist()
        return collapse_of(self._space, choices, self._free, self._weightless)

    def metrics(self) -> dict[str, float]:
        """Those of the latest epoch: signal, entropy (nats a slot), share on nothing."""
        return dict(self._metrics)

    def state_dict(self) -> dict[str, object]:
        """What the next epoch's answers depend on."""
        return {
            "first_signal": self._first_signal,
            "signals": list(self._signals),
            "metrics": dict(self._metrics),
            "told": list(self._told),
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from `state_dict`'s answer."""
        self._first_signal = float(state["first_signal"])  # type: ignore[arg-type]
        self._signals = list(state["signals"])  # type: ignore[call-overload]
        self._metrics = dict(state["metrics"])  # type: ignore[call-overload]
        self._told = list(state["told"])  # type: ignore[call-overload]


def entropy(probabilities: torch.Tensor) -> float:
    """Mean entropy of a slot, in nats."""
    p = probabilities
    return float(-(p * p.clamp_min(1e-300).log()).sum(dim=1).mean())


def share(probabilities: torch.Tensor, kinds: torch.Tensor) -> float:
    """Mean probability of the candidates marked in `kinds`, over the slots that have one."""
    slots = kinds.any(dim=1)
    if not bool(slots.any()):
        return 0.0
    return float((probabilities * kinds).sum(dim=1)[slots].mean())


def collapse_of(
    space: SearchSpace,
    choices: list[int],
    free: torch.Tensor,
    weightless: torch.Tensor,
) -> Collapse | None:
    """A verdict on `choices`: nothing, or one operation, is left where several could be.

    Only slots that may be left without an operation count.

    Args:
        free, weightless: (n_slots, n_candidates) bool, the candidates that compute nothing
            and those that have nothing to learn.
    """
    may_be_idle = [s for s in range(len(space.slots)) if bool(weightless[s].any())]
    if len(may_be_idle) < 3:
        return None
    advice = (
        "Operations look no better than nothing to the estimator, or the weights were too young "
        "when it decided: use an estimator that measures the difference (dsnas_paired, "
        "dsnas_path_integrated), a longer warm-up, or a temperature"
    )
    busy = [space.slots[s].name for s in may_be_idle if not bool(weightless[s, choices[s]])]
    if not busy:
        kind = "nothing" if all(bool(free[s, choices[s]]) for s in may_be_idle) else "no_weights"
        return Collapse(kind, f"no slot keeps an operation that learns. {advice}.")
    if len(busy) == 1:
        return Collapse(
            "one_operation",
            f"of {len(may_be_idle)} slots only {busy[0]} keeps an operation that learns. {advice}.",
        )
    return None


def marked(space: SearchSpace, kinds: Collection[BlockKind]) -> torch.Tensor:
    """(n_slots, n_candidates) bool: the candidates whose blocks are of these kinds."""
    mask = torch.zeros(len(space.slots), space.n_candidates, dtype=torch.bool)
    for layer in space.layers:
        if layer.slot is not None:
            for k, block in enumerate(layer.blocks):
                mask[layer.slot, k] = block.kind in kinds
    return mask
