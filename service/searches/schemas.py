"""Searches on the wire. Every latency is in milliseconds."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from service.schemas import Name, Request, Resource, Text

Status = Literal[
    "queued",
    "running",
    "pausing",
    "paused",
    "cancelling",
    "succeeded",
    "infeasible",
    "failed",
    "cancelled",
]
"""Later versions may add values; the last four are terminal and never change."""

TERMINAL = ("succeeded", "infeasible", "failed", "cancelled")

STOPPING = ("pausing", "cancelling")
"""A running attempt was asked to stop."""

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

Kind = Literal["search", "derive", "extend", "reproduce"]
"""What is asked for: a search, other budgets from another's supernet, more steps, or a proof."""

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

BudgetMs = Annotated[float, Field(gt=0.0, le=600_000.0)]
TagName = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[A-Za-z0-9_.\-/]+$")]
TagValue = Annotated[Text, Field(max_length=200)]
Tags = Annotated[dict[TagName, TagValue], Field(max_length=32)]
Priority = Annotated[int, Field(ge=-100, le=100, description="Larger goes first.")]
Epochs = Annotated[int, Field(ge=4, le=10_000)]
_TEN_YEARS_MINUTES = 10 * 365 * 24 * 60


class TargetBudget(Request):
    """A device and what a network may take there: the median of its measured latency."""

    target: Name
    latency_budget_ms: BudgetMs


class Limits(Request):
    """When a search is ended early. None: never."""

    wall_minutes: Annotated[float, Field(gt=0.0, le=_TEN_YEARS_MINUTES)] | None = Field(
        default=None, description="Of running; waiting in the queue is not counted."
    )
    gpu_hours: Annotated[float, Field(gt=0.0, le=_TEN_YEARS_MINUTES / 60.0)] | None = None
    queue_minutes: Annotated[float, Field(gt=0.0, le=_TEN_YEARS_MINUTES)] | None = Field(
        default=None, description="Until a worker first begins."
    )
    stop_on_collapse: bool = Field(
        default=False,
        description="When what is likely to be chosen computes next to nothing any more.",
    )


class Worker(Request):
    """What the worker of a search must have."""

    gpus: Annotated[int, Field(ge=0, le=1)] = 0
    memory_bytes: Annotated[int, Field(gt=0, lt=2**50)] | None = Field(
        default=None, description="None: its share of the worker's."
    )
    labels: dict[TagName, TagValue] = Field(
        default={}, max_length=16, description="Such as gpu_model; a value may hold `*`."
    )


