"""What the device agent says and what the API understands are the same protocol."""

import base64
import json
from dataclasses import asdict, replace
from datetime import UTC, datetime

import pytest

from predictor.agent.connection import Connection, Identity, LeasedTask, ServerRefusedError
from predictor.agent.journal import Journal, JournalEntry
from predictor.agent.run import AGENT_VERSION, Agent
from predictor.agent.runtimes.base import RuntimeSpec
from predictor.errors import NotAuthenticError, TaskFailedError
from predictor.measurements import Measurement, Quarantined, TargetProfile
from service.measurements.schemas import MeasurementCreate

SPEC = RuntimeSpec()
PROFILE = TargetProfile("device", "x86_64", "none", "none", "1", "none", 1, "float32", 1)
MEASUREMENT = Measurement(
    latency_ms=1.0,
    p10_ms=0.9,
    p90_ms=1.1,
    sigma_ms=0.01,
    n=100,
    thread_cpu_ms=None,
    contended_share=0.0,
    anchor_ms=0.5,
    provider="none",
    measured_at=datetime.now(UTC).isoformat(),
    quarantined=(Quarantined(None, "only 0 of 9 slices were quiet"), Quarantined(2.0, "drift")),
    facts={"cpu_count": 2, "governor": "performance", "temperature_c": 40.5},
)


@pytest.fixture
def identity(api) -> Identity:
    """An agent that has just enrolled for two targets, of which the first has a kit."""
    stranger = Connection(api.url, None)
    two_threads = (replace(SPEC, threads=2), replace(PROFILE, threads=2))
    made = stranger.enrol(api.code(), "agent", [(SPEC, PROFILE), two_threads], AGENT_VERSION)
    stranger.close()
    target = next(iter(made.runtimes))
    assert api.http.post("/v1/kits", json={"target": target}).status_code == 201
    return made


@pytest.fixture
def connection(identity, tmp_path):
    """The agent's own session with the API."""
    session = Connection(
        identity.api_url,
        identity.token,
        signing_key=identity.signing_key,
        models=tmp_path / "models",
    )
    yield session
    session.close()


def item(task: LeasedTask, **changes):
    return {
        "task_id": task.id,
        "fence": task.fence,
        "model_sha256": task.model_sha256,
        "measurement": asdict(MEASUREMENT),
        **changes,
    }


def test_a_measurement_of_the_agent_is_what_the_api_takes():
    told = json.loads(json.dumps(asdict(MEASUREMENT)))
    taken = MeasurementCreate(**told).model_dump(mode="json")
    at = {
        name: datetime.fromisoformat(d.pop("measured_at"))
        for name, d in (("us", told), ("it", taken))
    }
    assert at["us"] == at["it"]
    assert taken == told


def test_an_identity_knows_how_each_target_is_measured(identity):
    assert [spec.threads for spec in identity.runtimes.values()] == [1, 2]
    assert identity.runtimes.keys() == identity.digests.keys()
    assert next(iter(identity.digests.values())) == PROFILE.digest
    assert len(base64.b64decode(identity.signing_key)) == 32


def test_an_agent_leases_checks_downloads_and_uploads(connection):
    lease = connection.lease(2, 0.0)
    assert len(lease.tasks) == 2
    assert not lease.draining
    for task in lease.tasks:
        connection.check_signature(task)
        assert len(connection.download(task.model_sha256)) > 100
        assert len(connection.download(task.anchor_sha256)) > 100
    entry = JournalEntry("a" * 32, [item(task) for task in lease.tasks])
    first = connection.upload(entry)
    assert [item["accepted"] for item in first["items"]] == [True, True]
    assert connection.upload(entry) == first


def test_every_reason_of_the_agent_is_what_the_api_takes(connection):
    reasons = ["refused", "crashed", "hung", "out_of_memory", "wrong_provider", "not_authentic"]
    tasks = connection.lease(len(reasons) + 1, 0.0).tasks
    failures = [
        {"code": "unsupported", "reason": reason, "detail": "x" * 500} for reason in reasons
    ]
    failures.append({"code": "too_noisy", "reason": "noise", "detail": "only 0 of 9"})
    items = [
        item(task, measurement=None, failure=failure)
        for task, failure in zip(tasks, failures, strict=True)
    ]
    report = connection.upload(JournalEntry("f" * 32, items))
    assert [item["reason"] for item in report["items"] if not item["accepted"]] == []


@pytest.mark.parametrize("changed", ["target_id", "subject", "model_sha256", "anchor_sha256"])
def test_a_task_that_was_changed_on_the_way_is_not_authentic(connection, changed):
    (task,) = connection.lease(1, 0.0).tasks
    with pytest.raises(NotAuthenticError):
        connection.check_signature(replace(task, **{changed: "another"}))


def test_a_heartbeat_is_answered(identity, connection):
    profiles = dict(zip(identity.runtimes, (PROFILE, replace(PROFILE, threads=2)), strict=True))
    answer = connection.heartbeat(AGENT_VERSION, "block:x", 3, profiles)
    assert answer["draining"] is False
    assert answer["stale"] == []
    assert answer["heartbeat_seconds"] > 0.0


def test_an_agent_sees_itself(identity, connection):
    itself = connection.itself()
    assert itself["id"] == identity.agent_id
    assert [target["id"] for target in itself["targets"]] == list(identity.runtimes)
    (kit,) = itself["targets"][0]["kits"]
    assert (kit["search_space"], kit["status"]) == ("micro", "measuring")


def test_a_refusal_reaches_the_agent_in_words(connection):
    with pytest.raises(ServerRefusedError, match="404 Not found"):
        connection.download("0" * 64)
    with pytest.raises(ServerRefusedError, match="422"):
        connection.upload(JournalEntry("a" * 32, []))


class NothingRuns:
    """Measures no file at all."""

    def measure(self, model, *_):
        raise TaskFailedError("unsupported", "refused", f"{len(model)} bytes too many")


def agent_of(connection, identity, folder, said) -> Agent:
    targets = {target: (PROFILE, NothingRuns()) for target in list(identity.runtimes)[:1]}
    return Agent(connection, Journal(folder), targets, say=said.append, poll_seconds=0.0)


def test_the_loop_reports_what_the_runtime_refuses_and_keeps_nothing(
    api, connection, identity, tmp_path
):
    said: list[str] = []
    agent_of(connection, identity, tmp_path, said).run(lambda: len(said) >= 3)
    assert len(said) >= 3
    assert all("bytes too many" in line for line in said)
    assert Journal(tmp_path).pending() == []
    itself = api.http.get(f"/v1/agents/{identity.agent_id}").json()
    assert (itself["accepted"], itself["rejected"]) == (len(said), 0)


def test_a_drained_agent_leaves_with_its_last_task_uploaded(api, connection, identity, tmp_path):
    said: list[str] = []
    api.http.post(f"/v1/agents/{identity.agent_id}/drain")
    agent_of(connection, identity, tmp_path, said).run(lambda: False)
    assert said[-1] == "drained: the last task is done and uploaded"
    assert Journal(tmp_path).pending() == []


def test_a_revoked_agent_ends_its_loop(api, connection, identity, tmp_path):
    api.http.delete(f"/v1/agents/{identity.agent_id}")
    with pytest.raises(ServerRefusedError, match="enrol again"):
        agent_of(connection, identity, tmp_path, []).run(lambda: False)
