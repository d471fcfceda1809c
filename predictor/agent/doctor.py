"""What would spoil the numbers of this device, told before anything is measured.

Each check reads what the system tells, judges it and says what to do. A system that does not
tell (macOS and Windows have neither ``/proc`` nor ``/sys``) is no fault of the device: the
check says so. The last word has the anchor: a small model that runs for some seconds and shows
how much of the time the device was really quiet.
"""

import os
import re
import shutil
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from predictor.agent.host import pin
from predictor.agent.runtimes.base import LoadedModel, RuntimeSpec
from predictor.agent.runtimes.registry import make_runtime

Level = Literal["ok", "warn", "bad"]

NOT_TOLD = "not told by this system"
QUIET_TOLERANCE = 0.06
"""How much slower than its best the anchor may run in a quiet moment, relative."""

_SKEW_SECONDS = 60.0
_WATCH_SECONDS = 1.0
_CALLS = 5
_PAUSE_SECONDS = 0.002
_MIB = 2**20
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        level: ok: nothing to do; warn: numbers may scatter; bad: do not measure like this.
        found: what was found, with units.
        advice: what to do about it; empty where nothing is wrong.
    """

    check: str
    level: Level
    found: str
    advice: str = ""


def examine(
    spec: RuntimeSpec,
    api_url: str | None,
    state: Path,
    seconds: float = 3.0,
    *,
    anchor: bytes | None = None,
    root: Path = Path("/"),
    environment: Mapping[str, str] = os.environ,
    wait: Callable[[float], None] = time.sleep,
) -> list[Finding]:
    """Everything that would spoil measurements of `spec` on this host; never raises.

    Args:
        spec: the runtime to measure with.
        api_url: where the results would go; None leaves the network out.
        state: folder of the agent's identity and journal.
        seconds: how long the anchor runs.
        anchor: an ONNX file of about a tenth of a millisecond; None takes the one that comes
            with the agent.
        root: where ``proc`` and ``sys`` are.
        environment: the variables the runtime will see.
        wait: sleeps for that many seconds while the rest of the system is watched.
    """
    host = _Host(root, spec.threads)
    before = host.counters()
    wait(_WATCH_SECONDS)
    after = host.counters()
    findings = [
        *_isolated("clock", lambda: _clock(host)),
        *_isolated("turbo", lambda: _turbo(host)),
        *_isolated("load", lambda: _load(host)),
        *_isolated("other processes", lambda: _other_processes(host, before, after)),
        *_isolated("processor quota", lambda: _quota(host)),
        *_isolated("processors", lambda: _processors(host)),
        *_isolated("temperature", lambda: _temperature(host)),
        *_isolated("power", lambda: _power(host)),
        *_isolated("memory", lambda: _memory(host, before, after)),
        *_isolated("thread variables", lambda: _thread_variables(host, environment)),
        *_isolated("state folder", lambda: _state_folder(state)),
        *_isolated("python", _python),
    ]
    loaded: list[LoadedModel] = []
    with _pinned(spec.threads):  # as the agent measures
        findings += _isolated("runtime", lambda: _runtime(spec, anchor or own_anchor(), loaded))
        if loaded:
            findings += _isolated("anchor", lambda: judge_anchor(read_anchor(loaded[0], seconds)))
    last = host.counters()  # steal and throttling show themselves only under work
    findings += _isolated("steal", lambda: _steal(before, last))
    findings += _isolated("throttling", lambda: _throttling(host, before, last))
    if api_url is not None:
        findings += _isolated("API", lambda: _api(api_url, state))
    return findings


def own_anchor() -> bytes:
    """The anchor that comes with the agent: two inverted bottlenecks, 36 kB."""
    return files("predictor.agent").joinpath("anchor.onnx").read_bytes()


def _isolated(check: str, find: Callable[[], Iterator[Finding]]) -> list[Finding]:
    findings: list[Finding] = []
    try:
        findings.extend(find())
    except Exception as error:  # one odd file must not hide what the others tell
        text = f"could not be checked: {type(error).__name__}: {error}"
        findings.append(Finding(check, "warn", text[:300], "Judge this one by hand."))
    return findings


# -- the system ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Counters:
    """What the system counts up; the difference of two tells what happened between them.

    Attributes:
        at: `time.monotonic` seconds.
        ticks: processor time by kind, all processors together, as in ``/proc/stat``.
        processes: ticks of every process, by (id, name).
        swapped_pages: moved to or from swap.
        throttled: times a processor was slowed for its temperature.
    """

    at: float
    ticks: dict[str, int]
    processes: dict[tuple[int, str], int]
    swapped_pages: int | None
    throttled: int | None


class _Host:
    """Reads the kernel's files under `root`; None and empty where there are none."""

    def __init__(self, root: Path, threads: int) -> None:
        self.proc, self.sys = root / "proc", root / "sys"
        self.cpus = self.sys / "devices/system/cpu"
        self.threads = threads

    @staticmethod
    def text(path: Path) -> str | None:
        try:
            return path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    @classmethod
    def number(cls, path: Path, base: int = 10) -> int | None:
        text = cls.text(path)
        try:
            return None if text is None else int(text, base)
        except ValueError:
            return None

    @property
    def n_processors(self) -> int:
        """Processors that are on."""
        lines = (self.text(self.proc / "stat") or "").splitlines()
        return sum(bool(re.match(r"cpu\d", line)) for line in lines) or os.cpu_count() or 1

    def allowed_processors(self) -> list[int]:
        """The numbers of the processors that this process may run on."""
        match = re.search(
            r"^Cpus_allowed_list:\s*(\S+)", self.text(self.proc / "self/status") or "", re.MULTILINE
        )
        if match is None:
            return []
        allowed: list[int] = []
        for part in match[1].split(","):
            first, _, last = part.partition("-")
            allowed += range(int(first), int(last or first) + 1)
        return allowed

    def counters(self) -> _Counters:
        """All counters now; what cannot be read counts nothing."""
        names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
        ticks: dict[str, int] = {}
        for line in (self.text(self.proc / "stat") or "").splitlines():
            if line.startswith("cpu "):
                # guest time, which follows, is already part of user and nice
                ticks = dict(zip(names, map(int, line.split()[1:9]), strict=False))
        processes: dict[tuple[int, str], int] = {}
        for folder in self.proc.glob("[0-9]*"):
            # "1234 (a name) S ...": the name may hold spaces and brackets itself
            head, bracket, tail = (self.text(folder / "stat") or "").rpartition(")")
            fields = tail.split()
            if bracket and len(fields) > 12:
                name = head.partition("(")[2]
                processes[int(folder.name), name] = int(fields[11]) + int(fields[12])
        swapped = re.findall(
            r"^pswp(?:in|out) (\d+)", self.text(self.proc / "vmstat") or "", re.MULTILINE
        )
        throttled = [
            count
            for path in self.cpus.glob("cpu[0-9]*/thermal_throttle/*_throttle_count")
            if (count := self.number(path)) is not None
        ]
        return _Counters(
            time.monotonic(),
            ticks,
            processes,
            sum(map(int, swapped)) if swapped else None,
            sum(throttled) if throttled else None,
        )


