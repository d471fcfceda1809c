"""The faults: what can go wrong, when, for how long.

A plan is drawn beforehand from a seed: when, what, for how many seconds, and a number from
which the victim is chosen among what runs then. The same seed gives the same plan again; what
came of it is in the log.
"""

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from benchmarks.chaos_parts import Link, Mode, Part, freeze, thaw
from benchmarks.chaos_world import LEASE_SECONDS, Store, World

_STORM = (4, 8)  # faults that overlap
_STORM_SECONDS = 8.0
_CALM_SECONDS = (6.0, 12.0)

Item = TypeVar("Item")


@dataclass(frozen=True)
class Fault:
    """One fault of a plan.

    Attributes:
        seconds: how long it lasts, or how long what was killed stays down.
        draw: 0 to 1; which of those that are there is hit.
    """

    at_seconds: float
    kind: str
    seconds: float
    draw: float


Inject = Callable[[World, Fault, random.Random], dict[str, Any]]


def draw_plan(seed: int, n: int, store: Store, kinds: dict[str, float]) -> list[Fault]:
    """`n` faults in storms with calms between them, in which searches may get on.

    Args:
        kinds: how often each kind, relative to the others; each comes at least once when
            there are enough faults for that.
    """
    rng = random.Random(f"{seed} {store}")
    names = list(kinds)
    drawn = rng.sample(names, min(n, len(names)))
    drawn += rng.choices(names, list(kinds.values()), k=n - len(drawn))
    rng.shuffle(drawn)
    plan: list[Fault] = []
    now = 1.0
    while len(plan) < n:
        for moment in sorted(rng.uniform(0, _STORM_SECONDS) for _ in range(rng.randint(*_STORM))):
            if len(plan) < n:
                lasts = min(1.5 * LEASE_SECONDS, 0.2 + rng.expovariate(0.6))
                plan.append(
                    Fault(round(now + moment, 3), drawn[len(plan)], round(lasts, 3), rng.random())
                )
        now += _STORM_SECONDS + rng.uniform(*_CALM_SECONDS)
    return plan


class Storm:
    """Carries a plan out: every fault in a thread of its own, so that they overlap.

    Args:
        kinds: what each kind does; it returns what it hit, for the log.
    """

    def __init__(self, world: World, plan: list[Fault], kinds: dict[str, Inject]) -> None:
        self._world, self._plan, self._kinds = world, plan, kinds
        self.injected: dict[str, int] = {}
        self.missed = 0
        self._lock = threading.Lock()

    def run(self, stop: threading.Event) -> None:
        """Inject every fault in its time; returns when the last is over."""
        began = time.monotonic()
        threads = []
        for number, fault in enumerate(self._plan):
            if stop.wait(max(0.0, began + fault.at_seconds - time.monotonic())):
                break
            thread = threading.Thread(target=self._inject, args=(number, fault), daemon=True)
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()

    def _inject(self, number: int, fault: Fault) -> None:
        rng = random.Random(fault.draw)
        self._world.log.write("fault begins", number=number, plan=asdict(fault))
        hit: dict[str, Any] | None = None
        deadline = time.monotonic() + 10.0
        while hit is None and time.monotonic() < deadline:
            try:
                hit = self._kinds[fault.kind](self._world, fault, rng)
            except Nothing:
                time.sleep(0.2)
        with self._lock:
            if hit is None:
                self.missed += 1
            else:
                self.injected[fault.kind] = self.injected.get(fault.kind, 0) + 1
        self._world.log.write("fault ends", number=number, kind=fault.kind, hit=hit)


class Nothing(Exception):  # noqa: N818 - not an error: there is nothing to hit just now
    """Nothing of the kind runs at the moment."""


# -- death -----------------------------------------------------------------------------


def _kill(prefix: str) -> Inject:
    def inject(world: World, fault: Fault, rng: random.Random) -> dict[str, Any]:
        part = _running(world, prefix, rng)
        return {"part": part.name, "pid": part.kill(down_seconds=fault.seconds)}

    return inject


