"""The agent's loop: nothing measured is lost, and no model file stops it."""

from types import SimpleNamespace

import httpx
import pytest

from predictor.agent.connection import LeasedTask, ServerRefusedError
from predictor.agent.journal import Journal, JournalEntry
from predictor.agent.run import run_agent
from predictor.agent.runtimes.onnxruntime_cpu import OnnxRuntimeCpu

TASKS = [LeasedTask(f"t{i}", f"block:{i}", "table", 7, "m" * 64, "a" * 64) for i in range(2)]
EARLIER = JournalEntry("e" * 32, [{"task_id": "t9", "fence": 1}])


def accepted(entry):
    return {"items": [{"task_id": i["task_id"], "accepted": True} for i in entry.items]}


def server(upload=accepted, download=lambda _: b"garbage", tasks=TASKS):
    """A connection whose server leases `tasks` once and keeps what is uploaded."""
    pending, uploads = list(tasks), []

    def lease(limit, wait_seconds):
        leased, pending[:] = pending[:limit], pending[limit:]
        return leased

    def receive(entry):
        report = upload(entry)
        uploads.append(entry)
        return report

    return SimpleNamespace(lease=lease, download=download, upload=receive, uploads=uploads)


def run(connection, journal, *, polls=2):
    """Run the agent until it has been asked `polls` times without work; what it said."""
    said = []
    asked = iter([False] * (polls + len(TASKS)) + [True] * 100)
    run_agent(
        connection,
        journal,
        OnnxRuntimeCpu(),
        should_stop=lambda: next(asked),
        say=said.append,
        poll_seconds=0.0,
    )
    return said


def test_a_file_that_the_runtime_refuses_is_reported_as_unsupported(tmp_path):
    connection, journal = server(), Journal(tmp_path)
    said = run(connection, journal)
    (batch,) = connection.uploads
    assert sorted(item["task_id"] for item in batch.items) == ["t0", "t1"]
    assert {item["fence"] for item in batch.items} == {7}
    assert {item["failure"]["code"] for item in batch.items} == {"unsupported"}
    assert journal.pending() == []
    assert any("unsupported" in line for line in said)


def test_what_an_earlier_run_left_is_uploaded_first(tmp_path):
    journal = Journal(tmp_path)
    journal.add(EARLIER)
    connection = server()
    run(connection, journal)
    assert connection.uploads[0] == EARLIER
    assert len(connection.uploads) == 2
    assert journal.pending() == []


def test_results_outlive_an_agent_that_dies_while_it_uploads(tmp_path):
    def die(entry):
        raise MemoryError

    with pytest.raises(MemoryError):
        run(server(upload=die), Journal(tmp_path))
    (kept,) = Journal(tmp_path).pending()
    assert {item["task_id"] for item in kept.items} == {"t0", "t1"}


def test_results_outlive_an_agent_that_dies_at_the_next_task(tmp_path):
    downloads = iter([b"garbage"])

    def download(sha256):
        try:
            return next(downloads)
        except StopIteration:
            raise MemoryError from None

    with pytest.raises(MemoryError):
        run(server(download=download), Journal(tmp_path))
    (kept,) = Journal(tmp_path).pending()
    assert len(kept.items) == 1


def test_an_api_out_of_reach_is_tried_again_and_nothing_is_lost(tmp_path):
    outages = iter([httpx.ConnectError("refused")])

    def upload(entry):
        if outage := next(outages, None):
            raise outage
        return accepted(entry)

    journal = Journal(tmp_path)
    connection = server(upload=upload)
    said = run(connection, journal, polls=4)
    assert len(connection.uploads) == 1
    assert journal.pending() == []
    assert any("out of reach" in line for line in said)


def test_a_batch_that_is_finally_refused_is_dropped_and_said(tmp_path):
    def refuse(entry):
        raise ServerRefusedError("422 unknown task")

    journal = Journal(tmp_path)
    journal.add(EARLIER)
    said = run(server(upload=refuse, tasks=[]), journal)
    assert journal.pending() == []
    assert said == ["batch eeeeeeee was refused: 422 unknown task"]


def test_an_item_that_the_server_does_not_accept_is_said(tmp_path):
    def stale(entry):
        return {"items": [{"task_id": "t9", "accepted": False, "reason": "stale fence"}]}

    journal = Journal(tmp_path)
    journal.add(EARLIER)
    said = run(server(upload=stale, tasks=[]), journal)
    assert said == ["t9: not accepted: stale fence"]
    assert journal.pending() == []
