"""Webhooks and their deliveries as rows."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, Text
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, Id


class Webhook(Base):
    """An address that an account wants to be told at.

    Attributes:
        events: the types it wants.
        tags: a search must have all of these; an empty filter lets every search through.
        secret: signs every delivery, so it is kept as it is and never shown again.
        previous_secret: signs as well until `previous_secret_until`, so that the receiver can
            be given the new one without missing anything.
        failures: attempts that failed in a row, the first of them at `failing_since`.
        disabled: code, text and since, when the service switched it off itself.
    """

    __tablename__ = "webhooks"
    __table_args__ = (Index(None, "owner", "id"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    owner: Mapped[str] = mapped_column(Text)
    url: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text, default="")
    events: Mapped[list[Any]]
    tags: Mapped[dict[str, Any]] = mapped_column(default=dict)
    active: Mapped[bool]
    secret: Mapped[str] = mapped_column(Text)
    previous_secret: Mapped[str | None] = mapped_column(Text)
    previous_secret_until: Mapped[datetime | None]
    failures: Mapped[int] = mapped_column(default=0)
    failing_since: Mapped[datetime | None]
    disabled: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]


class WebhookDelivery(Base):
    """One event on its way to one webhook, written in the transaction of the event itself.

    Attributes:
        subject_id: the search or target it tells of.
        body: what is signed and sent, word for word, in every attempt.
        status: pending, delivered or failed.
        attempt: of the newest attempt; a sender proves by it that its attempt is the newest.
        due_at: when to send; a sender that takes it moves this beyond its own deadline, so that
            a delivery whose sender died is due again. None once it has ended.
        queued_at: when sending it was asked for, the first time or again.
        log: the last attempts: at, status, latency_ms, error.
    """

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index(None, "webhook_id", "id"),
        Index(None, "webhook_id", "due_at"),
        Index(None, "due_at"),
        Index(None, "created_at"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    event_type: Mapped[str] = mapped_column(Text)
    subject_id: Mapped[str | None] = mapped_column(Id)
    body: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
    attempt: Mapped[int] = mapped_column(default=0)
    due_at: Mapped[datetime | None]
    queued_at: Mapped[datetime]
    log: Mapped[list[Any]] = mapped_column(default=list)
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
