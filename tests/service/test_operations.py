"""Health, version, request ids and the limit on bodies."""

import gzip
import json
import tracemalloc
import zlib

import pytest
from sqlalchemy import create_engine, make_url, text

from service.agents.versions import OLDEST_AGENT
from service.version import VERSION


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/healthz", {"status": "ok"}),
        ("/readyz", {"status": "ok", "database": "ok"}),
        ("/version", {"tailor": VERSION, "oldest_agent": OLDEST_AGENT}),
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


@pytest.fixture(scope="module")
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


# -- gzip ------------------------------------------------------------------------------


def gzipped(client, body: bytes, encoding: str = "gzip"):
    """The answer to a request for a key with this body and this Content-Encoding."""
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    return client.post("/v1/keys", content=body, headers=headers)


def problem_of(answer) -> tuple[int, str, str]:
    document = answer.json()
    assert document["request_id"] == answer.headers["X-Request-Id"]
    assert document["status"] == answer.status_code
    return answer.status_code, answer.headers["content-type"], document["code"]


@pytest.mark.parametrize("encoding", ["gzip", "GZIP"])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_a_gzipped_body_is_taken_as_what_it_holds(small, encoding, level):
    packed = gzip.compress(key_request(900), level)
    answer = gzipped(small.http, packed, encoding)
    assert answer.status_code == 201
    assert answer.json()["name"] == "x"


def test_a_body_of_encoding_identity_is_taken_as_it_is(small):
    assert gzipped(small.http, key_request(100), "identity").status_code == 201


def test_measurements_may_be_uploaded_gzipped(api):
    device = api.enrol_with_kit()
    tasks = device.lease_all()
    items = [device.result(task) for task in tasks]
    body = gzip.compress(json.dumps({"batch_id": "b" * 32, "items": items}).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = device.http.post("/v1/measurements", content=body, headers=headers)
    assert answer.status_code == 200
    assert [item["accepted"] for item in answer.json()["items"]] == [True] * len(tasks)
    plain = device.upload(items, "b" * 32)  # the same batch, however it was sent
    assert plain.json() == answer.json()


@pytest.mark.parametrize("n_bytes", [0, 1, 9, 17, 18, 30, -9, -8, -4, -1])
def test_a_gzip_body_that_is_cut_short_is_a_400_and_stores_nothing(small, n_bytes):
    before = small.stored()
    packed = gzip.compress(key_request(900))
    answer = gzipped(small.http, packed[:n_bytes])
    assert problem_of(answer) == (400, "application/problem+json", "bad_request")
    assert small.stored() == before


@pytest.mark.parametrize(
    "body",
    [
        key_request(100),
        b"\0" * 50,
        b"\x1f\x8b" + b"\xff" * 40,
        gzip.compress(key_request(100)) + b"more",
        gzip.compress(key_request(100)) + gzip.compress(b" "),
        zlib.compress(key_request(100)),
    ],
)
def test_what_is_no_gzip_is_a_400_and_stores_nothing(small, body):
    before = small.stored()
    answer = gzipped(small.http, body)
    assert problem_of(answer) == (400, "application/problem+json", "bad_request")
    assert small.stored() == before


def test_a_gzip_body_with_a_wrong_checksum_is_a_400(small):
    packed = bytearray(gzip.compress(key_request(100)))
    packed[-5] ^= 1
    assert problem_of(gzipped(small.http, bytes(packed)))[0] == 400


def test_a_body_that_unpacks_to_the_limit_is_taken_and_to_more_is_a_413(small):
    assert gzipped(small.http, gzip.compress(key_request(1000))).status_code == 201
    before = small.stored()
    answer = gzipped(small.http, gzip.compress(key_request(1001)))
    assert problem_of(answer) == (413, "application/problem+json", "payload_too_large")
    assert small.stored() == before


def test_a_gzip_bomb_is_a_413_before_it_has_unpacked(api):
    packer = zlib.compressobj(9, wbits=31)
    zeros = b" " * 2**20
    bomb = b"".join(packer.compress(zeros) for _ in range(1000)) + packer.flush()
    assert len(bomb) < 2**20 < api.settings.max_body_bytes < 1000 * len(zeros)
    tracemalloc.start()
    answer = gzipped(api.http, bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert problem_of(answer) == (413, "application/problem+json", "payload_too_large")
    assert peak < 8 * api.settings.max_body_bytes  # the API is a thread of this process


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip", "x" * 200])
def test_another_encoding_is_a_415_and_stores_nothing(small, encoding):
    before = small.stored()
    answer = gzipped(small.http, gzip.compress(key_request(100)), encoding)
    assert problem_of(answer) == (415, "application/problem+json", "unsupported_encoding")
    assert small.stored() == before
