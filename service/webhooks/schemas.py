"""Webhooks on the wire."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from service.schemas import Request, Resource, Text
from service.searches.schemas import Tags

EventType = Literal[
    "search.queued",
    "search.running",
    "search.phase",
    "search.pausing",
    "search.paused",
    "search.cancelling",
    "search.succeeded",
    "search.infeasible",
    "search.failed",
    "search.cancelled",
    "target.stale",
    "webhook.disabled",
]
"""What a webhook can be told of; later versions may add to it."""

DeliveryStatus = Literal["pending", "delivered", "failed"]

TEST = "webhook.test"
"""The type of a test delivery, which is sent whatever the webhook subscribes to."""


def _once_each(events: list[EventType]) -> list[EventType]:
    return list(dict.fromkeys(events))


Events = Annotated[list[EventType], Field(min_length=1, max_length=50), AfterValidator(_once_each)]
ShortText = Annotated[Text, Field(max_length=200)]
ReceiverUrl = Annotated[Text, Field(min_length=1, max_length=2000)]


class WebhookCreate(Request):
    """Ask to be told."""

    url: ReceiverUrl
    events: Events = Field(
        default=["search.succeeded", "search.infeasible", "search.failed", "search.cancelled"]
    )
    tags: Tags = Field(default={}, description="Only searches that have all of these.")
    description: ShortText = ""
    active: bool = True


class WebhookUpdate(Request):
    """Change what is given; `active: true` also forgives earlier failures."""

    url: ReceiverUrl | None = None
    events: Events | None = None
    tags: Tags | None = None
    description: ShortText | None = None
    active: bool | None = None


class Disabled(Resource):
    """Why the service switched a webhook off."""

    code: str
    text: str
    since: datetime


class WebhookRead(Resource):
    """A webhook without its secret."""

    object: Literal["webhook"] = "webhook"
    id: str
    url: str
    events: list[str]
    tags: dict[str, str]
    description: str
    active: bool
    failures: int = Field(description="Attempts that failed in a row, up to now.")
    failing_since: datetime | None
    disabled: Disabled | None
    created_at: datetime


class WebhookSecret(WebhookRead):
    """A webhook with its new secret, which is shown this once."""

    secret: str


class AttemptLog(Resource):
    """One attempt to deliver."""

    number: int
    at: datetime
    status: int | None = Field(description="None when there was no answer.")
    latency_ms: float
    error: str | None


class DeliveryRead(Resource):
    """An event on its way to a webhook, and what became of it."""

    object: Literal["webhook_delivery"] = "webhook_delivery"
    id: str
    webhook_id: str
    event_type: str
    subject_id: str | None
    status: DeliveryStatus
    attempt: int = Field(description="Of the newest attempt, 0 before the first.")
    due_at: datetime | None = Field(description="Of the next attempt, at the earliest.")
    log: list[AttemptLog] = Field(description="The last attempts, oldest first.")
    created_at: datetime
    ended_at: datetime | None


class DeliveryDetail(DeliveryRead):
    """The same with what is sent."""

    payload: dict[str, Any]