def _kill_host(world: World, fault: Fault, rng: random.Random) -> dict[str, Any]:
    """A worker's host loses power: worker and attempts die at once."""
    part = _running(world, "worker", rng)
    with suppress(psutil.Error):
        children = psutil.Process(part.pid).children(recursive=True)
        pid = part.kill(down_seconds=fault.seconds)
        for child in children:
            with suppress(psutil.Error):
                child.kill()
        return {"part": part.name, "pid": pid, "children": len(children)}
    raise Nothing


def _kill_attempt(world: World, _: Fault, rng: random.Random) -> dict[str, Any]:
    attempt = _one_of(world.attempts(), rng)
    with suppress(psutil.Error):
        attempt.kill()
        return {"pid": attempt.pid}
    raise Nothing


def _kill_backend(world: World, _: Fault, rng: random.Random) -> dict[str, Any]:
    """One server process of PostgreSQL dies: all others are thrown out, and it recovers."""
    part = _running(world, "database", rng)
    with suppress(psutil.Error):
        victim = _one_of(psutil.Process(part.pid).children(), rng)
        victim.kill()
        return {"pid": victim.pid}
    raise Nothing


def _kill_amid_write(world: World, _: Fault, rng: random.Random) -> dict[str, Any]:
    """Whoever holds SQLite's write lock at some moment dies while it holds it."""
    deadline = time.monotonic() + 5.0
    shared = Path(f"{world.home / 'tailor.db'}-shm")
    skip = rng.randint(0, 3)  # not always the first writer of a storm
    while time.monotonic() < deadline:
        pid = _holder_of_write_lock(shared)
        if pid is None:
            time.sleep(0.0005)
            continue
        if skip:
            skip -= 1
            time.sleep(0.05)
            continue
        with suppress(ProcessLookupError, psutil.Error):
            name = " ".join(psutil.Process(pid).cmdline()[-4:])
            os.kill(pid, signal.SIGKILL)
            return {"pid": pid, "process": name}
    raise Nothing


def _holder_of_write_lock(shared: Path) -> int | None:
    """Who holds byte 120 of the shared-memory file, WAL_WRITE_LOCK in SQLite's wal.c."""
    try:
        inode = str(shared.stat().st_ino)
        locks = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return None
    for line in locks.splitlines():
        words = line.split()
        if words[1] != "->" and words[5].endswith(f":{inode}") and words[3] == "WRITE":
            first, last = int(words[6]), words[7]
            if first <= 120 and (last == "EOF" or int(last) >= 120):
                return int(words[4])
    return None


# -- silence ---------------------------------------------------------------------------


def _freeze(prefix: str) -> Inject:
    """Longer than a lease, now and then: what wakes up then is a zombie."""

    def inject(world: World, fault: Fault, rng: random.Random) -> dict[str, Any]:
        if prefix == "attempt":
            process = _one_of(world.attempts(), rng)
        else:
            process = psutil.Process(_running(world, prefix, rng).pid)
        freeze(process)
        time.sleep(fault.seconds)
        thaw(process)
        return {"pid": process.pid}

    return inject


def _freeze_host(world: World, fault: Fault, rng: random.Random) -> dict[str, Any]:
    """A worker and its attempts sleep, as a suspended machine, and are woken up."""
    part = _running(world, "worker", rng)
    with suppress(psutil.Error):
        worker = psutil.Process(part.pid)
        asleep = [worker, *worker.children(recursive=True)]
        for process in asleep:
            freeze(process)
        time.sleep(max(fault.seconds, 1.2 * LEASE_SECONDS))
        for process in asleep:
            thaw(process)
        return {"part": part.name, "processes": len(asleep)}
    raise Nothing


def _network(mode: Mode, ends: str) -> Inject:
    def inject(world: World, fault: Fault, rng: random.Random) -> dict[str, Any]:
        links = [link for name, link in world.network.links.items() if name.endswith(ends)]
        if ends == "api":
            links = [link for name, link in world.network.links.items() if ">api" in name]
        link: Link = _one_of(links, rng)
        with _exclusively(world, link.name):
            link.set(mode)
            time.sleep(fault.seconds)
            link.set("pass")
        return {"link": link.name}

    return inject


# -- disk and clock --------------------------------------------------------------------


