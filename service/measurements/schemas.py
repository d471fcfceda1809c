"""Kits, tasks and measurements on the wire. Every latency is in milliseconds."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from predictor.measurements import PROTOCOL_VERSION, Effort, Grade, Precision, Reason
from service.schemas import Moment, Name, Request, Resource, Text

_LONGEST_MS = 600_000.0
_SHORTEST_MS = 1e-6  # a nanosecond: less than any call of anything
Milliseconds = Annotated[float, Field(ge=_SHORTEST_MS, le=_LONGEST_MS)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
# a larger whole number is kept as a float; one beyond floats is refused
_Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]
Fact = Annotated[Text, Field(max_length=500)] | float | _Whole | bool | None


class KitCreate(Request):
    """Ask for everything a space needs measured on a target.

    Attributes:
        again: measure anew what has been measured; the model follows when all of it is there.
        until_half_width: measure whole networks first, and blocks only until 90 % of networks
            are predicted to within this, relative; the rest is predicted. None: everything.
    """

    target: Name
    search_space: Name = "micro"
    again: bool = False
    until_half_width: Annotated[float, Field(ge=0.005, le=0.5)] | None = None


class KitRead(Resource):
    """A kit and how far its measuring is."""

    object: Literal["kit"] = "kit"
    id: str
    target: str
    search_space: str
    status: Literal["measuring", "measured", "incomplete"]
    completed: int
    failed: int
    flagged: int
    total: int
    until_half_width: float | None
    agents_online: int
    created_at: datetime


class KitFilesItem(Resource):
    """One model file of a kit."""

    subject: str
    role: str
    model_sha256: str
    n_bytes: int


class KitFilesRead(Resource):
    """The files of a kit, signed: what an offline bundle is made of.

    Attributes:
        signature: base64, over the canonical JSON (sorted keys, no spaces) of the rest.
    """

    format: Literal["tailor-kit/1"] = "tailor-kit/1"
    search_space: str
    precision: Precision
    batch: int
    anchor_sha256: str
    items: list[KitFilesItem]
    signing_key: str
    signature: str


class LeaseCreate(Request):
    """An agent asks for work."""

    limit: Annotated[int, Field(ge=1, le=64)] = 8
    wait_seconds: Annotated[float, Field(ge=0.0, le=25.0)] = 0.0


class LeasedTaskRead(Resource):
    """One model file an agent holds until its lease ends.

    Attributes:
        signature: base64, by the key the agent learnt when it enrolled.
    """

    id: str
    target_id: str
    subject: str
    effort: Effort
    fence: int
    model_sha256: str
    anchor_sha256: str
    signature: str


class LeaseRead(Resource):
    """What an agent was given; empty when there is nothing to do."""

    object: Literal["lease"] = "lease"
    items: list[LeasedTaskRead]
    expires_at: datetime
    draining: bool


class QuarantinedCreate(Request):
    """A try that failed a noise gate."""

    latency_ms: Milliseconds | None
    reason: Annotated[Text, Field(max_length=500)]


class MeasurementCreate(Request):
    """A measurement; see `predictor.measurements.Measurement`."""

    latency_ms: Milliseconds
    p10_ms: Milliseconds
    p90_ms: Milliseconds
    sigma_ms: Annotated[float, Field(ge=0.0, le=_LONGEST_MS)]
    n: Annotated[int, Field(ge=10, le=10**9)]
    thread_cpu_ms: Annotated[float, Field(ge=0.0, le=_LONGEST_MS)] | None
    contended_share: Share
    anchor_ms: Milliseconds
    provider: Name
    measured_at: Moment
    grade: Grade
    flagged: bool
    note: Annotated[Text, Field(max_length=500)]
    quarantined: Annotated[list[QuarantinedCreate], Field(max_length=16)]
    protocol_version: Literal[2]
    unit: Literal["ms"]
    facts: Annotated[dict[Name, Fact], Field(max_length=32)]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.p10_ms <= self.latency_ms <= self.p90_ms:
            raise ValueError(
                f"p10_ms <= latency_ms <= p90_ms must hold, got {self.p10_ms:g}, "
                f"{self.latency_ms:g}, {self.p90_ms:g}"
            )
        if (self.grade == "C") != self.flagged:
            raise ValueError("grade C and flagged go together")
        return self


assert PROTOCOL_VERSION == 2, "accept the new protocol version in MeasurementCreate"


class FailureCreate(Request):
    """Why there is no measurement."""

    code: Literal["unsupported", "too_noisy"]
    reason: Reason
    detail: Annotated[Text, Field(max_length=500)]


class ResultCreate(Request):
    """One task's result: a measurement or a failure."""

    task_id: Name
    fence: Annotated[int, Field(ge=1, le=2**31 - 1)]
    model_sha256: Sha256
    measurement: MeasurementCreate | None = None
    failure: FailureCreate | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.measurement is None) == (self.failure is None):
            raise ValueError("give either measurement or failure")
        return self


class BatchCreate(Request):
    """Results an agent uploads together; the same `batch_id` twice is stored once.

    Attributes:
        items: each a `ResultCreate`; they are checked one by one, so that one bad item does
            not take the others with it.
    """

    batch_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{8,64}$")]
    items: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=1000)]


class ItemReport(Resource):
    """What became of one item."""

    task_id: str | None
    accepted: bool
    reason: str | None = None


class BatchReport(Resource):
    """What became of a batch, item by item."""

    object: Literal["batch_report"] = "batch_report"
    batch_id: str
    items: list[ItemReport]


class MeasurementRead(Resource):
    """A stored measurement."""

    object: Literal["measurement"] = "measurement"
    id: str
    target_id: str
    agent_id: str
    subject: str
    model_sha256: str
    latency_ms: float
    p10_ms: float
    p90_ms: float
    sigma_ms: float | None
    n: int
    thread_cpu_ms: float | None
    contended_share: float
    anchor_ms: float
    provider: str
    measured_at: datetime
    grade: Grade
    flagged: bool
    note: str
    quarantined: list[dict[str, Any]]
    protocol_version: int
    facts: dict[str, Any]
    created_at: datetime
