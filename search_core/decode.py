"""From utilities to the best architectures within every budget: an exact knapsack."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import add, le, mul
from typing import NamedTuple

from search_core.errors import BudgetUnreachableError

Table = Sequence[Sequence[float]]
"""``table[l][k]`` belongs to candidate k of slot l; rows may differ in length."""

_WIDTHS = (64, 1024, None)
"""Partial choices that each pass keeps; what a narrow pass finds prunes the wider ones."""

_ROUNDING = 1e-12
"""Relative; the order in which costs are added up must not decide."""

_PRICE_ROUNDS, _BISECTIONS = 4, 20


@dataclass(frozen=True)
class Limit:
    """At most `budget` for the sum over the slots.

    Attributes:
        costs: of each candidate of each slot, in the unit of the budget.
        offset: what no slot decides; part of the sum.
        name: for messages.
    """

    costs: Table
    budget: float
    offset: float = 0.0
    name: str = ""


@dataclass(frozen=True)
class Cap:
    """At most `budget` for each slot alone: a limit on the maximum over the slots.

    Attributes:
        values: of each candidate of each slot, in the unit of the budget.
        floor: what no slot decides; the maximum is never less.
        name: for messages.
    """

    values: Table
    budget: float
    floor: float = -math.inf
    name: str = ""


def decode(
    utilities: Table, limits: Sequence[Limit] = (), caps: Sequence[Cap] = ()
) -> tuple[int, ...]:
    """The choices of greatest total utility that keep every budget, one candidate a slot.

    `k_best` says the rest.
    """
    return k_best(utilities, limits, caps)[0]


def k_best(
    utilities: Table, limits: Sequence[Limit] = (), caps: Sequence[Cap] = (), *, k: int = 1
) -> list[tuple[int, ...]]:
    """The `k` best distinct choices that keep every budget, best first.

    A multiple-choice knapsack with several limits, solved exactly by dynamic programming
    over the slots. A partial choice is dropped when

    - what it costs, plus the least to come, is over a budget;
    - `k` others are no worse in utility and in every cost (Pareto pruning); or
    - its Lagrangian bound is below the utility of `k` choices that keep every budget.

    Args:
        utilities: larger is better; ``-inf`` forbids a candidate.
        limits, caps: their tables have the shape of `utilities`.
        k: how many are wanted; fewer are returned where there are no more.

    Returns:
        Choices by falling utility. Under a single limit equals come by rising cost; under
        several, any of the equals may stand for the others.

    Raises:
        BudgetUnreachableError: no choices keep every budget. Its minimum is the least that
            the limit or cap at fault can be brought to within the caps and limits before it.
        ValueError: a table of another shape, a value that is not finite, a slot without a
            permitted candidate, or a `k` below 1.
    """
    if k < 1:
        raise ValueError(f"k is how many choices are wanted, at least 1; got {k}")
    for part, table in [(p, p.costs) for p in limits] + [(p, p.values) for p in caps]:
        _check_shape(utilities, table, part.name)
    slots = [
        [
            _Candidate(choice, utility, tuple(float(limit.costs[slot][choice]) for limit in limits))
            for choice, utility in enumerate(row)
            if utility != -math.inf
        ]
        for slot, row in enumerate(utilities)
    ]
    for slot, candidates in enumerate(slots):
        if not candidates:
            raise ValueError(f"every candidate of slot {slot} is forbidden")
        if not all(math.isfinite(number) for c in candidates for number in (c.utility, *c.costs)):
            raise ValueError(f"slot {slot} has a utility or a cost that is not finite")
    for cap in caps:
        slots = _capped(slots, cap)
    return [partial.choices() for partial in _Knapsack(slots, limits).best(k)]


class _Candidate(NamedTuple):
    choice: int
    utility: float
    costs: tuple[float, ...]  # one a limit


class _Partial(NamedTuple):
    """Choices for the first slots, linked from the last one back."""

    utility: float
    costs: tuple[float, ...]
    choice: int = -1
    parent: "_Partial | None" = None

    def choices(self) -> tuple[int, ...]:
        backwards, node = [], self
        while node.parent is not None:
            backwards.append(node.choice)
            node = node.parent
        return tuple(reversed(backwards))


_Slots = Sequence[Sequence[_Candidate]]


def _check_shape(utilities: Table, table: Table, name: str) -> None:
    shape, expected = [len(row) for row in table], [len(row) for row in utilities]
    if shape != expected:
        raise ValueError(
            f"the table of {name or 'a limit'} has {shape} candidates a slot, "
            f"the utilities have {expected}"
        )


def _capped(slots: _Slots, cap: Cap) -> list[list[_Candidate]]:
    rows = list(zip(cap.values, slots, strict=True))
    minimum = max([cap.floor, *(min(values[c.choice] for c in slot) for values, slot in rows)])
    if not minimum <= cap.budget:
        raise BudgetUnreachableError(cap.budget, minimum, cap.name)
    return [[c for c in slot if values[c.choice] <= cap.budget] for values, slot in rows]


class _Knapsack:
    """The permitted candidates under limits on sums.

    Raises:
        BudgetUnreachableError: a limit cannot be kept, not even alone.
    """

    def __init__(self, slots: _Slots, limits: Sequence[Limit]) -> None:
        self.slots, self.limits = slots, limits
        self.budgets = [b.budget - b.offset + _ROUNDING * max(1.0, abs(b.budget)) for b in limits]
        # what slots l, l + 1, ... cost at the least
        self.least: list[tuple[float, ...]] = [(0.0,) * len(limits)]
        for slot in reversed(slots):
            cheapest = map(min, zip(*(candidate.costs for candidate in slot), strict=True))
            self.least.append(tuple(map(add, self.least[-1], cheapest)))
        self.least.reverse()
        for i, (budget, minimum) in enumerate(zip(self.budgets, self.least[0], strict=True)):
            if not minimum <= budget:
                raise _unreachable(limits[i], _cheapest(slots, limits, i, 1)[0])
        # what slots l, l + 1, ... and unspent budgets are worth at the most
        self.prices = self._prices()
        self.promise = [sum(p * b for p, b in zip(self.prices, self.budgets, strict=True) if p)]
        for slot in reversed(slots):
            self.promise.append(self.promise[-1] + max(map(self._worth, slot)))
        self.promise.reverse()
        self.rounding = _ROUNDING * (
            abs(self.promise[-1]) + sum(max(map(self._size, slot)) for slot in slots)
        )

    def best(self, k: int) -> list[_Partial]:
        """The `k` best complete choices, best first; at least one."""
        known: list[_Partial] = []
        at_least = -math.inf
        for width in _WIDTHS:
            found, is_all = self._pass(k, at_least, width and max(width, k))
            if not known and len(found) < k and self.limits:
                found += self._cheapest_in_last_limit(k)  # fewer than k: there are no more
            distinct = {partial.choices(): partial for partial in (*known, *found)}
            known = sorted(distinct.values(), key=lambda p: (-p.utility, p.costs))[:k]
            if is_all or len(known) < k:
                break
            at_least = known[-1].utility
        return known

    def _pass(self, k: int, at_least: float, width: int | None) -> tuple[list[_Partial], bool]:
        """Complete choices that may be worth `at_least`, and whether none was left out.

        Under several limits those that only equal `at_least` are left out as well: there may
        be very many.
        """
        slack = self.rounding if len(self.limits) > 1 else math.nextafter(-self.rounding, -1.0)
        front, is_all = [_Partial(0.0, (0.0,) * len(self.limits))], True
        for slot, least, promise in zip(self.slots, self.least[1:], self.promise[1:], strict=True):
            room = list(map(float.__sub__, self.budgets, least))
            enough = at_least - promise + slack
            grown = []
            for partial in front:
                for choice, utility, costs in slot:
                    total = tuple(map(add, partial.costs, costs))
                    if all(map(le, total, room)):
                        longer = _Partial(partial.utility + utility, total, choice, partial)
                        if self._worth(longer) > enough:
                            grown.append(longer)
            front, is_whole = self._undominated(grown, k, width)
            is_all = is_all and is_whole
        return front, is_all

    def _undominated(
        self, partials: list[_Partial], k: int, width: int | None
    ) -> tuple[list[_Partial], bool]:
        """Those that fewer than `k` others dominate, at most `width`, and whether that is all."""
        kept: list[_Partial] = []
        if len(self.limits) == 1:
            cheapest: list[float] = []  # heap of the k lowest costs so far, negated
            for partial in sorted(partials, key=lambda p: (-p.utility, p.costs)):
                (cost,) = partial.costs
                if len(cheapest) < k:
                    heapq.heappush(cheapest, -cost)
                elif cost < -cheapest[0]:
                    heapq.heapreplace(cheapest, -cost)
                else:
                    continue
                kept.append(partial)
            if width is None or len(kept) <= width:
                return kept, True
            return heapq.nlargest(width, kept, key=self._worth), False
        # no price is negative, so that a partial is worth no more than those that dominate it
        for partial in sorted(partials, key=self._worth, reverse=True):
            if len(kept) == width:
                return kept, False
            dominators = 0
            for other in kept:
                if other.utility >= partial.utility and all(map(le, other.costs, partial.costs)):
                    dominators += 1
                    if dominators == k:
                        break
            else:
                kept.append(partial)
        return kept, True

    def _worth(self, item: _Candidate | _Partial) -> float:
        """Utility less the priced costs."""
        return item.utility - float(sum(map(mul, self.prices, item.costs)))

    def _size(self, candidate: _Candidate) -> float:
        priced = map(mul, self.prices, map(abs, candidate.costs))
        return abs(candidate.utility) + float(sum(priced))

    def _prices(self) -> list[float]:
        """Utility per unit of each limit, at least 0; any such prices give a valid bound.

        Each in turn is set, by bisection, to the least at which the slots, left to
        themselves, keep that budget.
        """
        self.prices = [0.0] * len(self.limits)
        gain = max(_spread([c.utility for c in slot]) for slot in self.slots)
        for _ in range(_PRICE_ROUNDS if len(self.limits) > 1 else 1):
            for i in range(len(self.limits)):
                self.prices[i] = 0.0
                loss = max(_spread([c.costs[i] for c in slot]) for slot in self.slots)
                if gain == 0.0 or loss == 0.0 or self._is_kept(i):
                    continue
                low, high = 0.0, gain / loss
                self.prices[i] = high
                for _ in range(2 * _BISECTIONS):
                    if self._is_kept(i):
                        break
                    low, high = high, 2.0 * high
                    self.prices[i] = high
                for _ in range(_BISECTIONS):
                    self.prices[i] = 0.5 * (low + high)
                    if self._is_kept(i):
                        high = self.prices[i]
                    else:
                        low = self.prices[i]
                self.prices[i] = high
        return self.prices

    def _is_kept(self, limit: int) -> bool:
        """Whether the slots, each choosing what is worth most at the prices, keep a limit."""
        chosen = (max(slot, key=lambda c: (self._worth(c), -c.costs[limit])) for slot in self.slots)
        return sum(candidate.costs[limit] for candidate in chosen) <= self.budgets[limit]

    def _cheapest_in_last_limit(self, k: int) -> list[_Partial]:
        """Of the choices that keep every budget the `k` that cost least in the last limit.

        Raises:
            BudgetUnreachableError: none keeps the last budget.
        """
        cheapest = _cheapest(self.slots, self.limits, len(self.limits) - 1, k)
        within = [p.choices() for p in cheapest if -p.utility <= self.budgets[-1]]
        if not within:
            raise _unreachable(self.limits[-1], cheapest[0])
        return [self._complete(choices) for choices in within]

    def _complete(self, choices: Sequence[int]) -> _Partial:
        partial = _Partial(0.0, (0.0,) * len(self.limits))
        for slot, choice in zip(self.slots, choices, strict=True):
            chosen = next(candidate for candidate in slot if candidate.choice == choice)
            costs = tuple(map(add, partial.costs, chosen.costs))
            partial = _Partial(partial.utility + chosen.utility, costs, choice, partial)
        return partial


def _cheapest(slots: _Slots, limits: Sequence[Limit], i: int, k: int) -> list[_Partial]:
    """The `k` choices that cost least in limit `i`, their utility the cost negated.

    They keep the limits before it.
    """
    turned = [[_Candidate(c.choice, -c.costs[i], c.costs[:i]) for c in slot] for slot in slots]
    return _Knapsack(turned, limits[:i]).best(k)


def _unreachable(limit: Limit, cheapest: _Partial) -> BudgetUnreachableError:
    return BudgetUnreachableError(limit.budget, limit.offset - cheapest.utility, limit.name)


def _spread(values: Sequence[float]) -> float:
    return max(values) - min(values)
