"""The worker: what it does with the ways an attempt can end."""

import dataclasses
import threading
from collections.abc import Callable
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import delete, select
from sqlalchemy.exc import OperationalError

from service.db.database import Database
from service.jobs import repository as jobs
from service.jobs.launchers.base import EXIT_HANDED_BACK, EXIT_LEASE_LOST, EXIT_OUT_OF_MEMORY
from service.jobs.models import Job
from service.jobs.needs import Allotment, needs
from service.jobs.repository import Claim
from service.settings import Settings
from service.worker import Worker
from service.workers import repository as workers
from service.workers.models import WorkerRow
from service.workers.resources import Gpu, Resources
from service.workers.settling import Housekeeping

KILLED = -9


class Attempt:
    """An attempt whose life a test decides: a `Handle` without a process."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.status: int | None = None
        self.asked_to_leave = False
        self.used_bytes = 0
        self.polled_after_end = False

    def poll(self) -> int | None:
        self.polled_after_end = self.status is not None
        return self.status

    def hand_back(self) -> None:
        self.asked_to_leave = True

    def memory_bytes(self) -> int:
        return self.used_bytes

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


ONE_SLOT = Resources(slots=1, cpus=2, memory_bytes=2**30, gpus=(), labels={"host": "here"})


@contextmanager
def working(
    settings: Settings, store: Database, launcher: Attempts, resources: Resources = ONE_SLOT
):
    """A worker that runs meanwhile; its thread has ended when it has left."""
    worker = Worker(settings, store, launcher, resources)
    thread = threading.Thread(target=worker.run)
    worker.has_left = lambda: not thread.is_alive()
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        for attempt in launcher.launched:
            attempt.kill()
        thread.join()


def the_worker(store: Database) -> WorkerRow:
    with store.reading() as session:
        return session.scalars(select(WorkerRow)).one()


def enqueue(store: Database, subject: str = "subject", **options: object) -> str:
    with store.transaction() as session:
        return jobs.enqueue(session, "kind", subject, **{"max_attempts": 4, **options}).id


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


# -- leaving ---------------------------------------------------------------------------


def test_an_attempt_that_does_not_stop_in_time_is_killed_and_costs_nothing(
    settings, store, eventually
):
    job_id = enqueue(store, max_attempts=1)
    impatient = settings.model_copy(update={"stop_grace_seconds": 0.2})
    with working(impatient, store, launcher := Attempts()) as worker:
        eventually(lambda: launcher.launched, "nothing was launched")
        worker.stop()
        eventually(worker.has_left, "the worker stays")
    assert launcher.launched[0].asked_to_leave
    assert read(store, job_id)[1] == ["killed"]
    assert read(store, job_id)[0].status == "queued"


def test_a_worker_that_is_stopped_twice_kills_at_once(settings, store, eventually):
    patient = settings.model_copy(update={"stop_grace_seconds": 3600.0})
    enqueue(store)
    with working(patient, store, launcher := Attempts()) as worker:
        eventually(lambda: launcher.launched, "nothing was launched")
        worker.stop()
        eventually(lambda: launcher.launched[0].asked_to_leave, "the attempt was not asked")
        worker.stop()
        eventually(worker.has_left, "the worker stays")
    assert launcher.launched[0].status == KILLED


def test_a_job_that_was_asked_to_stop_is_killed_after_its_grace(settings, store, eventually):
    stubborn, other = enqueue(store, "stubborn"), enqueue(store, "other")
    impatient = settings.model_copy(update={"stop_grace_seconds": 0.2})
    two = dataclasses.replace(ONE_SLOT, slots=2)
    with working(impatient, store, launcher := Attempts(), two):
        eventually(lambda: len(launcher.launched) == 2, "not both run")
        with store.transaction() as session:
            jobs.ask_to_stop(session, "stubborn")
        eventually(lambda: read(store, stubborn)[1][:1] == ["killed"], "it goes on")
        assert read(store, other)[1] == [None]


def test_a_worker_that_drains_finishes_what_runs_and_leaves(settings, store, eventually):
    first, second = enqueue(store), enqueue(store)
    with working(settings, store, launcher := Attempts()) as worker:
        eventually(lambda: launcher.launched, "nothing was launched")
        with store.transaction() as session:
            assert workers.drain(session, the_worker(store).id, hand_back=False)
        eventually(lambda: worker._is_draining, "it did not notice")
        assert not launcher.launched[0].asked_to_leave
        with store.transaction() as session:
            claim = launcher.launched[0].claim
            jobs.finish(session, jobs.held(session, first, claim.fence), "succeeded")
        launcher.launched[0].status = 0
        eventually(worker.has_left, "the worker stays")
    assert read(store, second)[1] == []
    assert the_worker(store).stopped_at is not None


def test_a_worker_that_drains_in_a_hurry_hands_back_what_runs(settings, store, eventually):
    job_id = enqueue(store)
    with working(settings, store, launcher := Attempts()) as worker:
        eventually(lambda: launcher.launched, "nothing was launched")
        with store.transaction() as session:
            workers.drain(session, the_worker(store).id, hand_back=True)
        eventually(lambda: launcher.launched[0].asked_to_leave, "the attempt was not asked")
        launcher.launched[0].status = EXIT_HANDED_BACK
        eventually(worker.has_left, "the worker stays")
    assert read(store, job_id)[1] == ["handed_back"]


# -- resources -------------------------------------------------------------------------


def test_attempts_run_side_by_side_each_with_its_share(settings, store, eventually):
    gpus = (Gpu("0", "a GPU", 2**34), Gpu("GPU-7", "a GPU", 2**34))
    two = Resources(slots=2, cpus=4, memory_bytes=2**31, gpus=gpus, labels={})
    for _ in range(3):
        enqueue(store, needs=needs(uses_gpu=True).format())
    with working(settings, store, launcher := Attempts(), two):
        eventually(lambda: len(launcher.launched) == 2, "not two run")
        given = [attempt.claim.given for attempt in launcher.launched]
        assert given == [Allotment(("0",), 2, 2**30), Allotment(("GPU-7",), 2, 2**30)]
        launcher.launched[0].status = 1
        eventually(lambda: len(launcher.launched) == 3, "the place stays empty")
        assert launcher.launched[2].claim.given == given[0]


def test_a_worker_leaves_to_others_what_it_cannot_serve(settings, store, eventually):
    elsewhere = enqueue(store, needs=needs(labels={"host": "elsewhere"}).format(), priority=9)
    here = enqueue(store, needs=needs(labels={"host": "h*"}).format())
    with working(settings, store, launcher := Attempts()):
        eventually(lambda: launcher.launched, "nothing was launched")
        assert launcher.launched[0].claim.job_id == here
    assert read(store, elsewhere)[1] == []


def test_an_attempt_that_takes_too_much_memory_is_killed_and_its_job_says_so(
    settings, store, eventually
):
    job_id = enqueue(store)

    def take_too_much(attempt: Attempt) -> None:
        attempt.used_bytes = 2**31

    with working(settings, store, Attempts(take_too_much)):
        eventually(lambda: read(store, job_id)[0].status == "failed", "the job goes on")
    job, outcomes = read(store, job_id)
    assert outcomes == ["out_of_memory"]
    assert "used 2048 MiB" in job.failure
    assert "limit is 1024 MiB" in job.failure


def test_an_attempt_that_was_refused_memory_is_told_from_a_crash(settings, store, eventually):
    job_id = enqueue(store)
    with working(settings, store, Attempts(exit_with(EXIT_OUT_OF_MEMORY))):
        eventually(lambda: read(store, job_id)[0].status == "failed", "the job goes on")
    assert read(store, job_id)[1] == ["out_of_memory"]


# -- a store that is out of reach ------------------------------------------------------


class Unreliable(Database):
    """A store that can be switched off."""

    is_off = False

    def transaction(self):
        if self.is_off:
            raise OperationalError("BEGIN", {}, Exception("the store restarts"))
        return super().transaction()

    reading = transaction


@pytest.fixture
def unreliable(new_store):
    database = Unreliable(new_store("sqlite", migrated=True))
    yield database
    database.dispose()


def test_how_an_attempt_ended_is_written_once_the_store_is_back(settings, unreliable, eventually):
    job_id = enqueue(unreliable, max_attempts=1)
    with working(settings, unreliable, launcher := Attempts()):
        eventually(lambda: launcher.launched, "nothing was launched")
        unreliable.is_off = True
        launcher.launched[0].status = 1
        eventually(lambda: launcher.launched[0].polled_after_end, "nobody noticed the end")
        unreliable.is_off = False
        eventually(lambda: read(unreliable, job_id)[1] == ["crashed"], "the end was lost")


def test_an_attempt_whose_lease_cannot_be_renewed_stops_before_another_may_begin(
    settings, unreliable, eventually
):
    short = settings.model_copy(update={"job_lease_seconds": 0.9})
    enqueue(unreliable)
    with working(short, unreliable, launcher := Attempts()):
        eventually(lambda: launcher.launched, "nothing was launched")
        unreliable.is_off = True
        eventually(lambda: launcher.launched[0].status == KILLED, "the attempt goes on")
        assert launcher.launched[0].asked_to_leave
        unreliable.is_off = False


def test_a_worker_leaves_though_the_store_is_gone(settings, unreliable, eventually, monkeypatch):
    monkeypatch.setattr("service.worker._LEAVE_SECONDS", 0.1)
    impatient = settings.model_copy(update={"stop_grace_seconds": 0.1})
    job_id = enqueue(unreliable)
    with working(impatient, unreliable, launcher := Attempts()) as worker:
        eventually(lambda: launcher.launched, "nothing was launched")
        unreliable.is_off = True
        worker.stop()
        eventually(worker.has_left, "the worker stays")
    unreliable.is_off = False
    assert read(unreliable, job_id)[0].status == "running"  # its lease tells the others


def test_a_worker_that_was_thought_gone_is_known_again(settings, store, eventually):
    short = settings.model_copy(update={"job_lease_seconds": 0.3})
    with working(short, store, Attempts()):
        eventually(lambda: registered(store), "it is not known")
        with store.transaction() as session:
            workers.leave(session, the_worker(store).id)
        eventually(lambda: the_worker(store).stopped_at is None, "it stays gone")
        with store.transaction() as session:
            session.execute(delete(WorkerRow))
        eventually(lambda: registered(store), "it stays forgotten")


def registered(store: Database) -> bool:
    with store.reading() as session:
        return session.scalars(select(WorkerRow.id)).first() is not None


# -- others ----------------------------------------------------------------------------


def test_leases_are_left_alone_after_the_clock_was_set(settings, store, monkeypatch):
    job_id = enqueue(store)
    with store.transaction() as session:
        jobs.claim(session, "another worker", 60.0)
    work = Housekeeping(settings, store)
    work.tend()

    def an_hour_later(_session) -> datetime:
        return datetime.now(UTC) + timedelta(hours=1)

    for module in ("service.jobs.repository", "service.workers.settling"):
        monkeypatch.setattr(f"{module}.store_time", an_hour_later)
    monkeypatch.setattr("service.workers.settling._TEND_SECONDS", 0.0)
    work._next = 0.0
    work.tend()
    assert read(store, job_id)[0].status == "running"
    Housekeeping(settings, store).tend()  # one that never saw another time must believe it
    assert read(store, job_id)[1] == ["worker_lost"]


def test_a_lost_lease_of_another_worker_is_settled_before_the_next_claim(
    settings, store, eventually
):
    job_id = enqueue(store)
    with store.transaction() as session:
        jobs.claim(session, "a dead worker", -1.0)
    with working(settings, store, Attempts(exit_with(EXIT_LEASE_LOST))):
        eventually(lambda: len(read(store, job_id)[1]) >= 2, "the job was not taken over")
    assert read(store, job_id)[1][0] == "worker_lost"
