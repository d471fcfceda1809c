"""What a receiver can tell from a signature."""

import hashlib
import hmac
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.client.webhooks import WebhookSignatureError, verify
from service.webhooks.signing import signature

SECRET = "whsec_a"
BODY = json.dumps(
    {
        "id": "evt_1",
        "type": "search.succeeded",
        "created_at": "2026-01-01T00:00:00+00:00",
        "data": {"search": {"id": "srch_1"}},
    }
).encode()


def signed(*secrets: str, age_seconds: int = 0, body: bytes = BODY) -> dict[str, str]:
    now = int(time.time())  # noqa: TID251 - signatures are dated
    return {"X-Tailor-Signature": signature(secrets, now - age_seconds, body)}


def test_what_was_signed_is_believed():
    assert verify(SECRET, signed(SECRET), BODY).data == {"search": {"id": "srch_1"}}
    lower = {name.lower(): value for name, value in signed(SECRET).items()}
    assert verify(SECRET, lower, BODY).id == "evt_1"
    assert verify(SECRET, signed("whsec_new", SECRET), BODY).type == "search.succeeded"


def test_the_signature_is_what_the_documentation_says():
    given_ = signature([SECRET], 1700000000, b"{}")
    by_hand = hmac.new(SECRET.encode(), b"1700000000.{}", hashlib.sha256).hexdigest()
    assert given_ == f"t=1700000000,v1={by_hand}"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, BODY),
        (signed("whsec_b"), BODY),
        (signed(SECRET), BODY + b" "),
        (signed(SECRET, age_seconds=10**6), BODY),
        (signed(SECRET, age_seconds=-(10**6)), BODY),
        ({"X-Tailor-Signature": "t=1,v1="}, BODY),
        ({"X-Tailor-Signature": "v1=" + "0" * 64}, BODY),
        ({"X-Tailor-Signature": f"t={'9' * 400},v1={'0' * 64}"}, BODY),
        ({"X-Tailor-Signature": signed(SECRET)["X-Tailor-Signature"] + ",v0=1"}, BODY),
    ],
)
def test_anything_else_is_not(headers, body):
    with pytest.raises(WebhookSignatureError):
        verify(SECRET, headers, body)


def test_the_tolerance_is_the_receivers():
    assert verify(SECRET, signed(SECRET, age_seconds=900), BODY, tolerance_seconds=2000)


@given(st.text(max_size=200))
def test_no_header_makes_it_fail_otherwise(header):
    with pytest.raises(WebhookSignatureError):
        verify(SECRET, {"X-Tailor-Signature": header}, BODY)
