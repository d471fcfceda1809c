"""What every resource's schema shares."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Generic, Literal, Protocol, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

Item = TypeVar("Item", bound=BaseModel)


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("text must not contain NUL")  # PostgreSQL cannot store it
    return text


Text = Annotated[str, AfterValidator(_without_nul)]


def _in_utc(at: datetime) -> datetime:
    try:
        return at.astimezone(UTC)
    except OverflowError as error:  # the last day of the calendar, farther west
        raise ValueError("this lies outside the calendar") from error


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]


class Request(BaseModel):
    """A request body: unknown fields are refused, numbers are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Resource(BaseModel):
    """A response body, read off rows."""

    model_config = ConfigDict(from_attributes=True)


class Page(BaseModel, Generic[Item]):
    """A keyset page: pass `next_cursor` as `cursor` for what follows."""

    object: Literal["list"] = "list"
    items: list[Item]
    next_cursor: str | None = None


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_without_nul)]


class _HasId(Protocol):
    id: str


def next_cursor(items: Sequence[_HasId], limit: int) -> str | None:
    """The cursor of the page after `items`, None when they are the last ones."""
    return items[-1].id if len(items) == limit else None
