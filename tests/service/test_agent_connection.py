"""What the device agent says and what the API understands are the same protocol."""

from dataclasses import asdict

import pytest

from predictor.agent.connection import Connection, LeasedTask, ServerRefusedError
from predictor.agent.journal import Journal, JournalEntry
from predictor.agent.run import run_agent
from predictor.errors import RuntimeFailedError
from predictor.measurements import Measurement, TargetProfile
from service.measurements.schemas import MeasurementCreate

PROFILE = TargetProfile("device", "x86_64", "none", "none", "1", "none", 1, "float32", 1)
MEASUREMENT = Measurement(1.0, 0.9, 1.1, 100, 1.0, 0.0, 0.5, facts={"cpu_count": 2})


@pytest.fixture
def connection(api):
    """The agent's own session with the API, enrolled; its target has a kit."""
    stranger = Connection(api.url, None)
    identity = stranger.enrol(api.code(), "agent", PROFILE, "1")
    stranger.close()
    assert api.http.post("/v1/kits", json={"target": identity.target_id}).status_code == 201
    session = Connection(identity.api_url, identity.token)
    yield session
    session.close()


def test_a_measurement_of_the_agent_is_what_the_api_takes():
    assert MeasurementCreate(**asdict(MEASUREMENT)).model_dump() == asdict(MEASUREMENT)


def test_an_agent_leases_downloads_and_uploads(connection):
    tasks = connection.lease(2, 0.0)
    assert all(isinstance(task, LeasedTask) for task in tasks)
    assert len(tasks) == 2
    assert len(connection.download(tasks[0].model_sha256)) > 100
    items = [
        {"task_id": task.id, "fence": task.fence, "measurement": asdict(MEASUREMENT)}
        for task in tasks
    ]
    entry = JournalEntry("a" * 32, items)
    first = connection.upload(entry)
    assert [item["accepted"] for item in first["items"]] == [True, True]
    assert connection.upload(entry) == first


def test_a_refusal_reaches_the_agent_in_words(connection):
    with pytest.raises(ServerRefusedError, match="404 Not found"):
        connection.download("0" * 64)
    with pytest.raises(ServerRefusedError, match="422"):
        connection.upload(JournalEntry("a" * 32, []))


class NothingRuns:
    """A runtime that refuses every file."""

    def profile(self) -> TargetProfile:
        return PROFILE

    def load(self, model: bytes):
        raise RuntimeFailedError(f"{len(model)} bytes too many")


def test_the_loop_reports_what_the_runtime_refuses_and_keeps_nothing(connection, tmp_path):
    said: list[str] = []
    journal = Journal(tmp_path)
    run_agent(
        connection,
        journal,
        NothingRuns(),
        should_stop=lambda: len(said) >= 3,
        say=said.append,
        poll_seconds=0.0,
    )
    assert len(said) >= 3
    assert all("unsupported" in line for line in said)
    assert journal.pending() == []


def test_a_revoked_agent_ends_its_loop(api, connection, tmp_path):
    newest = api.http.get("/v1/agents", params={"limit": 1}).json()["items"][0]
    api.http.delete(f"/v1/agents/{newest['id']}")
    with pytest.raises(ServerRefusedError, match="enrol again"):
        run_agent(
            connection,
            Journal(tmp_path),
            NothingRuns(),
            should_stop=lambda: False,
            say=lambda _: None,
            poll_seconds=0.0,
        )
