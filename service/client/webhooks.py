"""For those who receive webhooks: is this delivery ours, and what does it say?"""

import hmac
import re
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from service.client.errors import TailorClientError
from service.webhooks.signing import SIGNATURE_HEADER, digest

TOLERANCE_SECONDS = 300.0
_SIGNATURE = re.compile(r"t=(?P<time>[0-9]{1,15})(?P<digests>(?:,v1=[0-9a-f]{64}){1,10})")


class WebhookSignatureError(TailorClientError):
    """A delivery that was not signed with this secret, was changed on its way, or is too old."""


class WebhookEvent(BaseModel):
    """What a delivery says.

    Attributes:
        id: of the event; a delivery that is sent again says the same one.
        data: `search`, `target` or `webhook`, and what there is to say of it.
    """

    id: str
    type: str
    created_at: datetime
    data: dict[str, Any]


def verify(
    secret: str,
    headers: Mapping[str, str],
    body: bytes,
    tolerance_seconds: float = TOLERANCE_SECONDS,
) -> WebhookEvent:
    """What a delivery says, if it was signed with `secret` a short while ago.

    Args:
        secret: ``whsec_...``, as the webhook's creation showed it.
        headers: of the request, in any case.
        body: of the request, byte for byte as it came.
        tolerance_seconds: how far the sender's clock may be from this one; what is older may be
            a delivery that somebody has overheard and sends again.

    Raises:
        WebhookSignatureError: do not act on it; answer 400.
    """
    given = {name.lower(): value for name, value in headers.items()}
    found = _SIGNATURE.fullmatch(given.get(SIGNATURE_HEADER.lower(), ""))
    if found is None:
        raise WebhookSignatureError(f"no {SIGNATURE_HEADER} of the form t=...,v1=...")
    timestamp = int(found["time"])
    ours = digest(secret, timestamp, body)
    signed = [hmac.compare_digest(ours, text) for text in found["digests"].split(",v1=")[1:]]
    if not any(signed):
        raise WebhookSignatureError("the signature is not one of this secret and this body")
    age_seconds = abs(time.time() - timestamp)  # noqa: TID251 - the sender's clock is a calendar
    if age_seconds > tolerance_seconds:
        raise WebhookSignatureError(
            f"signed {age_seconds:.0f} s ago, and {tolerance_seconds:.0f} s are accepted; "
            "is this machine's clock right?"
        )
    return WebhookEvent.model_validate_json(body)
