"""An agent's session with an API that is slow to come back, or is not the API at all."""

import hashlib
import json
import stat
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from predictor.agent.connection import Connection, Identity, ServerRefusedError
from predictor.agent.journal import JournalEntry
from predictor.agent.runtimes.base import RuntimeSpec
from predictor.errors import NotAuthenticError

IDENTITY = Identity(
    "http://tailor",
    "agent",
    "secret",
    "key",
    runtimes={"t1": RuntimeSpec(threads=2), "t2": RuntimeSpec("adb", options={"mask": "f0"})},
    digests={"t1": "d" * 64, "t2": "e" * 64},
)
MODEL = b"a model file"
SHA256 = hashlib.sha256(MODEL).hexdigest()
ENTRY = JournalEntry("b" * 32, [{"task_id": "t1"}])
JSON, BYTES, HTML = "application/json", "application/octet-stream", "text/html; charset=utf-8"
PROBLEM = "application/problem+json"
REPORT = (200, JSON, b'{"items": []}')
LOGIN = (200, HTML, b"<html>please log in</html>")


# -- the identity ----------------------------------------------------------------------


def test_an_identity_survives_a_restart(tmp_path):
    path = tmp_path / "state" / "identity.json"
    IDENTITY.save(path)
    assert Identity.load(path) == IDENTITY


def test_only_its_owner_reads_the_token(tmp_path):
    path = tmp_path / "identity.json"
    path.write_text("one that everybody could read")
    path.chmod(0o644)
    IDENTITY.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["identity.json"]


# -- requests --------------------------------------------------------------------------


@contextmanager
def answering(*answers, **changes):
    """A connection to a server that gives these answers in turn, the last one for ever.

    Yields it and the requests that arrived: ``(method, path, body)``.
    """
    arrived, waiting = [], list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            arrived.append((self.command, self.path, body))
            status, media_type, content = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST  # noqa: N815 - the name is the library's

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        connection = Connection(url, "secret", **{"patience_seconds": 0.05, **changes})
        try:
            yield connection, arrived
        finally:
            connection.close()
            server.shutdown()
            thread.join()


def problem(status, **fields):
    return (
        status,
        PROBLEM,
        json.dumps({"title": "Not found", "detail": "no such", **fields}).encode(),
    )


@pytest.mark.parametrize("passing", [(503, HTML, b""), (500, PROBLEM, b"{}"), problem(429), LOGIN])
def test_what_passes_is_waited_for(passing):
    with answering(passing, passing, REPORT, patience_seconds=30.0) as (connection, arrived):
        assert connection.upload(ENTRY) == {"items": []}
    assert len(arrived) == 3
    assert len(set(arrived)) == 1  # the very same bytes each time


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 426])
def test_a_refusal_of_the_api_reaches_the_agent_in_words_and_at_once(status):
    refused = pytest.raises(ServerRefusedError, match=f"{status} Not found: no such")
    with answering(problem(status)) as (connection, arrived), refused:
        connection.upload(ENTRY)
    assert len(arrived) == 1


@pytest.mark.parametrize(
    "stranger", [LOGIN, (404, HTML, b""), (302, HTML, b""), (403, JSON, b"{}")]
)
def test_an_answer_that_is_not_the_apis_counts_as_out_of_reach(stranger):
    """A log-in page or a gateway's error must not make the agent forget its results."""
    with answering(stranger) as (connection, _), pytest.raises(httpx.HTTPError):
        connection.upload(ENTRY)


def test_an_api_that_is_not_there_is_out_of_reach():
    with answering(REPORT) as (connection, _):
        url = str(connection._http.base_url)
    gone = Connection(url, "secret", patience_seconds=0.05)
    with pytest.raises(httpx.ConnectError):
        gone.lease(1, 0.0)
    gone.close()


# -- files -----------------------------------------------------------------------------


def test_a_file_that_arrives_with_another_hash_is_not_run(tmp_path):
    another = (200, BYTES, b"another model")
    refused = pytest.raises(NotAuthenticError, match="another hash")
    with answering(another, models=tmp_path) as (connection, _), refused:
        connection.download(SHA256)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_downloaded_once(tmp_path):
    with answering((200, BYTES, MODEL), models=tmp_path / "models") as (connection, arrived):
        assert connection.download(SHA256) == connection.download(SHA256) == MODEL
    assert arrived == [("GET", f"/v1/models/{SHA256}", b"")]
    assert [p.name for p in (tmp_path / "models").iterdir()] == [SHA256]


def test_a_kept_file_that_has_changed_is_downloaded_again(tmp_path):
    (tmp_path / SHA256).write_bytes(b"damaged on disk")
    with answering((200, BYTES, MODEL), models=tmp_path) as (connection, arrived):
        assert connection.download(SHA256) == MODEL
    assert len(arrived) == 1
    assert (tmp_path / SHA256).read_bytes() == MODEL


def test_a_file_that_cannot_be_kept_is_measured_all_the_same(tmp_path):
    (tmp_path / "models").write_text("a file where the folder should be")
    with answering((200, BYTES, MODEL), models=tmp_path / "models") as (connection, _):
        assert connection.download(SHA256) == MODEL
