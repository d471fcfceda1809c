"""Machines on the wire."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from service.schemas import Resource


class MachineRead(Resource):
    """A machine that trains, and what its workers found it to need."""

    object: Literal["machine"] = "machine"
    id: str
    host: str
    name: str = Field(description="Of the processor.")
    device: str = Field(description="cpu, or the type of the accelerator.")
    threads: int
    torch: str
    error: float = Field(description="Typical relative error of a block's predicted time.")
    created_at: datetime
    seen_at: datetime = Field(description="When a worker last started there.")
    profile: dict[str, Any]