def _clock(host: _Host) -> Iterator[Finding]:
    policies = sorted(host.cpus.glob("cpufreq/policy*")) or sorted(
        host.cpus.glob("cpu[0-9]*/cpufreq")
    )
    governors: set[str] = set()
    ranges: set[tuple[int | None, int | None]] = set()
    for policy in policies:
        if governor := host.text(policy / "scaling_governor"):
            governors.add(governor)
            slowest = host.number(policy / "scaling_min_freq")
            ranges.add((slowest, host.number(policy / "scaling_max_freq")))
    if not governors:
        yield Finding("clock", "ok", NOT_TOLD)
        return
    spans = ", ".join(
        f"{slowest // 1000} to {fastest // 1000} MHz"
        for slowest, fastest in sorted(ranges, key=str)
        if slowest is not None and fastest is not None
    )
    found = f"governor {', '.join(sorted(governors))}" + (f", {spans}" if spans else "")
    fixed = all(slowest is not None and slowest == fastest for slowest, fastest in ranges)
    if fixed or governors == {"performance"}:
        yield Finding("clock", "ok", found)
    else:
        yield Finding(
            "clock",
            "warn",
            found,
            "The clock follows the load: set it with `sudo cpupower frequency-set -g performance`, "
            "or fix minimum and maximum to one value.",
        )


