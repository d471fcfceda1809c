"""How far a measurement may lie from its prediction: split conformal intervals.

The scores are relative errors on networks that the model has not seen, taken apart by thirds
of the predicted latency (a Mondrian split), because small networks are known less well.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_GROUPS = 3
LEVEL = 0.9
"""Share of measurements that the intervals promise to hold."""


@dataclass(frozen=True)
class ConformalIntervals:
    """Half-widths and upper bounds by predicted latency.

    With n scores in a group the k-th smallest, ``k = ceil((n + 1) level)``, holds the next
    one with a probability of at least `level`; of fewer than ``level / (1 - level)`` scores the
    largest counts, and holds it with ``n / (n + 1)``.

    Attributes:
        level: promised share.
        edges_ms: predicted latencies between the groups, rising; one fewer than groups.
        half_width: relative, by group: ``|measured / predicted - 1|`` is at most this.
        upper: relative, by group: ``measured / predicted - 1`` is at most this.
        n: scores by group.
    """

    level: float
    edges_ms: tuple[float, ...]
    half_width: tuple[float, ...]
    upper: tuple[float, ...]
    n: tuple[int, ...]

    def of(self, predicted_ms: float) -> tuple[float, float]:
        """The interval that holds the measurement, in ms."""
        half = self.half_width[self._group(predicted_ms)]
        return predicted_ms * (1.0 - half), predicted_ms * (1.0 + half)

    def upper_ms(self, predicted_ms: float) -> float:
        """What the measurement stays at or below, one-sided, in ms."""
        return predicted_ms * (1.0 + self.upper[self._group(predicted_ms)])

    def largest_within(self, budget_ms: float) -> float:
        """The largest prediction whose upper bound is within a budget, both in ms."""
        lows = (0.0, *self.edges_ms)
        highs = (*self.edges_ms, math.inf)
        found = [
            limit
            for low, high, upper in zip(lows, highs, self.upper, strict=True)
            if (limit := min(budget_ms / (1.0 + upper), math.nextafter(high, 0.0))) >= low
        ]
        return max(found, default=budget_ms / (1.0 + max(self.upper)))

    def _group(self, predicted_ms: float) -> int:
        return sum(predicted_ms >= edge for edge in self.edges_ms)


def conformal_intervals(
    predicted_ms: Sequence[float], measured_ms: Sequence[float], level: float = LEVEL
) -> ConformalIntervals:
    """Intervals from networks that the model has not seen.

    Args:
        predicted_ms, measured_ms: (n,), at least one; fewer than nine a third are not taken
            apart.

    Raises:
        ValueError: there is none.
    """
    if not predicted_ms:
        raise ValueError("intervals need at least one network that the model has not seen")
    pairs = sorted(zip(predicted_ms, measured_ms, strict=True))
    n = len(pairs)
    groups = _GROUPS if n >= _GROUPS * _enough(level) else 1
    cuts = [round(i * n / groups) for i in range(groups + 1)]
    parts = [pairs[a:b] for a, b in pairwise(cuts)]
    edges = [0.5 * (below[-1][0] + above[0][0]) for below, above in pairwise(parts)]
    errors = [[m / p - 1.0 for p, m in part] for part in parts]
    return ConformalIntervals(
        level=level,
        edges_ms=tuple(edges),
        half_width=tuple(_quantile([abs(e) for e in part], level) for part in errors),
        upper=tuple(max(0.0, _quantile(part, level)) for part in errors),
        n=tuple(map(len, parts)),
    )


def realised_coverage(
    predicted_ms: Sequence[float], measured_ms: Sequence[float], level: float = LEVEL
) -> float:
    """Share of networks inside the interval that the others give.

    Each network is held against the intervals of all the rest, as a new one would be.
    """
    inside = 0
    for i, (predicted, measured) in enumerate(zip(predicted_ms, measured_ms, strict=True)):
        rest = conformal_intervals(
            [*predicted_ms[:i], *predicted_ms[i + 1 :]],
            [*measured_ms[:i], *measured_ms[i + 1 :]],
            level,
        )
        low, high = rest.of(predicted)
        inside += low <= measured <= high
    return inside / len(predicted_ms)


def _enough(level: float) -> int:
    """Fewest scores of which some hold the next with a probability of `level`."""
    return math.ceil(level / (1.0 - level) - 1e-9)


def _quantile(scores: Sequence[float], level: float) -> float:
    rank = math.ceil((len(scores) + 1) * level - 1e-9)
    return sorted(scores)[min(rank, len(scores)) - 1]
