"""Agents and enrolment on the wire."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from predictor.measurements import TargetProfile
from service.schemas import Name, Request, Resource


class EnrolmentCodeCreated(Resource):
    """A one-time code; give it to `tailor agent enrol` on the device."""

    object: Literal["enrolment_code"] = "enrolment_code"
    code: str
    expires_at: datetime


class ProfileCreate(Request):
    """What an agent says it measures with; see `predictor.measurements.TargetProfile`."""

    device_model: Name
    machine: Name
    system: Name
    runtime: Name
    runtime_version: Name
    execution_provider: Name
    threads: Annotated[int, Field(ge=1, le=1024)]
    precision: Literal["float32"]
    batch: Annotated[int, Field(ge=1, le=4096)]

    def to_profile(self) -> TargetProfile:
        """The predictor's form."""
        return TargetProfile(**self.model_dump())


class AgentCreate(Request):
    """Redeem an enrolment code."""

    code: Name
    name: Name
    agent_version: Name
    profile: ProfileCreate


class AgentRead(Resource):
    """An agent without its token."""

    object: Literal["agent"] = "agent"
    id: str
    target_id: str
    name: str
    version: str
    created_at: datetime
    last_seen_at: datetime
    revoked_at: datetime | None


class AgentCreated(AgentRead):
    """A new agent with its token, which is shown this once."""

    token: str
