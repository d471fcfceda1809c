"""Budgets as part of the objective: several at once, each by its own rule."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Protocol

import torch

from search_core.costs import (
    BottleneckCost,
    DifferentiableCost,
    NearlySeparableCost,
    SeparableCost,
)
from search_core.decode import Cap, Limit, Table, k_best
from search_core.errors import BudgetUnreachableError, SeveredError
from search_core.estimators.base import Objective
from search_core.space.space import Architecture, SearchSpace

_SLACK_SHARES = (1.0, 0.0, -1.0)
_FEW, _MANY = 64, 1024
_ROUNDING = 1e-12
"""Relative; the order in which costs are added up must not decide."""


class Rule(Protocol):
    """How an expected cost over (or under) its budget changes the objective.

    Rules are values; the one number that moves during a search, the multiplier, is passed in
    and lives in `Constraints`.
    """

    def terms(
        self, expected: torch.Tensor, budget: float, multiplier: float
    ) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """A factor of the task loss and what is added to it, differentiable in `expected`."""
        ...

    def updated(self, multiplier: float, violation: float) -> float:
        """The multiplier after an outer step.

        Args:
            violation: ``cost / budget - 1`` of the current architecture.
        """
        ...


@dataclass(frozen=True)
class AugmentedLagrangian:
    """``cost <= budget``, or ``cost = budget``: no price has to be guessed.

    With the relative violation c the inequality (Powell, Hestenes and Rockafellar) adds
    ``(max(0, multiplier + rho c)^2 - multiplier^2) / (2 rho)``: under the budget the term fades
    to nothing, over it the multiplier rises until the budget is met. The equality adds
    ``multiplier c + rho c^2 / 2``, with a multiplier of either sign that also pulls an
    architecture up to its budget.

    Attributes:
        rho: curvature; also the step of the multiplier.
        equality: spend the budget instead of merely keeping it. DSNAS compares an operation
            with nothing, to the advantage of cheap ones; this holds against it.
    """

    rho: float = 0.3
    equality: bool = False

    def __post_init__(self) -> None:
        _check_positive(rho=self.rho)

    def terms(
        self, expected: torch.Tensor, budget: float, multiplier: float
    ) -> tuple[float, torch.Tensor]:
        """See `Rule.terms`."""
        violation = expected / budget - 1.0
        if self.equality:
            return 1.0, multiplier * violation + 0.5 * self.rho * violation.square()
        active = torch.clamp(multiplier + self.rho * violation, min=0.0)
        return 1.0, (active.square() - multiplier**2) / (2.0 * self.rho)

    def updated(self, multiplier: float, violation: float) -> float:
        """See `Rule.updated`."""
        moved = multiplier + self.rho * violation
        return moved if self.equality else max(0.0, moved)


@dataclass(frozen=True)
class DualAscent:
    """LightNAS (Luo et al. 2022): ``multiplier c``, and the multiplier climbs by ``rate c``.

    The multiplier may go negative and then pulls the cost up to its budget. Where its sign
    opposes the violation it starts again from 0, so that it does not have to unwind first.

    Attributes:
        rate: of the multiplier. LightNAS takes 5e-4 after every step of the logits; an outer
            step here is an epoch, so that the default is larger.
    """

    rate: float = 0.1

    def __post_init__(self) -> None:
        _check_positive(rate=self.rate)

    def terms(
        self, expected: torch.Tensor, budget: float, multiplier: float
    ) -> tuple[float, torch.Tensor]:
        """See `Rule.terms`."""
        return 1.0, multiplier * (expected / budget - 1.0)

    def updated(self, multiplier: float, violation: float) -> float:
        """See `Rule.updated`."""
        held = 0.0 if multiplier * violation < 0.0 else multiplier
        return held + self.rate * violation


@dataclass(frozen=True)
class MulLog:
    """ProxylessNAS's ``mul#log``: ``a CE (ln E / ln budget)^b``; defaults of its command line.

    Every cost must be above 1 of its unit.
    """

    a: float = 0.2
    b: float = 0.3

    def __post_init__(self) -> None:
        _check_positive(a=self.a, b=self.b)

    def terms(
        self,
        expected: torch.Tensor,
        budget: float,
        multiplier: float,  # noqa: ARG002
    ) -> tuple[torch.Tensor, float]:
        """See `Rule.terms`."""
        return self.a * (expected.log() / math.log(budget)) ** self.b, 0.0

    def updated(self, multiplier: float, violation: float) -> float:  # noqa: ARG002
        """See `Rule.updated`: there is nothing to move."""
        return multiplier


@dataclass(frozen=True)
class AddLinear:
    """ProxylessNAS's ``add#linear``: ``weight (E / budget - 1)``."""

    weight: float = 0.1

    def __post_init__(self) -> None:
        _check_positive(weight=self.weight)

    def terms(
        self,
        expected: torch.Tensor,
        budget: float,
        multiplier: float,  # noqa: ARG002
    ) -> tuple[float, torch.Tensor]:
        """See `Rule.terms`."""
        return 1.0, self.weight * (expected / budget - 1.0)

    def updated(self, multiplier: float, violation: float) -> float:  # noqa: ARG002
        """See `Rule.updated`: there is nothing to move."""
        return multiplier


