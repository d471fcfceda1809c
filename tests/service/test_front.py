"""Accuracy against latency: which networks nobody beats, the knee, and the best in budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.db.base import utc_now
from service.searches.front import _mark, front_of
from service.searches.models import Search
from service.searches.schemas import FrontPoint


def network(name: str, measured_ms: float | None, accuracy: float | None, **more: object) -> dict:
    measured = None if measured_ms is None else {"median_ms": measured_ms}
    return {
        "architecture": name,
        "predicted_ms": measured_ms or 1.0,
        "measured": measured,
        "test_accuracy": accuracy,
        **more,
    }


class Searches:
    """A store of searches with results, on whatever target."""

    def __init__(self, api, device) -> None:
        self.api, self.device = api, device

    def ended(self, result: dict | None, budget_ms: float = 0.03, **columns: object) -> str:
        made = self.api.search(self.device.target_id, budget_ms)
        with self.api.database.transaction() as session:
            row = session.get_one(Search, made["id"])
            row.status = "succeeded"
            row.phase, row.finished_at = "done", utc_now()
            row.result = result and {
                "frozen_slots": 0,
                "onnx_sha256": "0" * 64,
                "decodes": [],
                **result,
            }
            for name, value in columns.items():
                setattr(row, name, value)
        return made["id"]

    def front(self, search_id: str):
        with self.api.database.reading() as session:
            return front_of(session, session.get_one(Search, search_id))


@pytest.fixture(scope="module")
def searches(api_on_both):
    return Searches(api_on_both, api_on_both.enrol_measured())


def names(front, **of: object) -> list[str]:
    return [p.architecture for p in front.items if all(getattr(p, k) == v for k, v in of.items())]


def test_a_front_has_the_network_its_baselines_and_every_probe(searches):
    found = searches.ended(
        {
            "network": network("found", 0.029, 0.9),
            "baselines": [
                network("drawn", 0.028, 0.8, kind="random"),
                network("by hand", 0.0285, 0.92, kind="hand_made"),
            ],
            "decodes": [{"architecture": "probed", "predicted_ms": 0.02, "measured_ms": 0.021}],
        }
    )
    front = searches.front(found)
    assert [(p.source, p.architecture) for p in front.items] == [
        ("found", "found"),
        ("random", "drawn"),
        ("hand_made", "by hand"),
        ("probe", "probed"),
    ]
    assert names(front, on_front=True) == ["drawn", "by hand"]
    assert front.best.architecture == "found"  # baselines are compared with, not given out
    assert front.items[3].measured_ms == 0.021
    assert not front.items[3].on_front  # nobody knows its accuracy


def test_what_was_derived_is_on_the_front_of_its_search(searches):
    parent = searches.ended({"network": network("found", 0.03, 0.9)}, budget_ms=0.03)
    point = {"target": searches.device.target_id, "latency_budget_ms": 0.02}
    points = [
        network("small", 0.019, 0.8, verified=True, **point),
        network("missed", 0.025, None, verified=False, **point),
    ]
    searches.ended({"network": points[0], "points": points}, parent_id=parent, kind="derive")
    searches.ended({"network": network("clone", 0.001, 1.0)}, parent_id=parent)
    front = searches.front(parent)
    assert [(p.source, p.architecture) for p in front.items] == [
        ("found", "found"),
        ("derived", "small"),
        ("derived", "missed"),
    ]
    assert names(front, on_front=True) == ["found", "small"]


def test_another_accounts_derivation_is_not_shown(searches):
    parent = searches.ended({"network": network("found", 0.03, 0.9)})
    other = {"network": network("theirs", 0.02, 0.9)}
    searches.ended(other, parent_id=parent, kind="derive", owner="somebody else")
    assert names(searches.front(parent)) == ["found"]


def test_the_best_is_the_most_accurate_that_measured_within_the_budget(searches):
    parent = searches.ended({"network": network("found", 0.03, 0.9)}, budget_ms=0.03)
    point = {"target": searches.device.target_id, "latency_budget_ms": 0.05, "verified": True}
    points = [network("slow", 0.031, 0.99, **point), network("fits", 0.029, 0.95, **point)]
    searches.ended({"network": points[0], "points": points}, parent_id=parent, kind="derive")
    assert searches.front(parent).best.architecture == "fits"


def test_a_search_that_found_nothing_has_an_empty_front_or_its_nearest(searches):
    assert searches.front(searches.ended(None, status="failed")).items == []
    nearest = {"network": network("nearest", 0.04, None)}
    front = searches.front(searches.ended(nearest, status="infeasible"))
    assert [(p.architecture, p.verified) for p in front.items] == [("nearest", False)]
    assert front.best is None


def points_at(*pairs: tuple[float, float]) -> list[FrontPoint]:
    return [
        FrontPoint(
            search="srch_x",
            source="derived",
            architecture=str(i),
            target="tgt_x",
            predicted_ms=ms,
            measured_ms=ms,
            test_accuracy=accuracy,
            verified=True,
            on_front=False,
            knee=False,
        )
        for i, (ms, accuracy) in enumerate(pairs)
    ]


def test_the_knee_is_where_more_time_stops_paying():
    points = points_at((1, 0.5), (2, 0.9), (3, 0.92), (4, 0.93), (2.5, 0.7))
    _mark(points)
    assert [p.on_front for p in points] == [True, True, True, True, False]
    assert [p.knee for p in points] == [False, True, False, False, False]


def test_two_points_have_no_knee():
    points = points_at((1, 0.5), (2, 0.9))
    _mark(points)
    assert not any(p.knee for p in points)


LATENCIES = st.integers(1, 20).map(float)
ACCURACIES = st.integers(0, 20).map(lambda n: n / 20)


@given(st.lists(st.tuples(LATENCIES, ACCURACIES), min_size=1, max_size=12))
def test_the_front_is_who_is_beaten_by_nobody(pairs):
    points = points_at(*pairs)
    _mark(points)
    on_front = {pairs[int(p.architecture)] for p in points if p.on_front}
    assert on_front == {
        (ms, accuracy)
        for ms, accuracy in pairs
        if not any(m <= ms and a >= accuracy and (m, a) != (ms, accuracy) for m, a in pairs)
    }
    assert sum(p.knee for p in points) <= 1
    assert all(p.on_front for p in points if p.knee)
