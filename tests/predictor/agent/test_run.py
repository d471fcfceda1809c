"""The agent's loop: nothing measured is lost, and no model file stops it."""

import errno
import json
import os
import threading
from dataclasses import replace

import httpx
import pytest

from predictor.agent.connection import Lease, LeasedTask, ServerRefusedError
from predictor.agent.journal import Journal, JournalEntry
from predictor.agent.run import AGENT_VERSION, Agent
from predictor.agent.runtimes.base import RuntimeSpec
from predictor.agent.sandbox import Sandbox
from predictor.errors import NotAuthenticError, TaskFailedError
from predictor.measurements import Measurement, TargetProfile

PROFILE = TargetProfile("device", "x86_64", "none", "none", "1", "none", 1, "float32", 1)
GOOD = Measurement(
    latency_ms=1.0,
    p10_ms=0.9,
    p90_ms=1.1,
    sigma_ms=0.01,
    n=100,
    thread_cpu_ms=1.0,
    contended_share=0.0,
    anchor_ms=0.1,
    provider="none",
    measured_at="2026-01-01T00:00:00+00:00",
)
EARLIER = JournalEntry("e" * 32, [{"task_id": "t9", "fence": 1}])
TASKS = [
    LeasedTask(f"t{n}", "tgt", f"block:{n}", "table", 7, f"model {n}", "anchor", "signature")
    for n in range(3)
]


class Connection:
    """An API in this process: leases its tasks, eight at most at a time, and keeps uploads."""

    def __init__(self, tasks=TASKS) -> None:
        self.waiting, self.uploads, self.beats = list(tasks), [], []
        self.draining, self.stale = False, []
        self.asked_in_vain = 0
        self.leased_while_draining = 0

    def lease(self, limit, _):
        if self.draining:
            self.leased_while_draining += 1
            return Lease([], draining=True)
        leased, self.waiting = self.waiting[:limit], self.waiting[limit:]
        self.asked_in_vain += not leased
        return Lease(leased, draining=False)

    def heartbeat(self, version, activity, journal_batches, profiles, holds=()):
        self.beats.append((version, activity, journal_batches, profiles, set(holds)))
        return {"draining": self.draining, "stale": self.stale, "heartbeat_seconds": 0.01}

    def check_signature(self, task):
        if task.signature != "signature":
            raise NotAuthenticError("the signature is not the service's; nothing was run")

    def download(self, sha256):
        return sha256.encode()

    def upload(self, entry):
        self.uploads.append(JournalEntry(entry.batch_id, list(entry.items)))
        return {"items": [{"task_id": i["task_id"], "accepted": True} for i in entry.items]}

    @property
    def results(self):
        return {item["task_id"]: item for entry in self.uploads for item in entry.items}


class Stopwatch:
    """Measures by script: per model, what each try in turn gives; one not listed is good."""

    def __init__(self, **tries) -> None:
        self._tries = {name.replace("_", " "): iter(given) for name, given in tries.items()}
        self.order = []

    def measure(self, model, anchor_sha256, anchor, effort):
        assert (anchor_sha256, anchor, effort) == ("anchor", b"anchor", "table")
        self.order.append(model.decode())
        result = next(self._tries.get(model.decode(), iter([GOOD])))
        if isinstance(result, Exception):
            raise result
        return result


def noisy(latency_ms):
    return replace(GOOD, latency_ms=latency_ms, note=f"it drifted at {latency_ms:g}", grade="B")


NOTHING_QUIET = TaskFailedError("too_noisy", "noise", "only 0 of 9 slices were quiet in 3 s")


def run(connection, journal, stopwatch=None, *, should_stop=None):
    """Run the agent until it is told to leave, by default once it asked for work in vain."""
    said = []
    agent = Agent(
        connection,
        journal,
        {"tgt": (PROFILE, stopwatch or Stopwatch())},
        say=said.append,
        poll_seconds=0.0,
    )
    agent.run(should_stop or (lambda: connection.asked_in_vain > 0))
    return said


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal")


@pytest.fixture
def connection():
    return Connection()


# -- results ---------------------------------------------------------------------------


def test_what_is_leased_is_measured_and_uploaded_in_one_batch(connection, journal):
    said = run(connection, journal)
    (batch,) = connection.uploads
    assert {item["task_id"] for item in batch.items} == {"t0", "t1", "t2"}
    for task in TASKS:
        result = connection.results[task.id]
        assert (result["fence"], result["model_sha256"]) == (7, task.model_sha256)
        assert result["measurement"]["latency_ms"] == 1.0
    assert journal.pending() == []
    assert sorted(said) == [f"block:{n}: 1.0000 ms, grade A (n=100)" for n in range(3)]