def _disk_full(world: World, fault: Fault, _: random.Random) -> dict[str, Any]:
    with _exclusively(world, "disk"):
        world.disk.fill()
        time.sleep(fault.seconds)
        world.disk.free()
    return {"disk": world.disk.kind}


def _disk_hangs(world: World, fault: Fault, _: random.Random) -> dict[str, Any]:
    with _exclusively(world, "disk"):
        world.disk.hang()
        time.sleep(fault.seconds)
        world.disk.go_on()
    return {"disk": world.disk.kind}


def _disk_slow(world: World, fault: Fault, rng: random.Random) -> dict[str, Any]:
    """Answers come in bursts: each write or sync takes up to a third of a second."""
    end = time.monotonic() + 2 * fault.seconds
    stops = 0
    while time.monotonic() < end:
        with _exclusively(world, "disk"):
            world.disk.hang()
            time.sleep(rng.uniform(0.05, 0.35))
            world.disk.go_on()
        stops += 1
        time.sleep(rng.uniform(0.01, 0.1))
    return {"disk": world.disk.kind, "stops": stops}


def _clock_step(world: World, fault: Fault, rng: random.Random) -> dict[str, Any]:
    """One host's wall clock is wrong for a while, by seconds, minutes or an hour."""
    clock = _one_of(list(world.clocks.values()), rng)
    by_seconds = rng.choice((-1, 1)) * rng.choice((2.0, 7.0, 45.0, 300.0, 3600.0))
    with _exclusively(world, f"clock {clock.host}"):
        clock.step(by_seconds)
        time.sleep(2.0 + 2 * fault.seconds)
        clock.step(0.0)
    return {"host": clock.host, "by_seconds": by_seconds}


# -- which there are -------------------------------------------------------------------

_COMMON: dict[str, tuple[float, Inject]] = {
    "kill_api": (2.0, _kill("api")),
    "kill_worker": (2.0, _kill("worker")),
    "kill_worker_host": (1.0, _kill_host),
    "kill_attempt": (2.0, _kill_attempt),
    "kill_agent": (2.0, _kill("agent")),
    "freeze_api": (1.0, _freeze("api")),
    "freeze_worker": (1.0, _freeze("worker")),
    "freeze_attempt": (1.0, _freeze("attempt")),
    "freeze_worker_host": (1.0, _freeze_host),
    "api_network_cut": (1.0, _network("cut", "api")),
    "api_network_stall": (1.0, _network("stall", "api")),
    "api_network_half_open": (1.0, _network("half_open", "api")),
    "api_answers_lost": (2.0, _network("lose_answers", "api")),
    "disk_full": (2.0, _disk_full),
    "disk_hangs": (1.0, _disk_hangs),
    "disk_slow": (2.0, _disk_slow),
    "clock_step": (2.0, _clock_step),
}
_OF_STORE: dict[Store, dict[str, tuple[float, Inject]]] = {
    "sqlite": {"kill_amid_write": (5.0, _kill_amid_write)},
    "postgres": {
        "kill_database": (2.0, _kill("database")),
        "kill_database_backend": (1.0, _kill_backend),
        "freeze_database": (1.0, _freeze("database")),
        "database_network_cut": (1.0, _network("cut", ">database")),
        "database_network_stall": (1.0, _network("stall", ">database")),
        "database_network_half_open": (1.0, _network("half_open", ">database")),
        "database_answers_lost": (2.0, _network("lose_answers", ">database")),
    },
}


def faults_of(store: Store) -> dict[str, tuple[float, Inject]]:
    """How often each kind comes on that store, and what it does."""
    kinds = _COMMON | _OF_STORE[store]
    can_step = shutil.which("cc") is not None
    return kinds if can_step else {k: v for k, v in kinds.items() if k != "clock_step"}


def _running(world: World, prefix: str, rng: random.Random) -> Part:
    return _one_of([part for part in world.named(prefix) if part.pid is not None], rng)


def _one_of(found: Sequence[Item], rng: random.Random) -> Item:
    if not found:
        raise Nothing
    return found[rng.randrange(len(found))]


def _exclusively(world: World, what: str) -> threading.Lock:
    """Two faults at one thing take turns, else one would end the other's."""
    return world.busy.setdefault(what, threading.Lock())
