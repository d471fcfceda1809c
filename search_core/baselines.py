"""Networks that nobody searched for, to compare a search with at the same cost."""

import random
from collections.abc import Callable, Iterator

from search_core.space.space import Architecture, SearchSpace

Within = Callable[[Architecture], float]
"""The share of its budget that an architecture spends; above 1 it is over."""

_DRAWS = 10_000
_CLOSE = 0.9


def random_architecture(space: SearchSpace, within: Within, seed: int) -> Architecture | None:
    """Uniform among the whole architectures that spend 90 to 100 % of the budget, if one is drawn.

    Random search within a budget is what searches are to beat (Li and Talwalkar 2019; Yu et
    al. 2020).

    Returns:
        Otherwise the one drawn that spends most of the budget; None when all are over it.
    """
    rng = random.Random(seed)
    fitting: list[tuple[float, Architecture]] = []
    for _ in range(_DRAWS):
        architecture = space.sample(rng)
        if not space.is_whole(architecture):
            continue
        spent = within(architecture)
        if _CLOSE <= spent <= 1.0:
            return architecture
        if spent <= 1.0:
            fitting.append((spent, architecture))
    return max(fitting, key=lambda pair: pair[0])[1] if fitting else None


def hand_made_architecture(space: SearchSpace, within: Within) -> Architecture | None:
    """The network that somebody would draw by hand: one and the same operation in every slot.

    Of these it is the one that spends most of the budget. Where even the cheapest is over it,
    its last slots take their cheapest candidate, one after the other, until it fits: a network
    that was made shallower or narrower at its end.

    Returns:
        None when that does not fit either.
    """
    uniform = [(within(architecture), architecture) for architecture in _uniform(space)]
    fitting = [pair for pair in uniform if pair[0] <= 1.0]
    if fitting:
        return max(fitting, key=lambda pair: pair[0])[1]
    if not uniform:
        return None
    _, architecture = min(uniform, key=lambda pair: pair[0])
    choices = list(architecture.choices)
    for slot in reversed(range(len(choices))):
        changed = {
            k: space.architecture(_with(choices, slot, k))
            for k in range(len(space.slots[slot].candidates))
        }
        spent = {k: within(one) for k, one in changed.items() if space.is_whole(one)}
        choices[slot] = min(spent, key=spent.__getitem__)
        if spent[choices[slot]] <= 1.0:
            return space.architecture(choices)
    return None


def _uniform(space: SearchSpace) -> Iterator[Architecture]:
    """Candidate k in every slot; slots with fewer candidates take their last one."""
    for k in range(space.n_candidates):
        uniform = space.architecture([min(k, len(slot.candidates) - 1) for slot in space.slots])
        if space.is_whole(uniform):
            yield uniform


def _with(choices: list[int], slot: int, choice: int) -> list[int]:
    return [*choices[:slot], choice, *choices[slot + 1 :]]