def test_a_file_that_the_runtime_refuses_is_reported(connection, journal):
    refused = TaskFailedError("unsupported", "refused", "no such operator")
    said = run(connection, journal, Stopwatch(model_1=[refused]))
    assert connection.results["t1"]["failure"] == {
        "code": "unsupported",
        "reason": "refused",
        "detail": "no such operator",
    }
    assert "measurement" in connection.results["t0"]
    assert "block:1: unsupported (refused): no such operator" in said


def test_files_of_two_targets_are_measured_by_their_own_stopwatch(journal):
    connection = Connection([TASKS[0], replace(TASKS[1], target_id="other")])
    stopwatches = {"tgt": Stopwatch(), "other": Stopwatch()}
    targets = {target: (PROFILE, stopwatch) for target, stopwatch in stopwatches.items()}
    agent = Agent(connection, journal, targets, say=lambda _: None, poll_seconds=0.0)
    agent.run(lambda: connection.asked_in_vain > 0)
    assert stopwatches["tgt"].order == ["model 0"]
    assert stopwatches["other"].order == ["model 1"]


def test_the_real_sandbox_reports_what_is_no_model(connection, journal):
    with Sandbox(RuntimeSpec()) as sandbox:
        run(connection, journal, sandbox)
    assert {r["failure"]["reason"] for r in connection.results.values()} == {"refused"}
    assert len(connection.results) == 3


# -- noise -----------------------------------------------------------------------------


def test_what_was_too_noisy_is_tried_again_at_the_end_of_the_lease(connection, journal):
    stopwatch = Stopwatch(model_1=[noisy(2.0), GOOD])
    run(connection, journal, stopwatch)
    assert len(stopwatch.order) == 4
    assert stopwatch.order[-1] == "model 1"
    result = connection.results["t1"]["measurement"]
    assert (result["grade"], result["flagged"]) == ("A", False)
    assert list(result["quarantined"]) == [{"latency_ms": 2.0, "reason": "it drifted at 2"}]


def test_after_four_noisy_tries_the_fastest_is_stored_flagged(connection, journal):
    stopwatch = Stopwatch(model_1=[noisy(2.0), NOTHING_QUIET, noisy(1.5), noisy(1.75), GOOD])
    said = run(connection, journal, stopwatch)
    assert stopwatch.order.count("model 1") == 4
    result = connection.results["t1"]["measurement"]
    assert (result["latency_ms"], result["grade"], result["flagged"]) == (1.5, "C", True)
    assert result["sigma_ms"] == 0.5
    assert [q["latency_ms"] for q in result["quarantined"]] == [2.0, None, 1.75]
    assert [q["reason"] for q in result["quarantined"]] == [
        "it drifted at 2",
        NOTHING_QUIET.detail,
        "it drifted at 1.75",
    ]
    assert "block:1: 1.5000 ms, grade C (n=100), flagged: it drifted at 1.5" in said


def test_a_device_that_was_never_quiet_is_reported_too_noisy(connection, journal):
    run(connection, journal, Stopwatch(model_1=[NOTHING_QUIET] * 4))
    assert connection.results["t1"]["failure"] == {
        "code": "too_noisy",
        "reason": "noise",
        "detail": NOTHING_QUIET.detail,
    }


# -- authenticity ----------------------------------------------------------------------


def test_a_task_that_the_service_did_not_sign_is_not_authentic_and_never_loaded(journal):
    downloads = []
    connection = Connection([replace(TASKS[0], signature="another's"), TASKS[1]])
    download = connection.download
    connection.download = lambda sha256: downloads.append(sha256) or download(sha256)
    stopwatch = Stopwatch()
    run(connection, journal, stopwatch)
    failure = connection.results["t0"]["failure"]
    assert (failure["code"], failure["reason"]) == ("unsupported", "not_authentic")
    assert stopwatch.order == ["model 1"]
    assert downloads == ["anchor", "model 1"]


@pytest.mark.parametrize("forged", ["anchor", "model 1"])
def test_a_file_with_another_hash_is_not_authentic_and_never_loaded(connection, journal, forged):
    def download(sha256):
        if sha256 == forged:
            raise NotAuthenticError(f"model {sha256} arrived with another hash; not run")
        return sha256.encode()

    connection.download = download
    stopwatch = Stopwatch()
    run(connection, journal, stopwatch)
    assert connection.results["t1"]["failure"]["reason"] == "not_authentic"
    assert "model 1" not in stopwatch.order


