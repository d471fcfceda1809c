"""What a job needs of a worker, what a worker has, and what an attempt is given of it.

All three are plain values; rows keep `Needs` as canonical JSON text, so that equal needs are
equal texts and a queue of thousands of jobs holds a few of them.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, Self

MEMORY_STEP_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Offer:
    """What a worker has for its attempts, all together."""

    gpus: int
    memory_bytes: int
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Allotment:
    """What an attempt is given; without a value, there is no limit.

    Attributes:
        gpus: as ``CUDA_VISIBLE_DEVICES`` names them.
        threads: of its arithmetic; 0 is every core.
        memory_bytes: resident, of the attempt with everything it starts; 0 is no limit.
    """

    gpus: tuple[str, ...] = ()
    threads: int = 0
    memory_bytes: int = 0

    def to_document(self) -> dict[str, Any]:
        """As an attempt's row keeps it."""
        return asdict(self)


@dataclass(frozen=True)
class Needs:
    """What a worker must have for a job; make them with `needs`.

    Attributes:
        gpus: GPUs the attempt cannot do without.
        uses_gpu: it takes a GPU where the worker has some, and does without where it has none.
        memory_bytes: resident.
        labels: of the worker, sorted by name; a value may hold ``*``, and case does not count.
    """

    gpus: int = 0
    uses_gpu: bool = False
    memory_bytes: int = 0
    labels: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `format` wrote."""
        document = json.loads(text)
        return cls(**document | {"labels": tuple(sorted(document.get("labels", {}).items()))})

    def format(self) -> str:
        """Canonical JSON of what differs from no needs at all."""
        stated = {name: value for name, value in asdict(self).items() if value}
        if self.labels:
            stated["labels"] = dict(self.labels)
        return json.dumps(stated, sort_keys=True, separators=(",", ":"))

    def lacking(self, offer: Offer) -> list[str]:
        """What `offer` lacks for good, in words; empty when it could serve."""
        found = []
        if self.gpus > offer.gpus:
            needed = "1 GPU is" if self.gpus == 1 else f"{self.gpus} GPUs are"
            found.append(f"{needed} needed, it has {offer.gpus}")
        if self.memory_bytes > offer.memory_bytes:
            found.append(
                f"{_gib(self.memory_bytes)} of memory are needed, it has {_gib(offer.memory_bytes)}"
            )
        for name, pattern in self.labels:
            value = offer.labels.get(name)
            if value is None:
                found.append(f"label {name}={pattern} is asked for, it has no {name}")
            elif not fnmatchcase(value.lower(), pattern.lower()):
                found.append(f"label {name}={pattern} is asked for, its {name} is {value}")
        return found

    def fits(self, offer: Offer) -> bool:
        """Whether a worker that has `offer` could ever serve."""
        return not self.lacking(offer)


def needs(
    *,
    gpus: int = 0,
    uses_gpu: bool = False,
    memory_bytes: int = 0,
    labels: Mapping[str, str] | None = None,
) -> Needs:
    """Needs whose memory is rounded up to `MEMORY_STEP_BYTES`, so that few of them differ."""
    steps = -(-memory_bytes // MEMORY_STEP_BYTES)
    sorted_labels = tuple(sorted((labels or {}).items()))
    return Needs(gpus, uses_gpu, steps * MEMORY_STEP_BYTES, sorted_labels)


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.3g} GiB"