def _turbo(host: _Host) -> Iterator[Finding]:
    no_turbo = host.number(host.cpus / "intel_pstate/no_turbo")
    boost = host.number(host.cpus / "cpufreq/boost")
    if no_turbo is None and boost is None:
        yield Finding("turbo", "ok", NOT_TOLD)
    elif no_turbo == 1 or (no_turbo is None and boost == 0):
        yield Finding("turbo", "ok", "off")
    else:
        where = "cpufreq/boost" if no_turbo is None else "intel_pstate/no_turbo"
        value = 0 if no_turbo is None else 1
        yield Finding(
            "turbo",
            "warn",
            "on: the clock depends on temperature and on the other cores",
            f"For numbers that repeat, write {value} to /sys/devices/system/cpu/{where}.",
        )


def _load(host: _Host) -> Iterator[Finding]:
    text = host.text(host.proc / "loadavg")
    if not text:
        yield Finding("load", "ok", NOT_TOLD)
        return
    load, cores = float(text.split()[0]), host.n_processors
    found = f"{load:.2f} over the last minute on {cores} processors"
    if load >= 2 * cores:
        yield Finding("load", "bad", found, "Stop other work, then wait a minute.")
    elif load + host.threads > cores + 0.5:
        yield Finding("load", "warn", found, "Other work may share the core; stop what can be.")
    else:
        yield Finding("load", "ok", found)


def _other_processes(host: _Host, before: _Counters, after: _Counters) -> Iterator[Finding]:
    ours = os.getpid()
    elapsed_ticks = (after.at - before.at) * _ticks_per_second()
    if not after.processes or elapsed_ticks <= 0:
        yield Finding("other processes", "ok", NOT_TOLD)
        return
    used = {
        key: (ticks - before.processes.get(key, ticks)) / elapsed_ticks
        for key, ticks in after.processes.items()
        if key[0] != ours
    }
    busiest = sorted(used.items(), key=lambda item: -item[1])[:3]
    names = ", ".join(f"{name} {share:.0%}" for (_, name), share in busiest if share >= 0.01)
    total = sum(used.values())
    free = host.n_processors - total
    if total < 0.1:
        yield Finding("other processes", "ok", f"{total:.0%} of a processor")
    else:
        level: Level = "bad" if free < host.threads * 0.9 else "warn"
        yield Finding(
            "other processes",
            level,
            f"{total:.0%} of a processor, of {host.n_processors}: {names or 'many small ones'}",
            "Stop them while measuring.",
        )


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _ticks_per_second() -> int:
    return os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def _steal(before: _Counters, after: _Counters) -> Iterator[Finding]:
    spent = {kind: after.ticks[kind] - before.ticks.get(kind, 0) for kind in after.ticks}
    total = sum(spent.values())
    if "steal" not in spent or total <= 0:
        yield Finding("steal", "ok", NOT_TOLD)
        return
    share = spent["steal"] / total
    found = f"{share:.1%} of the processors' time went to other virtual machines"
    advice = "Neighbours have the core: measure at another hour or on a dedicated host."
    if share >= 0.05:
        yield Finding("steal", "bad", found, advice)
    elif share >= 0.005:
        yield Finding("steal", "warn", found, advice)
    else:
        yield Finding("steal", "ok", found)


