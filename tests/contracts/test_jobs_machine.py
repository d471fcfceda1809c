"""Leases under everything that can happen to them, in any order, on every store.

Two workers claim, write, lose their leases, wake up as zombies, crash, drain and settle, while
people cancel, pause and resume. After each step the rows must still tell one story.
"""

from dataclasses import dataclass
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, func, select

from service.db.base import utc_now
from service.errors import LeaseLostError
from service.jobs import repository as jobs
from service.jobs.models import Job, JobAttempt
from service.jobs.repository import Claim
from service.workers.settling import reap

TERMINAL = {"succeeded", "failed", "cancelled"}
WORKERS = st.sampled_from(["alpha", "beta"])
ENDINGS = st.sampled_from(["crashed", "handed_back", "killed", "out_of_memory"])


@dataclass
class Attempt:
    """What a worker believes to hold; whether it is right is the store's to say."""

    claim: Claim
    worker: str


class Leases(RuleBasedStateMachine):
    """The rules are what happens, the invariants what must hold whatever happened."""

    database = None  # set by the test

    attempts = Bundle("attempts")

    def __init__(self) -> None:
        super().__init__()
        self.holder: dict[str, int] = {}  # job -> the fence that may write
        self.written: dict[str, list[int]] = {}  # job -> fences that wrote, in order
        self.ended: dict[str, str] = {}  # job -> the terminal status it was first seen in
        self.max_fence: dict[str, int] = {}
        self.ever: list[Attempt] = []

    @initialize(n_jobs=st.integers(1, 3), max_attempts=st.integers(1, 4))
    def fill_the_queue(self, n_jobs: int, max_attempts: int) -> None:
        with self.database.transaction() as session:
            for table in (JobAttempt, Job):
                session.execute(delete(table))
            for n in range(n_jobs):
                jobs.enqueue(session, "kind", f"s{n}", max_attempts=max_attempts, owner=f"o{n % 2}")

    # -- what workers do ---------------------------------------------------------------

    @rule(target=attempts, worker=WORKERS)
    def claim(self, worker: str):
        with self.database.transaction() as session:
            session.execute(  # nobody waits for the pause after a lost attempt
                Job.__table__.update().values(available_at=utc_now() - timedelta(seconds=1))
            )
        with self.database.transaction() as session:
            claim = jobs.claim(session, worker, 600.0)
        if claim is None:
            assert self.statuses().get("queued", 0) == 0, "a job was kept from a free worker"
            return multiple()
        assert claim.job_id not in self.holder, "the job was held already"
        assert claim.fence > self.max_fence.get(claim.job_id, 0), "a fence was given twice"
        self.holder[claim.job_id] = self.max_fence[claim.job_id] = claim.fence
        self.ever.append(Attempt(claim, worker))
        return self.ever[-1]

    @rule()
    def everybody_wakes_up(self) -> None:
        """Every attempt there ever was writes and renews, whether it still may or not."""
        for attempt in self.ever:
            self.only_the_holder(attempt, lambda _, job: setattr(job, "failure", "progress"))
            may = self.holds(attempt)
            try:
                with self.database.transaction() as session:
                    jobs.renew(session, attempt.claim, 600.0)
                assert may, "a stale fence renewed its lease"
            except LeaseLostError:
                assert not may, "the holder lost its lease"

    @rule(attempt=attempts, status=st.sampled_from(["succeeded", "failed", "cancelled"]))
    def finish(self, attempt: Attempt, status: str) -> None:
        if self.only_the_holder(attempt, lambda session, job: jobs.finish(session, job, status)):
            del self.holder[attempt.claim.job_id]

    @rule(attempt=attempts)
    def pause(self, attempt: Attempt) -> None:
        """Its search was asked to pause, and it stops at its next step."""
        if self.only_the_holder(attempt, lambda session, job: jobs.finish(session, job, "paused")):
            del self.holder[attempt.claim.job_id]

    @rule(attempt=attempts, outcome=ENDINGS)
    def settle(self, attempt: Attempt, outcome: str) -> None:
        """Its worker drains, or sees it crash, and settles."""
        if self.only_the_holder(
            attempt, lambda session, job: jobs.retry_or_fail(session, job, outcome)
        ):
            del self.holder[attempt.claim.job_id]

    @rule(attempt=attempts, is_seen=st.booleans())
    def lose(self, attempt: Attempt, is_seen: bool) -> None:
        """The worker dies or loses the store; the attempt lives on as a zombie."""
        if self.holds(attempt):
            with self.database.transaction() as session:
                past = utc_now() - timedelta(hours=1)
                session.get_one(Job, attempt.claim.job_id).lease_expires_at = past
            if is_seen:
                self.reap()

    @rule()
    def reap(self) -> None:
        with self.database.reading() as session:
            lost = set(jobs.expired(session))
        assert reap(self.database) == len(lost)
        for job_id in lost:
            del self.holder[job_id]

    # -- what people do ----------------------------------------------------------------

    @rule(n=st.integers(0, 2))
    def ask_to_stop(self, n: int) -> None:
        with self.database.transaction() as session:
            runs = jobs.ask_to_stop(session, f"s{n}")
            job = jobs.of_subject(session, f"s{n}")
        assert runs == (job is not None and job.id in self.holder)

    @rule(n=st.integers(0, 2))
    def cancel_queued(self, n: int) -> None:
        with self.database.transaction() as session:
            jobs.cancel_queued(session, f"s{n}")

    @rule(n=st.integers(0, 2), parks=st.booleans())
    def park(self, n: int, parks: bool) -> None:
        with self.database.transaction() as session:
            (jobs.park_queued if parks else jobs.unpark)(session, f"s{n}")

    # -- what must hold ----------------------------------------------------------------

    @invariant()
    @precondition(lambda self: self.database is not None)
    def the_rows_tell_one_story(self) -> None:
        with self.database.reading() as session:
            rows = session.scalars(select(Job)).all()
            attempts = jobs.attempts_of(session, [job.id for job in rows])
        for job in rows:
            told = attempts.get(job.id, [])
            running = job.status == "running"
            assert [a.number for a in told] == list(range(1, job.attempt + 1)), "not dense"
            assert [a.ended_at is None for a in told].count(True) == int(running)
            assert all((a.outcome is None) == (a.ended_at is None) for a in told)
            assert running == (job.id in self.holder) == (job.lease_expires_at is not None)
            assert job.fence == self.max_fence.get(job.id, 0)
            assert running or job.stop_requested_at is None, "asked to stop, and does not run"
            assert job.status in TERMINAL | {"running", "queued", "paused"}
            if job.id in self.ended:
                assert job.status == self.ended[job.id], "what had ended changed"
            elif job.status in TERMINAL:
                self.ended[job.id] = job.status
            fences = self.written.get(job.id, [])
            assert fences == sorted(fences), "an older attempt wrote after a newer one"

    def teardown(self) -> None:
        """Whatever was left can be brought to an end: nothing is stuck."""
        if self.database is None:
            return
        with self.database.transaction() as session:
            session.execute(
                Job.__table__.update()
                .where(Job.status == "running")
                .values(lease_expires_at=utc_now() - timedelta(hours=1))
            )
        reap(self.database)
        for n in range(3):
            self.park(n, parks=False)
        while True:
            with self.database.transaction() as session:
                session.execute(Job.__table__.update().values(available_at=utc_now()))
            with self.database.transaction() as session:
                claim = jobs.claim(session, "the last", 600.0)
                if claim is None:
                    break
                jobs.finish(session, jobs.held(session, claim.job_id, claim.fence), "succeeded")
        assert set(self.statuses()) <= TERMINAL

    def holds(self, attempt: Attempt) -> bool:
        return self.holder.get(attempt.claim.job_id) == attempt.claim.fence

    def only_the_holder(self, attempt: Attempt, write) -> bool:
        """Write on behalf of an attempt; that it could must be as it should."""
        claim, may = attempt.claim, self.holds(attempt)
        try:
            with self.database.transaction() as session:
                write(session, jobs.held(session, claim.job_id, claim.fence))
            assert may, "a stale fence wrote"
            self.written.setdefault(claim.job_id, []).append(claim.fence)
        except LeaseLostError:
            assert not may, "the holder could not write"
        return may

    def statuses(self) -> dict[str, int]:
        with self.database.reading() as session:
            counts = select(Job.status, func.count()).group_by(Job.status)
            return {status: n for status, n in session.execute(counts)}  # noqa: C416


@pytest.mark.slow
def test_leases_hold_in_any_order_of_events(database):
    machine = type("LeasesHere", (Leases,), {"database": database})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
