"""What this machine has for attempts, and what each attempt is given of it."""

import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from service.jobs.needs import Allotment, Needs, Offer
from service.machines.identity import cores, host_name, processor

_PROBE_SECONDS = 120.0
_SYSTEM_SHARE = 0.1
"""Of the memory there is; the system's and the worker's own."""
_LEAST_BYTES = 512 * 2**20
"""An attempt is not begun with less, unless its even share is smaller."""
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Without any of these there is no GPU that PyTorch could use, and none is looked for."""


class ResourcesError(Exception):
    """A worker cannot offer what it was told to; the message says why."""


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        id: as ``CUDA_VISIBLE_DEVICES`` names it.
    """

    id: str
    model: str
    memory_bytes: int


@dataclass(frozen=True)
class Resources:
    """What a worker gives to its attempts, all together.

    Attributes:
        slots: attempts side by side.
        cpus: cores this process may use.
        memory_bytes: resident, of main memory.
        labels: what a search may ask for by name.
    """

    slots: int
    cpus: int
    memory_bytes: int
    gpus: tuple[Gpu, ...]
    labels: Mapping[str, str]

    @property
    def offer(self) -> Offer:
        """What needs are compared with."""
        return Offer(len(self.gpus), self.memory_bytes, self.labels)

    @property
    def threads(self) -> int:
        """Of one attempt: an even share of the cores, at least 1; 0 where one attempt has all."""
        return 0 if self.slots == 1 else max(1, self.cpus // self.slots)

    def to_document(self) -> dict[str, Any]:
        """As a worker's row keeps it, besides its slots and labels."""
        gpus = [asdict(gpu) for gpu in self.gpus]
        return {"cpus": self.cpus, "memory_bytes": self.memory_bytes, "gpus": gpus}

    def allot(self, needs: Needs, running: Sequence[Allotment]) -> Allotment | None:
        """What an attempt of these needs gets beside those that run; None: not enough is free.

        It gets the memory it needs or an even share of what is free, whichever is more. One
        that uses a GPU waits for one where there are some, busy or not.
        """
        free_slots = self.slots - len(running)
        if free_slots <= 0 or not needs.fits(self.offer):
            return None
        taken = {gpu for given in running for gpu in given.gpus}
        free_gpus = [gpu.id for gpu in self.gpus if gpu.id not in taken]
        n_gpus = max(needs.gpus, 1 if needs.uses_gpu and self.gpus else 0)
        free_bytes = self.memory_bytes - sum(given.memory_bytes for given in running)
        least_bytes = needs.memory_bytes or min(_LEAST_BYTES, self.memory_bytes // self.slots)
        if n_gpus > len(free_gpus) or free_bytes < least_bytes:
            return None
        memory_bytes = max(needs.memory_bytes, free_bytes // free_slots, least_bytes)
        return Allotment(tuple(free_gpus[:n_gpus]), self.threads, memory_bytes)


def find_resources(
    *,
    slots: int = 0,
    gpus: list[int] | None = None,
    memory_gib: float | None = None,
    labels: Mapping[str, str] | None = None,
) -> Resources:
    """What this machine has, or the part of it that is named.

    Args:
        slots: 0: one for each GPU, one where there is none.
        gpus: indices among the GPUs that are found; None: every one.
        memory_gib: None: nine tenths of what this process may use.
        labels: besides those that are found.

    Raises:
        ResourcesError: a GPU that is named is not there, or more memory than there is.
    """
    found = () if gpus == [] else _find_gpus(required=bool(gpus))
    if gpus is not None:
        missing = [index for index in gpus if not 0 <= index < len(found)]
        if missing:
            raise ResourcesError(f"there is no GPU {missing[0]}; {len(found)} were found")
        found = tuple(found[index] for index in dict.fromkeys(gpus))
    limit_bytes = memory_limit_bytes()
    memory_bytes = int(limit_bytes * (1.0 - _SYSTEM_SHARE))
    if memory_gib is not None:
        memory_bytes = int(memory_gib * 2**30)
        if not 0 < memory_bytes <= limit_bytes:
            raise ResourcesError(
                f"{memory_gib:g} GiB of memory cannot be offered; this process may use "
                f"{limit_bytes / 2**30:.3g} GiB"
            )
    return Resources(
        slots=slots or len(found) or 1,
        cpus=cores(),
        memory_bytes=memory_bytes,
        gpus=found,
        labels={**_found_labels(found), **(labels or {})},
    )


def _found_labels(gpus: Sequence[Gpu]) -> dict[str, str]:
    labels = {"host": host_name(), "machine": platform.machine(), "cpu_model": processor()}
    models = {gpu.model for gpu in gpus}
    if len(models) == 1:  # of several, a search could be given the other one
        labels["gpu_model"] = models.pop()
    return labels


def _find_gpus(*, required: bool) -> tuple[Gpu, ...]:
    """The GPUs that PyTorch sees, asked in a child so that this process stays light."""
    if not required and not any(Path(driver).exists() for driver in _DRIVERS):
        return ()
    try:
        probed = subprocess.run(
            [sys.executable, "-m", "service.workers.probe"],
            capture_output=True,
            timeout=_PROBE_SECONDS,
            check=True,
        )
    except subprocess.SubprocessError as error:
        raise ResourcesError(
            f"looking for GPUs failed ({error}); `--gpus none` does without"
        ) from error
    return tuple(Gpu(**gpu) for gpu in json.loads(probed.stdout))


# -- memory ----------------------------------------------------------------------------

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def memory_limit_bytes() -> int:
    """The main memory this process may use: the machine's, or less where a cgroup says so."""
    total = int(psutil.virtual_memory().total)
    return min([total, *_cgroup_limits(_CGROUPS, _OWN_CGROUP)])


def _cgroup_limits(root: Path, own: Path) -> Iterator[int]:
    """The memory limits of this process's cgroup and of those around it, of either version."""
    if not own.exists():
        return
    for line in own.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        inner = base / path.lstrip("/")
        # in a container the path may be the host's, and its own cgroup stands at the root
        for folder in [inner, *inner.parents]:
            if not folder.is_relative_to(base):
                break
            limit = folder / name
            if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
                yield int(text)
