"""Latency models on the wire."""

from datetime import datetime
from typing import Any, Literal

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
    active: bool
    stale: dict[str, Any] | None
    fastest_ms: float
    slowest_ms: float
    margin: float
    report: dict[str, Any]
    created_at: datetime
