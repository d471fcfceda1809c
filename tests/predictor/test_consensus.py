"""Which agents of a target to believe, and what they say together."""

import math
from itertools import permutations
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.consensus import TOLERANCE, Reading, consensus

TRUE_MS = {"canary:a": 0.1, "canary:b": 1.0, "canary:c": 7.0}


def record(agent, factor=1.0, subjects=TRUE_MS, extra=()):
    """What an agent measures that is `factor` off; besides, subjects nobody else has."""
    shared = [Reading(s, agent, factor * ms) for s, ms in dict(subjects).items()]
    return shared + [Reading(s, agent, factor * 0.5) for s in extra]


def verdict(found, agent):
    (one,) = [v for v in found.verdicts if v.agent == agent]
    return one


# -- one agent -------------------------------------------------------------------------


def test_nothing_measured_is_no_consensus():
    found = consensus([])
    assert (found.measured_ms, found.verdicts, found.trusted) == ({}, [], [])


def test_a_single_agent_is_believed():
    found = consensus(record("a", 3.0))
    assert found.measured_ms == {s: 3.0 * ms for s, ms in TRUE_MS.items()}
    (told,) = found.verdicts
    assert (told.n, told.n_shared, told.offset, told.scatter) == (3, 0, 0.0, 0.0)
    assert (told.trusted, told.reason) == (True, "")


@pytest.mark.parametrize(
    ("latencies", "counts"),
    [
        ([(1.0, False), (2.0, False)], 2.0),
        ([(1.0, False), (9.0, True)], 1.0),
        ([(9.0, True), (1.0, False)], 1.0),
        ([(8.0, True), (9.0, True)], 9.0),
        ([(1.0, False), (9.0, True), (2.0, False), (7.0, True)], 2.0),
    ],
)
def test_the_latest_reading_counts_that_passed_the_gates(latencies, counts):
    found = consensus(Reading("s", "a", ms, flagged) for ms, flagged in latencies)
    assert found.measured_ms == {"s": counts}


# -- agents that agree -----------------------------------------------------------------


def test_agents_that_agree_are_averaged_by_their_median():
    factors = {"a": 0.99, "b": 1.0, "c": 1.02}
    found = consensus(r for agent, f in factors.items() for r in record(agent, f))
    assert found.measured_ms == pytest.approx(TRUE_MS)
    assert found.trusted == ["a", "b", "c"]
    assert verdict(found, "c").offset == pytest.approx(1.02 / 0.995 - 1.0)


def test_what_only_one_of_them_measured_counts_as_well():
    found = consensus(record("a", extra=["x"]) + record("b", extra=["y"]))
    assert set(found.measured_ms) == {*TRUE_MS, "x", "y"}
    assert verdict(found, "a").n == 4
    assert verdict(found, "a").n_shared == 3


def test_agents_without_a_common_subject_are_both_believed():
    found = consensus([Reading("x", "a", 1.0), Reading("y", "b", 100.0)])
    assert found.trusted == ["a", "b"]
    assert found.measured_ms == {"x": 1.0, "y": 100.0}


def test_one_odd_reading_sets_nobody_apart():
    spoilt = record("b", subjects={**TRUE_MS, "canary:a": 0.3})
    found = consensus(record("a") + spoilt + record("c"))
    assert found.trusted == ["a", "b", "c"]
    assert found.measured_ms == pytest.approx(TRUE_MS)


# -- agents that do not ----------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.3, 1 / 1.3, 0.5, 10.0])
@pytest.mark.parametrize("order", list(permutations("abc")))
def test_of_three_the_one_that_lies_is_set_apart(factor, order):
    records = {"a": record("a", 0.995), "b": record("b", factor, extra=["x"]), "c": record("c")}
    found = consensus(r for agent in order for r in records[agent])
    assert found.trusted == ["a", "c"]
    assert found.measured_ms == pytest.approx({s: 0.9975 * ms for s, ms in TRUE_MS.items()})
    told = verdict(found, "b")
    assert not told.trusted
    assert told.reason.startswith("its readings differ from the other agents' by ")
    assert told.offset == pytest.approx(factor / 0.9975 - 1.0)
    assert (told.n, told.n_shared) == (4, 3)


def test_a_long_record_does_not_help_a_liar():
    long = [f"s{i}" for i in range(100)]
    found = consensus(record("a") + record("b") + record("liar", 1.3, extra=long))
    assert found.trusted == ["a", "b"]
    assert set(found.measured_ms) == set(TRUE_MS)