# -- the journal -----------------------------------------------------------------------


def test_what_an_earlier_run_left_is_uploaded_first(connection, journal):
    journal.add(EARLIER)
    run(connection, journal)
    assert connection.uploads[0] == EARLIER
    assert len(connection.uploads) == 2
    assert journal.pending() == []


def test_a_damaged_journal_file_is_set_aside_and_work_goes_on(connection, tmp_path):
    folder = tmp_path / "journal"
    Journal(folder).add(EARLIER)
    (folder / f"{'f' * 32}.json").write_bytes(b'{"batch_id": "fff')
    run(connection, Journal(folder))
    assert connection.uploads[0] == EARLIER
    assert len(connection.uploads) == 2
    assert [path.name for path in folder.iterdir()] == [f"{'f' * 32}.damaged"]


def test_results_outlive_an_agent_that_dies_while_it_uploads(connection, tmp_path):
    def die(_):
        raise MemoryError

    connection.upload = die
    with pytest.raises(MemoryError):
        run(connection, Journal(tmp_path))
    (kept,) = Journal(tmp_path).pending()
    assert {item["task_id"] for item in kept.items} == {"t0", "t1", "t2"}


def test_results_outlive_an_agent_that_dies_at_the_next_task(connection, tmp_path):
    class Dies(Stopwatch):
        def measure(self, *order):
            if self.order:
                raise MemoryError
            return super().measure(*order)

    with pytest.raises(MemoryError):
        run(connection, Journal(tmp_path), Dies())
    (kept,) = Journal(tmp_path).pending()
    assert len(kept.items) == 1


def test_every_result_is_on_disk_before_the_next_model_is_measured(connection, tmp_path):
    class Looks(Stopwatch):
        def measure(self, *order):
            items = [len(entry.items) for entry in Journal(tmp_path).pending()]
            assert items == ([len(self.order)] if self.order else [])
            return super().measure(*order)

    run(connection, Journal(tmp_path), Looks())
    assert len(connection.results) == 3


def test_an_api_out_of_reach_is_tried_again_and_nothing_is_lost(connection, journal):
    outages = iter([httpx.ConnectError("refused"), httpx.ReadTimeout("late")])
    upload = connection.upload

    def sometimes(entry):
        if outage := next(outages, None):
            raise outage
        return upload(entry)

    connection.upload = sometimes
    said = run(connection, journal)
    assert len(connection.uploads) == 1
    assert journal.pending() == []
    assert sum("out of reach" in line for line in said) == 2


def test_an_outage_in_the_middle_of_a_lease_keeps_what_was_measured(connection, journal):
    downloads = iter(["ok"] * 2)  # the first task's; then the network is cut for a while
    download = connection.download

    def cut(sha256):
        if next(downloads, None) is None and not connection.uploads:
            raise httpx.ConnectError("cut")
        return download(sha256)

    connection.download = cut
    said = run(connection, journal)
    assert len(connection.results) == 1
    assert any("out of reach" in line for line in said)
    assert journal.pending() == []


def test_a_batch_that_is_finally_refused_is_dropped_and_said(journal):
    def refuse(_):
        raise ServerRefusedError("422 unknown task")

    connection = Connection([])
    connection.upload = refuse
    journal.add(EARLIER)
    assert run(connection, journal) == ["batch eeeeeeee was refused: 422 unknown task"]
    assert journal.pending() == []


def test_an_item_that_the_server_does_not_accept_is_said(journal):
    connection = Connection([])
    item = {"task_id": "t9", "accepted": False, "reason": "stale_lease"}
    connection.upload = lambda _: {"items": [item]}
    journal.add(EARLIER)
    assert run(connection, journal) == ["t9: not accepted: stale_lease"]
    assert journal.pending() == []


