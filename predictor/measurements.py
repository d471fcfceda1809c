"""The wire vocabulary of measuring: plain dataclasses, no third-party import."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

PROTOCOL_VERSION = 1
"""Version of the procedure in `predictor.agent.protocol`; part of every measurement."""

Effort = Literal["table", "certificate"]
"""How much care a task asks for: an entry of a table, or the proof behind a `succeeded`."""


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
    """

    device_model: str
    machine: str
    system: str
    runtime: str
    runtime_version: str
    execution_provider: str
    threads: int
    precision: str
    batch: int

    @property
    def digest(self) -> str:
        """Hexadecimal sha256 of the canonical JSON of every field."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True)
class Measurement:
    """The latency of one call of one model file on one target.

    Attributes:
        latency_ms: median wall time of a call, batch included.
        p10_ms, p90_ms: deciles of the same calls.
        n: how many calls they were read from.
        thread_cpu_ms: median processor time of the measuring thread in a call.
        contended_share: share of time slices discarded because the anchor model ran slow
            beside them; other work had the core.
        anchor_ms: what the anchor model took in the quiet slices.
        flagged: stored although it failed a noise gate each time it was tried.
        note: which gate failed; empty when none did.
        protocol_version: of the procedure followed.
        facts: load, clocks, temperatures and whatever else the host could tell.
    """

    latency_ms: float
    p10_ms: float
    p90_ms: float
    n: int
    thread_cpu_ms: float
    contended_share: float
    anchor_ms: float
    flagged: bool = False
    note: str = ""
    protocol_version: int = PROTOCOL_VERSION
    facts: dict[str, Any] = field(default_factory=dict)
