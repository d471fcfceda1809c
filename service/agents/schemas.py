"""Agents and enrolment on the wire."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from predictor.measurements import Precision, TargetProfile
from service.schemas import Name, Request, Resource, Text


class EnrolmentCodeCreate(Request):
    """Ask for a one-time code.

    Attributes:
        search_space: measured at once on every target that the code brings; None: nothing is.
    """

    search_space: Name | None = None


class EnrolmentCodeCreated(Resource):
    """A one-time code; give it to `tailor agent enrol`, or open `measure_path` on the device."""

    object: Literal["enrolment_code"] = "enrolment_code"
    code: str
    expires_at: datetime
    search_space: str | None
    measure_path: str


class ProfileCreate(Request):
    """What an agent says it measures with; see `predictor.measurements.TargetProfile`."""

    device_model: Name
    machine: Name
    system: Name
    runtime: Name
    runtime_version: Name
    execution_provider: Name
    threads: Annotated[int, Field(ge=1, le=1024)]
    precision: Precision
    batch: Annotated[int, Field(ge=1, le=4096)]
    clock_state: Name = "unmanaged"

    def to_profile(self) -> TargetProfile:
        """The predictor's form."""
        return TargetProfile(**self.model_dump())


class AgentCreate(Request):
    """Redeem an enrolment code."""

    code: Name
    name: Name
    agent_version: Name
    profiles: Annotated[list[ProfileCreate], Field(min_length=1, max_length=8)]


class HeldTask(Resource):
    """A task in an agent's hands."""

    id: str
    subject: str
    lease_expires_at: datetime | None


class AgentRead(Resource):
    """An agent without its token.

    Attributes:
        owner: the account that enrolled it, and may drain and revoke it.
        online: heard of lately.
        outdated: too old for this service; it is given no work.
        reject_rate: share of its uploaded items that were not accepted; None before the first.
        leased: what it is measuring.
    """

    object: Literal["agent"] = "agent"
    id: str
    owner: str
    name: str
    version: str
    target_ids: list[str]
    online: bool
    draining: bool
    outdated: bool
    activity: str
    journal_batches: int
    accepted: int
    rejected: int
    flagged: int
    reject_rate: float | None
    leased: list[HeldTask]
    created_at: datetime
    last_seen_at: datetime
    revoked_at: datetime | None


class AgentCreated(Resource):
    """A new agent with its token, which is shown this once.

    Attributes:
        target_ids: in the order of the profiles.
        signing_key: base64 of the raw Ed25519 key that tasks are signed with.
    """

    object: Literal["agent"] = "agent"
    id: str
    name: str
    version: str
    target_ids: list[str]
    created_at: datetime
    token: str
    signing_key: str
    heartbeat_seconds: float


class Heartbeat(Request):
    """An agent says that it lives, what it does and what it has become.

    Attributes:
        holds: the tasks it is at; their leases are extended. None: whatever it has leased.
    """

    agent_version: Name
    activity: Annotated[Text, Field(max_length=200)] = ""
    journal_batches: Annotated[int, Field(ge=0, le=10**6)] = 0
    profiles: Annotated[dict[Name, ProfileCreate], Field(max_length=8, default_factory=dict)]
    holds: Annotated[list[Name], Field(max_length=1000)] | None = None


class StaleTarget(Resource):
    """A target whose latency models no longer hold."""

    target_id: str
    text: str


class HeartbeatRead(Resource):
    """What the service wants of the agent."""

    object: Literal["heartbeat"] = "heartbeat"
    draining: bool
    stale: list[StaleTarget]
    heartbeat_seconds: float


class SelfKit(Resource):
    """How far a kit of one of the agent's targets is."""

    id: str
    search_space: str
    status: Literal["measuring", "measured", "incomplete"]
    completed: int
    failed: int
    flagged: int
    total: int


class SelfModel(Resource):
    """What has come of the agent's measurements."""

    id: str
    search_space: str
    fastest_ms: float
    slowest_ms: float
    margin: float
    stale: dict[str, Any] | None
    report: dict[str, Any]


class SelfTarget(Resource):
    """One of the agent's targets."""

    id: str
    name: str
    kits: list[SelfKit]
    latency_models: list[SelfModel]


class SelfRead(Resource):
    """What the service knows of the agent that asks."""

    object: Literal["agent_self"] = "agent_self"
    id: str
    name: str
    draining: bool
    targets: list[SelfTarget]
