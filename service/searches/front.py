"""Accuracy against latency: which networks of a search nobody beats at both."""

from collections.abc import Iterator
from typing import Any, Literal

from sqlalchemy.orm import Session

from service.searches.models import Search
from service.searches.repository import children_of
from service.searches.schemas import Front, FrontPoint

_MOST_CHILDREN = 200

Source = Literal["found", "derived", "probe", "random", "hand_made"]


def front_of(session: Session, search: Search) -> Front:
    """Every network that the search, or one that was derived from it, has measured.

    The front are those with a known accuracy that no other beats in accuracy at the same or a
    lower latency; its knee is the point farthest from the straight line between its ends, both
    axes scaled to the front. `best` is chosen by the rule that searches themselves keep: within
    the budget as measured, then the most accurate.
    """
    points = list(_points(search, "found"))
    for child in children_of(session, search.id, _MOST_CHILDREN):
        if child.kind == "derive" and child.owner == search.owner:
            points += _points(child, "derived")
    budgets = {b["target"]: b["latency_budget_ms"] for b in _budgets(search.spec)}
    known = [p for p in points if p.measured_ms is not None and p.test_accuracy is not None]
    for target in {p.target for p in known}:
        _mark([p for p in known if p.target == target])
    within = [
        p for p in known if p.verified and (p.measured_ms or 0.0) <= budgets.get(p.target, 0.0)
    ]
    return Front(items=points, best=max(within, key=_accuracy, default=None))


def _points(search: Search, source: Source) -> Iterator[FrontPoint]:
    result: dict[str, Any] = search.result or {}
    met = search.status == "succeeded"

    def point(network: dict[str, Any], source: Source, *, verified: bool) -> FrontPoint:
        measured = network.get("measured") or {}
        return FrontPoint(
            search=search.id,
            source=source,
            architecture=network["architecture"],
            target=network.get("target", search.target_id),
            predicted_ms=network["predicted_ms"],
            measured_ms=measured.get("median_ms", network.get("measured_ms")),
            test_accuracy=network.get("test_accuracy"),
            verified=verified,
            on_front=False,
            knee=False,
        )

    for found in result.get("points") or []:
        yield point(found, source, verified=found["verified"])
    if result.get("network") and not result.get("points"):
        yield point(result["network"], source, verified=met)
    for baseline in result.get("baselines") or []:
        yield point(baseline, baseline["kind"], verified=False)
    for decode in result.get("decodes") or []:
        yield point(decode, "probe", verified=False)


def _budgets(spec: dict[str, Any]) -> list[dict[str, Any]]:
    one = {"target": spec["target"], "latency_budget_ms": spec["latency_budget_ms"]}
    targets: list[dict[str, Any]] = spec.get("targets") or [one]
    return targets


def _accuracy(point: FrontPoint) -> float:
    return point.test_accuracy or 0.0


def _mark(points: list[FrontPoint]) -> None:
    """Say which points are on the front of one target, and which is its knee."""
    front: list[FrontPoint] = []
    for point in sorted(points, key=lambda p: (p.measured_ms or 0.0, -_accuracy(p))):
        if not front or _accuracy(point) > _accuracy(front[-1]):
            point.on_front = True
            front.append(point)
    if len(front) < 3:  # two points have no knee
        return
    x0, x1 = front[0].measured_ms or 0.0, front[-1].measured_ms or 0.0
    y0, y1 = _accuracy(front[0]), _accuracy(front[-1])

    def above_the_line(point: FrontPoint) -> float:
        return (_accuracy(point) - y0) / (y1 - y0) - ((point.measured_ms or 0.0) - x0) / (x1 - x0)

    max(front, key=above_the_line).knee = True