def _quota(host: _Host) -> Iterator[Finding]:
    memberships = host.text(host.proc / "self/cgroup")
    if memberships is None:
        yield Finding("processor quota", "ok", NOT_TOLD)
        return
    quotas: list[float] = []
    for line in memberships.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        place = path.strip("/")
        if number == "0" and not controllers:
            for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
                quotas += _quotas_v2(host, host.sys.parent / mount, place)
        elif "cpu" in controllers.split(","):
            for name in {controllers, "cpu"}:
                quotas += _quotas_v1(host, host.sys / "fs/cgroup" / name, place)
    if not quotas:
        yield Finding("processor quota", "ok", "none")
        return
    quota = min(quotas)
    found = f"{quota:g} processors for {_threads(host.threads)}"
    if quota < host.threads:
        yield Finding(
            "processor quota",
            "bad",
            found,
            "The group is stopped for part of every period: raise its quota (docker: --cpus).",
        )
    else:
        yield Finding("processor quota", "ok", found)


def _ancestry(mount: Path, place: str) -> Iterator[Path]:
    """The group's folder and those above it, `mount` last: the tightest limit holds."""
    folder = mount / place
    while folder != mount:
        yield folder
        folder = folder.parent
    yield mount


def _quotas_v2(host: _Host, mount: Path, place: str) -> Iterator[float]:
    for folder in _ancestry(mount, place):
        quota, _, period = (host.text(folder / "cpu.max") or "max").partition(" ")
        if quota != "max":
            yield int(quota) / int(period)


def _quotas_v1(host: _Host, mount: Path, place: str) -> Iterator[float]:
    for folder in _ancestry(mount, place):
        quota = host.number(folder / "cpu.cfs_quota_us")
        period = host.number(folder / "cpu.cfs_period_us")
        if quota is not None and period and quota > 0:
            yield quota / period


def _processors(host: _Host) -> Iterator[Finding]:
    allowed = host.allowed_processors()
    if not allowed:
        yield Finding("processors", "ok", NOT_TOLD)
        return
    found = f"{len(allowed)} allowed for {_threads(host.threads)}"
    if len(allowed) < host.threads:
        yield Finding(
            "processors", "bad", found, "Allow more (taskset, docker: --cpuset-cpus) or ask fewer."
        )
        return
    speeds: dict[int, int] = {}
    for number in allowed:
        folder = host.cpus / f"cpu{number}"
        speed = host.number(folder / "cpu_capacity") or host.number(
            folder / "cpufreq/cpuinfo_max_freq"
        )
        if speed is not None:
            speeds[number] = speed
    # turbo bins of one kind of core differ by some percent, kinds of cores by much more
    if speeds and min(speeds.values()) < 0.9 * max(speeds.values()):
        fastest = [n for n, speed in speeds.items() if speed >= 0.9 * max(speeds.values())]
        numbers = ",".join(map(str, fastest))
        yield Finding(
            "processors",
            "warn",
            f"{found}, of several speeds",
            f"Pin the agent to one kind: `taskset -c {numbers} tailor agent ...`.",
        )
    else:
        yield Finding("processors", "ok", found)


