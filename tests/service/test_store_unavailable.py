"""A store that is gone or full is said to be: 503, and when to come again."""

import errno

import pytest
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from service.artifacts import ArtifactStore
from service.db.database import Database


def failing(error: Exception):
    def fail(*_: object, **__: object):
        raise error

    return fail


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("SELECT 1", {}, Exception("server closed the connection")),
        InterfaceError("SELECT 1", {}, Exception("the connection is lost")),
        PoolTimeoutError("QueuePool limit reached"),
    ],
)
def test_a_store_that_does_not_answer_is_no_internal_error(api, monkeypatch, error):
    with monkeypatch.context() as patch:
        patch.setattr(Database, "reading", failing(error))
        patch.setattr(Database, "transaction", failing(error))
        answer = api.http.get("/v1/searches")
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (503, "store_unavailable")
    assert answer.headers["Retry-After"] == "2"
    assert "QueuePool" not in answer.text
    assert "SELECT" not in answer.text
    assert api.http.get("/v1/searches").status_code == 200


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 503), (errno.EIO, 500)])
def test_a_full_disk_is_told_apart_from_a_broken_one(api, measured, monkeypatch, number, status):
    device = api.enrol_new_target()
    with monkeypatch.context() as patch:
        patch.setattr(ArtifactStore, "put", failing(OSError(number, "as the test wants it")))
        patch.setattr("service.measurements.kits.find_files", lambda *_: {})
        answer = api.http.post("/v1/kits", json={"target": device.target_id})
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
