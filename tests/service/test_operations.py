"""Health, version, the request log, request ids, shutdown and the limit on bodies."""

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import anyio
import httpx
import pytest
from sqlalchemy import text
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from service.agents.versions import OLDEST_AGENT
from service.db.database import Database
from service.operations import checks
from service.version import VERSION

READY = {"database": "ok", "schema": "ok", "artifacts": "ok", "disk": "ok"}


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/healthz", {"status": "ok"}),
        ("/readyz", {"status": "ok", "checks": READY}),
        ("/version", {"tailor": VERSION, "oldest_agent": OLDEST_AGENT}),
    ],
)
def test_health_and_version_are_open_to_everyone(api, path, answer):
    response = api.client().get(path)
    assert (response.status_code, response.json()) == (200, answer)


def failing(api) -> dict[str, str]:
    """The checks that fail, of an API that is not ready."""
    answer = api.client().get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
    return {name: said for name, said in answer.json()["checks"].items() if said != "ok"}


@pytest.mark.postgres
def test_the_api_is_alive_but_not_ready_without_its_store(serve, new_store, cut_off):
    with serve(database_url=new_store("postgres", migrated=True)) as api:
        cut_off(api.settings.database_url)
        silent = "no answer; the log says more"
        assert failing(api) == {"database": silent, "schema": silent}
        assert api.client().get("/healthz").status_code == 200


def test_an_api_whose_store_was_upgraded_by_a_newer_version_is_not_ready(serve):
    with serve() as api:
        with api.database.transaction() as session:
            session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        assert "9999" in failing(api)["schema"]


def test_an_api_that_cannot_write_files_is_not_ready(serve, tmp_path):
    (tmp_path / "file").touch()
    with serve(artifacts_url=f"file://{tmp_path}/file/artifacts") as api:
        assert set(failing(api)) == {"artifacts"}
        assert str(tmp_path) not in api.client().get("/readyz").text


def test_an_api_without_space_is_not_ready(serve):
    with serve(free_disk_bytes=2**62) as api:
        assert "TAILOR_FREE_DISK_BYTES" in failing(api)["disk"]


def test_a_check_that_hangs_holds_up_no_answer_and_runs_once(monkeypatch):
    monkeypatch.setattr(checks, "SECONDS", 0.2)
    hanging = threading.Event()
    begun = []

    def stuck() -> str:
        begun.append(1)
        hanging.wait()
        return "ok"

    readiness = checks.Readiness({"stuck": stuck, "fine": lambda: "ok"})

    async def ask() -> list[dict[str, str]]:
        return [await readiness.run() for _ in range(3)]

    for found in anyio.run(ask):
        assert found == {"stuck": "no answer within 0.2 s", "fine": "ok"}
    assert begun == [1]
    hanging.set()


# -- the log ---------------------------------------------------------------------------


@pytest.fixture
def requests_logged(eventually):
    """The log lines of the requests that a call makes; each is written after its answer."""

    def run(ask) -> list[dict]:
        with capture_logs(processors=[merge_contextvars]) as lines:
            answer = ask()

            def written() -> bool:
                return any(
                    line.get("request_id") == answer.headers["x-request-id"] for line in lines
                )

            eventually(written, "the request is not logged")
        return [line for line in lines if line["event"] == "request"]

    return run


def test_a_request_is_one_line_with_its_route_and_who_asked(api, requests_logged):
    key_id = api.http.get("/v1/keys/self").json()["id"]
    url = "/v1/searches/srch_nothing?cursor=secret"
    (line,) = requests_logged(lambda: api.http.get(url))
    assert (line["method"], line["route"], line["status"]) == (
        "GET",
        "/v1/searches/{search_id}",
        404,
    )
    assert (line["key"], line["search_id"]) == (key_id, "srch_nothing")
    assert line["ms"] > 0
    assert line["request_id"]
    assert "secret" not in str(line)


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/searches/srch_x", "/searches/{search_id}"),
        ("/measure/ABCD-EFGH-JKLM", "/measure/{code}"),
        ("/measure-page/no/such/file.js", "/measure-page/{path:path}"),
        ("/nowhere/at/all", "none"),
    ],
)
def test_no_line_holds_what_stands_in_a_path_for_a_secret(api, requests_logged, path, route):
    (line,) = requests_logged(lambda: api.http.get(path))
    assert line["route"] == route
    assert path not in str(line)


