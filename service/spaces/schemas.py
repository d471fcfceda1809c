"""Search spaces on the wire."""

from typing import Literal

from pydantic import Field

from service.schemas import Resource


class SlotRead(Resource):
    """One decision and the tokens it may be decided for."""

    name: str
    candidates: tuple[str, ...]


class SpaceRead(Resource):
    """A search space."""

    object: Literal["search_space"] = "search_space"
    name: str
    version: int
    digest: str
    size: int
    in_channels: int
    resolution_px: int
    n_classes: int
    n_distinct_blocks: int
    datasets: list[str] = Field(
        description="Known sets it can be searched on, fitted to their images."
    )
    slots: list[SlotRead]


class SpaceList(Resource):
    """Every search space."""

    object: Literal["list"] = "list"
    items: list[SpaceRead]
