"""The contract of the job queue, on every store."""

import threading
from collections import Counter
from contextlib import suppress
from datetime import timedelta

import pytest

from predictor.measurements import TargetProfile
from service.auth.repository import create_key
from service.db.base import new_id, utc_now
from service.db.database import Database
from service.errors import LeaseLostError
from service.jobs import repository as jobs
from service.jobs.context import AttemptContext
from service.jobs.models import Job
from service.jobs.repository import Claim
from service.searches.lifecycle import SEARCH_JOB, cancel
from service.searches.models import Search
from service.searches.repository import get_search, list_events
from service.settings import Settings
from service.targets.repository import ensure_target
from service.worker import reap

EXPIRED = -1.0  # a lease of this many seconds has run out when it is given
PROFILE = TargetProfile("device", "x86_64", "none", "none", "1", "none", 1, "float32", 1)


def enqueue(database: Database, subject: str = "subject", **options) -> str:
    """The id of a new job."""
    with database.transaction() as session:
        options = {"max_attempts": 3, **options}
        return jobs.enqueue(session, "kind", subject, **options).id


def claim(database: Database, worker: str = "worker", lease_seconds: float = 60.0) -> Claim | None:
    with database.transaction() as session:
        return jobs.claim(session, worker, lease_seconds)


def read(database: Database, job_id: str) -> Job:
    with database.reading() as session:
        return session.get_one(Job, job_id)


def outcomes(database: Database, job_id: str) -> list[str | None]:
    with database.reading() as session:
        return [attempt.outcome for attempt in jobs.attempts(session, job_id)]


def retry(database: Database, held: Claim, outcome: str, delay_seconds: float = 0.0) -> bool:
    with database.transaction() as session:
        job = jobs.held(session, held.job_id, held.fence)
        return jobs.retry_or_fail(session, job, outcome, delay_seconds=delay_seconds)


def make_claimable(database: Database, job_id: str) -> None:
    """Skip the pause after a lost attempt."""
    with database.transaction() as session:
        session.get_one(Job, job_id).available_at = utc_now()


@pytest.fixture
def search(database) -> str:
    """The id of a queued search with a job of at most two attempts."""
    with database.transaction() as session:
        owner, _ = create_key(session, "owner", "user")
        target = ensure_target(session, PROFILE)
        session.flush()
        row = Search(
            id=new_id("srch"),
            owner_key_id=owner.id,
            owner=owner.account,
            target_id=target.id,
            spec={},
            status="queued",
            phase="waiting_for_worker",
            phase_since=utc_now(),
            seconds_by_phase={},
            created_at=utc_now(),
        )
        session.add(row)
        session.flush()
        jobs.enqueue(session, SEARCH_JOB, row.id, max_attempts=2)
        return row.id


# -- claiming --------------------------------------------------------------------------


def test_nothing_is_claimed_from_an_empty_queue(database):
    assert claim(database) is None


def test_the_most_urgent_job_is_claimed_first_and_then_the_oldest(database):
    subjects = [("old", 0), ("young", 0), ("urgent", 10), ("urgent too", 10), ("idle", -1)]
    for subject, priority in subjects:
        enqueue(database, subject, priority=priority)
    claimed = [claim(database).subject_id for _ in subjects]
    assert claimed == ["urgent", "urgent too", "old", "young", "idle"]


def test_a_claim_counts_attempt_and_fence_and_records_its_worker(database):
    job_id = enqueue(database)
    first = claim(database, "alpha")
    assert (first.job_id, first.fence, first.attempt) == (job_id, 1, 1)
    retry(database, first, "crashed")
    second = claim(database, "beta")
    assert (second.job_id, second.fence, second.attempt) == (job_id, 2, 2)
    with database.reading() as session:
        attempts = jobs.attempts(session, job_id)
        assert [(a.number, a.worker, a.outcome) for a in attempts] == [
            (1, "alpha", "crashed"),
            (2, "beta", None),
        ]
        assert attempts[0].ended_at is not None
        assert attempts[1].ended_at is None


def test_a_running_job_is_not_claimed_again(database):
    enqueue(database)
    assert claim(database) is not None
    assert claim(database) is None


