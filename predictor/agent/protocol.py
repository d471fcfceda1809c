"""How one model file is measured (protocol version 1).

Time is cut into slices of some milliseconds. Before and after each slice an anchor model
runs a few times; where it takes longer than on the quiet device, other work had the core,
and the slice is discarded. On shared machines a neighbour can slow everything by half for
a second without leaving a trace in processor time, so the anchor is the only witness.

Warm-up, then slices until the 95 % confidence interval of the median is narrow enough;
the result is the median, with deciles, over the calls of the quiet slices.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictor.agent import host
from predictor.errors import TooNoisyError
from predictor.measurements import Effort, Measurement

Run = Callable[[], object]


@dataclass(frozen=True)
class Protocol:
    """How much is asked of one measurement.

    Attributes:
        warmup_runs, warmup_seconds: both are reached before anything counts.
        min_runs, min_seconds: both are reached in quiet slices before it may stop.
        max_seconds: after this, it stops with what it has or gives up.
        slice_seconds: how long the model runs between two looks at the anchor.
        interval: widest accepted 95 % confidence interval of the median, relative.
        anchor_tolerance: how much slower than its best the anchor may run, relative.
        decile_tolerance: largest accepted (median - p10) / median.
        cpu_tolerance: largest accepted wall time over thread-CPU time, less 1.
    """

    warmup_runs: int = 10
    warmup_seconds: float = 0.03
    min_runs: int = 50
    min_seconds: float = 0.04
    max_seconds: float = 3.0
    slice_seconds: float = 0.004
    interval: float = 0.01
    anchor_tolerance: float = 0.06
    decile_tolerance: float = 0.05
    cpu_tolerance: float = 0.10


EFFORTS: dict[Effort, Protocol] = {
    "table": Protocol(),
    "certificate": Protocol(
        warmup_seconds=0.5, min_runs=1024, min_seconds=0.5, max_seconds=20.0, interval=0.005
    ),
}


class Anchor:
    """A small model whose time tells whether the core is ours alone right now.

    Attributes:
        best_ms: its time on the quiet device: the 2nd percentile of the latest readings, because a
            busy neighbour can spoil nine readings of ten.
    """

    _RUNS = 5
    _KEPT = 2000

    def __init__(self, run: Run, opening_seconds: float = 2.0) -> None:
        self._run = run
        self._readings = [self._read()]
        end = time.perf_counter() + opening_seconds
        while time.perf_counter() < end:
            self._readings.append(self._read())
            time.sleep(0.002)  # spread over busy and quiet moments
        self.best_ms = self._floor()

    def is_quiet(self, tolerance: float) -> bool:
        """Whether the anchor runs within `tolerance` of its best at this moment."""
        reading = self._read()
        self._readings.append(reading)
        if len(self._readings) % 100 == 0:
            del self._readings[: -self._KEPT]
            self.best_ms = self._floor()
        return reading <= self.best_ms * (1.0 + tolerance)

    def _read(self) -> float:
        times = []
        for _ in range(self._RUNS):
            start = time.perf_counter_ns()
            self._run()
            times.append(time.perf_counter_ns() - start)
        return sorted(times)[self._RUNS // 2] / 1e6

    def _floor(self) -> float:
        return sorted(self._readings)[len(self._readings) // 50]


def measure(run: Run, anchor: Anchor, protocol: Protocol) -> Measurement:
    """Measure the calls of `run` once.

    The measurement comes back with `note` set when a noise gate failed; the caller decides
    whether to try again.

    Raises:
        TooNoisyError: too few quiet slices in `max_seconds` to say anything.
    """
    deadline = time.perf_counter() + protocol.max_seconds
    warm_until, warm_runs = time.perf_counter() + protocol.warmup_seconds, 0
    while warm_runs < protocol.warmup_runs or time.perf_counter() < warm_until:
        run()
        warm_runs += 1

    walls: list[int] = []  # ns, quiet slices only
    cpus: list[int] = []
    slices = quiet_slices = 0
    needed_ns = protocol.min_seconds * 1e9
    spent_ns = 0
    before = anchor.is_quiet(protocol.anchor_tolerance)
    while True:
        slice_walls, slice_cpus = _slice(run, protocol.slice_seconds)
        after = anchor.is_quiet(protocol.anchor_tolerance)
        slices += 1
        if before and after:
            quiet_slices += 1
            walls += slice_walls
            cpus += slice_cpus
            spent_ns += sum(slice_walls)
        before = after
        enough = len(walls) >= protocol.min_runs and spent_ns >= needed_ns
        if enough and quiet_slices % 4 == 0 and _interval(np.array(walls)) <= protocol.interval:
            break
        if time.perf_counter() > deadline:
            break
    if len(walls) < protocol.min_runs:
        raise TooNoisyError(
            f"only {quiet_slices} of {slices} slices were quiet in {protocol.max_seconds:g} s"
        )

    times = np.array(walls) / 1e6
    p10, median, p90 = (float(q) for q in np.percentile(times, [10, 50, 90]))
    cpu_ms = float(np.median(cpus)) / 1e6
    notes = []
    if (median - p10) / median > protocol.decile_tolerance:
        notes.append(f"p10 is {(median - p10) / median:.1%} below the median")
    if cpu_ms > 0.0 and median / cpu_ms - 1.0 > protocol.cpu_tolerance + 0.002 / cpu_ms:
        notes.append(f"wall time is {median / cpu_ms:.2f} times the thread's processor time")
    if (width := _interval(np.array(walls))) > 2 * protocol.interval:
        notes.append(f"the median is only known to {width:.1%}")
    return Measurement(
        latency_ms=median,
        p10_ms=p10,
        p90_ms=p90,
        n=len(walls),
        thread_cpu_ms=cpu_ms,
        contended_share=1.0 - quiet_slices / slices,
        anchor_ms=anchor.best_ms,
        note="; ".join(notes),
        facts=host.transient_facts(),
    )


def _slice(run: Run, seconds: float) -> tuple[list[int], list[int]]:
    walls, cpus = [], []
    end = time.perf_counter_ns() + int(seconds * 1e9)
    while True:
        cpu, start = time.thread_time_ns(), time.perf_counter_ns()
        run()
        stop = time.perf_counter_ns()
        walls.append(stop - start)
        cpus.append(time.thread_time_ns() - cpu)
        if stop >= end:
            return walls, cpus


def _interval(walls: NDArray[np.int64]) -> float:
    """Width of the 95 % confidence interval of the median, relative, from order statistics."""
    n = len(walls)
    if n < 10:
        return math.inf
    ordered = np.sort(walls)
    reach = 0.98 * math.sqrt(n)  # 1.96 standard deviations of Binomial(n, 1/2)
    low, high = int(n / 2 - reach), min(n - 1, math.ceil(n / 2 + reach))
    return float((ordered[high] - ordered[max(0, low)]) / ordered[n // 2])