# -- a full disk -----------------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch):
    """Nothing can be synced to disk while `full.is_set()`."""
    full, sync = threading.Event(), os.fsync

    def fsync(descriptor):
        if full.is_set():
            raise OSError(errno.ENOSPC, "no space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    full.set()
    return full


def test_with_a_full_disk_every_result_is_uploaded_before_the_next(connection, tmp_path, full_disk):
    said = run(connection, Journal(tmp_path))
    assert [len(entry.items) for entry in connection.uploads] == [1, 1, 1]
    assert len({entry.batch_id for entry in connection.uploads}) == 3
    assert set(connection.results) == {"t0", "t1", "t2"}
    assert list(tmp_path.iterdir()) == []
    assert sum("the journal cannot be written" in line for line in said) == 3


def test_a_disk_that_fills_up_in_the_middle_costs_nothing(connection, tmp_path, full_disk):
    class Fills(Stopwatch):
        def measure(self, *order):
            if self.order:
                full_disk.set()
            return super().measure(*order)

    full_disk.clear()
    run(connection, Journal(tmp_path), Fills())
    assert set(connection.results) == {"t0", "t1", "t2"}
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_and_no_network_keep_results_in_memory(connection, tmp_path, full_disk):
    outages = iter([httpx.ConnectError("refused")] * 3)
    upload = connection.upload

    def sometimes(entry):
        if outage := next(outages, None):
            raise outage
        return upload(entry)

    connection.upload = sometimes
    journal = Journal(tmp_path)
    run(connection, journal)
    assert len(connection.results) == 1  # the lease's others are for whoever asks next
    assert journal.pending() == []


# -- heartbeats ------------------------------------------------------------------------


def test_heartbeats_tell_what_the_agent_does(connection, journal, eventually):
    class Waits(Stopwatch):
        def measure(self, model, *rest):
            subject = f"block:{model.decode()[-1]}"
            eventually(lambda: connection.beats[-1][1] == subject, "no beat tells the subject")
            return super().measure(model, *rest)

    run(connection, journal, Waits())
    version, _, _, profiles, _ = connection.beats[-1]
    assert version == AGENT_VERSION
    assert profiles == {"tgt": PROFILE}
    assert max(batches for _, _, batches, _, _ in connection.beats) <= 1


def test_heartbeats_name_the_tasks_that_the_agent_is_at(connection, journal, eventually):
    """Only their leases are to be extended; what an earlier life had leased is not known here."""

    class Waits(Stopwatch):
        def measure(self, *order):
            all_of_them = {task.id for task in TASKS}
            eventually(lambda: connection.beats[-1][4] == all_of_them, "they are not named")
            return super().measure(*order)

    run(connection, journal, Waits())
    assert connection.beats[0][4] == set()


def test_an_agent_that_is_drained_by_a_heartbeat_ends_its_task_and_uploads(
    connection, journal, eventually
):
    class Drains(Stopwatch):
        def measure(self, *order):
            connection.draining = True
            beats = len(connection.beats)
            eventually(lambda: len(connection.beats) > beats + 1, "no heartbeat")
            return super().measure(*order)

    said = run(connection, journal, Drains(), should_stop=lambda: False)
    assert len(connection.results) == 1
    assert connection.leased_while_draining == 0
    assert said[-1] == "drained: the last task is done and uploaded"
    assert journal.pending() == []


def test_an_agent_that_is_drained_by_a_lease_leaves_after_its_journal(connection, journal):
    journal.add(EARLIER)
    connection.draining = True
    connection.heartbeat = lambda *_: {"draining": False, "stale": [], "heartbeat_seconds": 9.0}
    said = run(connection, journal, should_stop=lambda: False)
    assert connection.uploads == [EARLIER]
    assert said == ["drained: the last task is done and uploaded"]


def test_what_is_stale_is_said_once(connection, journal, eventually):
    connection.stale = [{"target_id": "tgt", "text": "onnxruntime 1 is now 2"}]
    said = run(connection, journal, should_stop=lambda: len(connection.beats) > 3)
    assert said.count("tgt: onnxruntime 1 is now 2") == 1


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("gone"), ServerRefusedError("401"), OSError()]
)
def test_heartbeats_that_fail_do_not_stop_the_work(connection, journal, error):
    def fail(*_):
        raise error

    connection.heartbeat = fail
    run(connection, journal)
    assert len(connection.results) == 3


# -- the end ---------------------------------------------------------------------------


def test_an_agent_told_to_stop_ends_its_task_and_uploads_it(connection, journal):
    stopwatch = Stopwatch()
    run(connection, journal, stopwatch, should_stop=lambda: len(stopwatch.order) > 0)
    assert len(connection.results) == 1
    assert journal.pending() == []


def test_a_revoked_agent_ends_and_its_heartbeats_with_it(connection, journal):
    def refuse(*_):
        raise ServerRefusedError("401 Unauthenticated: enrol again")

    connection.lease = refuse
    before = threading.active_count()
    with pytest.raises(ServerRefusedError, match="enrol again"):
        run(connection, journal)
    assert threading.active_count() == before


def test_uploads_are_json(connection, journal):
    run(connection, journal, Stopwatch(model_1=[noisy(2.0), GOOD]))
    assert json.loads(json.dumps(connection.results)).keys() == {"t0", "t1", "t2"}