def test_two_workers_claim_each_of_200_jobs_exactly_once(database):
    with database.transaction() as session:
        expected = {jobs.enqueue(session, "kind", f"s{n}", max_attempts=1).id for n in range(200)}
    claimed: dict[str, list[str]] = {"alpha": [], "beta": []}
    together = threading.Barrier(2)

    def work(worker: str) -> None:
        together.wait()
        while (taken := claim(database, worker)) is not None:
            claimed[worker].append(taken.job_id)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in claimed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times = Counter(claimed["alpha"] + claimed["beta"])
    assert set(times) == expected
    assert set(times.values()) == {1}


def test_a_blocked_job_is_claimable_once_it_is_released(database):
    waiting = enqueue(database, blocked_on="the model")
    other = enqueue(database, blocked_on="another model")
    assert claim(database) is None
    with database.transaction() as session:
        jobs.release(session, "the model")
    assert claim(database).job_id == waiting
    assert claim(database) is None
    assert read(database, other).blocked_on == "another model"


def test_a_job_whose_transaction_rolls_back_does_not_exist(database):
    with suppress(ZeroDivisionError), database.transaction() as session:
        job_id = jobs.enqueue(session, "kind", "subject", max_attempts=1).id
        session.flush()
        raise ZeroDivisionError
    assert claim(database) is None
    with database.reading() as session:
        assert session.get(Job, job_id) is None


def test_a_delayed_job_is_not_claimable_before_its_time(database):
    job_id = enqueue(database)
    retry(database, claim(database), "crashed", delay_seconds=3600.0)
    assert read(database, job_id).status == "queued"
    assert claim(database) is None
    make_claimable(database, job_id)
    assert claim(database).job_id == job_id


def test_the_position_counts_the_claimable_jobs_ahead(database):
    last = enqueue(database, "last")
    with database.transaction() as session:
        session.get_one(Job, last).created_at = utc_now() + timedelta(minutes=1)
    for subject in ("first", "second"):
        enqueue(database, subject)
    enqueue(database, "blocked", blocked_on="something")
    enqueue(database, "urgent", priority=10)
    with database.reading() as session:
        assert jobs.position(session, session.get_one(Job, last)) == 4


# -- holding ---------------------------------------------------------------------------


def test_renewing_extends_the_lease(database):
    job_id = enqueue(database)
    held = claim(database, lease_seconds=10.0)
    before = read(database, job_id).lease_expires_at
    with database.transaction() as session:
        jobs.renew(session, held, 1000.0)
    assert read(database, job_id).lease_expires_at > before + timedelta(seconds=900)


def test_a_renewed_lease_is_not_reaped(database):
    job_id = enqueue(database)
    held = claim(database, lease_seconds=EXPIRED)
    with database.transaction() as session:
        jobs.renew(session, held, 60.0)
    assert reap(database) == 0
    assert read(database, job_id).status == "running"


def test_a_reaped_lease_cannot_be_renewed(database):
    enqueue(database)
    held = claim(database, lease_seconds=EXPIRED)
    reap(database)
    with pytest.raises(LeaseLostError), database.transaction() as session:
        jobs.renew(session, held, 60.0)


@pytest.mark.parametrize("end", ["reaped", "claimed anew", "succeeded"])
def test_an_old_fence_can_write_nothing(database, tmp_path, end):
    job_id = enqueue(database)
    old = claim(database, lease_seconds=EXPIRED)
    if end == "succeeded":
        with database.transaction() as session:
            jobs.finish(session, jobs.held(session, job_id, old.fence), "succeeded")
    else:
        reap(database)
    if end == "claimed anew":
        make_claimable(database, job_id)
        claim(database)
    before = (read(database, job_id).status, outcomes(database, job_id))

    zombie = AttemptContext(Settings(home=tmp_path), database, job_id, old.fence)
    with pytest.raises(LeaseLostError), zombie.transaction() as (session, job):
        jobs.finish(session, job, "failed", "the zombie says so")
    with pytest.raises(LeaseLostError), database.transaction() as session:
        jobs.held(session, job_id, old.fence)
    assert (read(database, job_id).status, outcomes(database, job_id)) == before


