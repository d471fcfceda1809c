"""Health, version, request ids and the limit on bodies."""

import pytest
from sqlalchemy import create_engine, make_url, text

from service.version import VERSION


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/healthz", {"status": "ok"}),
        ("/readyz", {"status": "ok", "database": "ok"}),
        ("/version", {"tailor": VERSION}),
    ],
)
def test_health_and_version_are_open_to_everyone(api, path, answer):
    response = api.client().get(path)
    assert (response.status_code, response.json()) == (200, answer)


@pytest.mark.postgres
def test_the_api_is_alive_but_not_ready_without_its_store(serve, new_store):
    url = make_url(new_store("postgres", migrated=True))
    administration = create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with serve(database_url=url.render_as_string(hide_password=False)) as api:
        with administration.connect() as connection:
            connection.execute(text(f"DROP DATABASE {url.database} WITH (FORCE)"))
        ready = api.client().get("/readyz")
        assert ready.status_code == 503
        assert ready.json() == {"status": "unavailable", "database": "no answer"}
        assert api.client().get("/healthz").status_code == 200
    administration.dispose()


def test_a_given_request_id_comes_back(api):
    answer = api.client().get("/healthz", headers={"X-Request-Id": "mine-1"})
    assert answer.headers["X-Request-Id"] == "mine-1"


def test_a_problem_carries_the_request_id_of_its_header(api):
    answer = api.client().get("/v1/searches", headers={"X-Request-Id": "mine-2"})
    assert answer.status_code == 401
    assert answer.headers["X-Request-Id"] == answer.json()["request_id"] == "mine-2"


def test_a_request_without_an_id_is_given_one_of_its_own(api):
    ids = {api.client().get("/healthz").headers["X-Request-Id"] for _ in range(2)}
    assert len(ids) == 2
    assert "" not in ids


@pytest.mark.parametrize("given", [b"caf\xe9", b"a\tb", b""])
def test_an_unprintable_request_id_is_replaced(api, given):
    answer = api.client().get("/healthz", headers=[(b"x-request-id", given)])
    assert answer.headers["X-Request-Id"].encode("latin-1") != given
    assert answer.headers["X-Request-Id"].isalnum()


def test_a_long_request_id_is_cut(api):
    answer = api.client().get("/healthz", headers={"X-Request-Id": "x" * 500})
    assert answer.headers["X-Request-Id"] == "x" * 100


@pytest.fixture
def small(serve):
    """An API that takes bodies of 1000 bytes."""
    with serve(max_body_bytes=1000) as api:
        yield api


def announced(body: bytes) -> bytes:
    return body


def chunked(body: bytes):
    return iter([body[:600], body[600:]])


def key_request(n_bytes: int) -> bytes:
    """A valid request for a key, padded to `n_bytes`."""
    body = b'{"name": "x"'
    return body + b" " * (n_bytes - len(body) - 1) + b"}"


@pytest.mark.parametrize("send", [announced, chunked])
def test_a_body_over_the_limit_is_a_413_and_nothing_is_stored(small, send):
    before = small.stored()
    answer = small.http.post("/v1/keys", content=send(key_request(1001)))
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "payload_too_large"
    assert answer.json()["request_id"] == answer.headers["X-Request-Id"]
    assert small.stored() == before


@pytest.mark.parametrize("send", [announced, chunked])
def test_a_body_at_the_limit_is_taken(small, send):
    headers = {"Content-Type": "application/json"}
    answer = small.http.post("/v1/keys", content=send(key_request(1000)), headers=headers)
    assert answer.status_code == 201
