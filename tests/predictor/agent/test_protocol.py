"""How one model is measured, on the real clock of a noisy machine: structure, never timings."""

import time
from dataclasses import replace
from itertools import chain, cycle, repeat
from types import SimpleNamespace

import pytest

from predictor.agent.protocol import Anchor, Protocol, measure
from predictor.agent.runtimes.onnxruntime_cpu import OnnxRuntimeCpu
from predictor.errors import TooNoisyError
from predictor.kits import KitItem
from predictor.measurements import PROTOCOL_VERSION

BRIEF = Protocol(
    warmup_runs=3,
    warmup_seconds=0.0,
    min_runs=20,
    min_seconds=0.0,
    max_seconds=0.3,
    slice_seconds=0.002,
    interval=10.0,
    anchor_tolerance=1e6,
    decile_tolerance=0.3,
)


def answering(answers):
    """An anchor that finds the device quiet or not as `answers` say."""
    answers = iter(answers)
    return SimpleNamespace(is_quiet=lambda _: next(answers), best_ms=0.125)


def spin(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def counting(run):
    """`run`, and the list that grows by one with each call."""
    calls = []
    return (lambda: calls.append(None) or run()), calls


def test_a_real_model_on_the_real_clock_gives_an_ordered_measurement(micro):
    run = OnnxRuntimeCpu().load(KitItem("x", micro.distinct_blocks[1:2]).build())
    anchor = Anchor(run, opening_seconds=0.05)
    measurement = measure(run, anchor, BRIEF)
    assert 0.0 < measurement.p10_ms <= measurement.latency_ms <= measurement.p90_ms
    assert measurement.n >= BRIEF.min_runs
    assert measurement.thread_cpu_ms > 0.0
    assert measurement.contended_share == 0.0  # nothing is slow beside that tolerance
    assert measurement.anchor_ms == anchor.best_ms > 0.0
    assert measurement.protocol_version == PROTOCOL_VERSION
    assert not measurement.flagged
    assert measurement.facts["cpu_count"] >= 1


def test_every_call_after_the_warm_up_counts_while_the_device_is_quiet():
    run, calls = counting(lambda: spin(1e-4))
    measurement = measure(run, answering(repeat(True)), BRIEF)
    assert measurement.n == len(calls) - BRIEF.warmup_runs


def test_a_device_that_is_never_quiet_is_too_noisy():
    with pytest.raises(TooNoisyError, match=r"only 0 of \d+ slices were quiet in 0\.05 s"):
        measure(lambda: spin(1e-4), answering(repeat(False)), replace(BRIEF, max_seconds=0.05))


def test_a_slice_counts_only_between_two_quiet_looks_at_the_anchor():
    """Every second look finds the device busy, so no slice has two quiet ones."""
    with pytest.raises(TooNoisyError, match="only 0 of"):
        measure(
            lambda: spin(1e-4), answering(cycle([True, False])), replace(BRIEF, max_seconds=0.05)
        )


def test_the_latency_is_the_median_of_the_calls():
    durations = cycle([4e-3] * 11 + [1e-4] * 9)  # 55 % are slow, wherever the measurement ends
    protocol = replace(BRIEF, warmup_runs=0)
    measurement = measure(lambda: spin(next(durations)), answering(repeat(True)), protocol)
    assert measurement.latency_ms >= 4.0


def test_calls_of_busy_slices_do_not_count():
    looks = chain([False, False, False], repeat(True))
    state = SimpleNamespace(looks=0)

    def is_quiet(tolerance):
        state.looks += 1
        return next(looks)

    def run():
        spin(0.05 if state.looks <= 3 else 1e-4)

    anchor = SimpleNamespace(is_quiet=is_quiet, best_ms=0.125)
    measurement = measure(run, anchor, replace(BRIEF, warmup_runs=1, max_seconds=5.0))
    assert measurement.contended_share == pytest.approx(3 / (state.looks - 1))
    assert measurement.latency_ms < 50.0


def test_warm_up_runs_do_not_count():
    durations = chain([0.05] * 3, repeat(1e-4))
    measurement = measure(lambda: spin(next(durations)), answering(repeat(True)), BRIEF)
    assert measurement.latency_ms < 50.0


def test_calls_that_alternate_between_fast_and_slow_are_noted():
    durations = cycle([1e-4, 4e-3, 4e-3])
    measurement = measure(lambda: spin(next(durations)), answering(repeat(True)), BRIEF)
    assert "below the median" in measurement.note
    assert not measurement.flagged  # the caller decides whether to try again


def test_calls_that_wait_for_another_thread_are_noted():
    measurement = measure(lambda: time.sleep(2e-3), answering(repeat(True)), BRIEF)
    assert "times the thread's processor time" in measurement.note


def test_a_median_that_is_not_known_well_enough_is_noted():
    durations = cycle([1e-4] * 7 + [4e-3] * 7)
    strict = replace(BRIEF, interval=1e-3)
    measurement = measure(lambda: spin(next(durations)), answering(repeat(True)), strict)
    assert "the median is only known to" in measurement.note


def test_a_measurement_stops_at_its_deadline_though_the_interval_stays_wide():
    durations = cycle([1e-4, 4e-3])
    run, calls = counting(lambda: spin(next(durations)))
    measurement = measure(run, answering(repeat(True)), replace(BRIEF, interval=0.0))
    assert BRIEF.min_runs <= measurement.n <= len(calls)


def test_an_anchor_knows_its_best_and_sees_when_it_runs_far_slower():
    state = SimpleNamespace(slow=False)
    anchor = Anchor(lambda: time.sleep(0.02) if state.slow else None, opening_seconds=0.05)
    best_ms = anchor.best_ms
    assert 0.0 <= best_ms < 10.0
    assert anchor.is_quiet(1e9)
    state.slow = True
    assert not anchor.is_quiet(0.5)
    assert anchor.best_ms == best_ms


def test_an_anchor_forgets_a_best_that_is_long_gone():
    durations = chain([0.0] * 5, repeat(2e-4))
    anchor = Anchor(lambda: spin(next(durations)), opening_seconds=0.0)
    assert anchor.best_ms < 0.2
    for _ in range(99):
        anchor.is_quiet(1.0)
    assert anchor.best_ms >= 0.2


def test_an_anchor_that_was_spoiled_nine_times_of_ten_still_knows_its_best():
    durations = cycle(chain([1e-5] * 5, [1e-3] * 45))  # five runs make one reading
    anchor = Anchor(lambda: spin(next(durations)), opening_seconds=0.3)
    assert anchor.best_ms < 1.0