def test_what_an_attempt_writes_in_a_failing_transaction_is_undone(database, tmp_path):
    job_id = enqueue(database)
    held = claim(database)
    context = AttemptContext(Settings(home=tmp_path), database, job_id, held.fence)
    with suppress(ZeroDivisionError), context.transaction() as (session, job):
        jobs.finish(session, job, "succeeded")
        session.flush()
        raise ZeroDivisionError
    assert read(database, job_id).status == "running"


# -- losing ----------------------------------------------------------------------------


def test_an_expired_lease_is_reaped_and_its_job_queued_again(database):
    job_id = enqueue(database)
    claim(database, lease_seconds=EXPIRED)
    assert reap(database) == 1
    assert read(database, job_id).status == "queued"
    assert read(database, job_id).lease_expires_at is None
    assert outcomes(database, job_id) == ["worker_lost"]


def test_a_live_lease_is_not_reaped(database):
    job_id = enqueue(database)
    claim(database)
    assert reap(database) == 0
    assert read(database, job_id).status == "running"


def test_two_workers_reap_each_lost_job_exactly_once(database):
    lost = [enqueue(database, f"s{n}") for n in range(20)]
    for _ in lost:
        claim(database, lease_seconds=EXPIRED)
    reaped: list[int] = []
    together = threading.Barrier(2)

    def work() -> None:
        together.wait()
        reaped.append(reap(database))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(reaped) == len(lost)
    assert [outcomes(database, job_id) for job_id in lost] == [["worker_lost"]] * len(lost)


def test_a_job_has_failed_when_its_last_attempt_is_lost(database):
    job_id = enqueue(database, max_attempts=2)
    for _ in range(2):
        make_claimable(database, job_id)
        claim(database, lease_seconds=EXPIRED)
        reap(database)
    job = read(database, job_id)
    assert (job.status, job.failure) == ("failed", "worker_lost, 2 attempts")
    assert outcomes(database, job_id) == ["worker_lost"] * 2
    make_claimable(database, job_id)
    assert claim(database) is None


def test_being_handed_back_does_not_consume_attempts(database):
    job_id = enqueue(database, max_attempts=1)
    for _ in range(3):
        assert retry(database, claim(database), "handed_back")
    assert read(database, job_id).status == "queued"
    assert not retry(database, claim(database), "crashed")
    assert outcomes(database, job_id) == ["handed_back"] * 3 + ["crashed"]
    assert read(database, job_id).status == "failed"


def test_only_a_queued_job_is_cancelled_at_once(database):
    enqueue(database, "waiting")
    enqueue(database, "running", priority=1)
    claim(database)
    with database.transaction() as session:
        assert jobs.cancel_queued(session, "waiting")
        assert not jobs.cancel_queued(session, "running")
        assert not jobs.cancel_queued(session, "nobody")
    assert claim(database) is None


# -- what the search is told -----------------------------------------------------------


def lose(database: Database, search_id: str) -> Search:
    """Claim the search's job, let its worker die, reap; the search afterwards."""
    with database.reading() as session:
        job_id = jobs.of_subject(session, search_id).id
    make_claimable(database, job_id)
    assert claim(database, lease_seconds=EXPIRED) is not None
    reap(database)
    with database.reading() as session:
        return get_search(session, search_id)


def test_a_search_whose_worker_died_is_queued_again_with_a_warning(database, search):
    assert lose(database, search).status == "queued"
    with database.reading() as session:
        events = list_events(session, search, 0, 100)
    assert ("warning", {"code": "worker_lost"}) in [(e.type, e.data) for e in events]


def test_a_search_has_failed_with_the_reason_when_its_last_attempt_is_lost(database, search):
    lose(database, search)
    failed = lose(database, search)
    assert failed.status == "failed"
    assert failed.status_reason["code"] == "worker_lost"
    assert failed.finished_at is not None


def test_a_search_that_was_being_cancelled_ends_cancelled_when_its_worker_dies(database, search):
    held = claim(database, lease_seconds=EXPIRED)
    with database.transaction() as session:
        assert cancel(session, search).status == "cancelling"
    reap(database)
    with database.reading() as session:
        assert get_search(session, search).status == "cancelled"
    assert read(database, held.job_id).status == "cancelled"
    assert claim(database) is None
