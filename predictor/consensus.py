"""One latency a subject from what several agents say, and which agents to believe.

Agents of one target measure some subjects in common: its canaries, and whatever was measured
twice. An agent whose readings of those differ from the others' is set apart, however much
it has measured; its data stay stored and can be looked at.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

TOLERANCE = 0.05
"""How far an agent's readings may be from the others', in the median, relative."""


@dataclass(frozen=True)
class Reading:
    """What one agent measured of one subject, in ms; later readings come later in a list."""

    subject: str
    agent: str
    latency_ms: float
    flagged: bool = False


@dataclass(frozen=True)
class AgentVerdict:
    """How an agent compares with the others of its target.

    Attributes:
        n: subjects it measured.
        n_shared: of those, what another agent measured as well.
        offset: median relative difference from the others on these.
        scatter: median absolute deviation of that difference.
        trusted: whether its readings count.
        reason: why not; empty when they do.
    """

    agent: str
    n: int
    n_shared: int
    offset: float
    scatter: float
    trusted: bool
    reason: str


@dataclass(frozen=True)
class Consensus:
    """The latency of each subject that a trusted agent measured, and what was thought of all."""

    measured_ms: dict[str, float]
    verdicts: list[AgentVerdict]

    @property
    def trusted(self) -> list[str]:
        """The agents whose readings count."""
        return [v.agent for v in self.verdicts if v.trusted]


def consensus(readings: Iterable[Reading]) -> Consensus:
    """Weigh the readings of one target.

    The latest unflagged reading of each agent counts, or its latest flagged one where it has
    no other; among trusted agents the median. Of three or more agents the one farthest from
    the others goes first, until the rest agree; of two that disagree the one with the longer
    record stays, or the one whose name sorts first, because nobody can say which lies.
    """
    latest: dict[str, dict[str, Reading]] = {}
    for reading in readings:
        of_agent = latest.setdefault(reading.agent, {})
        known = of_agent.get(reading.subject)
        if known is None or known.flagged or not reading.flagged:
            of_agent[reading.subject] = reading
    values = {a: {s: r.latency_ms for s, r in of.items()} for a, of in latest.items()}
    apart: dict[str, str] = {}
    while (out := _farthest(values, apart)) is not None:
        agent, reason = out
        apart[agent] = reason
    trusted = {a: of for a, of in values.items() if a not in apart}
    subjects = sorted({s for of in trusted.values() for s in of})
    return Consensus(
        measured_ms={s: median(of[s] for of in trusted.values() if s in of) for s in subjects},
        verdicts=[_verdict(a, values, trusted, apart.get(a, "")) for a in sorted(values)],
    )


def _farthest(
    values: Mapping[str, Mapping[str, float]], apart: Mapping[str, str]
) -> tuple[str, str] | None:
    """The next agent to set apart and why; None when those left agree."""
    left = {a: of for a, of in values.items() if a not in apart}
    if len(left) < 2:
        return None
    worst: tuple[float, str] = (0.0, "")
    for agent, of_agent in left.items():
        differences = _differences(agent, of_agent, left)
        if not differences:
            continue
        offset, scatter = _centre(differences)
        worst = max(worst, (max(abs(offset), scatter), agent))
    distance, agent = worst
    if math.expm1(distance) <= TOLERANCE:
        return None
    if len(left) == 2:
        agent = min(sorted(left, reverse=True), key=lambda a: len(left[a]))
        return agent, f"it and the only other agent differ by {math.expm1(distance):.0%}"
    return agent, f"its readings differ from the other agents' by {math.expm1(distance):.0%}"


def _verdict(
    agent: str,
    values: Mapping[str, Mapping[str, float]],
    trusted: Mapping[str, Mapping[str, float]],
    reason: str,
) -> AgentVerdict:
    differences = _differences(agent, values[agent], trusted)
    offset, scatter = _centre(differences) if differences else (0.0, 0.0)
    return AgentVerdict(
        agent=agent,
        n=len(values[agent]),
        n_shared=len(differences),
        offset=math.expm1(offset),
        scatter=scatter,
        trusted=not reason,
        reason=reason,
    )


def _differences(
    agent: str, of_agent: Mapping[str, float], all_values: Mapping[str, Mapping[str, float]]
) -> list[float]:
    """Log ratios of an agent's readings to the median of the others', shared subjects only."""
    found = []
    for subject, value in of_agent.items():
        others = [of[subject] for a, of in all_values.items() if a != agent and subject in of]
        if others:
            found.append(math.log(value / median(others)))
    return found


def _centre(differences: Sequence[float]) -> tuple[float, float]:
    """Median and median absolute deviation."""
    centre = median(differences)
    return centre, median(abs(d - centre) for d in differences)
