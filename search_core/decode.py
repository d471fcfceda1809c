"""From utilities to the best architecture within a budget: an exact knapsack."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from search_core.errors import BudgetUnreachableError


@dataclass(frozen=True, slots=True)
class _Partial:
    cost: float
    utility: float
    choice: int
    parent: "_Partial | None"


def decode(
    utilities: Sequence[Sequence[float]],
    costs: Sequence[Sequence[float]],
    budget: float,
) -> tuple[int, ...]:
    """The choices of greatest total utility whose total cost is at most `budget`.

    A multiple-choice knapsack solved exactly by dynamic programming over the Pareto front
    of (cost, utility): a partial choice that is both dearer and no better than another can
    never be part of an optimum. Fronts stay in the hundreds on ProxylessNAS's space.

    Args:
        utilities: ``utilities[l][k]`` of candidate k of slot l, larger is better;
            ``-inf`` forbids a candidate.
        costs: the same shape, each at least 0.
        budget: in the unit of `costs`.

    Returns:
        One candidate index a slot. Among equals the cheaper wins.

    Raises:
        BudgetUnreachableError: even the cheapest permitted choices cost more.
    """
    allowed = [
        [(k, c, u) for k, (c, u) in enumerate(zip(cs, us, strict=True)) if u > -math.inf]
        for cs, us in zip(costs, utilities, strict=True)
    ]
    # least_to_come[l]: what slots l, l+1, ... cost at the least; partials above it are hopeless
    least_to_come = [0.0] * (len(allowed) + 1)
    for slot in range(len(allowed) - 1, -1, -1):
        cheapest = min((c for _, c, _ in allowed[slot]), default=math.inf)
        least_to_come[slot] = least_to_come[slot + 1] + cheapest
    slack = 1e-12 * max(1.0, abs(budget))  # the order of summation must not decide
    if least_to_come[0] == math.inf or least_to_come[0] > budget + slack:
        raise BudgetUnreachableError(budget, least_to_come[0])

    front: list[_Partial | None] = [None]
    for slot, candidates in enumerate(allowed):
        limit = budget + slack - least_to_come[slot + 1]
        grown = [
            _Partial(cost, (parent.utility if parent else 0.0) + u, k, parent)
            for parent in front
            for k, c, u in candidates
            if (cost := (parent.cost if parent else 0.0) + c) <= limit
        ]
        grown.sort(key=lambda partial: (partial.cost, -partial.utility))
        front, best = [], -math.inf
        for partial in grown:
            if partial.utility > best:
                front.append(partial)
                best = partial.utility

    choices: list[int] = []
    node = front[-1]
    while node is not None:
        choices.append(node.choice)
        node = node.parent
    return tuple(reversed(choices))