class Reward:
    """How the cost of a sampled architecture changes its reward; only REINFORCE follows it."""

    def terms(self, violation: float) -> tuple[float, float]:
        """A factor of the quality and what is added to it.

        Args:
            violation: ``cost / budget - 1`` of the architecture.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class AbsoluteReward(Reward):
    """TuNAS (Bender et al. 2020): ``quality + beta |cost / budget - 1|``."""

    beta: float = -0.10

    def __post_init__(self) -> None:
        if not -math.inf < self.beta < 0.0:
            raise ValueError(f"beta is less than 0, got {self.beta:g}")

    def terms(self, violation: float) -> tuple[float, float]:
        """See `Reward.terms`."""
        return 1.0, self.beta * abs(violation)


@dataclass(frozen=True)
class PowerReward(Reward):
    """ProxylessNAS and MnasNet: ``quality (budget / cost)^w``; costs and quality above 0."""

    w: float = 0.1

    def __post_init__(self) -> None:
        _check_positive(w=self.w)

    def terms(self, violation: float) -> tuple[float, float]:
        """See `Reward.terms`."""
        return (1.0 + violation) ** -self.w, 0.0


@dataclass(frozen=True)
class Observed:
    """No say in the search: the cost is reported, and kept by the decision at its end."""


@dataclass(frozen=True)
class Constraint:
    """A cost and its budget.

    Attributes:
        name: in metrics and messages, for example ``latency``.
        budget: in the unit of the cost; infinite where a cost is only observed.
        rule: how the search is held to it. The decision at its end keeps every budget,
            whatever the rule.
    """

    name: str
    cost: DifferentiableCost
    budget: float
    rule: Rule | Reward | Observed = field(default_factory=AugmentedLagrangian)

    def __post_init__(self) -> None:
        if not self.budget > 0.0:
            raise ValueError(f"the budget of {self.name} is greater than 0, got {self.budget:g}")
        if math.isinf(self.budget) and not isinstance(self.rule, Observed):
            raise ValueError(f"{self.name} has no finite budget; its rule can only be Observed()")
        if isinstance(self.rule, MulLog):
            self._check_logarithms()

    def _check_logarithms(self) -> None:
        lowest = self.budget
        if isinstance(self.cost, SeparableCost | BottleneckCost):
            lowest = min(lowest, self.cost.minimum)
        elif isinstance(self.cost, NearlySeparableCost):
            lowest = min(lowest, self.cost.separable.minimum - self.cost.slack)
        if not lowest > 1.0:
            raise ValueError(
                f"MulLog takes logarithms of {self.name}, whose budget and costs must be above "
                f"1 {self.cost.unit}, got {lowest:g}; use a smaller unit or another rule"
            )

    def violation(self, architecture: Architecture) -> float:
        """``cost / budget - 1``, below 0 within the budget."""
        return self.cost.exact(architecture) / self.budget - 1.0


class Constraints:
    """Every constraint of one search, with its multiplier."""

    def __init__(self, constraints: Sequence[Constraint]) -> None:
        names = [constraint.name for constraint in constraints]
        if len(set(names)) < len(names):
            raise ValueError(f"two constraints have one name: {', '.join(names)}")
        self._constraints = tuple(constraints)
        self._multipliers = dict.fromkeys(names, 0.0)

    @property
    def needs_reward(self) -> bool:
        """Whether some rule is about sampled architectures, not about expected costs."""
        return any(isinstance(c.rule, Reward) for c in self._constraints)

    def describe(self) -> list[object]:
        """Plain values that tell one set of constraints from another, tables included."""
        return [
            [c.name, _content(c.cost), c.budget, type(c.rule).__name__, vars(c.rule)]
            for c in self._constraints
        ]

    def objective(
        self, task_loss: float, probabilities: torch.Tensor
    ) -> tuple[float, torch.Tensor]:
        """What to multiply the gradient of the task loss by, and a penalty to add to the loss.

        Expected costs are exact, and the penalty is differentiable in them; never is a sampled
        ``p F`` charged. Where a rule multiplies the loss, the penalty stands for the other half
        of the product rule and adds nothing to the value.

        Args:
            probabilities: (n_slots, n_candidates) float64.
        """
        factor: torch.Tensor | float = 1.0
        penalty: torch.Tensor | float = 0.0
        for c in self._constraints:
            if isinstance(c.rule, Reward | Observed):
                continue
            expected = c.cost.expected(probabilities)
            multiplied, added = c.rule.terms(expected, c.budget, self._multipliers[c.name])
            factor, penalty = factor * multiplied, penalty + added
        if isinstance(factor, torch.Tensor):
            scale = factor.detach()
            return float(scale), penalty + task_loss * (factor - scale)
        return factor, torch.as_tensor(penalty, dtype=probabilities.dtype)

    def reward(self, quality: float, architecture: Architecture) -> float:
        """The reward of a sampled architecture, larger is better.

        Args:
            quality: accuracy in [0, 1], or another number at or above 0.
        """
        factor, added = 1.0, 0.0
        for c in self._constraints:
            if isinstance(c.rule, Reward):
                multiplied, more = c.rule.terms(c.violation(architecture))
                factor, added = factor * multiplied, added + more
        return quality * factor + added

    def objective_of(self, space: SearchSpace) -> Objective:
        """What REINFORCE minimises: the reward of a path's accuracy, negated."""

        def objective(path: tuple[int, ...], loss: float, accuracy: float) -> float:  # noqa: ARG001
            return -self.reward(accuracy, space.architecture(path))

        return objective

    def update(self, architecture: Architecture) -> None:
        """The outer step: move every multiplier by the violation of `architecture`."""
        for c in self._constraints:
            if not isinstance(c.rule, Reward | Observed):
                moved = c.rule.updated(self._multipliers[c.name], c.violation(architecture))
                self._multipliers[c.name] = moved

    def best(self, space: SearchSpace, utilities: Table, k: int = 1) -> list[Architecture]:
        """The `k` architectures of greatest total utility that keep every budget, best first.

        Exact where every cost is a sum or a maximum over the slots. Where a cost is only nearly
        a sum, networks come from the knapsack in the order of their utility, first with all the
        slack that the sum may be wrong by, and those that keep the exact budget are taken: the
        best of a thousand. With less slack where that finds none. In the same way those are
        taken that are whole (`SearchSpace.is_whole`), where a space has operations that cut.

        Args:
            utilities: ``utilities[l][k]`` of candidate k of slot l; ``-inf`` forbids it.

        Raises:
            BudgetUnreachableError: no architecture keeps the budgets.
            SeveredError: none of those that were looked at is whole.
            TypeError: a cost is none of these.
        """
        inexact = [c for c in self._constraints if isinstance(c.cost, NearlySeparableCost)]
        ungapped = space.without_gaps(utilities)
        rows = (utilities,) if ungapped == utilities else (utilities, ungapped)
        for row, share in product(rows, _SLACK_SHARES if inexact else (0.0,)):
            try:
                if kept := self._kept(space, row, share, k):
                    return kept
            except BudgetUnreachableError:
                if not inexact:
                    raise
        if not inexact:
            raise SeveredError
        for c in inexact:
            cheapest = self._cheapest(space, ungapped, c)
            minimum = min(map(c.cost.exact, cheapest))
            if minimum > c.budget:
                raise BudgetUnreachableError(c.budget, minimum, c.name)
        kept = [a for a in cheapest if self._keeps(space, a)]
        if not kept:
            raise BudgetUnreachableError(c.budget, minimum, c.name)
        return kept[:k]

    def _kept(
        self, space: SearchSpace, utilities: Table, slack_share: float, k: int
    ) -> list[Architecture]:
        """The best by the knapsack, its sums allowed some slack, that are what was asked for."""
        limits, caps = self.knapsack(slack_share)
        for n in (k, _FEW * k, _MANY * k):
            found = k_best(utilities, limits, caps, k=n)
            drawn = [space.architecture(choices) for choices in found]
            kept = [a for a in drawn if self._keeps(space, a)]
            if len(kept) >= k or len(drawn) < n:
                break
        return kept[:k]

    def _cheapest(
        self, space: SearchSpace, utilities: Table, constraint: Constraint
    ) -> list[Architecture]:
        """Networks of least cost by a constraint's sum, within every limit that is exact."""
        assert isinstance(constraint.cost, NearlySeparableCost)
        negated = [
            [
                -math.inf if utility == -math.inf else -cost
                for utility, cost in zip(*rows, strict=True)
            ]
            for rows in zip(utilities, constraint.cost.separable.table, strict=True)
        ]
        others = [c for c in self._constraints if not isinstance(c.cost, NearlySeparableCost)]
        found = k_best(negated, *Constraints(others).knapsack(), k=_FEW)
        return [space.architecture(choices) for choices in found]

    def _keeps(self, space: SearchSpace, architecture: Architecture) -> bool:
        within = all(c.violation(architecture) <= _ROUNDING for c in self._constraints)
        return within and space.is_whole(architecture)

    def check_reachable(self, space: SearchSpace) -> None:
        """Make sure, before any training, that some architecture keeps all budgets together.

        Raises:
            BudgetUnreachableError: none does; it names a constraint at fault and the least
                that its cost can be brought to.
            ValueError: a cost belongs to a space of another shape.
            TypeError: a cost is neither nearly a sum nor a maximum over the slots.
        """
        self.best(space, [[0.0] * len(slot.candidates) for slot in space.slots])

    def knapsack(self, slack_share: float = 0.0) -> tuple[list[Limit], list[Cap]]:
        """What `search_core.decode` needs to keep every budget, sums widened by their slack."""
        limits, caps = [], []
        for c in self._constraints:
            match c.cost:
                case SeparableCost(offset=offset, table=table):
                    limits.append(Limit(table, c.budget, offset, c.name))
                case BottleneckCost(floor=floor, table=table):
                    caps.append(Cap(table, c.budget, floor, c.name))
                case NearlySeparableCost(separable=near, slack=slack):
                    budget = c.budget + slack_share * slack
                    limits.append(Limit(near.table, budget, near.offset, c.name))
                case _:
                    raise TypeError(f"the cost of {c.name} cannot be decoded exactly")
        return limits, caps

    def metrics(self, probabilities: torch.Tensor, current: Architecture) -> dict[str, float]:
        """Expected and current cost and multiplier of each constraint, by its name."""
        values = {}
        for c in self._constraints:
            values[f"{c.name}_expected"] = float(c.cost.expected(probabilities))
            values[f"{c.name}_current"] = c.cost.exact(current)
            values[f"{c.name}_multiplier"] = self._multipliers[c.name]
        return values

    def state_dict(self) -> dict[str, float]:
        """The multipliers."""
        return dict(self._multipliers)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from `state_dict`'s answer."""
        self._multipliers = dict(state)


def _check_positive(**numbers: float) -> None:
    for name, value in numbers.items():
        if not 0.0 < value < math.inf:
            raise ValueError(f"{name} is greater than 0, got {value:g}")


def _content(cost: DifferentiableCost) -> list[object]:
    match cost:
        case (
            SeparableCost(offset=constant, table=table)
            | BottleneckCost(floor=constant, table=table)
        ):
            return [type(cost).__name__, cost.unit, constant, table]
        case NearlySeparableCost():
            return [type(cost).__name__, cost.unit, cost.describe()]
        case _:
            return [cost.unit]
