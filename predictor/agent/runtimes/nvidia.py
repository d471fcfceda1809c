"""What an NVIDIA GPU and its driver tell about themselves, by nvidia-smi and the kernel."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

_SLOWED = 0x08 | 0x20 | 0x40 | 0x80  # hardware slow-down, too hot (two kinds), power brake
_POWER_CAPPED = 0x04


def gpu_name(device_id: int = 0) -> str:
    """The GPU's own name."""
    if name := _query(device_id, "name").get("name"):
        return name
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        if found := re.search(r"^Model:\s*(.+)$", path.read_text(), re.MULTILINE):
            return found[1].strip()
    return "NVIDIA GPU"


def driver() -> str:
    """The driver and its version."""
    if version := _query(0, "driver_version").get("driver_version"):
        return f"NVIDIA driver {version}"
    path = Path("/proc/driver/nvidia/version")
    found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", path.read_text()) if path.exists() else None
    return f"NVIDIA driver {found[1]}" if found else "NVIDIA driver of unknown version"


def clock_state(device_id: int = 0) -> str:
    """The clocks asked of the GPU; ``unmanaged`` where it does not tell."""
    told = _query(device_id, "clocks.applications.graphics", "clocks.applications.memory")
    if len(told) < 2:
        return "unmanaged"
    return "application clocks {} and {} MHz".format(*told.values())


def gpu_facts(device_id: int = 0) -> dict[str, Any]:
    """Temperature, clocks, power and throttling now; empty without nvidia-smi."""
    names = {
        "temperature.gpu": "temperature_c",
        "clocks.sm": "clock_mhz",
        "clocks.mem": "memory_clock_mhz",
        "power.draw": "power_w",
        "utilization.gpu": "gpu_load_percent",
        "pstate": "performance_state",
    }
    facts: dict[str, Any] = {
        names[field]: _number(value) for field, value in _query(device_id, *names).items()
    }
    for field in ("clocks_event_reasons.active", "clocks_throttle_reasons.active"):
        if mask := _query(device_id, field).get(field):  # the name changed with driver 535
            facts["throttled"] = int(bool(int(mask, 16) & _SLOWED))
            facts["power_capped"] = bool(int(mask, 16) & _POWER_CAPPED)
            break
    return facts


def _query(device_id: int, *fields: str) -> dict[str, str]:
    """What nvidia-smi answers, without the fields that this GPU does not have."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [
        program,
        f"--id={_physical(device_id)}",
        f"--query-gpu={','.join(fields)}",
        "--format=csv,noheader,nounits",
    ]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in answer.stdout.strip().split(",")]
    if len(values) != len(fields):
        return {}
    told = zip(fields, values, strict=True)
    return {field: value for field, value in told if value and "[" not in value and value != "N/A"}


def _physical(device_id: int) -> str:
    """How nvidia-smi, which sees every GPU, calls the one that CUDA calls `device_id`."""
    visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return visible[device_id] if device_id < len(visible) and visible[device_id] else str(device_id)


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
