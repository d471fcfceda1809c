"""What a host can tell about itself, for the profile of a target and beside every measurement."""

import os
import platform
from pathlib import Path
from typing import Any


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


def transient_facts() -> dict[str, Any]:
    """Load, clock and temperature now, as far as the system tells them."""
    facts: dict[str, Any] = {"cpu_count": os.cpu_count()}
    if hasattr(os, "getloadavg"):
        facts["load_1min"] = round(os.getloadavg()[0], 2)
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    clock = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    heat = Path("/sys/class/thermal/thermal_zone0/temp")
    if governor.exists():
        facts["governor"] = governor.read_text().strip()
    if clock.exists():
        facts["clock_mhz"] = int(clock.read_text()) // 1000
    if heat.exists():
        facts["temperature_c"] = int(heat.read_text()) / 1000
    return facts
