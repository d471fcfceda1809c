"""Whether a search is alive: entropy, what it puts on nothing, its signal, and collapse."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from search_core.estimators.base import Estimate
from search_core.events import Notice
from search_core.space.blocks import FREE, WEIGHTLESS, BlockKind, BlockSpec
from search_core.space.space import SearchSpace

_DEAD_SIGNAL = 1e-8
_FADED = 1e-3  # of the first epoch's signal
_CLEAR_LEAD = 0.1
_MOSTLY = 0.75

_ADVICE = (
    "Operations look no better than nothing to the estimator, or the weights were too young "
    "when it decided: use an estimator that measures the difference (dsnas_paired, "
    "dsnas_path_integrated), a longer warm-up, a temperature, or start from the largest network "
    "(largest_share)."
)


@dataclass(frozen=True)
class Collapse:
    """How a search has failed, or is about to.

    Attributes:
        kind: ``no_path``, ``nothing``, ``no_weights``, ``one_operation``, ``mostly_nothing``
            or ``dead_signal``.
        text: which slots, and what can be done.
    """

    kind: str
    text: str


class Health:
    """Statistics of one search, epoch by epoch."""

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._free = marked(space, FREE)
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
        signal = sum(self._signals) / len(self._signals) if self._signals else 0.0
        self._first_signal = self._first_signal or signal
        self._metrics = {
            "signal": signal,
            "entropy": entropy(probabilities),
            "relative_entropy": relative_entropy(self._space, probabilities),
            "nothing_share": share(probabilities, self._free),
        }
        notices = []
        if self._signals:
            undecided = bool((probabilities.max(dim=1).values < 1.0).any())
            dead = dead_signal(signal, self._first_signal) if undecided else None
            collapse = collapse_of(self._space, likely(self._space, probabilities))
            if dead is not None:
                notices.append(Notice(dead.kind, dead.text))
            if collapse is not None:
                notices.append(Notice(f"collapsed_to_{collapse.kind}", collapse.text))
        self._signals = []
        fresh = [notice for notice in notices if notice.code not in self._told]
        self._told += [notice.code for notice in fresh]
        return fresh

    def verdict(self, probabilities: torch.Tensor) -> Collapse | None:
        """What the most probable architecture has collapsed to, if it has."""
        return collapse_of(self._space, probabilities.argmax(dim=1).tolist())

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
    return float(_entropies(probabilities).mean())


def relative_entropy(space: SearchSpace, probabilities: torch.Tensor) -> float:
    """Mean entropy of a slot, of the most it can have: 1 is undecided, 0 is decided.

    Slots with one candidate do not count.
    """
    most = torch.tensor([math.log(len(slot.candidates)) for slot in space.slots])
    open_slots = most > 0.0
    if not bool(open_slots.any()):
        return 0.0
    return float((_entropies(probabilities)[open_slots] / most[open_slots]).mean())


def _entropies(p: torch.Tensor) -> torch.Tensor:
    return -(p * p.clamp_min(1e-300).log()).sum(dim=1)


def share(probabilities: torch.Tensor, marks: torch.Tensor) -> float:
    """Mean probability of the candidates marked in `marks`, over the slots that have one."""
    slots = marks.any(dim=1)
    if not bool(slots.any()):
        return 0.0
    return float((probabilities * marks).sum(dim=1)[slots].mean())


def discretisation_gap(searched_loss: float, decided_loss: float) -> float:
    """How much worse the one architecture is that was decided than those that were searched.

    Args:
        searched_loss: mean over paths drawn from the final probabilities.
        decided_loss: of the decided architecture, on the same images and weights.
    """
    return decided_loss - searched_loss


def dead_signal(signal: float, first_signal: float) -> Collapse | None:
    """A verdict on the mean absolute cost of a choice, now and in the first epoch."""
    if signal >= max(_DEAD_SIGNAL, _FADED * first_signal):
        return None
    return Collapse(
        "dead_signal",
        f"the mean |cost| of a choice is {signal:.2g}, against {first_signal:.2g} at first: the "
        "logits learn from noise. A BatchNorm right behind the gate with a small epsilon does "
        "this (use the search epsilon, 1e-2), and so does a loss near 0 (stop earlier).",
    )


def likely(space: SearchSpace, probabilities: torch.Tensor, lead: float = _CLEAR_LEAD) -> list[int]:
    """One candidate a slot: the best, or the best that learns unless it is clearly behind.

    While a search is young its best candidates mean nothing; a slot has turned to doing
    without weights only when that leads by `lead`.
    """
    ruled_out = marked(space, WEIGHTLESS) | (probabilities <= 0.0)
    learning = probabilities.masked_fill(ruled_out, -1.0)
    best, choices = probabilities.max(dim=1)
    best_learning, learning_choices = learning.max(dim=1)
    return torch.where(best - best_learning < lead, learning_choices, choices).tolist()


def collapse_of(space: SearchSpace, choices: Sequence[int]) -> Collapse | None:
    """A verdict on `choices`: too little is left of what could be there.

    Slots that cannot be left without an operation that learns do not count, and neither do
    spaces with fewer than three that can.
    """
    cut = _cuts(space, choices)
    if cut:
        names = ", ".join(space.slots[slot].name for slot in cut)
        return Collapse(
            "no_path",
            f"nothing leads from the input to the output: {names} pass nothing on. {_ADVICE}",
        )
    free, weightless = marked(space, FREE), marked(space, WEIGHTLESS)
    idle = [s for s, row in enumerate(weightless) if bool(row.any()) and bool(row[choices[s]])]
    able = int(weightless.any(dim=1).sum())
    busy = [
        slot.name
        for s, slot in enumerate(space.slots)
        if bool(weightless[s].any()) and s not in idle
    ]
    empty = [space.slots[s].name for s in idle if bool(free[s, choices[s]])]
    if able < 3:
        return None
    if not busy:
        kind = "nothing" if len(empty) == able else "no_weights"
        text = f"none of the {able} slots keeps an operation that learns"
    elif len(busy) == 1:
        kind = "one_operation"
        text = f"of {able} slots only {busy[0]} keeps an operation that learns"
    elif len(empty) > _MOSTLY * int(free.any(dim=1).sum()):
        kind = "mostly_nothing"
        text = f"{len(empty)} slots of {able} compute nothing: {', '.join(empty)}"
    else:
        return None
    return Collapse(kind, f"{text}. {_ADVICE}")


def _cuts(space: SearchSpace, choices: Sequence[int]) -> list[int]:
    """The slots that pass nothing on, where together they part the input from the output."""
    graph = space.graph(space.architecture(choices))
    reached = {0}
    for block, (source, target) in zip(graph.blocks, graph.edges, strict=True):
        if source in reached and _passes(block):
            reached.add(target)
    if graph.edges[-1][1] in reached:
        return []
    return sorted(
        {
            layer.slot
            for layer in space.layers
            if layer.slot is not None and not _passes(layer.blocks[choices[layer.slot]])
        }
    )


def _passes(block: BlockSpec) -> bool:
    """Whether anything of the input of a layer reaches its output."""
    return block.kind not in (BlockKind.NONE, BlockKind.ZERO) or block.has_shortcut


def marked(space: SearchSpace, kinds: Collection[BlockKind]) -> torch.Tensor:
    """(n_slots, n_candidates) bool: the candidates whose blocks are of these kinds."""
    mask = torch.zeros(len(space.slots), space.n_candidates, dtype=torch.bool)
    for layer in space.layers:
        if layer.slot is not None:
            for k, block in enumerate(layer.blocks):
                mask[layer.slot, k] = block.kind in kinds
    return mask
