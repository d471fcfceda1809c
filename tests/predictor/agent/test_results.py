"""What becomes of the tries at one model file."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from predictor.agent.results import TRIES, failure, in_words, one_try, settled
from predictor.errors import TaskFailedError
from predictor.measurements import Measurement, Quarantined

GOOD = Measurement(
    latency_ms=1.0,
    p10_ms=0.9,
    p90_ms=1.1,
    sigma_ms=0.01,
    n=100,
    thread_cpu_ms=1.0,
    contended_share=0.0,
    anchor_ms=0.1,
    provider="none",
    measured_at="2026-01-01T00:00:00+00:00",
)


def noisy(latency_ms):
    return replace(GOOD, latency_ms=latency_ms, note=f"drifted at {latency_ms:g}", grade="B")


def settle(*tries):
    """What each try in turn settles, if anything."""
    earlier = []
    return [settled(latest, earlier) for latest in tries]


def test_a_good_try_settles_it_at_once():
    (result,) = settle(GOOD)
    assert result["measurement"]["latency_ms"] == 1.0
    assert result["measurement"]["quarantined"] == ()
    assert not result["measurement"]["flagged"]


def test_a_good_try_after_noisy_ones_carries_them_as_quarantined():
    none, nothing, result = settle(noisy(2.0), Quarantined(None, "only 0 of 9"), GOOD)
    assert none is nothing is None
    assert result["measurement"]["latency_ms"] == 1.0
    assert result["measurement"]["grade"] == "A"
    assert result["measurement"]["quarantined"] == (
        {"latency_ms": 2.0, "reason": "drifted at 2"},
        {"latency_ms": None, "reason": "only 0 of 9"},
    )


def test_the_fastest_of_four_noisy_tries_is_stored_flagged_with_their_spread():
    *before, result = settle(noisy(2.0), noisy(1.5), noisy(1.75), noisy(1.625))
    assert before == [None] * (TRIES - 1)
    found = result["measurement"]
    assert (found["latency_ms"], found["flagged"], found["grade"]) == (1.5, True, "C")
    assert found["sigma_ms"] == 0.5
    assert found["note"] == "drifted at 1.5"
    assert [q["latency_ms"] for q in found["quarantined"]] == [2.0, 1.75, 1.625]


def test_a_spread_that_is_smaller_than_sigma_does_not_shrink_it():
    *_, result = settle(*[replace(noisy(1.0), sigma_ms=0.2)] * TRIES)
    assert result["measurement"]["sigma_ms"] == 0.2


def test_one_measured_try_among_those_that_said_nothing_is_stored_flagged():
    nothing = Quarantined(None, "only 0 of 9")
    *_, result = settle(nothing, noisy(3.0), nothing, nothing)
    assert result["measurement"]["latency_ms"] == 3.0
    assert (
        result["measurement"]["quarantined"] == ({"latency_ms": None, "reason": "only 0 of 9"},) * 3
    )


def test_tries_that_never_said_anything_are_a_failure():
    *_, result = settle(*[Quarantined(None, f"only 0 of {n}") for n in range(TRIES)])
    assert result == failure("too_noisy", "noise", "only 0 of 3")


def test_a_result_can_be_uploaded_as_json():
    *_, result = settle(noisy(2.0), GOOD)
    assert json.loads(json.dumps(result))["measurement"]["quarantined"][0]["latency_ms"] == 2.0


def failing(code, reason):
    def measure(*_):
        raise TaskFailedError(code, reason, "as the test wants it")

    return SimpleNamespace(measure=measure)


def test_a_try_at_a_busy_moment_is_quarantined():
    found = one_try(failing("too_noisy", "noise"), b"model", "a" * 64, b"anchor", "table")
    assert found == Quarantined(None, "as the test wants it")


def test_what_the_target_cannot_run_is_not_tried_again():
    with pytest.raises(TaskFailedError, match="as the test wants it"):
        one_try(failing("unsupported", "crashed"), b"model", "a" * 64, b"anchor", "table")


def test_a_failure_has_room_in_an_upload():
    assert len(failure("unsupported", "refused", "x" * 9999)["failure"]["detail"]) == 500


def test_results_are_told_in_words():
    (good,) = settle(GOOD)
    *_, doubtful = settle(*map(noisy, (1.0, 1.5, 1.5, 1.5)))
    assert in_words(good) == "1.0000 ms, grade A (n=100)"
    assert in_words(doubtful) == "1.0000 ms, grade C (n=100), flagged: drifted at 1"
    assert in_words(failure("unsupported", "hung", "no answer")) == "unsupported (hung): no answer"
