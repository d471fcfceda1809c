"""The contract of the job queue, on every store."""

import threading
from collections import Counter
from contextlib import suppress
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete

from predictor.measurements import TargetProfile
from service.auth.repository import create_key
from service.db.base import new_id, utc_now
from service.db.database import Database
from service.errors import LeaseLostError
from service.jobs import repository as jobs
from service.jobs.context import AttemptContext
from service.jobs.models import Job, JobAttempt
from service.jobs.needs import Allotment, needs
from service.jobs.repository import Claim
from service.searches.lifecycle import SEARCH_JOB, cancel
from service.searches.models import Search
from service.searches.repository import get_search, list_events
from service.settings import Settings
from service.targets.repository import ensure_target
from service.workers.settling import end_overdue, reap

EXPIRED = -1.0  # a lease of this many seconds has run out when it is given
PROFILE = TargetProfile("device", "x86_64", "none", "none", "1", "none", 1, "float32", 1)


def enqueue(database: Database, subject: str = "subject", **options) -> str:
    """The id of a new job."""
    with database.transaction() as session:
        options = {"max_attempts": 3, **options}
        return jobs.enqueue(session, "kind", subject, **options).id


def claim(
    database: Database, worker: str = "worker", lease_seconds: float = 60.0, **options
) -> Claim | None:
    with database.transaction() as session:
        return jobs.claim(session, worker, lease_seconds, **options)


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


def place_of(database: Database, *job_ids: str) -> list[int | None]:
    with database.reading() as session:
        found = jobs.positions(session, job_ids)
    return [found.get(job_id) for job_id in job_ids]


def test_only_what_stands_in_the_queue_has_a_position(database):
    blocked, waiting = enqueue(database, blocked_on="a model"), enqueue(database)
    running = enqueue(database, priority=1)
    claim(database)
    assert place_of(database, blocked, running, waiting, "nothing") == [None, None, 1, None]
    assert place_of(database) == []


# -- sharing ---------------------------------------------------------------------------


def test_the_owner_with_the_fewest_running_attempts_is_served_first(database):
    for n in range(3):
        enqueue(database, f"many {n}", owner="many")
    for n in range(2):
        enqueue(database, f"few {n}", owner="few")
    claimed = [claim(database).subject_id for _ in range(5)]
    assert claimed == ["many 0", "few 0", "many 1", "few 1", "many 2"]


def test_owners_take_turns_on_a_single_place(database):
    for owner in ("many", "few"):
        for n in range(3):
            enqueue(database, f"{owner} {n}", owner=owner)
    served = []
    for _ in range(6):
        held = claim(database)
        served.append(held.subject_id)
        with database.transaction() as session:
            jobs.finish(session, jobs.held(session, held.job_id, held.fence), "succeeded")
    assert served == ["many 0", "few 0", "many 1", "few 1", "many 2", "few 2"]


def test_the_services_own_work_waits_for_no_share_but_for_what_is_urgent(database):
    for n in range(2):
        enqueue(database, f"own {n}")
    enqueue(database, "somebody's", owner="somebody")
    enqueue(database, "urgent", owner="somebody", priority=1)
    claimed = [claim(database).subject_id for _ in range(4)]
    assert claimed == ["urgent", "own 0", "own 1", "somebody's"]


@given(
    queue=st.lists(st.tuples(st.sampled_from(["", "a", "b", "c"]), st.integers(0, 2)), max_size=9),
    running=st.lists(st.sampled_from(["a", "b", "c"]), max_size=4),
)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_the_positions_are_the_order_of_claims(database, queue, running):
    with database.transaction() as session:
        for table in (JobAttempt, Job):
            session.execute(delete(table))
    for owner in running:
        enqueue(database, owner=owner)
        claim(database)
    waiting = [enqueue(database, owner=owner, priority=urgency) for owner, urgency in queue]
    promised = place_of(database, *waiting)
    claimed = [claim(database).job_id for _ in waiting]
    assert sorted(waiting, key=dict(zip(waiting, promised, strict=True)).get) == claimed
    assert sorted(promised) == list(range(1, len(waiting) + 1))


# -- what a worker must have -----------------------------------------------------------


def test_a_job_is_claimed_by_a_worker_that_has_what_it_needs(database):
    big = needs(gpus=1, memory_bytes=2**30)
    heavy = enqueue(database, "heavy", needs=big.format(), priority=1)
    light = enqueue(database, "light")
    only_light = {needs(): Allotment(threads=1)}
    assert claim(database, allot=only_light.get).job_id == light
    assert claim(database, allot=only_light.get) is None
    given = Allotment(gpus=("1",), threads=2, memory_bytes=2**30)
    held = claim(database, allot={big: given}.get)
    assert (held.job_id, held.given) == (heavy, given)
    with database.reading() as session:
        (attempt,) = jobs.attempts(session, heavy)
    assert attempt.resources == {"gpus": ["1"], "threads": 2, "memory_bytes": 2**30}


def test_an_owner_whose_urgent_job_fits_nobody_is_served_with_the_next(database):
    enqueue(database, needs=needs(gpus=8).format(), priority=5, owner="a")
    fitting = enqueue(database, owner="a")
    assert claim(database, allot={needs(): Allotment()}.get).job_id == fitting


# -- stopping --------------------------------------------------------------------------