def _temperature(host: _Host) -> Iterator[Finding]:
    hottest: tuple[float, float, str] | None = None  # margin to its limit, temperature, name
    for zone in host.sys.glob("class/thermal/thermal_zone*"):
        reading = host.number(zone / "temp")
        if reading is None or reading <= 0:
            continue
        limits = [95.0]
        for kind in zone.glob("trip_point_*_type"):
            limit = host.number(zone / kind.name.replace("_type", "_temp"))
            if limit and limit > 0 and host.text(kind) in ("passive", "hot", "critical"):
                limits.append(limit / 1000)
        name = host.text(zone / "type") or zone.name
        candidate = (min(limits) - reading / 1000, reading / 1000, name)
        hottest = min(hottest or candidate, candidate)
    if hottest is None:
        yield Finding("temperature", "ok", NOT_TOLD)
        return
    margin, degrees, name = hottest
    found = f"{degrees:.0f} °C at {name}, slowed from {degrees + margin:.0f} °C on"
    if margin <= 0:
        yield Finding("temperature", "bad", found, "Let it cool down; give it air.")
    elif margin < 10:
        yield Finding("temperature", "warn", found, "It will throttle under load; give it air.")
    else:
        yield Finding("temperature", "ok", found)


def _throttling(host: _Host, before: _Counters, after: _Counters) -> Iterator[Finding]:
    # Raspberry Pi: bits 0-3 hold now, 16-19 since the start
    flags = host.number(host.sys / "devices/platform/soc/soc:firmware/get_throttled", base=16)
    if after.throttled is None and flags is None:
        yield Finding("throttling", "ok", NOT_TOLD)
        return
    count = after.throttled or 0
    now = count - (before.throttled or 0)
    advice = "Let it cool down, give it air, and a power supply that is strong enough."
    if now > 0 or (flags or 0) & 0xF:
        text = f"{now} times while it was examined" if now > 0 else f"flags {flags:#x}"
        yield Finding("throttling", "bad", text, advice)
    elif count or flags:
        text = f"{count} times since it was started" if count else f"earlier: flags {flags:#x}"
        yield Finding("throttling", "warn", text, advice)
    else:
        yield Finding("throttling", "ok", "never since it was started")


def _power(host: _Host) -> Iterator[Finding]:
    batteries = [
        folder
        for folder in sorted(host.sys.glob("class/power_supply/*"))
        if host.text(folder / "type") == "Battery"
        and host.text(folder / "scope") != "Device"  # a mouse has one too
    ]
    if not batteries:
        told = (host.sys / "class/power_supply").is_dir()
        yield Finding("power", "ok", "no battery" if told else NOT_TOLD)
    for battery in batteries:
        status = host.text(battery / "status") or "unknown"
        charge = host.number(battery / "capacity")
        found = f"battery {status.lower()}" + (f", {charge} %" if charge is not None else "")
        if status == "Discharging" or (charge is not None and charge < 30):
            yield Finding("power", "warn", found, "Plug it in and let it charge to 30 % first.")
        else:
            yield Finding("power", "ok", found)


def _memory(host: _Host, before: _Counters, after: _Counters) -> Iterator[Finding]:
    lines = re.findall(r"^(\w+):\s+(\d+) kB", host.text(host.proc / "meminfo") or "", re.MULTILINE)
    sizes = {name: int(kib) * 1024 for name, kib in lines}
    if "MemAvailable" not in sizes:
        yield Finding("memory", "ok", NOT_TOLD)
        return
    available, total = sizes["MemAvailable"], sizes.get("MemTotal", sizes["MemAvailable"])
    swapped = (after.swapped_pages or 0) - (before.swapped_pages or 0)
    found = f"{available / _MIB:,.0f} MiB available of {total / _MIB:,.0f}"
    if swapped > 0:
        found += f", {swapped} pages swapped in a second"
    if available < 128 * _MIB:
        yield Finding("memory", "bad", found, "Close programs: models would be swapped out.")
    elif swapped > 0 or available < 512 * _MIB:
        yield Finding("memory", "warn", found, "Close programs until nothing is swapped.")
    else:
        yield Finding("memory", "ok", found)


# -- this process ----------------------------------------------------------------------


