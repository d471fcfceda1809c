"""What webhooks are told, written in the transaction of the event that it tells of."""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from service.db.base import new_id, utc_now
from service.searches.models import Search
from service.webhooks.models import Webhook, WebhookDelivery
from service.webhooks.repository import active_webhooks
from service.webhooks.schemas import TEST, EventType


def queue_deliveries(
    session: Session, search: Search, event_type: EventType, data: Mapping[str, Any]
) -> None:
    """Tell the owner's webhooks of something that happened to a search.

    Args:
        data: what is told beside the search itself.
    """
    wanting = [
        webhook
        for webhook in active_webhooks(session, search.owner)
        if event_type in webhook.events and webhook.tags.items() <= search.tags.items()
    ]
    told = {
        "id": search.id,
        "status": search.status,
        "phase": search.phase,
        "status_reason": search.status_reason,
        "tags": search.tags,
        "target": search.target_id,
        "links": {"self": f"/v1/searches/{search.id}"},
    }
    _queue(session, wanting, event_type, search.id, {"search": told, **data})


def queue_stale_target(session: Session, target_id: str, reason: str) -> None:
    """Tell every webhook that wants it that a target is no longer what was measured.

    Targets belong to nobody, so everybody is told.
    """
    wanting = [w for w in active_webhooks(session, None) if "target.stale" in w.events]
    data = {"target": {"id": target_id, "links": {"self": f"/v1/targets/{target_id}"}}}
    _queue(session, wanting, "target.stale", target_id, {**data, "reason": reason})


def queue_disabled(session: Session, webhook: Webhook) -> None:
    """Tell an account's other webhooks that the service has switched this one off."""
    wanting = [
        other
        for other in active_webhooks(session, webhook.owner)
        if other.id != webhook.id and "webhook.disabled" in other.events
    ]
    data = {"webhook": {"id": webhook.id, "disabled": webhook.disabled}}
    _queue(session, wanting, "webhook.disabled", webhook.id, data)


def queue_test(session: Session, webhook: Webhook) -> WebhookDelivery:
    """Send something harmless, whatever the webhook subscribes to."""
    (delivery,) = _queue(session, [webhook], TEST, webhook.id, {"webhook": {"id": webhook.id}})
    return delivery


def _queue(
    session: Session,
    webhooks: list[Webhook],
    event_type: str,
    subject_id: str,
    data: Mapping[str, Any],
) -> list[WebhookDelivery]:
    now = utc_now()
    event = {
        "id": new_id("evt"),  # the same for every webhook that is told
        "type": event_type,
        "created_at": now.isoformat(),
        "data": data,
    }
    body = json.dumps(event, separators=(",", ":"), allow_nan=False)
    deliveries = [
        WebhookDelivery(
            id=new_id("whd"),
            webhook_id=webhook.id,
            event_type=event_type,
            subject_id=subject_id,
            body=body,
            status="pending",
            attempt=0,
            due_at=now,
            queued_at=now,
            log=[],
            created_at=now,
        )
        for webhook in webhooks
    ]
    session.add_all(deliveries)
    return deliveries
