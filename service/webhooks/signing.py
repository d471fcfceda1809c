"""The signature of a delivery: HMAC-SHA256 over the time of sending and the body."""

import hashlib
import hmac
from collections.abc import Sequence

SIGNATURE_HEADER = "X-Tailor-Signature"
DELIVERY_HEADER = "X-Tailor-Delivery"
EVENT_HEADER = "X-Tailor-Event"


def digest(secret: str, timestamp: int, body: bytes) -> str:
    """The hexadecimal HMAC-SHA256 of ``timestamp.body``.

    Args:
        timestamp: seconds since 1970, UTC.
    """
    return hmac.new(secret.encode(), b"%d." % timestamp + body, hashlib.sha256).hexdigest()


def signature(secrets: Sequence[str], timestamp: int, body: bytes) -> str:
    """The header ``t=...,v1=...``, with one ``v1`` for each secret that is valid now."""
    parts = [f"t={timestamp}", *(f"v1={digest(secret, timestamp, body)}" for secret in secrets)]
    return ",".join(parts)
