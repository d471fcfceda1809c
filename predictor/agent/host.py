"""What a host can tell about itself, for the profile of a target and beside every measurement."""

import os
import platform
import time
from pathlib import Path
from typing import Any

_CPU = Path("/sys/devices/system/cpu")


def device_model() -> str:
    """The processor's own name where the system tells it, else the machine type."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "Hardware") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def system() -> str:
    """Operating system and kernel release."""
    return f"{platform.system()} {platform.release()}"


def clock_state() -> str:
    """What rules the processor's clock; ``unmanaged`` where the system does not tell."""
    governor = _text(_CPU / "cpu0/cpufreq/scaling_governor")
    if governor is None:
        return "unmanaged"
    slowest = _number(_CPU / "cpu0/cpufreq/scaling_min_freq")
    fastest = _number(_CPU / "cpu0/cpufreq/scaling_max_freq")
    if slowest is not None and slowest == fastest:
        return f"governor {governor}, fixed at {slowest // 1000} MHz"
    return f"governor {governor}"


def pin(threads: int) -> str:
    """Keep this process on its fastest and least busy cores; which ones, or ``""``.

    On phones and laptops with unlike cores only the fastest count. Where the system has no
    affinity, or every core is needed, nothing changes.
    """
    if not hasattr(os, "sched_setaffinity"):
        return ""
    allowed = os.sched_getaffinity(0)
    if threads >= len(allowed):
        return ""
    speed = {core: _number(_CPU / f"cpu{core}/cpufreq/cpuinfo_max_freq") or 0 for core in allowed}
    before = _busy_ticks()
    time.sleep(0.05)
    after = _busy_ticks()
    busy = {core: after.get(core, 0) - before.get(core, 0) for core in allowed}
    chosen = sorted(allowed, key=lambda core: (-speed[core], busy[core], core))[:threads]
    try:
        os.sched_setaffinity(0, chosen)
    except OSError:
        return ""
    return ",".join(map(str, sorted(chosen)))


def transient_facts() -> dict[str, Any]:
    """Load, clock, temperature, throttling and power now, as far as the system tells them."""
    facts: dict[str, Any] = {"cpu_count": os.cpu_count()}
    if hasattr(os, "getloadavg"):
        facts["load_1min"] = round(os.getloadavg()[0], 2)
    governor = _text(_CPU / "cpu0/cpufreq/scaling_governor")
    clock_khz = _number(_CPU / "cpu0/cpufreq/scaling_cur_freq")
    heat = _number(Path("/sys/class/thermal/thermal_zone0/temp"))
    throttled = _number(_CPU / "cpu0/thermal_throttle/core_throttle_count")
    battery = next(iter(Path("/sys/class/power_supply").glob("BAT*")), None)
    found = {
        "governor": governor,
        "clock_mhz": clock_khz // 1000 if clock_khz else None,
        "temperature_c": heat / 1000 if heat else None,
        "throttled": throttled,
        "battery_percent": _number(battery / "capacity") if battery else None,
        "battery": _text(battery / "status") if battery else None,
    }
    return facts | {name: value for name, value in found.items() if value is not None}


def _busy_ticks() -> dict[int, int]:
    """Ticks each core has spent on anything but waiting."""
    ticks = {}
    for line in (_text(Path("/proc/stat")) or "").splitlines():
        name, *counts = line.split()
        if name.startswith("cpu") and name[3:].isdecimal():
            ticks[int(name[3:])] = sum(map(int, counts)) - int(counts[3]) - int(counts[4])
    return ticks


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.lstrip("-").isdecimal() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
