"""Latency models on the wire."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from service.schemas import Resource


class LatencyModelRead(Resource):
    """A fit and the report on how far to trust it.

    Attributes:
        stale: why it no longer holds (code, text, since); None while it does.
    """

    object: Literal["latency_model"] = "latency_model"
    id: str
    target: str
    search_space: str
    version: int = Field(description="1, 2, ... of the space on the target.")
    active: bool = Field(description="Whether it prices searches; one version at a time does.")
    stale: dict[str, Any] | None
    fastest_ms: float
    slowest_ms: float
    margin: float
    held_out_error: float | None = Field(
        description="Mean relative error on networks that no fit has seen."
    )
    left_out_error: float = Field(description="The same on networks left out of the fit in turn.")
    versions: dict[str, int] = Field(description="Of what the numbers rest on, by name.")
    report: dict[str, Any] = Field(
        description="held_out, leave_one_out, intervals, promotion, interactions, agents and more."
    )
    created_at: datetime

    @property
    def error(self) -> float:
        """What to judge it by: held-out networks, where some were measured."""
        return self.left_out_error if self.held_out_error is None else self.held_out_error
