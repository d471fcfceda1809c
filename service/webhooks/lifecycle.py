"""What may happen to a webhook and to a delivery, and when."""

import secrets
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from service.auth.principal import Principal
from service.auth.quotas import check_webhooks
from service.auth.tokens import new_token
from service.db.base import new_id, utc_now
from service.db.database import take_turns
from service.errors import ConflictError
from service.settings import Settings
from service.webhooks.models import Webhook, WebhookDelivery
from service.webhooks.outbox import queue_disabled
from service.webhooks.repository import Sending, drop_pending, n_webhooks, taken
from service.webhooks.schemas import TEST, WebhookCreate, WebhookUpdate
from service.webhooks.sender import Outcome

SECRETS_OVERLAP = timedelta(hours=24)
"""How long deliveries are signed with the old secret as well as with the new one."""

_LOGGED_ATTEMPTS = 30
_GONE = 410


def create(
    session: Session, settings: Settings, principal: Principal, asked: WebhookCreate
) -> Webhook:
    """A new webhook of the principal's account.

    Raises:
        QuotaExceededError: the account has as many as it may.
    """
    take_turns(session, f"webhooks of {principal.account}")
    check_webhooks(settings, n_webhooks(session, principal.account))
    webhook = Webhook(
        id=new_id("whk"),
        owner=principal.account,
        **asked.model_dump(),
        secret=new_token("whsec"),
        failures=0,
        created_at=utc_now(),
    )
    session.add(webhook)
    return webhook


def change(session: Session, webhook: Webhook, asked: WebhookUpdate) -> None:
    """Change what is asked for; what was switched off keeps nothing to send."""
    for name, value in asked.model_dump(exclude_none=True).items():
        setattr(webhook, name, value)
    if asked.active is True:
        _forgive(webhook)
        webhook.disabled = None
    elif asked.active is False:
        drop_pending(session, webhook.id)


def rotate_secret(webhook: Webhook) -> None:
    """A new secret; the old one signs as well until the receiver has surely been given it."""
    webhook.previous_secret = webhook.secret
    webhook.previous_secret_until = utc_now() + SECRETS_OVERLAP
    webhook.secret = new_token("whsec")


def send_again(webhook: Webhook, delivery: WebhookDelivery) -> None:
    """Queue a delivery that has ended once more, under its old id.

    Raises:
        ConflictError: it is still on its way, or its webhook is switched off.
    """
    if delivery.due_at is not None:
        raise ConflictError(f"delivery {delivery.id} is still on its way")
    if not webhook.active:
        raise ConflictError(f"webhook {webhook.id} is switched off; set it active first")
    delivery.status = "pending"
    delivery.due_at = delivery.queued_at = utc_now()
    delivery.ended_at = None


def settle(session: Session, settings: Settings, sending: Sending, outcome: Outcome) -> None:
    """Write down what became of an attempt, and decide what follows.

    An attempt that another one has overtaken changes nothing.
    """
    found = taken(session, sending)
    if found is None:
        return None
    webhook, delivery = found
    now = utc_now()
    entry = {
        "number": sending.attempt,
        "at": now.isoformat(),
        "status": outcome.status,
        "latency_ms": round(outcome.latency_ms, 3),
        "error": outcome.error,
    }
    delivery.log = [*delivery.log, entry][-_LOGGED_ATTEMPTS:]
    if outcome.error is None:
        _forgive(webhook)
        return _end(delivery, "delivered", now)
    again_at = now + timedelta(
        seconds=max(
            delay_seconds(settings, sending.attempt),
            min(outcome.retry_after_seconds, settings.webhook_longest_retry_seconds),
        )
    )
    give_up_at = delivery.queued_at + timedelta(hours=settings.webhook_give_up_hours)
    if delivery.event_type == TEST or not webhook.active or again_at > give_up_at:
        _end(delivery, "failed", now)
    else:
        delivery.due_at = again_at
    if delivery.event_type != TEST and webhook.active:
        _blame(session, settings, webhook, outcome, now)
    return None


def delay_seconds(settings: Settings, attempt: int) -> float:
    """How long to wait after an attempt that failed: doubling, and never quite the same.

    Args:
        attempt: 1 for the first.
    """
    doubled = settings.webhook_retry_seconds * 2.0 ** min(attempt - 1, 60)
    longest = min(doubled, settings.webhook_longest_retry_seconds)
    return longest * (0.5 + 0.5 * secrets.SystemRandom().random())


def _end(delivery: WebhookDelivery, status: str, now: datetime) -> None:
    delivery.status, delivery.due_at, delivery.ended_at = status, None, now


def _forgive(webhook: Webhook) -> None:
    webhook.failures, webhook.failing_since = 0, None


def _blame(
    session: Session, settings: Settings, webhook: Webhook, outcome: Outcome, now: datetime
) -> None:
    """Count a failure; switch off a webhook that has failed often, and for long."""
    webhook.failures += 1
    webhook.failing_since = webhook.failing_since or now
    patience = timedelta(hours=settings.webhook_failing_hours)
    if outcome.status == _GONE:
        code, text = "gone", "The receiver answered 410: it is gone."
    elif webhook.failures >= settings.webhook_failures and now - webhook.failing_since >= patience:
        code = "too_many_failures"
        text = (
            f"{webhook.failures} attempts in a row have failed, the last with: {outcome.error}. "
            "Repair the receiver, then set the webhook active."
        )
    else:
        return
    webhook.active = False
    webhook.disabled = {"code": code, "text": text, "since": now.isoformat()}
    drop_pending(session, webhook.id)
    queue_disabled(session, webhook)