def test_a_running_job_is_asked_to_stop_once(database):
    job_id = enqueue(database)
    with database.transaction() as session:
        assert not jobs.ask_to_stop(session, "subject")
    held = claim(database, "alpha")
    with database.transaction() as session:
        assert jobs.ask_to_stop(session, "subject")
    asked_at = read(database, job_id).stop_requested_at
    with database.transaction() as session:
        assert jobs.ask_to_stop(session, "subject")
        assert jobs.asked_to_stop(session, "alpha") == {job_id}
        assert jobs.asked_to_stop(session, "beta") == set()
    assert read(database, job_id).stop_requested_at == asked_at
    retry(database, held, "killed")
    assert read(database, job_id).stop_requested_at is None


def test_a_job_that_nothing_began_in_time_is_ended(database):
    late = utc_now() - timedelta(seconds=1)
    never, blocked = (
        enqueue(database, queue_deadline=late),
        enqueue(database, queue_deadline=late, blocked_on="a model"),
    )
    begun = enqueue(database, queue_deadline=late, priority=1)
    in_time = enqueue(database, queue_deadline=utc_now() + timedelta(hours=1))
    retry(database, claim(database), "crashed")
    assert end_overdue(database) == 2
    ended = [read(database, job_id).status for job_id in (never, blocked, begun, in_time)]
    assert ended == ["failed", "failed", "queued", "queued"]
    assert "queue time" in read(database, never).failure
    assert end_overdue(database) == 0


# -- holding ---------------------------------------------------------------------------


def test_renewing_extends_the_lease(database):
    job_id = enqueue(database)
    held = claim(database, lease_seconds=10.0)
    before = read(database, job_id).lease_expires_at
    with database.transaction() as session:
        jobs.renew(session, held, 1000.0)
    assert read(database, job_id).lease_expires_at > before + timedelta(seconds=900)


def test_a_lease_is_not_renewed_nor_lost_while_its_attempt_writes(database):
    if database.engine.dialect.name == "sqlite":
        return  # whoever writes has the whole store there, and everybody else waits
    job_id = enqueue(database)
    held = claim(database, lease_seconds=EXPIRED)
    with database.transaction() as attempt:
        jobs.held(attempt, job_id, held.fence)
        with database.transaction() as worker:
            assert jobs.renew(worker, held, 60.0) is False
        assert reap(database) == 0
    with database.transaction() as worker:
        assert jobs.renew(worker, held, 60.0) is True


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


@pytest.mark.parametrize("outcome", ["handed_back", "killed"])
def test_being_told_to_stop_does_not_consume_attempts(database, outcome):
    job_id = enqueue(database, max_attempts=1)
    for _ in range(3):
        assert retry(database, claim(database), outcome)
    assert read(database, job_id).status == "queued"
    assert not retry(database, claim(database), "crashed")
    assert outcomes(database, job_id) == [outcome] * 3 + ["crashed"]
    assert read(database, job_id).status == "failed"


def test_a_job_that_ran_out_of_memory_is_not_tried_again(database):
    job_id = enqueue(database, max_attempts=5)
    held = claim(database)
    with database.transaction() as session:
        job = jobs.held(session, job_id, held.fence)
        assert not jobs.retry_or_fail(session, job, "out_of_memory", text="It used 9 MiB.")
    job = read(database, job_id)
    assert (job.status, job.failure) == ("failed", "It used 9 MiB.")


def test_a_job_that_cannot_be_settled_keeps_no_other_waiting(database, search):
    with database.transaction() as session:
        jobs.of_subject(session, search).subject_id = "a search that is gone"
    broken, other = claim(database, lease_seconds=EXPIRED), enqueue(database)
    claim(database, lease_seconds=EXPIRED)
    assert reap(database) == 1
    assert read(database, broken.job_id).status == "running"
    assert outcomes(database, other) == ["worker_lost"]


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


def test_a_search_that_nothing_began_in_time_has_failed_and_says_so(database, search):
    with database.transaction() as session:
        jobs.of_subject(session, search).queue_deadline = utc_now() - timedelta(seconds=1)
    assert end_overdue(database) == 1
    with database.reading() as session:
        ended = get_search(session, search)
    assert (ended.status, ended.status_reason["code"]) == ("failed", "queue_time_limit")


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
    assert "worker_lost" in [e.data["code"] for e in events if e.type == "warning"]


def test_a_search_has_failed_with_the_reason_when_its_last_attempt_is_lost(database, search):
    lose(database, search)
    failed = lose(database, search)
    assert failed.status == "failed"
    assert failed.status_reason["code"] == "worker_lost"
    assert failed.finished_at is not None


def test_a_search_that_was_being_cancelled_ends_cancelled_when_its_worker_dies(database, search):
    held = claim(database, lease_seconds=EXPIRED)
    with database.transaction() as session:
        row = get_search(session, search, lock=True)
        assert cancel(session, row)
        assert row.status == "cancelling"
    reap(database)
    with database.reading() as session:
        assert get_search(session, search).status == "cancelled"
    assert read(database, held.job_id).status == "cancelled"
    assert claim(database) is None


def test_what_a_clock_that_was_ahead_has_promised_is_taken_back(database):
    ahead = timedelta(hours=1)
    held, delayed, fine = (enqueue(database, subject) for subject in ("held", "delayed", "fine"))
    with database.transaction() as session:
        job = session.get_one(Job, held)
        job.status, job.lease_expires_at = "running", utc_now() + ahead
        session.get_one(Job, delayed).available_at = utc_now() + ahead
    with database.transaction() as session:
        assert jobs.pull_back(session, lease_seconds=30.0) == 2
    soon = utc_now() + timedelta(seconds=90)
    assert read(database, held).lease_expires_at < soon
    assert read(database, delayed).available_at < soon
    assert claim(database).job_id == fine
