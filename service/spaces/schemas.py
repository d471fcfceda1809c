"""Search spaces and data sets on the wire."""

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
    datasets: list[str] = Field(description="Those it can be searched on; none: not here.")
    slots: list[SlotRead]


class DatasetRead(Resource):
    """A data set."""

    object: Literal["dataset"] = "dataset"
    name: str
    channels: int
    resolution_px: int
    n_classes: int
    n_train: int
    n_test: int


class SpaceList(Resource):
    """Every search space."""

    object: Literal["list"] = "list"
    items: list[SpaceRead]


class DatasetList(Resource):
    """Every data set."""

    object: Literal["list"] = "list"
    items: list[DatasetRead]