def _thread_variables(host: _Host, environment: Mapping[str, str]) -> Iterator[Finding]:
    given = {name: environment[name] for name in _THREAD_VARIABLES if environment.get(name)}
    found = ", ".join(f"{name}={value}" for name, value in given.items()) or "none set"
    counts = [int(value) for value in given.values() if value.isdecimal()]
    most = max(counts, default=0)
    cores = len(host.allowed_processors()) or host.n_processors
    advice = f"Set them to {host.threads}, or unset them, before the agent starts."
    if most > cores:
        yield Finding("thread variables", "bad", f"{found}: more than {cores} processors", advice)
    elif most > host.threads:
        yield Finding("thread variables", "warn", found, advice)
    else:
        yield Finding("thread variables", "ok", found)


def _state_folder(state: Path) -> Iterator[Finding]:
    existing = next(folder for folder in (state, *state.absolute().parents) if folder.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".doctor-") as probe:
            probe.write(b"x" * 4096)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        yield Finding(
            "state folder",
            "bad",
            f"{existing} cannot be written: {error.strerror}",
            "Results are kept there until they are uploaded: name another with --state.",
        )
        return
    free = shutil.disk_usage(existing).free
    found = f"{state}: writable, {free / _MIB:,.0f} MiB free"
    if free < 50 * _MIB:
        yield Finding("state folder", "bad", found, "Make room: results would be lost.")
    elif free < 500 * _MIB:
        yield Finding("state folder", "warn", found, "Make room for days without a network.")
    else:
        yield Finding("state folder", "ok", found)


def _python() -> Iterator[Finding]:
    release = ".".join(map(str, sys.version_info[:3]))
    faults = []
    if sysconfig.get_config_var("Py_DEBUG"):
        faults.append("a debug build")
    if sys.flags.dev_mode:
        faults.append("development mode")
    if sys.gettrace() is not None or sys.getprofile() is not None:
        faults.append("a tracer or profiler is attached")
    if faults:
        advice = "Each call is slowed: use an ordinary build without debugging."
        yield Finding("python", "warn", f"{release}: {', '.join(faults)}", advice)
    else:
        yield Finding("python", "ok", release)


def _runtime(spec: RuntimeSpec, anchor: bytes, loaded: list[LoadedModel]) -> Iterator[Finding]:
    try:
        runtime = make_runtime(spec)
        profile = runtime.profile()
        model = runtime.load(anchor)
    except Exception as error:  # whatever the runtime's library raises, it cannot be used
        advice = "Install what it needs, or name another with --runtime."
        yield Finding("runtime", "bad", str(error)[:500], advice)
        return
    loaded.append(model)
    found = (
        f"{profile.runtime} {profile.runtime_version}, {model.provider}, "
        f"{_threads(profile.threads)}"
    )
    if model.provider == profile.execution_provider:
        yield Finding("runtime", "ok", found)
    else:
        yield Finding(
            "runtime",
            "bad",
            f"{found} instead of {profile.execution_provider}",
            "The runtime fell back to another provider: results would be refused.",
        )


# -- the anchor ------------------------------------------------------------------------


