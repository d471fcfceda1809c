"""Data sets on the wire."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from service.schemas import Request, Resource, Text

DatasetName = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$",
        description="Small letters, digits, `.`, `_` and `-`.",
    ),
]
ResolutionPx = Annotated[
    int, Field(ge=4, le=1024, description="Cut every image of a folder to its square, and resize.")
]
Source = Literal["builtin", "path", "upload"]
Status = Literal["unchecked", "checking", "ready", "rejected"]


class DatasetCreate(Request):
    """A known set, or a folder or `.npz` file on the workers; exactly one of the two."""

    name: DatasetName
    builtin: Annotated[Text | None, Field(max_length=64)] = None
    path: Annotated[Text | None, Field(min_length=1, max_length=4096)] = Field(
        default=None, description="Absolute, under one of the folders of TAILOR_DATASET_ROOTS."
    )
    resolution_px: ResolutionPx | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.builtin is None) == (self.path is None):
            raise ValueError("give either builtin, the name of a known set, or path")
        return self


class ClassRead(Resource):
    """A class and how many images of it there are."""

    name: str
    n_train: int
    n_test: int


class DatasetRead(Resource):
    """A data set; what is known only after the check is null until then."""

    object: Literal["dataset"] = "dataset"
    id: str
    name: str
    source: Source
    status: Status = Field(
        description="`unchecked`: a known set that nobody has registered; whether its files are "
        "on the workers shows when it is used."
    )
    reason: str | None = Field(description="Why it was rejected, or what the check waits for.")
    place: str = Field(description="The known set, the path, or the SHA-256 of the upload.")
    size_bytes: int = Field(description="Of an upload.")
    resize_px: int | None
    channels: int | None
    resolution_px: int | None
    n_classes: int | None
    n_train: int | None
    n_test: int | None
    version: int
    created_at: datetime | None
    checked_at: datetime | None


class DatasetDetail(DatasetRead):
    """A data set with what the check counted."""

    mean: list[float] | None = Field(description="Per channel, of the training pixels, 0 to 255.")
    std: list[float] | None
    digest: str | None = Field(description="SHA-256 over pixels and labels, in order.")
    classes: list[ClassRead] | None
    search_spaces: list[str] = Field(
        description="Those it can be searched on, as they are or fitted to its images."
    )