class SearchCreate(Request):
    """Devices and latency budgets; everything else has a default.

    One device is given as `target` and `latency_budget_ms`, several as `targets`.
    """

    target: Name | None = None
    latency_budget_ms: BudgetMs | None = None
    targets: Annotated[list[TargetBudget], Field(max_length=32)] = []
    together: Literal["worst_case", "each"] = Field(
        default="worst_case",
        description="Of several targets: one network within every budget, or one for each.",
    )
    search_space: Name = "micro"
    dataset: Name = "digits"
    algorithm: Algorithm = "dsnas"
    epochs: Epochs = 24
    train_epochs: Annotated[int, Field(ge=0, le=10_000)] | None = Field(
        default=None,
        description="Of training a decided network on. None: what is left of the epochs.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    random_baseline: bool = True
    hand_made_baseline: bool = True
    warm_start: Name | None = Field(
        default=None, description="A search of the same space whose weights this one starts from."
    )
    priority: Priority = 0
    limits: Limits = Limits()
    worker: Worker = Worker()
    tags: Tags = {}

    @property
    def budgets(self) -> list[TargetBudget]:
        """Every target with its budget; empty where the request names none."""
        if self.targets or self.target is None or self.latency_budget_ms is None:
            return self.targets
        return [TargetBudget(target=self.target, latency_budget_ms=self.latency_budget_ms)]


class SearchClone(Request):
    """What a copy of a search is to have otherwise; what is left out stays."""

    target: Name | None = None
    latency_budget_ms: BudgetMs | None = None
    targets: Annotated[list[TargetBudget], Field(max_length=32)] | None = None
    together: Literal["worst_case", "each"] | None = None
    search_space: Name | None = None
    dataset: Name | None = None
    algorithm: Algorithm | None = None
    epochs: Epochs | None = None
    train_epochs: Annotated[int, Field(ge=0, le=10_000)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    random_baseline: bool | None = None
    hand_made_baseline: bool | None = None
    warm_start: Name | None = None
    priority: Priority | None = None
    limits: Limits | None = None
    worker: Worker | None = None
    tags: Tags | None = None


class SearchExtend(Request):
    """More of a search that has ended: more epochs from where it stood, or more time."""

    epochs: Annotated[int, Field(ge=1, le=10_000, description="More than it had.")] | None = None
    limits: Limits | None = None


class SearchDerive(Request):
    """Networks at other budgets from the supernet of a search that has ended.

    Give budgets, or how many of them spread over what the target can do.
    """

    target: Name | None = Field(default=None, description="None: the search's first.")
    budgets_ms: Annotated[list[BudgetMs], Field(max_length=32)] = []
    points: Annotated[int, Field(ge=2, le=32)] | None = None
    train_epochs: Annotated[
        int,
        Field(
            ge=0,
            le=10_000,
            description="Of training each network on; 0 takes the supernet's weights, in seconds.",
        ),
    ] = 0


class SearchPatch(Request):
    """What may be changed of a search at any time."""

    tags: Tags | None = None
    priority: Priority | None = None
    archived: bool | None = None


class BulkAction(Request):
    """One action on many searches."""

    action: Literal["cancel", "pause", "resume", "archive", "unarchive", "tag"]
    ids: Annotated[list[Name], Field(min_length=1, max_length=200)]
    tags: Tags = {}


class BulkItem(Resource):
    """What became of the action on one search."""

    id: str
    done: bool
    status: Status | None = None
    code: str | None = None
    detail: str | None = None


class BulkResult(Resource):
    """What became of an action on many searches, in the order they were named."""

    object: Literal["list"] = "list"
    items: list[BulkItem]


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


class TargetFeasibility(Resource):
    """What one of several budgets means on its target."""

    target: str
    latency_budget_ms: float
    feasible: bool | None
    fastest_ms: float | None
    slowest_ms: float | None
    latency_model: str | None
    margin: float | None
    missing_measurements: int
    agents_online: int
    stale: str | None = None


class Service(Resource):
    """Whether any worker can run it, and who."""

    code: Literal["ready", "no_worker_online", "no_worker_can_serve"]
    text: str
    workers: int = Field(description="Online workers that could run it.")


class Feasibility(Resource):
    """Which budgets can be met on the target, and what the one asked for means and costs.

    The numbers at the top are of the target whose budget is the tightest; `targets` has each.
    """

    object: Literal["feasibility"] = "feasibility"
    feasible: bool | None = Field(description="None until the target has been measured.")
    fastest_ms: float | None
    slowest_ms: float | None
    latency_model: str | None
    margin: float | None
    missing_measurements: int
    agents_online: int
    stale: str | None = Field(default=None, description="Why the latency model may be off.")
    targets: list[TargetFeasibility] = []
    effort: EffortRead | None = None
    no_effort: NoEffort | None = Field(default=None, description="Why there is no `effort`.")
    service: Service | None = Field(default=None, description="Whether a worker can run it.")


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


class TargetLatency(Resource):
    """What a network takes on one of several targets."""

    target: str
    latency_budget_ms: float
    predicted_ms: float
    measured: MeasuredLatency | None
    within_budget: bool | None


class NetworkResult(Resource):
    """A network a search found or compared with."""

    architecture: str
    predicted_ms: float
    measured: MeasuredLatency | None
    test_accuracy: float | None
    accuracy_interval95: list[float] | None = Field(
        default=None, description="Of the accuracy on images of this kind, given these weights."
    )
    parameters: int
    macs: int
    targets: list[TargetLatency] = Field(default=[], description="Of several targets, each.")


class Point(NetworkResult):
    """A network at one budget; `verified` when its own file was measured within it."""

    latency_budget_ms: float
    target: str
    verified: bool
    onnx_sha256: str | None = None
    files: dict[str, str] = Field(default={}, description="Artifacts of it, by what they hold.")


class Gap(Resource):
    """By how much the network found is more accurate than a baseline.

    The interval is over the drawing of test images (Agresti and Min 2005, matched pairs); it
    says nothing of how other seeds would have trained.
    """

    accuracy: float
    interval95: list[float]
    n_images: int


class Baseline(NetworkResult):
    """A network that nobody searched for, at the same latency and trained as long."""

    kind: Literal["random", "hand_made"]
    gap: Gap | None = Field(default=None, description="None where the search found nothing.")


class Reproduction(Resource):
    """Whether a search came out the same once more, and where it did not."""

    of: str
    same: bool
    logits_equal: bool
    largest_logit_difference: float | None
    architecture_equal: bool
    architecture: str
    differs: list[str]


class Result(Resource):
    """What a finished search found.

    `network` is the answer when the search succeeded and the nearest network when it was
    infeasible. `points` has every network where several were asked for.
    """

    network: NetworkResult
    random_baseline: NetworkResult | None = None
    baselines: list[Baseline] = []
    points: list[Point] = []
    decodes: list[dict[str, Any]]
    frozen_slots: int
    health: dict[str, Any] | None = Field(
        default=None, description="Collapse, entropy and the discretisation gap of the search."
    )
    reproduction: Reproduction | None = None
    onnx_sha256: str


class SearchRead(Resource):
    """A search."""

    object: Literal["search"] = "search"
    id: str
    kind: Kind
    owner: str
    status: Status
    phase: Phase
    status_reason: StatusReason | None
    version: int
    spec: SearchCreate
    tags: dict[str, str]
    priority: int
    parent: str | None
    progress: Progress | None
    estimated_finish_at: datetime | None = Field(
        description="If nothing else comes in between; None where nothing can be said."
    )
    feasibility: Feasibility | None
    result: Result | None
    seconds_by_phase: dict[str, float]
    latency_model: str | None
    attempts: list[AttemptRead]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    archived_at: datetime | None
    links: dict[str, str]


class LineageMeasurement(Resource):
    """A measurement that a search rests on, and where it comes from."""

    id: str
    subject: str
    target: str
    agent: str
    latency_ms: float
    measured_at: datetime
    environment: dict[str, Any]


class LineageModel(Resource):
    """A latency model that priced the search."""

    id: str
    target: str
    version: int
    created_at: datetime
    measurements: int


class Lineage(Resource):
    """What a search comes from and what came of it."""

    object: Literal["lineage"] = "lineage"
    search: str
    ancestors: list[str] = Field(description="The nearest first.")
    children: list[str]
    latency_models: list[LineageModel]
    measurements: list[LineageMeasurement] = Field(description="Of its networks.")


class FrontPoint(Resource):
    """A network that was measured, and what it reaches."""

    search: str
    source: Literal["found", "derived", "probe", "random", "hand_made"]
    architecture: str
    target: str
    predicted_ms: float
    measured_ms: float | None
    test_accuracy: float | None
    verified: bool
    on_front: bool
    knee: bool


class Front(Resource):
    """Every network of a search and of what was derived from it, on accuracy and latency."""

    object: Literal["front"] = "front"
    items: list[FrontPoint]
    best: FrontPoint | None = Field(
        description="The most accurate one that was measured within the search's budget."
    )


class Comparison(Resource):
    """Searches side by side: `differs` has what their specs do not share."""

    object: Literal["comparison"] = "comparison"
    items: list[SearchRead]
    differs: dict[str, list[Any]]
    agreement: float | None = Field(
        description="The share of slots that all their networks decide alike; null where they "
        "are of several spaces, or one has no network. Between seeds it tells how far to trust one."
    )


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
