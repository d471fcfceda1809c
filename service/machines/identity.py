"""Which machine this is, as far as training can tell; nothing heavy is loaded to say so."""

import hashlib
import json
import math
import os
import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from predictor.agent.host import device_model
from service.settings import Settings

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def host_name() -> str:
    """The name of this host."""
    return socket.gethostname()


def processor() -> str:
    """The name of this host's processor."""
    return device_model()


def cores() -> int:
    """The cores that this process may use, whole ones, by affinity and by its container's quota."""
    allowed = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, _quota_cores(_CPU_MAX) or allowed))


def _quota_cores(path: Path) -> int | None:
    """What a control group lets its processes use: ``cpu.max``, microseconds of each period."""
    try:
        quota, period = path.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else math.ceil(int(quota) / int(period))


def machine_key(settings: Settings, gpu_model: str = "") -> str:
    """Equal for workers whose attempts train alike: a digest of all that changes how fast.

    Args:
        settings: of the attempts.
        gpu_model: of their GPU, where they train on one.
    """
    alike = {
        "host": host_name(),
        "processor": processor(),
        "device": settings.attempt_device,
        "threads": str(settings.attempt_threads or os.environ.get("OMP_NUM_THREADS") or cores()),
        "torch": _torch_version(),
    }
    if gpu_model:
        alike["gpu"] = gpu_model
    return hashlib.sha256(json.dumps(alike, sort_keys=True).encode()).hexdigest()


def _torch_version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return "none"
