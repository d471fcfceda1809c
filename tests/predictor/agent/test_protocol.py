"""How one model is measured, on the real clock of a noisy machine: structure, never timings."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain, cycle, repeat
from types import SimpleNamespace

import pytest

from predictor.agent.protocol import EFFORTS, Anchor, Protocol, measure
from predictor.agent.runtimes.base import Calls
from predictor.agent.runtimes.onnxruntime_cpu import PROVIDER, OnnxRuntimeCpu
from predictor.errors import TooNoisyError
from predictor.kits import anchor_item
from predictor.measurements import PROTOCOL_VERSION

BRIEF = Protocol(
    warmup_runs=3,
    warmup_seconds=0.0,
    min_runs=20,
    min_seconds=0.0,
    max_seconds=10.0,
    interval=10.0,
    anchor_tolerance=1e6,
    decile_tolerance=0.3,
    drift_tolerance=1e6,
)
SLICE = {"slice_seconds": 0.002}
ALWAYS = 10**6


class Model:
    """A model whose every call is `run`; `tells_cpu` is False for what a host cannot tell."""

    provider = "none"

    def __init__(self, run: Callable[[], object], *, tells_cpu: bool = True) -> None:
        self._run, self._tells_cpu = run, tells_cpu
        self.n_calls = 0

    def time_calls(self, n: int) -> Calls:
        walls, cpus = [], []
        for _ in range(n):
            self.n_calls += 1
            cpu, start = time.thread_time_ns(), time.perf_counter_ns()
            self._run()
            walls.append(time.perf_counter_ns() - start)
            cpus.append(time.thread_time_ns() - cpu)
        return Calls(walls, cpus if self._tells_cpu else None)


class Clockwork:
    """A model that claims what its calls took, and takes no time itself."""

    provider = "none"

    def __init__(self, call_ms) -> None:
        self._call_ms = iter(call_ms)

    def time_calls(self, n: int) -> Calls:
        walls = [round(next(self._call_ms) * 1e6) for _ in range(n)]
        return Calls(walls, list(walls))


def answering(answers):
    """An anchor that finds the device quiet or not as `answers` say."""
    answers = iter(answers)
    return SimpleNamespace(is_quiet=lambda _: next(answers), best_ms=0.125)


def quiet():
    return answering(repeat(True))


def spin(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def spinning(durations):
    durations = iter(durations)
    return Model(lambda: spin(next(durations)))


# -- what a measurement says -----------------------------------------------------------


def test_a_real_model_on_the_real_clock_gives_an_ordered_measurement():
    model = OnnxRuntimeCpu().load(anchor_item().build())
    anchor = Anchor(model, opening_seconds=0.05)
    started = datetime.now(UTC)
    measurement = measure(model, anchor, BRIEF, facts={"cores": "1"}, **SLICE)
    assert 0.0 < measurement.p10_ms <= measurement.latency_ms <= measurement.p90_ms
    assert measurement.n >= BRIEF.min_runs
    assert measurement.sigma_ms > 0.0
    assert measurement.thread_cpu_ms > 0.0
    assert measurement.contended_share == 0.0  # nothing is slow beside that tolerance
    assert measurement.anchor_ms == anchor.best_ms > 0.0
    assert measurement.provider == PROVIDER
    assert started <= datetime.fromisoformat(measurement.measured_at) <= datetime.now(UTC)
    assert (measurement.protocol_version, measurement.unit) == (PROTOCOL_VERSION, "ms")
    assert not measurement.flagged
    assert measurement.quarantined == ()
    assert measurement.facts["cores"] == "1"
    assert measurement.facts["cpu_count"] >= 1
    assert json.loads(json.dumps(measurement.facts)) == measurement.facts


def test_what_the_host_cannot_tell_is_not_made_up():
    measurement = measure(Model(lambda: spin(1e-4), tells_cpu=False), quiet(), BRIEF, **SLICE)
    assert measurement.thread_cpu_ms is None
    assert "processor time" not in measurement.note


def test_the_latency_is_the_median_of_the_calls():
    model = Clockwork(cycle([4.0] * 11 + [0.1] * 9))  # 55 % are slow, wherever it ends
    measurement = measure(model, quiet(), replace(BRIEF, warmup_runs=0), **SLICE)
    assert measurement.latency_ms == 4.0
    assert measurement.p10_ms == 0.1


def test_sigma_is_zero_when_every_call_takes_the_same_and_grows_with_their_spread():
    def sigma_ms(calls):
        return measure(Clockwork(calls), quiet(), BRIEF, **SLICE).sigma_ms

    assert sigma_ms(repeat(1.0)) == 0.0
    # half the calls on either side: the median is somewhere between, however many there are
    assert sigma_ms(cycle([0.99, 1.01])) == pytest.approx(0.02 / 3.92, rel=0.02)
    assert sigma_ms(cycle([0.9, 1.1])) == pytest.approx(0.2 / 3.92, rel=0.12)


def test_the_efforts_are_the_published_ones():
    assert set(EFFORTS) == {"table", "certificate"}
    assert EFFORTS["table"].interval == 0.01
    assert EFFORTS["certificate"].interval < EFFORTS["table"].interval
    assert EFFORTS["certificate"].min_runs >= 1024


# -- grades ----------------------------------------------------------------------------


def test_a_quiet_device_and_a_median_that_is_known_make_grade_a():
    measurement = measure(Clockwork(repeat(1.0)), quiet(), replace(BRIEF, interval=0.01), **SLICE)
    assert (measurement.grade, measurement.note) == ("A", "")


def test_a_median_that_is_only_half_known_makes_grade_b():
    protocol = replace(BRIEF, interval=0.01, max_seconds=0.05)
    measurement = measure(Clockwork(cycle([1.0, 1.015])), quiet(), protocol, **SLICE)
    width = 2 * 1.96 * measurement.sigma_ms / measurement.latency_ms
    assert 0.01 < width <= 0.02
    assert (measurement.grade, measurement.note) == ("B", "")


def test_more_time_discarded_than_kept_makes_grade_b():
    looks = chain([False] * 300, repeat(True))
    measurement = measure(Clockwork(repeat(1.0)), answering(looks), BRIEF, **SLICE)
    assert measurement.contended_share > 0.5
    assert measurement.grade == "B"


# -- what counts -----------------------------------------------------------------------


def test_a_device_that_is_never_quiet_is_told():
    busy = answering(repeat(False))
    with pytest.raises(TooNoisyError, match=r"only 0 of \d+ slices were quiet in [\d.]+ s"):
        measure(spinning(repeat(1e-4)), busy, replace(BRIEF, max_seconds=0.05), **SLICE)


def test_a_slice_counts_only_between_two_quiet_looks_at_the_anchor():
    """Every second look finds the device busy, so no slice has two quiet ones."""
    every_second = answering(cycle([True, False]))
    with pytest.raises(TooNoisyError, match="only 0 of"):
        measure(spinning(repeat(1e-4)), every_second, replace(BRIEF, max_seconds=0.05), **SLICE)


def test_calls_of_busy_slices_do_not_count():
    looks = chain([False, False, False], repeat(True))
    state = SimpleNamespace(looks=0)

    def is_quiet(tolerance):
        state.looks += 1
        return next(looks)

    def run():
        spin(0.05 if state.looks <= 3 else 1e-4)

    anchor = SimpleNamespace(is_quiet=is_quiet, best_ms=0.125)
    protocol = replace(BRIEF, warmup_runs=1)
    measurement = measure(Model(run), anchor, protocol, **SLICE)
    assert measurement.contended_share == pytest.approx(3 / (state.looks - 1))
    assert measurement.latency_ms < 50.0


def test_warm_up_runs_do_not_count():
    model = spinning(chain([0.05] * 3, repeat(1e-4)))
    assert measure(model, quiet(), BRIEF, **SLICE).latency_ms < 50.0


def test_a_longer_slice_holds_more_calls_between_two_looks():
    def calls_per_look(slice_seconds):
        looks = []
        anchor = SimpleNamespace(is_quiet=lambda _: looks.append(None) or True, best_ms=0.1)
        model = spinning(repeat(1e-3))
        measure(model, anchor, BRIEF, slice_seconds=slice_seconds)
        return model.n_calls / len(looks)

    assert calls_per_look(0.02) > 2 * calls_per_look(0.001)


def test_a_measurement_stops_at_its_deadline_though_the_interval_stays_wide():
    model = spinning(cycle([1e-4, 4e-3]))
    measurement = measure(model, quiet(), replace(BRIEF, interval=0.0, max_seconds=0.5), **SLICE)
    assert BRIEF.min_runs <= measurement.n <= model.n_calls


# -- noise gates -----------------------------------------------------------------------


def test_calls_that_alternate_between_fast_and_slow_are_noted():
    measurement = measure(spinning(cycle([1e-4, 4e-3, 4e-3])), quiet(), BRIEF, **SLICE)
    assert "below the median" in measurement.note
    assert not measurement.flagged  # the caller decides whether to try again


def test_calls_that_wait_for_another_thread_are_noted():
    measurement = measure(Model(lambda: time.sleep(2e-3)), quiet(), BRIEF, **SLICE)
    assert "times the thread's processor time" in measurement.note


def test_a_median_that_is_not_known_well_enough_is_noted():
    model = Clockwork(cycle([0.1, 4.0]))
    strict = replace(BRIEF, interval=1e-3, max_seconds=0.1)
    measurement = measure(model, quiet(), strict, **SLICE)
    assert "the median is only known to" in measurement.note


@pytest.mark.parametrize("sign", [1, -1])
def test_calls_that_become_slower_or_faster_all_the_while_are_noted(sign):
    drifting = Clockwork(1.0 + sign * 1e-5 * n for n in range(ALWAYS))
    protocol = replace(BRIEF, min_runs=9000, drift_tolerance=0.03)
    note = measure(drifting, quiet(), protocol, **SLICE).note
    assert f"the latency drifted by {'+' if sign > 0 else '-'}" in note
    steady = measure(Clockwork(repeat(1.0)), quiet(), protocol, **SLICE)
    assert "drifted" not in steady.note


def in_turn(*facts):
    """What the host tells before the measurement and after it."""
    facts = iter(facts)
    return lambda: next(facts)


@pytest.mark.parametrize(("after_c", "note"), [(44.0, ""), (46.0, "the device heated by 6 °C")])
def test_a_device_that_heats_by_more_than_five_degrees_is_noted(after_c, note):
    look = in_turn({"temperature_c": 40.0}, {"temperature_c": after_c})
    measurement = measure(Clockwork(repeat(1.0)), quiet(), BRIEF, look=look, **SLICE)
    assert measurement.note == note
    assert measurement.facts["temperature_c"] == after_c


@pytest.mark.parametrize(("after", "note"), [(7, ""), (8, "the processor was throttled")])
def test_a_processor_that_was_throttled_meanwhile_is_noted(after, note):
    look = in_turn({"throttled": 7}, {"throttled": after})
    assert measure(Clockwork(repeat(1.0)), quiet(), BRIEF, look=look, **SLICE).note == note


def test_every_gate_that_failed_is_noted():
    look = in_turn({"throttled": 0}, {"throttled": 1})
    strict = replace(BRIEF, interval=1e-3, max_seconds=0.1)
    note = measure(Clockwork(cycle([0.1, 4.0])), quiet(), strict, look=look, **SLICE).note
    assert len(note.split("; ")) >= 2
    assert len(note) <= 500  # what an upload may hold


def test_a_model_too_slow_for_the_limit_gets_the_calls_it_needs():
    slow = replace(BRIEF, max_seconds=0.2, min_runs=60)  # sixty calls of 10 ms do not fit
    assert measure(spinning(repeat(1e-2)), quiet(), slow, **SLICE).n >= slow.min_runs


# -- the anchor ------------------------------------------------------------------------


def test_an_anchor_knows_its_best_and_sees_when_it_runs_far_slower():
    state = SimpleNamespace(slow=False)
    model = Model(lambda: time.sleep(0.02) if state.slow else None)
    anchor = Anchor(model, opening_seconds=0.05)
    best_ms = anchor.best_ms
    assert 0.0 <= best_ms < 10.0
    assert anchor.is_quiet(1e9)
    state.slow = True
    assert not anchor.is_quiet(0.5)
    assert anchor.best_ms == best_ms


def test_an_anchor_with_earlier_readings_needs_no_opening():
    model = Model(lambda: None)
    anchor = Anchor(model, [0.5, 0.25, 0.75], opening_seconds=1e9)
    assert anchor.best_ms == 0.25
    assert model.n_calls < 10  # the first calls of a session, which are slow
    anchor.is_quiet(1.0)
    assert len(anchor.readings) == 4
    assert anchor.readings[:3] == [0.5, 0.25, 0.75]


def test_an_anchor_leaves_the_list_it_was_given_alone():
    readings = [0.5]
    Anchor(Model(lambda: None), readings).is_quiet(1.0)
    assert readings == [0.5]


def test_an_anchor_forgets_a_best_that_is_long_gone():
    anchor = Anchor(spinning(chain([0.0] * 10, repeat(2e-4))), opening_seconds=0.0)
    assert anchor.best_ms < 0.2
    for _ in range(99):
        anchor.is_quiet(1.0)
    assert anchor.best_ms >= 0.2


def test_an_anchor_does_not_remember_for_ever():
    anchor = Anchor(Model(lambda: None), [1.0] * 5000)
    for _ in range(100):
        anchor.is_quiet(1.0)
    assert len(anchor.readings) <= 2000


def test_an_anchor_that_was_spoiled_nine_times_of_ten_still_knows_its_best():
    durations = cycle(chain([1e-5] * 5, [1e-3] * 45))  # five runs make one reading
    anchor = Anchor(spinning(durations), opening_seconds=0.3)
    assert anchor.best_ms < 1.0
