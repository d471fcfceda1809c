"""Routes of webhooks."""

import json
from typing import Annotated

import anyio
from fastapi import APIRouter, Depends, Query, Request, Response, status
from sqlalchemy.orm import Session

from service.auth.access import User, Viewer
from service.dependencies import CurrentSettings, Cursor, Limit, ReadSession, WriteSession
from service.errors import InvalidRequestError
from service.schemas import Page, next_cursor
from service.webhooks import lifecycle
from service.webhooks.guard import ForbiddenReceiverError, Guard, parse_url, port_of
from service.webhooks.models import Webhook, WebhookDelivery
from service.webhooks.outbox import queue_test
from service.webhooks.repository import (
    delete_webhook,
    get_delivery,
    get_webhook,
    list_deliveries,
    list_webhooks,
)
from service.webhooks.schemas import (
    DeliveryDetail,
    DeliveryRead,
    DeliveryStatus,
    WebhookCreate,
    WebhookRead,
    WebhookSecret,
    WebhookUpdate,
)

router = APIRouter(prefix="/webhooks", tags=["webhooks"])

_LOOK_UP_SECONDS = 5.0


# receivers are looked up before the request's transaction begins: a slow name must not hold it


async def _receiver(url: str, request: Request) -> None:
    settings = request.app.state.settings
    guard: Guard = request.app.state.webhook_guard
    try:
        parsed = parse_url(url, settings.webhook_ports)
        with anyio.fail_after(_LOOK_UP_SECONDS):
            await guard.addresses(parsed.raw_host.decode(), port_of(parsed))
    except ForbiddenReceiverError as error:
        raise InvalidRequestError(str(error), field="url") from error
    except (OSError, TimeoutError) as error:
        raise InvalidRequestError(
            "the receiver's host name cannot be resolved; check how it is written", field="url"
        ) from error


async def _checked_create(body: WebhookCreate, request: Request, _: User) -> WebhookCreate:
    await _receiver(body.url, request)
    return body


async def _checked_update(body: WebhookUpdate, request: Request, _: User) -> WebhookUpdate:
    if body.url is not None:
        await _receiver(body.url, request)
    return body


@router.post("", status_code=status.HTTP_201_CREATED)
def create(
    body: Annotated[WebhookCreate, Depends(_checked_create)],
    session: WriteSession,
    settings: CurrentSettings,
    user: User,
    response: Response,
) -> WebhookSecret:
    """Be told of events at a URL; the secret that signs them is in this answer and nowhere else."""
    webhook = lifecycle.create(session, settings, user, body)
    session.info["audited"] = webhook.id
    response.headers["Location"] = f"/v1/webhooks/{webhook.id}"
    return _with_secret(session, webhook)


@router.get("")
def list_all(
    session: ReadSession, viewer: Viewer, cursor: Cursor = None, limit: Limit = 50
) -> Page[WebhookRead]:
    """Webhooks, newest first, without their secrets."""
    items = [WebhookRead.model_validate(w) for w in list_webhooks(session, viewer, cursor, limit)]
    return Page[WebhookRead](items=items, next_cursor=next_cursor(items, limit))


@router.get("/{webhook_id}")
def get(webhook_id: str, session: ReadSession, viewer: Viewer) -> WebhookRead:
    """One webhook."""
    return WebhookRead.model_validate(get_webhook(session, webhook_id, viewer))


@router.patch("/{webhook_id}")
def change(
    webhook_id: str,
    body: Annotated[WebhookUpdate, Depends(_checked_update)],
    session: WriteSession,
    user: User,
) -> WebhookRead:
    """Change what is given; switching it on again forgives its failures."""
    webhook = get_webhook(session, webhook_id, user, lock=True)
    lifecycle.change(session, webhook, body)
    return WebhookRead.model_validate(webhook)


@router.delete("/{webhook_id}", status_code=status.HTTP_204_NO_CONTENT)
def delete(webhook_id: str, session: WriteSession, user: User) -> None:
    """Remove a webhook and its delivery log."""
    delete_webhook(session, get_webhook(session, webhook_id, user, lock=True))


@router.post("/{webhook_id}/rotate-secret")
def rotate_secret(webhook_id: str, session: WriteSession, user: User) -> WebhookSecret:
    """A new secret; for a day, deliveries are signed with the old one as well."""
    webhook = get_webhook(session, webhook_id, user, lock=True)
    lifecycle.rotate_secret(webhook)
    return _with_secret(session, webhook)


@router.post("/{webhook_id}/test", status_code=status.HTTP_202_ACCEPTED)
def send_test(webhook_id: str, session: WriteSession, user: User) -> DeliveryRead:
    """Send a `webhook.test`, once and without retries; its delivery says what came of it."""
    delivery = queue_test(session, get_webhook(session, webhook_id, user))
    session.flush()
    return DeliveryRead.model_validate(delivery)


@router.get("/{webhook_id}/deliveries")
def deliveries(
    webhook_id: str,
    session: ReadSession,
    viewer: Viewer,
    status: Annotated[DeliveryStatus | None, Query()] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Page[DeliveryRead]:
    """What was sent, and what came of each attempt; newest first."""
    webhook = get_webhook(session, webhook_id, viewer)
    rows = list_deliveries(session, webhook.id, status, cursor, limit)
    items = [DeliveryRead.model_validate(row) for row in rows]
    return Page[DeliveryRead](items=items, next_cursor=next_cursor(items, limit))


@router.get("/{webhook_id}/deliveries/{delivery_id}")
def delivery(
    webhook_id: str, delivery_id: str, session: ReadSession, viewer: Viewer
) -> DeliveryDetail:
    """One delivery, with what is sent."""
    found = get_delivery(session, get_webhook(session, webhook_id, viewer), delivery_id)
    return _with_payload(found)


@router.post(
    "/{webhook_id}/deliveries/{delivery_id}/redeliver", status_code=status.HTTP_202_ACCEPTED
)
def redeliver(webhook_id: str, delivery_id: str, session: WriteSession, user: User) -> DeliveryRead:
    """Send a delivery that has ended once more, under its old id."""
    webhook = get_webhook(session, webhook_id, user, lock=True)
    found = get_delivery(session, webhook, delivery_id, lock=True)
    lifecycle.send_again(webhook, found)
    return DeliveryRead.model_validate(found)


def _with_secret(session: Session, webhook: Webhook) -> WebhookSecret:
    session.flush()
    read = WebhookRead.model_validate(webhook)
    return WebhookSecret(**read.model_dump(), secret=webhook.secret)


def _with_payload(found: WebhookDelivery) -> DeliveryDetail:
    read = DeliveryRead.model_validate(found)
    return DeliveryDetail(**read.model_dump(), payload=json.loads(found.body))