@contextmanager
def _pinned(threads: int) -> Iterator[None]:
    """Meanwhile, this thread and those it starts are on the cores the agent would choose."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    pin(threads)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def read_anchor(model: LoadedModel, seconds: float) -> list[float]:
    """Milliseconds of the anchor, read again and again for `seconds`; each is a median of calls."""
    model.time_calls(_CALLS)  # the first calls allocate
    readings: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(readings) < 3:
        readings.append(statistics.median(model.time_calls(_CALLS).wall_ns) / 1e6)
        time.sleep(_PAUSE_SECONDS)  # spread over busy and quiet moments
    return readings


def judge_anchor(readings: list[float]) -> Iterator[Finding]:
    """How much of the time the device was quiet, how far readings spread, whether they drift.

    Args:
        readings: milliseconds in order of time, at least 3.
    """
    ordered = sorted(readings)
    best = ordered[len(ordered) // 50]  # as the protocol: one lucky reading is no floor
    quiet = sum(reading <= best * (1 + QUIET_TOLERANCE) for reading in readings) / len(readings)
    p10, median, p90 = (ordered[int(q * (len(ordered) - 1))] for q in (0.1, 0.5, 0.9))
    found = (
        f"{quiet:.0%} of {len(readings)} readings within {QUIET_TOLERANCE:.0%} of the best, "
        f"{best:.4f} ms; median {median:.4f} ms, middle 80 % spread {(p90 - p10) / median:.0%}"
    )
    if quiet >= 0.5:
        yield Finding("quiet", "ok", found)
    elif quiet >= 0.1:
        advice = "Measuring will take longer and flag more: stop other work first."
        yield Finding("quiet", "warn", found, advice)
    else:
        advice = "Hardly a quiet moment: most tasks would fail as too noisy."
        yield Finding("quiet", "bad", found, advice)
    third = len(readings) // 3
    # the quiet readings of each third, so that a busy second is not taken for a slow clock
    start, end = (sorted(part)[third // 10] for part in (readings[:third], readings[-third:]))
    drift = end / start - 1
    found = f"{drift:+.1%} from the first third to the last"
    if abs(drift) > 0.03:
        advice = "The clock or the temperature is moving: let it settle, fix the clock, cool it."
        yield Finding("drift", "warn", found, advice)
    else:
        yield Finding("drift", "ok", found)


# -- the API ---------------------------------------------------------------------------


def _api(url: str, state: Path) -> Iterator[Finding]:
    import httpx  # the offline bundle goes without it

    from predictor.agent.connection import Identity

    identity_path = state / "identity.json"
    identity: Identity | None = None
    if identity_path.exists():
        identity = Identity.load(identity_path)
    try:
        with httpx.Client(base_url=url, timeout=10.0) as http:
            response = http.get("/version")
            yield from _skew(response.headers.get("Date"))
            response.raise_for_status()
            server: dict[str, Any] = response.json()
            yield Finding("API", "ok", f"{url} answers, version {server['tailor']}")
            yield from _recent_enough(own_version(), server.get("oldest_agent"))
            if identity is not None:
                token = {"Authorization": f"Bearer {identity.token}"}
                yield _accepted(http.get("/v1/agents/self", headers=token))
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        text = f"{url} does not answer as Tailor: {type(error).__name__}: {error}"
        advice = "Look at --url, the network and the server; measured results wait in the journal."
        yield Finding("API", "bad", text[:300], advice)


def _skew(date: str | None) -> Iterator[Finding]:
    if date is None:
        return
    # the header is cut to whole seconds
    ahead = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds() - 0.5
    found = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the API's"
    if abs(ahead) > _SKEW_SECONDS:
        advice = "Set the clock (NTP): measurements from the future are refused."
        yield Finding("wall clock", "bad", found, advice)
    else:
        yield Finding("wall clock", "ok", found)


def own_version() -> str | None:
    """The installed version of the agent; None where it runs from a bare folder."""
    try:
        return version("tailor-nas")
    except PackageNotFoundError:
        return None


def _recent_enough(ours: str | None, oldest: Any) -> Iterator[Finding]:
    if ours is None or not isinstance(oldest, str):
        return
    found = f"{ours}; the API takes {oldest} or newer"
    if _numbers(ours) < _numbers(oldest):
        yield Finding("agent version", "bad", found, _REMEDIES[426])
    else:
        yield Finding("agent version", "ok", found)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)[:3]]


def _accepted(response: Any) -> Finding:
    if response.is_success:
        return Finding("enrolment", "ok", f"known as {response.json()['name']}")
    try:
        detail = str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = str(response.reason_phrase)
    return Finding(
        "enrolment",
        "bad",
        f"{response.status_code}: {detail}"[:300],
        _REMEDIES.get(response.status_code, "Ask whoever runs the API."),
    )


_REMEDIES = {
    401: "Enrol again: `tailor agent enrol CODE`.",
    426: "Update the agent: `pip install -U 'tailor-nas[agent]'`.",
}
