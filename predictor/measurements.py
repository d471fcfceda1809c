"""The wire vocabulary of measuring: plain dataclasses, no third-party import."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

PROTOCOL_VERSION = 2
"""Version of the procedure in `predictor.agent.protocol`; part of every measurement."""

Effort = Literal["table", "certificate"]
"""How much care a task asks for: an entry of a table, or the proof behind a `succeeded`."""

Precision = Literal["float32", "int8"]
"""Of weights and activations; int8 files hold quantise and dequantise nodes (QDQ)."""

Grade = Literal["A", "B", "C"]
"""A: the median is known to 1 %; B: to 2 %, or much of the time was discarded; C: flagged."""

Reason = Literal[
    "refused",
    "crashed",
    "hung",
    "out_of_memory",
    "wrong_provider",
    "not_authentic",
    "device_lost",
    "noise",
]
"""Why there is no measurement."""


@dataclass(frozen=True)
class TargetProfile:
    """What a search aims at; a change of any field is another target.

    Attributes:
        device_model: for example the processor's own name.
        machine: instruction set, for example ``x86_64``.
        system: operating system and kernel release.
        runtime, runtime_version, execution_provider: what executes the model.
        threads: intra-operator threads.
        precision: of weights and activations.
        batch: images in one call.
        clock_state: what rules the clocks, for example ``governor performance``;
            ``unmanaged`` where the host does not tell.
    """

    device_model: str
    machine: str
    system: str
    runtime: str
    runtime_version: str
    execution_provider: str
    threads: int
    precision: Precision
    batch: int
    clock_state: str = "unmanaged"

    @property
    def digest(self) -> str:
        """Hexadecimal sha256 of the canonical JSON of every field."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True)
class Quarantined:
    """A try that failed a noise gate: kept for the record, never used as a latency."""

    latency_ms: float | None
    reason: str


@dataclass(frozen=True)
class Measurement:
    """The latency of one call of one model file on one target.

    Attributes:
        latency_ms: median wall time of a call, batch included.
        p10_ms, p90_ms: deciles of the same calls.
        sigma_ms: standard error of the median; of a flagged measurement, the spread of its
            tries where that is larger.
        n: how many calls they were read from.
        thread_cpu_ms: median processor time of the measuring thread in a call; None where
            the host cannot tell or the work is done elsewhere.
        contended_share: share of time slices discarded because the anchor model ran slow
            beside them; other work had the core.
        anchor_ms: what the anchor model took in the quiet slices.
        provider: the execution provider that really ran the model.
        measured_at: when it ended, ISO 8601 with zone, by the device's clock.
        grade: how far to trust it.
        flagged: stored although it failed a noise gate each time it was tried.
        note: which gate failed; empty when none did.
        quarantined: the tries that were set aside before this one.
        protocol_version: of the procedure followed.
        unit: of every latency.
        facts: load, clocks, temperatures and whatever else the host could tell.
    """

    latency_ms: float
    p10_ms: float
    p90_ms: float
    sigma_ms: float
    n: int
    thread_cpu_ms: float | None
    contended_share: float
    anchor_ms: float
    provider: str
    measured_at: str
    grade: Grade = "A"
    flagged: bool = False
    note: str = ""
    quarantined: tuple[Quarantined, ...] = ()
    protocol_version: int = PROTOCOL_VERSION
    unit: Literal["ms"] = "ms"
    facts: dict[str, Any] = field(default_factory=dict)
