"""Curves short enough to draw, out of metrics of any length, in one pass and bounded memory.

A curve is cut into equal parts of its steps, and of each part the first, the last, the smallest
and the largest point are kept: M4 (Jugel et al., "M4: A Visualization-Oriented Time Series Data
Aggregation", VLDB 2014), which draws the same line as all the points would. Nothing is averaged,
so every point shown was reported, and no spike is lost.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from math import inf
from typing import Any

from service.searches.event_schemas import AttemptStart, Curve

_NOT_METRICS = frozenset({"phase", "step", "total", "remaining_seconds"})
_NUMBERS = (float, int)  # a bool is none
_KEPT_OF_A_PART = 4

Point = tuple[int, float]


class _Thinned:
    """At most `max_points` points of a curve that is told backwards."""

    def __init__(self, max_points: int) -> None:
        self._max_points = max_points
        self._all: list[Point] = []  # while they are few enough
        self._parts: dict[int, list[Point]] = {}  # last, first, smallest, largest
        self._width = 0.0
        self.n = 0

    def add(self, step: int, value: float) -> None:
        """Add a point whose step is smaller than any before."""
        self.n += 1
        if self.n <= self._max_points:
            return self._all.append((step, value))
        if not self._parts:
            self._width = (self._all[0][0] + 1) / (self._max_points // _KEPT_OF_A_PART)
            for point in self._all:
                self._thin(point)
            self._all.clear()
        return self._thin((step, value))

    def _thin(self, point: Point) -> None:
        index = int(point[0] / self._width)
        part = self._parts.get(index)
        if part is None:
            self._parts[index] = [point] * _KEPT_OF_A_PART
            return
        part[1] = point
        if point[1] < part[2][1]:
            part[2] = point
        if point[1] > part[3][1]:
            part[3] = point

    def points(self) -> list[Point]:
        """What is left, in the order of the steps."""
        kept = (point for part in self._parts.values() for point in part)
        return sorted({*self._all, *kept})


class _Series:
    def __init__(self, max_points: int) -> None:
        self.curve = _Thinned(max_points)
        self.lowest_step: float = inf
        self.starts: dict[int, int] = {}  # of each attempt, its first step


def thinned_curves(
    backwards: Iterable[tuple[datetime, Mapping[str, Any]]],
    attempts_began: Sequence[datetime],
    names: Collection[str],
    max_points: int,
) -> list[Curve]:
    """One curve for each phase and metric, by the order of the phases and by name.

    An attempt that goes on from a checkpoint may tell steps again, and so does a phase that is
    gone through anew; the last that was told of a step is what counts, so that the steps of a
    curve only grow. Told backwards, that is to leave out every step that is not below all
    before it.

    Args:
        backwards: when and what each metrics event told, newest first.
        attempts_began: when each attempt began, first to last.
        names: of the metrics wanted; every one if there is none.
    """
    found: dict[tuple[str, str], _Series] = {}
    for told_at, told in backwards:
        phase, step = told.get("phase"), told.get("step")
        if not isinstance(phase, str) or not isinstance(step, int):
            continue
        attempt = bisect_right(attempts_began, told_at)
        for name, value in told.items():
            if name in _NOT_METRICS or (names and name not in names) or type(value) not in _NUMBERS:
                continue
            series = found.get((phase, name))
            if series is None:
                series = found[phase, name] = _Series(max_points)
            if step < series.lowest_step:
                series.lowest_step = series.starts[attempt] = step
                series.curve.add(step, float(value))
    phases = list(dict.fromkeys(phase for phase, _ in found))
    forwards = sorted(found, key=lambda key: (-phases.index(key[0]), key[1]))
    return [_read(phase, name, found[phase, name]) for phase, name in forwards]


def _read(phase: str, name: str, series: _Series) -> Curve:
    points = series.curve.points()
    return Curve(
        phase=phase,
        name=name,
        steps=[step for step, _ in points],
        values=[value for _, value in points],
        n_points=series.curve.n,
        attempts=[
            AttemptStart(number=number, first_step=step)
            for number, step in sorted(series.starts.items())
        ],
    )