def test_an_agent_that_is_off_now_this_way_now_that_is_set_apart():
    off = dict(zip(TRUE_MS, (0.7, 1.0, 1.4), strict=True))
    wild = [Reading(s, "b", off[s] * ms) for s, ms in TRUE_MS.items()]
    found = consensus(record("a") + wild + record("c"))
    assert found.trusted == ["a", "c"]
    assert abs(verdict(found, "b").offset) < TOLERANCE < verdict(found, "b").scatter


@pytest.mark.parametrize("first", ["a", "b"])
def test_of_two_that_disagree_the_longer_record_stays(first):
    records = {"a": record("a", 1.3), "b": record("b", extra=["x"])}
    other = "b" if first == "a" else "a"
    found = consensus(records[first] + records[other])
    assert found.trusted == ["b"]
    assert set(found.measured_ms) == {*TRUE_MS, "x"}
    assert verdict(found, "a").reason == "it and the only other agent differ by 30%"


def test_two_liars_of_five_are_set_apart_one_after_the_other():
    honest = [r for agent in "abc" for r in record(agent)]
    found = consensus(honest + record("d", 1.5) + record("e", 0.6))
    assert found.trusted == ["a", "b", "c"]
    assert found.measured_ms == pytest.approx(TRUE_MS)


def test_a_difference_within_the_tolerance_is_one_of_devices_and_not_of_truth():
    close = math.exp(0.9 * TOLERANCE)
    assert consensus(record("a") + record("b", close)).trusted == ["a", "b"]
    far = math.exp(1.1 * TOLERANCE)
    assert len(consensus(record("a") + record("b", far)).trusted) == 1


# -- whatever is measured --------------------------------------------------------------

latencies = st.floats(min_value=1e-6, max_value=6e5)
readings = st.lists(
    st.builds(
        Reading,
        subject=st.sampled_from("pqrst"),
        agent=st.sampled_from(["a1", "a2", "a3", "a4"]),
        latency_ms=latencies,
        flagged=st.booleans(),
    ),
    max_size=40,
)


@given(readings)
def test_every_agent_is_judged_and_somebody_is_believed(given_readings):
    found = consensus(given_readings)
    agents = sorted({r.agent for r in given_readings})
    assert [v.agent for v in found.verdicts] == agents
    assert bool(found.trusted) == bool(agents)
    for told in found.verdicts:
        assert told.trusted == (not told.reason)
        assert told.n == len({r.subject for r in given_readings if r.agent == told.agent})
        assert 0 <= told.n_shared <= told.n
        assert math.isfinite(told.offset)
        assert told.scatter >= 0.0


@given(readings)
def test_what_is_believed_lies_between_readings_of_believed_agents(given_readings):
    found = consensus(given_readings)
    believed = [r for r in given_readings if r.agent in found.trusted]
    assert set(found.measured_ms) == {r.subject for r in believed}
    for subject, ms in found.measured_ms.items():
        of_subject = [r.latency_ms for r in believed if r.subject == subject]
        assert min(of_subject) <= ms <= max(of_subject)


@given(readings)
def test_the_believed_agree_with_one_another(given_readings):
    found = consensus(given_readings)
    for told in found.verdicts:
        if told.trusted and len(found.trusted) > 1:
            assert abs(told.offset) <= TOLERANCE
            assert told.scatter <= TOLERANCE


@given(readings)
def test_who_uploads_first_does_not_matter(given_readings):
    """Only the order of an agent's own readings does."""
    by_agent = sorted(given_readings, key=lambda r: r.agent)
    turned = sorted(given_readings, key=lambda r: r.agent, reverse=True)
    assert consensus(by_agent) == consensus(turned) == consensus(given_readings)


@given(
    st.dictionaries(st.text(min_size=1, max_size=4), latencies, min_size=2, max_size=8),
    st.lists(st.floats(min_value=-0.02, max_value=0.02), min_size=2, max_size=6),
    st.one_of(
        st.floats(min_value=math.log(1.3), max_value=3.0),
        st.floats(min_value=-3.0, max_value=-math.log(1.3)),
    ),
    st.data(),
)
def test_a_liar_among_honest_agents_is_found_wherever_it_stands(true_ms, errors, lie, data):
    agents = {f"agent{i}": math.exp(error) for i, error in enumerate(errors)}
    position = data.draw(st.integers(min_value=0, max_value=len(errors)))
    names = list(agents)
    order = [*names[:position], "liar", *names[position:]]
    factors = agents | {"liar": math.exp(lie)}
    found = consensus(Reading(s, a, factors[a] * ms) for a in order for s, ms in true_ms.items())
    assert sorted(found.trusted) == sorted(agents)
    middle = median(agents.values())
    assert found.measured_ms == pytest.approx({s: middle * ms for s, ms in true_ms.items()})