def test_probes_that_go_well_are_not_logged(api, requests_logged):
    def probe_and_ask():
        api.http.get("/healthz")
        return api.http.get("/version")

    assert [line["route"] for line in requests_logged(probe_and_ask)] == ["/version"]


def test_a_trace_is_bound_to_the_lines_of_its_request(api, requests_logged):
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    headers = {"traceparent": f"00-{trace}-{span}-01"}
    (line,) = requests_logged(lambda: api.http.get("/v1/searches", headers=headers))
    assert (line["trace_id"], line["parent_span_id"]) == (trace, span)


def test_a_trace_that_is_none_is_left_out(api, requests_logged):
    headers = {"traceparent": "00-zz-zz-01"}
    (line,) = requests_logged(lambda: api.http.get("/v1/searches", headers=headers))
    assert "trace_id" not in line


# -- stopping --------------------------------------------------------------------------


@pytest.fixture
def api_process(tmp_path):
    """`tailor api` as a process, once it is ready."""
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "api", "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "TAILOR_HOME": str(tmp_path)},
        )
    lines = iter(process.stdout.readline, "TAILOR_READY=1\n")
    told = dict(line.strip().split("=", 1) for line in lines)

    def logged() -> str:
        return (tmp_path / "log").read_text()

    yield SimpleNamespace(
        process=process, url=told["TAILOR_URL"], key=told["TAILOR_API_KEY"], logged=logged
    )
    process.kill()
    process.wait()
    process.stdout.close()


@contextmanager
def begun_request(url: str) -> Iterator[None]:
    """A request whose body the API waits for; it will never arrive."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /v1/searches HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")
        yield


def test_an_api_that_is_told_to_stop_ends_what_waits_and_leaves(api_process, tmp_path, add_search):
    process = api_process.process
    store = Database(f"sqlite:///{tmp_path}/tailor.db")
    with store.transaction() as session:
        search_id = add_search(session).id
    store.dispose()
    headers = {"Authorization": f"Bearer {api_process.key}"}
    with (
        httpx.Client(base_url=api_process.url, headers=headers) as client,
        client.stream("GET", f"/v1/searches/{search_id}/events/stream") as stream,
    ):
        process.send_signal(signal.SIGTERM)
        list(stream.iter_bytes())
    process.wait(60)
    assert "graceful shutdown exceeded" not in api_process.logged()


def test_an_api_that_is_told_twice_leaves_without_waiting(api_process, eventually):
    process, logged = api_process.process, api_process.logged
    with begun_request(api_process.url):
        process.send_signal(signal.SIGTERM)
        eventually(lambda: "connections to close" in logged(), "it does not wait")
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert "asked a second time" in logged()
    assert "graceful shutdown exceeded" not in logged()


# -- who may start ---------------------------------------------------------------------


def started(home, **settings: str) -> subprocess.CompletedProcess:
    """`tailor api` that refuses to start."""
    return subprocess.run(
        [sys.executable, "-m", "service.cli", "api", "--port", "0"],
        env={**os.environ, "TAILOR_HOME": str(home), **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_api_that_may_not_migrate_says_what_to_run(tmp_path):
    refused = started(tmp_path, TAILOR_MIGRATE="false")
    assert refused.returncode == 2
    assert "run `tailor admin migrate`" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_api_that_finds_a_newer_schema_refuses_it_in_one_line(tmp_path, store):
    with store.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    refused = started(tmp_path, TAILOR_DATABASE_URL=store.url)
    assert refused.returncode == 2
    assert "9999, which this version of Tailor does not know" in refused.stderr
    assert "Traceback" not in refused.stderr
    unchanged = Database(store.url)
    with unchanged.reading() as session:
        assert session.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9999"
    unchanged.dispose()


# -- request ids -----------------------------------------------------------------------


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
    ids=["plain", "zeros", "torn", "followed by more", "two of them", "zlib"],
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
