"""No secret is in any log line, problem or event, wherever somebody put it."""

import io
import json
import logging
import sys

import pytest
import structlog

from service.auth.tokens import new_code, new_token
from service.redaction import redact
from service.telemetry import configure_logging, logger

URL = "postgresql+psycopg://tailor:hunter%402@db.internal:5432/tailor"
KINDS = ["key", "agent", "session", "webhook", "code"]


def secrets() -> list[str]:
    """One of each kind."""
    return [*(new_token(prefix) for prefix in ("tlr", "tla", "tls", "whsec")), new_code()]


@pytest.mark.parametrize("secret", secrets(), ids=KINDS)
@pytest.mark.parametrize("around", ["{}", "Bearer {}", "key={}&x=1", '"{}"', "({}).", "a\\n{}\\nb"])
def test_a_secret_is_taken_out_and_the_rest_stays(secret, around):
    prefix = secret[: secret.find("_") + 1]  # a code has none
    assert redact(around.format(secret)) == around.format(f"{prefix}[redacted]")


def test_two_secrets_are_both_taken_out():
    assert redact(f"{new_token('tlr')} {new_token('tla')}") == "tlr_[redacted] tla_[redacted]"


def test_the_password_of_an_address_is_taken_out_and_the_rest_stays():
    assert redact(f"cannot reach {URL}: no route") == (
        "cannot reach postgresql+psycopg://tailor:[redacted]@db.internal:5432/tailor: no route"
    )
    assert redact("redis://:secret@cache/0") == "redis://:[redacted]@cache/0"


@pytest.mark.parametrize(
    "text",
    [
        "srch_01J8ZQ4TN5V7M3Y2X1W0ABCDEF",
        "http://127.0.0.1:8000/v1/keys",
        "https://user@host/path",
        "see http://host:80/x, or mail a@b",
        '{"url": "http://host", "mail": "a@b"}',
        "2026-11-26 AAAA-BBBB",
        "ba3f" * 16,
        "tlr_",
    ],
)
def test_what_is_no_secret_stays(text):
    assert redact(text) == text


# -- logs ------------------------------------------------------------------------------


@pytest.fixture
def lines(monkeypatch):
    """What is logged as in an installation, read back line by line."""
    before = structlog.get_config(), logging.getLogger().handlers, logging.getLogger().level
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logging("DEBUG")
    structlog.configure(cache_logger_on_first_use=False)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    structlog.configure(**before[0])
    logging.getLogger().handlers = before[1]
    logging.getLogger().setLevel(before[2])


@pytest.mark.parametrize("secret", [*secrets(), URL], ids=[*KINDS, "url"])
def test_no_log_line_holds_a_secret(lines, secret):
    def fail(argument: str) -> None:
        raise RuntimeError(f"cannot open {argument}")

    log = logger("test")
    event = f"at the start {secret}"
    log.info(event, member=secret, deep={"list": [secret]})
    logging.getLogger("a library").warning("told %s", secret)
    for complain in (log.exception, logging.getLogger("a library").exception):
        try:
            fail(secret)
        except RuntimeError:
            complain("failed")
    written = lines()
    assert len(written) == 4
    hidden = secret if secret != URL else "hunter"
    assert hidden not in json.dumps(written)
    assert "cannot open" in written[2]["exception"]
    assert "[redacted]" in json.dumps(written[0])


# -- over HTTP -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["key", "token", "code"])
def test_a_secret_in_the_wrong_place_comes_back_and_is_logged_nowhere(api, measured, kind, lines):
    secret = {"key": api.admin_key, "token": measured.token, "code": api.code()}[kind]
    http = api.http
    search = api.search(measured.target_id)
    answers = [
        http.get(f"/v1/searches/{secret}"),
        http.get(f"/v1/targets/{secret}"),
        http.get(f"/{secret}"),
        http.get("/v1/searches", params={"cursor": secret, "status": secret}),
        http.get("/v1/targets", params={secret: secret}),
        http.get("/v1/measurements", params={"target": secret}),
        http.post("/v1/keys", json={"name": "x", secret: secret}),
        http.post("/v1/keys", json={"name": "x", "scope": secret}),
        http.post("/v1/searches", json={"target": secret, "latency_budget_ms": 1.0}),
        http.post("/v1/searches", json={"target": measured.target_id, "latency_budget_ms": secret}),
        http.post("/v1/searches", content=secret),
        http.post(f"/v1/searches/{search['id']}/cancel", params={"api_key": secret}),
        http.get("/healthz", headers={"X-Request-Id": secret}),
        http.get("/v1/keys/self", headers={"X-Api-Key": secret}),
        api.client(f"{secret}x").get("/v1/targets"),
        http.post("/v1/keys", content=b"x", headers={"Content-Encoding": secret}),
        api.client().post("/v1/agents", json={"code": secret}),
        http.delete(f"/v1/keys/{secret}"),
    ]
    told = [answer.text + str(answer.headers) for answer in answers]
    assert [text for text in told if secret in text] == []
    assert secret not in json.dumps(api.events(search))
    written = json.dumps(lines())
    assert "/v1/searches" in written  # what was asked for is logged
    assert secret not in written
