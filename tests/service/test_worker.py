"""The worker: what it does with the ways an attempt can end."""

import threading
from collections.abc import Callable
from contextlib import contextmanager

import pytest

from service.db.database import Database
from service.jobs import repository as jobs
from service.jobs.launchers.base import EXIT_HANDED_BACK, EXIT_LEASE_LOST
from service.jobs.models import Job
from service.jobs.repository import Claim
from service.settings import Settings
from service.worker import Worker

KILLED = -9


class Attempt:
    """An attempt whose life a test decides: a `Handle` without a process."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.status: int | None = None
        self.asked_to_leave = False

    def poll(self) -> int | None:
        return self.status

    def hand_back(self) -> None:
        self.asked_to_leave = True

    def kill(self) -> None:
        self.status = KILLED if self.status is None else self.status


class Attempts:
    """A `Launcher` that hands each attempt to the test, or to `then`."""

    def __init__(self, then: Callable[[Attempt], None] = lambda _: None) -> None:
        self.launched: list[Attempt] = []
        self.closed = False
        self._then = then

    def launch(self, claim: Claim) -> Attempt:
        attempt = Attempt(claim)
        self._then(attempt)
        self.launched.append(attempt)
        return attempt

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(home=tmp_path, worker_poll_seconds=0.05, job_lease_seconds=30)


@contextmanager
def working(settings: Settings, store: Database, launcher: Attempts):
    """A worker that runs meanwhile."""
    worker = Worker(settings, store, launcher)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        for attempt in launcher.launched:
            attempt.kill()
        thread.join()


def enqueue(store: Database, max_attempts: int = 4) -> str:
    with store.transaction() as session:
        return jobs.enqueue(session, "kind", "subject", max_attempts=max_attempts).id


def read(store: Database, job_id: str) -> tuple[Job, list[str | None]]:
    with store.reading() as session:
        outcomes = [attempt.outcome for attempt in jobs.attempts(session, job_id)]
        return session.get_one(Job, job_id), outcomes


def exit_with(status: int) -> Callable[[Attempt], None]:
    def then(attempt: Attempt) -> None:
        attempt.status = status

    return then


def test_a_job_whose_attempts_crash_has_failed_in_the_end(settings, store, eventually):
    job_id = enqueue(store, max_attempts=2)
    with working(settings, store, launcher := Attempts(exit_with(1))):
        eventually(lambda: read(store, job_id)[0].status == "failed", "the job goes on")
    assert read(store, job_id)[1] == ["crashed", "crashed"]
    assert [attempt.claim.fence for attempt in launcher.launched] == [1, 2]
    assert launcher.closed


@pytest.mark.parametrize(
    ("status", "outcome"), [(EXIT_HANDED_BACK, "handed_back"), (KILLED, "crashed"), (0, "crashed")]
)
def test_an_attempt_that_left_its_job_open_is_settled(settings, store, eventually, status, outcome):
    job_id = enqueue(store)
    with working(settings, store, Attempts(exit_with(status))):
        eventually(lambda: read(store, job_id)[1][:1] == [outcome], f"no outcome {outcome}")


def test_what_an_attempt_settled_itself_is_left_alone(settings, store, eventually):
    def finish(attempt: Attempt) -> None:
        with store.transaction() as session:
            job = jobs.held(session, attempt.claim.job_id, attempt.claim.fence)
            jobs.finish(session, job, "succeeded")
        attempt.status = 0

    first, second = enqueue(store), enqueue(store)
    with working(settings, store, Attempts(finish)):
        eventually(lambda: read(store, second)[0].status == "succeeded", "no second job")
    assert [read(store, job_id)[1] for job_id in (first, second)] == [["succeeded"]] * 2


def test_a_worker_keeps_the_lease_while_the_attempt_runs(settings, store, eventually):
    short = settings.model_copy(update={"job_lease_seconds": 1.5})
    job_id = enqueue(store)
    with working(short, store, launcher := Attempts()):
        eventually(lambda: launcher.launched, "nothing was launched")
        first = read(store, job_id)[0].lease_expires_at
        eventually(
            lambda: (read(store, job_id)[0].lease_expires_at - first).total_seconds() > 1.5,
            "the lease was not renewed",
        )
        assert len(launcher.launched) == 1


def test_a_stopped_worker_hands_its_attempt_back_and_claims_no_more(settings, store, eventually):
    first, second = enqueue(store), enqueue(store)
    with working(settings, store, launcher := Attempts()) as worker:
        eventually(lambda: launcher.launched, "nothing was launched")
        worker.stop()
        eventually(lambda: launcher.launched[0].asked_to_leave, "the attempt was not asked")
        launcher.launched[0].status = EXIT_HANDED_BACK
    assert read(store, first)[1] == ["handed_back"]
    assert read(store, first)[0].status == "queued"
    assert read(store, second)[1] == []


def test_an_attempt_whose_lease_was_lost_is_killed(settings, store, eventually, monkeypatch):
    monkeypatch.setattr("service.worker._LEAVE_SECONDS", 0.1)
    short = settings.model_copy(update={"job_lease_seconds": 0.6})
    job_id = enqueue(store)
    with working(short, store, launcher := Attempts()):
        eventually(lambda: launcher.launched, "nothing was launched")
        with store.transaction() as session:
            session.get_one(Job, job_id).fence += 1
        eventually(lambda: launcher.launched[0].status == KILLED, "the zombie lives")


def test_a_lost_lease_of_another_worker_is_settled_before_the_next_claim(
    settings, store, eventually
):
    job_id = enqueue(store)
    with store.transaction() as session:
        jobs.claim(session, "a dead worker", -1.0)
    with working(settings, store, Attempts(exit_with(EXIT_LEASE_LOST))):
        eventually(lambda: len(read(store, job_id)[1]) >= 2, "the job was not taken over")
    assert read(store, job_id)[1][0] == "worker_lost"
