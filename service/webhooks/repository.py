"""Every statement on webhooks and their deliveries."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import CursorResult, delete, func, select, update
from sqlalchemy.orm import Session

from service.auth.principal import Principal
from service.db.base import utc_now
from service.errors import NotFoundError
from service.webhooks.models import Webhook, WebhookDelivery

_ITS_STATE: dict[str, Any] = {"key_share": True}
"""Lock what a webhook says, and let others write deliveries to it meanwhile."""


@dataclass(frozen=True)
class Sending:
    """What a sender holds while it makes an attempt.

    Attributes:
        attempt: proves that this attempt is the newest one; 1 for the first.
        secrets: those that sign, the present one first.
    """

    delivery_id: str
    webhook_id: str
    attempt: int
    event_type: str
    url: str
    secrets: tuple[str, ...]
    body: bytes


# -- webhooks --------------------------------------------------------------------------


def get_webhook(
    session: Session, webhook_id: str, principal: Principal, *, lock: bool = False
) -> Webhook:
    """The webhook of that id; with `lock`, nobody else changes it until the transaction ends.

    Raises:
        NotFoundError: there is none that the principal sees.
    """
    webhook = session.get(Webhook, webhook_id, with_for_update=_ITS_STATE if lock else None)
    if webhook is None or not principal.sees(webhook.owner):
        raise NotFoundError(f"no webhook has id {webhook_id}")
    return webhook


def list_webhooks(
    session: Session, principal: Principal, cursor: str | None, limit: int
) -> Sequence[Webhook]:
    """A page of the webhooks that the principal sees, newest first."""
    statement = select(Webhook).order_by(Webhook.id.desc()).limit(limit)
    if not principal.may("operator"):
        statement = statement.where(Webhook.owner == principal.account)
    if cursor:
        statement = statement.where(Webhook.id < cursor)
    return session.scalars(statement).all()


def n_webhooks(session: Session, owner: str) -> int:
    """How many webhooks an account has."""
    counted = select(func.count()).select_from(Webhook).where(Webhook.owner == owner)
    return session.scalar(counted) or 0


def active_webhooks(session: Session, owner: str | None) -> Sequence[Webhook]:
    """The webhooks of an account that want to be told of anything; of every account if None.

    None of them is deleted before the transaction ends.
    """
    statement = (
        select(Webhook)
        .where(Webhook.active)
        .order_by(Webhook.id)
        .with_for_update(read=True, key_share=True)
    )
    if owner is not None:
        statement = statement.where(Webhook.owner == owner)
    return session.scalars(statement).all()


def delete_webhook(session: Session, webhook: Webhook) -> None:
    """Remove a webhook and its log, what others write to it at this moment included."""
    session.delete(webhook)


# -- the log ---------------------------------------------------------------------------


def get_delivery(
    session: Session, webhook: Webhook, delivery_id: str, *, lock: bool = False
) -> WebhookDelivery:
    """One delivery of a webhook; with `lock`, for this transaction alone.

    Raises:
        NotFoundError: it has none of that id.
    """
    delivery = session.get(WebhookDelivery, delivery_id, with_for_update=lock or None)
    if delivery is None or delivery.webhook_id != webhook.id:
        raise NotFoundError(f"webhook {webhook.id} has no delivery {delivery_id}")
    return delivery


def list_deliveries(
    session: Session, webhook_id: str, status: str | None, cursor: str | None, limit: int
) -> Sequence[WebhookDelivery]:
    """A page of a webhook's deliveries, newest first."""
    statement = (
        select(WebhookDelivery)
        .where(WebhookDelivery.webhook_id == webhook_id)
        .order_by(WebhookDelivery.id.desc())
        .limit(limit)
    )
    if status:
        statement = statement.where(WebhookDelivery.status == status)
    if cursor:
        statement = statement.where(WebhookDelivery.id < cursor)
    return session.scalars(statement).all()


def forget_deliveries(session: Session, before: datetime) -> int:
    """Remove the deliveries made before then; how many there were."""
    removed = session.execute(delete(WebhookDelivery).where(WebhookDelivery.created_at < before))
    assert isinstance(removed, CursorResult)
    return removed.rowcount


def drop_pending(session: Session, webhook_id: str) -> None:
    """Give up what a webhook that was switched off has not been told yet."""
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.webhook_id == webhook_id, WebhookDelivery.due_at.is_not(None))
        .values(status="failed", due_at=None, ended_at=utc_now())
    )


# -- sending ---------------------------------------------------------------------------


def is_due(session: Session, without: Collection[str]) -> bool:
    """Whether a delivery waits to be sent to a webhook other than these."""
    waiting = select(WebhookDelivery.id).where(
        WebhookDelivery.due_at <= utc_now(), WebhookDelivery.webhook_id.not_in(without)
    )
    return session.scalar(waiting.limit(1)) is not None


def take(
    session: Session, without: Collection[str], limit: int, lease_seconds: float
) -> list[Sending]:
    """Take due deliveries, for each webhook the one that is due first.

    Two senders never take the same one: PostgreSQL skips rows another transaction has
    locked, SQLite runs one writing transaction at a time. What is taken is due again after
    `lease_seconds`, unless its sender has told its outcome by then.
    """
    now = utc_now()
    first = (
        select(WebhookDelivery.id)
        .where(WebhookDelivery.webhook_id == Webhook.id, WebhookDelivery.due_at <= now)
        .order_by(WebhookDelivery.due_at, WebhookDelivery.id)
        .limit(1)
        .correlate(Webhook)
        .scalar_subquery()
    )
    deliveries = session.scalars(
        select(WebhookDelivery)
        .where(
            WebhookDelivery.id.in_(select(first).where(Webhook.id.not_in(without))),
            WebhookDelivery.due_at <= now,
        )
        .order_by(WebhookDelivery.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    for delivery in deliveries:
        delivery.attempt += 1
        delivery.due_at = now + timedelta(seconds=lease_seconds)
    return [_sending(session.get_one(Webhook, d.webhook_id), d, now) for d in deliveries]


def _sending(webhook: Webhook, delivery: WebhookDelivery, now: datetime) -> Sending:
    secrets = [webhook.secret]
    until = webhook.previous_secret_until
    if webhook.previous_secret is not None and until is not None and now < until:
        secrets.append(webhook.previous_secret)
    return Sending(
        delivery_id=delivery.id,
        webhook_id=webhook.id,
        attempt=delivery.attempt,
        event_type=delivery.event_type,
        url=webhook.url,
        secrets=tuple(secrets),
        body=delivery.body.encode(),
    )


def taken(session: Session, sending: Sending) -> tuple[Webhook, WebhookDelivery] | None:
    """The webhook and the delivery of an attempt, locked; None when a newer one has begun.

    Whoever changes both locks the webhook first.
    """
    webhook = session.get(Webhook, sending.webhook_id, with_for_update=_ITS_STATE)
    delivery = session.get(WebhookDelivery, sending.delivery_id, with_for_update=True)
    if webhook is None or delivery is None:
        return None  # deleted meanwhile
    if delivery.attempt != sending.attempt or delivery.due_at is None:
        return None
    return webhook, delivery
