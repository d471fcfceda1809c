"""From probabilities to networks that measure under their budgets."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import ge
from statistics import fmean
from typing import Any

from predictor.latency_term import LatencyTerm
from predictor.network import NetworkLatencyModel
from search_core.constraint import AugmentedLagrangian, Constraint, Observed
from search_core.errors import BudgetUnreachableError
from search_core.search import SearchResult
from search_core.space.space import Architecture
from service.measurements.models import Measurement

HEADROOM = 0.015
"""A decoded network is only trained when it measures this far under the budget, relative;
the final file is measured later, on a device that may have drifted by a percent."""

_BEYOND_DRIFT = 0.005
"""Headroom beyond the drift that a final file has shown."""

MAX_DECODES = 12

SPENT = 0.01
"""How far under its limit a decided network is predicted, at the most, if the space has one."""

UNSPENT = 0.015
REFINEMENTS = 6
"""How many more networks are tried in all while the best leaves more than `UNSPENT` unspent."""

Limits = tuple[float, ...]
"""In ms by the latency models, one an aim."""


@dataclass(frozen=True)
class Aim:
    """A budget on a target.

    Attributes:
        name: of the constraint in a search's metrics.
        precision, batch: of the file that the target runs.
    """

    name: str
    target_id: str
    budget_ms: float
    model: NetworkLatencyModel
    latency: LatencyTerm
    precision: str
    batch: int

    @property
    def first_limit_ms(self) -> float:
        """The largest prediction that should measure under the budget with some headroom."""
        return min(self.model.largest_within(self.budget_ms), self.budget_ms * (1.0 - HEADROOM))

    @property
    def constraint(self) -> Constraint:
        """What a search holds: what networks within the budget are predicted at, if any are."""
        reachable_ms = max(self.first_limit_ms, self.model.band_ms[0])
        return Constraint(self.name, self.latency, reachable_ms, AugmentedLagrangian(equality=True))

    @property
    def file_form(self) -> tuple[str, int]:
        """Aims of one form run one file."""
        return self.precision, self.batch


@dataclass(frozen=True)
class Goal:
    """One network to be found, and every budget it has to keep."""

    aims: tuple[Aim, ...]

    def spent(self, architecture: Architecture) -> float:
        """The share of its tightest budget that an architecture is predicted to spend."""
        return max(aim.latency.exact(architecture) / aim.budget_ms for aim in self.aims)


class Decider:
    """Finds the network of one goal; the devices have the last word.

    Args:
        probe: measures an architecture, untrained, on every aim's target.
        log: gets a line for every network that was probed.
    """

    def __init__(
        self,
        goal: Goal,
        found: SearchResult,
        probe: Callable[[Architecture], Sequence[Measurement]],
        log: Callable[[dict[str, Any]], None],
    ) -> None:
        self._goal, self._found, self._probe, self._log = goal, found, probe, log
        self.measured: dict[Architecture, Sequence[Measurement]] = {}  # the latest of each
        self._headroom = HEADROOM
        self._n_decodes = self._n_refined = 0

    @property
    def first_limits(self) -> Limits:
        """What the first network is decided against: the upper bounds of predictions."""
        return tuple(aim.first_limit_ms for aim in self._goal.aims)

    def decide(self, limits: Limits) -> tuple[Architecture, Limits]:
        """The network that spends most of what measures under every budget, and its limits.

        The first network is likely to fit. While one measures over a budget, that limit is
        lowered below its prediction; once one fits, others are tried nearby, where the last
        measurements say that the budgets lie, until one leaves little unspent.

        Raises:
            BudgetUnreachableError: not even the fastest network measures under the budgets.
        """
        fitting: tuple[float, Architecture, Limits] | None = None
        recent = deque[Architecture](maxlen=2)
        while self._n_decodes < MAX_DECODES:
            child = decode(self._found, self._goal, limits)
            if fitting is not None:
                child, limits = self._untried(child, limits)
            if child in self.measured:
                if fitting is None and (excess := self._excess(child)) <= 1.0:
                    fitting = excess, child, limits
                break
            self._n_decodes += 1
            self.measured[child] = self._probe(child)
            self._log(self._line(child, limits))
            recent.append(child)
            excess = self._excess(child)
            if excess <= 1.0 and (fitting is None or excess > fitting[0]):
                fitting = excess, child, limits
            if fitting is None:
                limits = self.tightened(child, limits)
            elif self._n_refined == REFINEMENTS or fitting[0] >= 1.0 - UNSPENT:
                break
            else:
                self._n_refined += 1
                limits = self._corrected(recent, fitting[1])
        return fitting[1:] if fitting else (self._last_resort(), limits)

    def failed(
        self, child: Architecture, certified: Sequence[Measurement], limits: Limits
    ) -> Limits:
        """Limits that exclude a network whose final file measured over a budget.

        As much as it was slower than when it was probed, others will be: their headroom
        grows, because every network that fails so was trained for nothing.
        """
        drift = max(
            after.latency_ms / before.latency_ms - 1.0
            for before, after in zip(self.measured[child], certified, strict=True)
        )
        self._headroom = max(self._headroom, drift + _BEYOND_DRIFT)
        self.measured[child] = certified
        return self.tightened(child, limits)

    def tightened(self, child: Architecture, limits: Limits) -> Limits:
        """Limits that exclude `child` and correct for what the models underestimated."""
        lowered = []
        for aim, measured, limit in zip(self._goal.aims, self.measured[child], limits, strict=True):
            predicted_ms, wanted_ms = aim.latency.exact(child), self._wanted_ms(aim)
            corrected_ms = wanted_ms * predicted_ms / measured.latency_ms
            over = measured.latency_ms > wanted_ms
            lowered.append(min(corrected_ms, predicted_ms * (1.0 - 1e-6)) if over else limit)
        if tuple(lowered) == limits:  # it failed by its final file alone
            return tuple(limit * (1.0 - self._headroom) for limit in limits)
        return tuple(lowered)

    def nearest(self) -> Architecture:
        """The one of all that were measured that comes nearest to keeping every budget."""
        return min(self.measured, key=self._over_budget)

    def _excess(self, child: Architecture) -> float:
        """What it measures over what it should, at the worst of the aims."""
        pairs = zip(self._goal.aims, self.measured[child], strict=True)
        return max(measured.latency_ms / self._wanted_ms(aim) for aim, measured in pairs)

    def _wanted_ms(self, aim: Aim) -> float:
        """What a network should measure, so that its final file is surely within the budget."""
        return aim.budget_ms * (1.0 - self._headroom)

    def _over_budget(self, child: Architecture) -> float:
        pairs = zip(self._goal.aims, self.measured[child], strict=True)
        return max(measured.latency_ms / aim.budget_ms for aim, measured in pairs)

    def _untried(self, child: Architecture, limits: Limits) -> tuple[Architecture, Limits]:
        """The next network below what is measured already, if one spends about as much."""
        lowest = tuple(limit * (1.0 - UNSPENT) for limit in limits)
        while child in self.measured and all(map(ge, limits, lowest)):
            predicted = [aim.latency.exact(child) * (1.0 - 1e-6) for aim in self._goal.aims]
            limits = tuple(map(min, limits, predicted))
            child = decode(self._found, self._goal, limits)
        return child, limits

    def _corrected(self, children: Sequence[Architecture], fitting: Architecture) -> Limits:
        """What should measure as wanted, if the models err as they did on these networks.

        At least what a network that fits is predicted at: it is larger ones that are wanted.
        """
        limits = []
        for place, aim in enumerate(self._goal.aims):
            errors = [
                math.log(self.measured[child][place].latency_ms / aim.latency.exact(child))
                for child in children
            ]
            corrected_ms = self._wanted_ms(aim) / math.exp(fmean(errors))
            limits.append(max(corrected_ms, aim.latency.exact(fitting)))
        return tuple(limits)

    def _last_resort(self) -> Architecture:
        """Of those that measured within the budgets, the largest with headroom or the safest."""
        within = [child for child in self.measured if self._over_budget(child) <= 1.0]
        if not within:
            aim = self._goal.aims[0]
            nearest_ms = min(measured[0].latency_ms for measured in self.measured.values())
            raise BudgetUnreachableError(aim.budget_ms, nearest_ms)
        kept = [child for child in within if self._excess(child) <= 1.0]
        return max(kept, key=self._goal.spent) if kept else min(within, key=self._excess)

    def _line(self, child: Architecture, limits: Limits) -> dict[str, Any]:
        rows = [
            {
                "target": aim.target_id,
                "limit_ms": limit,
                "predicted_ms": aim.latency.exact(child),
                "measured_ms": measured.latency_ms,
            }
            for aim, limit, measured in zip(
                self._goal.aims, limits, self.measured[child], strict=True
            )
        ]
        line = {"architecture": self._found.supernet.space.format(child), **rows[0]}
        return {**line, "targets": rows} if len(rows) > 1 else line


def decode(found: SearchResult, goal: Goal, limits: Limits) -> Architecture:
    """The most probable network that spends its limits, and keeps them; or the nearest to it.

    Alone, the most probable network under a limit may leave a quarter of it unspent; of the
    latency that a user has allowed, accuracy is to be made.
    """
    pairs = sorted(
        zip(goal.aims, limits, strict=True), key=lambda pair: pair[1] / pair[0].model.band_ms[1]
    )  # what is spent is the tightest limit
    constraints = [Constraint(aim.name, aim.latency, limit, Observed()) for aim, limit in pairs]
    try:
        return found.decide(constraints, at_least=pairs[0][1] * (1.0 - SPENT))
    except BudgetUnreachableError:
        fastest = [_fastest(found, constraint) for constraint in constraints]

        def worst(architecture: Architecture) -> float:
            return max(c.cost.exact(architecture) / c.budget for c in constraints)

        return min(fastest, key=worst)


def _fastest(found: SearchResult, constraint: Constraint) -> Architecture:
    """The best within what the fastest network takes, where the budget is below it."""
    try:
        return found.decide([constraint])
    except BudgetUnreachableError as unreachable:
        return found.decide([replace(constraint, budget=unreachable.minimum)])
