"""Workers on the wire."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from service.schemas import Resource

State = Literal["online", "draining", "offline", "left"]


class GpuRead(Resource):
    """A GPU of a worker."""

    id: str = Field(description="As CUDA_VISIBLE_DEVICES names it there.")
    model: str
    memory_bytes: int


class ResourcesRead(Resource):
    """What a worker gives to its attempts, all together."""

    cpus: int
    memory_bytes: int
    gpus: list[GpuRead]


class GivenRead(Resource):
    """What an attempt may use."""

    gpus: list[str]
    threads: int = Field(description="Of its arithmetic; 0: every core.")
    memory_bytes: int = Field(description="0: no limit.")


class WorkerAttemptRead(Resource):
    """An attempt that runs on a worker."""

    job: str
    kind: str
    subject: str | None = Field(
        description="What it works for, such as a search; null when that is not yours."
    )
    number: int
    started_at: datetime
    stop_requested_at: datetime | None
    given: GivenRead


class WorkerRead(Resource):
    """A worker, what it has, and what runs on it."""

    object: Literal["worker"] = "worker"
    id: str
    name: str
    host: str
    version: str
    state: State = Field(
        description="`draining` workers take no new work; `offline` ones have not been seen for "
        "a while; the ones that `left` said so, or were found gone."
    )
    hand_back: bool = Field(description="While draining: checkpoint and hand back what runs.")
    slots: int
    slots_in_use: int
    resources: ResourcesRead
    labels: dict[str, str]
    attempts: list[WorkerAttemptRead]
    started_at: datetime
    seen_at: datetime
    stopped_at: datetime | None
