"""Searches on the wire. Every latency is in milliseconds."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from service.schemas import Name, Request, Resource

Status = Literal[
    "queued", "running", "cancelling", "succeeded", "infeasible", "failed", "cancelled"
]
"""Later versions may add values; the last four are terminal and never change."""

TERMINAL = ("succeeded", "infeasible", "failed", "cancelled")

Phase = Literal[
    "awaiting_measurements",
    "fitting_latency_model",
    "waiting_for_worker",
    "searching",
    "deriving",
    "training",
    "verifying",
    "comparing",
    "done",
]


Algorithm = Literal[
    "dsnas",
    "dsnas_paired",
    "dsnas_path_integrated",
    "gumbel",
    "proxyless",
    "proxyless_two_path",
    "reinforce",
]
"""Every estimator of `search_core.estimators.presets`, which the API cannot load."""


class SearchCreate(Request):
    """A device and a latency budget; everything else has a default."""

    target: Name
    latency_budget_ms: Annotated[float, Field(gt=0.0, le=600_000.0)]
    search_space: Name = "micro"
    dataset: Name = "digits"
    algorithm: Algorithm = "dsnas"
    epochs: Annotated[int, Field(ge=4, le=10_000)] = 24
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    random_baseline: bool = True


class EffortRead(Resource):
    """What a search is expected to cost, from the moment that a worker is free for it."""

    seconds: float
    seconds_by_phase: dict[str, float] = Field(description="`starting`, then as a search's own.")
    gpu_hours: float = Field(description="0 where attempts train on a CPU.")
    core_hours: float
    memory_bytes: int = Field(description="Resident, of the attempt at its worst moment.")
    machine: str
    machine_name: str
    device: str
    threads: int
    basis: Literal["model", "history"] = Field(
        description="`history`: corrected by earlier searches of this space, data and algorithm."
    )
    earlier_searches: int


class NoEffort(Resource):
    """Why nothing can be said of a search's cost, and what to do about it."""

    code: str
    text: str


class Feasibility(Resource):
    """Which budgets can be met on the target, and what the one asked for means and costs."""

    object: Literal["feasibility"] = "feasibility"
    feasible: bool | None = Field(description="None until the target has been measured.")
    fastest_ms: float | None
    slowest_ms: float | None
    latency_model: str | None
    margin: float | None
    missing_measurements: int
    agents_online: int
    stale: str | None = Field(default=None, description="Why the latency model may be off.")
    effort: EffortRead | None = None
    no_effort: NoEffort | None = Field(default=None, description="Why there is no `effort`.")


class Progress(Resource):
    """How far the current phase is."""

    completed: int
    total: int
    unit: str
    metrics: dict[str, float]
    remaining_seconds: float | None = None
    updated_at: datetime


class StatusReason(Resource):
    """Why a search waits, or why it ended as it did."""

    code: str
    text: str
    since: datetime
    position: int | None = None


class AttemptRead(Resource):
    """One attempt and how it ended."""

    number: int
    worker: str
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None


class MeasuredLatency(Resource):
    """A latency an agent measured on the target."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    n: int
    measurement: str


class NetworkResult(Resource):
    """A network a search found or compared with."""

    architecture: str
    predicted_ms: float
    measured: MeasuredLatency | None
    test_accuracy: float | None
    parameters: int
    macs: int


class Result(Resource):
    """What a finished search found.

    `network` is the answer when the search succeeded and the nearest network when it was
    infeasible.
    """

    network: NetworkResult
    random_baseline: NetworkResult | None = None
    decodes: list[dict[str, Any]]
    frozen_slots: int
    onnx_sha256: str


class SearchRead(Resource):
    """A search."""

    object: Literal["search"] = "search"
    id: str
    status: Status
    phase: Phase
    status_reason: StatusReason | None
    version: int
    spec: SearchCreate
    progress: Progress | None
    feasibility: Feasibility | None
    result: Result | None
    seconds_by_phase: dict[str, float]
    latency_model: str | None
    attempts: list[AttemptRead]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    links: dict[str, str]


class ArchitectureRead(NetworkResult):
    """The network of a search, layer by layer."""

    object: Literal["architecture"] = "architecture"
    search: str
    search_space: str
    latency_budget_ms: float
    within_budget: bool
    layers: list[str]
    layer_ms: list[float] = Field(description="Predicted ms of each searched slot.")
    seconds_by_phase: dict[str, float] = Field(description="Computation spent, of every attempt.")


class EventRead(Resource):
    """Something that happened to a search."""

    number: int
    type: str
    data: dict[str, Any]
    created_at: datetime


class EventList(Resource):
    """Events after a number, oldest first."""

    object: Literal["list"] = "list"
    items: list[EventRead]


class ArtifactRead(Resource):
    """A file of a search."""

    name: str
    sha256: str
    size_bytes: int
    media_type: str
    url: str


class ArtifactList(Resource):
    """The files of a search."""

    object: Literal["list"] = "list"
    items: list[ArtifactRead]
