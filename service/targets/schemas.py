"""Targets on the wire."""

from datetime import datetime
from typing import Any, Literal

from service.schemas import Resource


class TargetRead(Resource):
    """What a search can aim at."""

    object: Literal["target"] = "target"
    id: str
    name: str
    profile: dict[str, Any]
    created_at: datetime
    agents_online: int
