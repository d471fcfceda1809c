"""Calls about webhooks and their deliveries."""

import time
from typing import Any

from service.client.asking import Ask, Items, Pause, Steps, get, listed, pages, post
from service.webhooks.schemas import DeliveryDetail, DeliveryRead, WebhookRead, WebhookSecret

_POLL_SECONDS = 0.2


def create_webhook(url: str, **fields: Any) -> Steps[WebhookSecret]:
    """Be told of events at a URL; see `WebhookCreate`. Keep the secret, it is shown once."""
    return (yield from post("/v1/webhooks", {"url": url, **fields}, WebhookSecret))


def webhooks() -> Steps[list[WebhookRead]]:
    """Every webhook, newest first."""
    return (yield from listed("/v1/webhooks", WebhookRead))


def webhook(webhook_id: str) -> Steps[WebhookRead]:
    """One webhook."""
    return (yield from get(f"/v1/webhooks/{webhook_id}", WebhookRead))


def change_webhook(webhook_id: str, **fields: Any) -> Steps[WebhookRead]:
    """Change some fields of a webhook; see `WebhookUpdate`."""
    answer = yield Ask("PATCH", f"/v1/webhooks/{webhook_id}", json=fields)
    return WebhookRead.model_validate(answer.json())


def delete_webhook(webhook_id: str) -> Steps[None]:
    """Remove a webhook and its delivery log."""
    yield Ask("DELETE", f"/v1/webhooks/{webhook_id}")


def rotate_webhook_secret(webhook_id: str) -> Steps[WebhookSecret]:
    """A new secret; for a day, deliveries are signed with the old one as well."""
    return (yield from post(f"/v1/webhooks/{webhook_id}/rotate-secret", None, WebhookSecret))


def send_test(webhook_id: str, wait_seconds: float = 30.0) -> Steps[DeliveryRead]:
    """Send a test, and what came of it once it was sent or `wait_seconds` have passed."""
    deadline = time.monotonic() + wait_seconds
    sent = yield from post(f"/v1/webhooks/{webhook_id}/test", None, DeliveryRead)
    while sent.status == "pending" and time.monotonic() < deadline:
        yield Pause(_POLL_SECONDS)
        sent = yield from webhook_delivery(webhook_id, sent.id)
    return sent


def webhook_deliveries(webhook_id: str, status: str | None = None) -> Items[DeliveryRead]:
    """What a webhook was told, newest first, page by page.

    Args:
        status: only the pending, delivered or failed ones.
    """
    yield from pages(f"/v1/webhooks/{webhook_id}/deliveries", DeliveryRead, status=status)


def webhook_delivery(webhook_id: str, delivery_id: str) -> Steps[DeliveryDetail]:
    """One delivery with what is sent."""
    return (yield from get(f"/v1/webhooks/{webhook_id}/deliveries/{delivery_id}", DeliveryDetail))


def redeliver(webhook_id: str, delivery_id: str) -> Steps[DeliveryRead]:
    """Send a delivery that has ended once more."""
    path = f"/v1/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver"
    return (yield from post(path, None, DeliveryRead))
