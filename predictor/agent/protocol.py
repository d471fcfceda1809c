"""How one model file is measured (protocol version 2).

Time is cut into slices of some milliseconds. Before and after each slice an anchor model
runs a few times; where it takes longer than on the quiet device, other work had the core,
and the slice is discarded. On shared machines a neighbour can slow everything by half for
a second without leaving a trace in processor time, so the anchor is the only witness.

Warm-up, then slices until the 95 % confidence interval of the median is narrow enough;
the result is the median, with deciles, over the calls of the quiet slices.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor.agent import host
from predictor.agent.runtimes.base import Calls, LoadedModel
from predictor.errors import TooNoisyError
from predictor.measurements import Effort, Measurement

Floats = NDArray[np.float64]

_LEAST_SLICES = 24
_SLOWEST = 10
"""A model so slow that its calls do not fit gets up to this many times `max_seconds`."""


@dataclass(frozen=True)
class Protocol:
    """How much is asked of one measurement.

    Attributes:
        warmup_runs, warmup_seconds: both are reached before anything counts.
        min_runs, min_seconds: both are reached in quiet slices before it may stop.
        max_seconds: after this, it stops with what it has or gives up.
        interval: widest accepted 95 % confidence interval of the median, relative.
        anchor_tolerance: how much slower than its best the anchor may run, relative.
        decile_tolerance: largest accepted (median - p10) / median.
        cpu_tolerance: largest accepted wall time over thread-CPU time, less 1.
        drift_tolerance: largest accepted difference between the medians of the last and of
            the first third of the calls, relative.
        heating_c: largest accepted rise of the temperature, in degrees.
    """

    warmup_runs: int = 10
    warmup_seconds: float = 0.03
    min_runs: int = 50
    min_seconds: float = 0.1
    max_seconds: float = 3.0
    interval: float = 0.01
    anchor_tolerance: float = 0.06
    decile_tolerance: float = 0.05
    cpu_tolerance: float = 0.10
    drift_tolerance: float = 0.03
    heating_c: float = 5.0


EFFORTS: dict[Effort, Protocol] = {
    "table": Protocol(),
    "certificate": Protocol(
        warmup_seconds=0.5, min_runs=1024, min_seconds=0.5, max_seconds=20.0, interval=0.005
    ),
}


def longest_seconds(effort: Effort) -> float:
    """The longest that one measurement may take, the slowest models included."""
    return _SLOWEST * EFFORTS[effort].max_seconds


class Anchor:
    """A small model whose time tells whether the core is ours alone right now.

    Args:
        readings: earlier ones, in ms; without any, an opening of `opening_seconds` takes some.
        remembered_ms: its time on the quiet device as it is known from before, if it is.

    Attributes:
        readings: the latest ones, in ms; pass them on to the next anchor of the same file.
        best_ms: its time on the quiet device: the 2nd percentile of the readings, because a
            busy neighbour can spoil nine readings of ten; or what is remembered, if that is
            less, because a neighbour can stay.
    """

    _RUNS = 5
    _KEPT = 2000

    def __init__(
        self,
        model: LoadedModel,
        readings: list[float] | None = None,
        opening_seconds: float = 2.0,
        remembered_ms: float = math.inf,
    ) -> None:
        self._model = model
        self._remembered_ms = remembered_ms
        self.readings = list(readings or ())
        self._read()  # the first calls of a new session are slow
        if not self.readings:
            self.readings = [self._read()]
            end = time.perf_counter() + opening_seconds
            while time.perf_counter() < end:
                self.readings.append(self._read())
                time.sleep(0.002)  # spread over busy and quiet moments
        self.best_ms = self._floor()

    def is_quiet(self, tolerance: float) -> bool:
        """Whether the anchor runs within `tolerance` of its best at this moment."""
        reading = self._read()
        self.readings.append(reading)
        if len(self.readings) % 100 == 0:
            del self.readings[: -self._KEPT]
            self.best_ms = self._floor()
        return reading <= self.best_ms * (1.0 + tolerance)

    def _read(self) -> float:
        return sorted(self._model.time_calls(self._RUNS).wall_ns)[self._RUNS // 2] / 1e6

    def _floor(self) -> float:
        return min(floor_ms(self.readings), self._remembered_ms)


def floor_ms(readings: Sequence[float]) -> float:
    """What an anchor takes on the quiet device, from readings of which most may be spoilt."""
    return sorted(readings)[len(readings) // 50]


def measure(
    model: LoadedModel,
    anchor: Anchor,
    protocol: Protocol,
    *,
    slice_seconds: float = 0.004,
    facts: dict[str, Any] | None = None,
    look: Callable[[], dict[str, Any]] = host.transient_facts,
) -> Measurement:
    """Measure the calls of `model` once.

    The measurement comes back with `note` set when a noise gate failed; the caller decides
    whether to try again.

    Args:
        slice_seconds: how long the model runs between two looks at the anchor.
        facts: what is known already and goes into the record.
        look: tells load, clocks and temperature of what runs the model, now.

    Raises:
        TooNoisyError: too few quiet slices in `max_seconds` to say anything.
        RuntimeFailedError: the runtime failed on the way.
    """
    before = look()
    call_seconds = _warm_up(model, protocol)
    limit_seconds = max(protocol.max_seconds, _LEAST_SLICES * max(slice_seconds, call_seconds))
    if protocol.min_runs * call_seconds > limit_seconds:
        limit_seconds = min(_SLOWEST * protocol.max_seconds, 2 * protocol.min_runs * call_seconds)
    deadline = time.perf_counter() + limit_seconds

    found = _Found(protocol)
    slices = 0
    needed_ns = protocol.min_seconds * 1e9
    quiet_before = anchor.is_quiet(protocol.anchor_tolerance)
    while True:
        calls = model.time_calls(max(1, round(slice_seconds / call_seconds)))
        call_seconds = max(1e-7, min(calls.wall_ns) / 1e9)  # the warm-up may have been slower
        quiet_after = anchor.is_quiet(protocol.anchor_tolerance)
        slices += 1
        if quiet_before and quiet_after:
            found.add(calls)
        quiet_before = quiet_after
        walls = found.undisturbed
        enough = len(walls) >= protocol.min_runs and sum(walls) >= needed_ns
        if enough and found.slices % 4 == 0 and _interval(np.array(walls)) <= protocol.interval:
            break
        if time.perf_counter() > deadline:
            break
    walls, cpus = found.best()
    if len(walls) < protocol.min_runs:
        raise TooNoisyError(
            f"only {found.slices} of {slices} slices were quiet in {limit_seconds:.3g} s"
        )

    times = np.array(walls) / 1e6
    p10, median, p90 = (float(q) for q in np.percentile(times, [10, 50, 90]))
    cpu_ms = float(np.median(cpus)) / 1e6 if cpus else None
    after = look()
    width = _interval(times)
    contended_share = 1.0 - found.slices / slices
    notes = _failed_gates(times, cpu_ms, width, before, after, protocol)
    good = width <= protocol.interval and contended_share <= 0.5
    return Measurement(
        latency_ms=median,
        p10_ms=p10,
        p90_ms=p90,
        sigma_ms=median * width / (2 * 1.96),
        n=len(walls),
        thread_cpu_ms=cpu_ms,
        contended_share=contended_share,
        anchor_ms=anchor.best_ms,
        provider=model.provider,
        measured_at=datetime.now(UTC).isoformat(),
        grade="A" if good else "B",
        note="; ".join(notes),
        facts={**(facts or {}), **after},
    )


class _Found:
    """The calls of quiet slices, and those of them that no other process interrupted.

    A call that took longer than its thread's processor time was put aside by the scheduler;
    it says nothing about the model, unless all calls are so because they wait for something.

    Attributes:
        slices: how many had an undisturbed call.
        undisturbed: wall times, in ns.
    """

    def __init__(self, protocol: Protocol) -> None:
        self._tolerance = protocol.cpu_tolerance
        self._min_runs = protocol.min_runs
        self._all: list[int] = []
        self._all_cpus: list[int] = []
        self._cpus: list[int] = []
        self.undisturbed: list[int] = []
        self.slices = 0

    def add(self, calls: Calls) -> None:
        """Take in the calls of a quiet slice."""
        self._all += calls.wall_ns
        if calls.thread_cpu_ns is None:
            self.undisturbed += calls.wall_ns
            self.slices += 1
            return
        self._all_cpus += calls.thread_cpu_ns
        before = len(self.undisturbed)
        for wall, cpu in zip(calls.wall_ns, calls.thread_cpu_ns, strict=True):
            if wall <= cpu * (1.0 + self._tolerance) + 2000:
                self.undisturbed.append(wall)
                self._cpus.append(cpu)
        self.slices += len(self.undisturbed) > before

    def best(self) -> tuple[list[int], list[int]]:
        """Wall and processor times to judge by, in ns: the undisturbed ones if they suffice.

        Long calls are disturbed more often than short ones, so a minority would mislead.
        """
        if len(self.undisturbed) >= max(self._min_runs, len(self._all) // 2):
            return self.undisturbed, self._cpus
        return self._all, self._all_cpus


def _warm_up(model: LoadedModel, protocol: Protocol) -> float:
    """Run until warm; what one call takes by then, in seconds."""
    warm_until, warm_runs = time.perf_counter() + protocol.warmup_seconds, 0
    while True:
        calls = model.time_calls(max(1, protocol.warmup_runs // 3))
        warm_runs += len(calls.wall_ns)
        if warm_runs >= protocol.warmup_runs and time.perf_counter() >= warm_until:
            return max(1e-7, float(np.mean(calls.wall_ns)) / 1e9)


def _failed_gates(
    times: Floats,
    cpu_ms: float | None,
    width: float,
    before: dict[str, Any],
    after: dict[str, Any],
    protocol: Protocol,
) -> list[str]:
    """Why a measurement is to be set aside; empty when it is sound."""
    notes = []
    p10, median = (float(q) for q in np.percentile(times, [10, 50]))
    if (median - p10) / median > protocol.decile_tolerance:
        notes.append(f"p10 is {(median - p10) / median:.1%} below the median")
    if cpu_ms and median / cpu_ms - 1.0 > protocol.cpu_tolerance + 0.002 / cpu_ms:
        notes.append(f"wall time is {median / cpu_ms:.2f} times the thread's processor time")
    if width > 2 * protocol.interval:
        notes.append(f"the median is only known to {width:.1%}")
    third = len(times) // 3
    drift = float(np.median(times[-third:]) / np.median(times[:third])) - 1.0
    if abs(drift) > protocol.drift_tolerance:
        notes.append(f"the latency drifted by {drift:+.1%} while it was measured")
    heat = after.get("temperature_c", 0.0) - before.get("temperature_c", 0.0)
    if heat > protocol.heating_c:
        notes.append(f"the device heated by {heat:.0f} °C")
    if after.get("throttled", 0) > before.get("throttled", 0):
        notes.append("the processor was throttled")
    return notes


def _interval(times: NDArray[Any]) -> float:
    """Width of the 95 % confidence interval of the median, relative, from order statistics."""
    n = len(times)
    if n < 10:
        return math.inf
    ordered = np.sort(times)
    reach = 0.98 * math.sqrt(n)  # 1.96 standard deviations of Binomial(n, 1/2)
    low, high = int(n / 2 - reach), min(n - 1, math.ceil(n / 2 + reach))
    return float((ordered[high] - ordered[max(0, low)]) / ordered[n // 2])
