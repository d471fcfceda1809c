"""Every statement on jobs: enqueue, claim, renew, reap, finish."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from itertools import groupby
from typing import Any, Literal, TypeVar, cast

from sqlalchemy import (
    CTE,
    BindParameter,
    ColumnElement,
    CursorResult,
    FromClause,
    ScalarSelect,
    Select,
    bindparam,
    case,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from service.db.base import new_id
from service.db.database import store_time
from service.errors import LeaseLostError
from service.jobs.models import Job, JobAttempt
from service.jobs.needs import Allotment, Needs

Outcome = Literal["handed_back", "crashed", "killed", "out_of_memory", "worker_lost"]
"""How an attempt ended that did not settle its job itself.

It was killed when it did not stop in time, whoever asked it to.
"""

Selected = TypeVar("Selected")


@dataclass(frozen=True)
class Claim:
    """What a worker holds while an attempt runs.

    Attributes:
        fence: proves that this claim is the newest one.
        attempt: 1 for the first.
        given: what of the worker the attempt may use.
    """

    job_id: str
    kind: str
    subject_id: str
    fence: int
    attempt: int
    given: Allotment = field(default_factory=Allotment)


@dataclass
class _OwnersQueue:
    """The jobs of one owner in the order in which they are claimed.

    Attributes:
        head: decides between owners of whom neither has been served yet.
        stretches: how many of each priority there are, the most urgent first.
    """

    owner: str
    n_running: int
    head: tuple[bool, datetime, datetime, str]
    stretches: dict[int, int] = field(default_factory=dict)

    def n_before(self, other: "_OwnersQueue", priority: int, n_older: int) -> int:
        """How many of its jobs are claimed before one of `other`, which may be itself.

        Of equal priority, the job goes first with which fewer of its owner's run; of these, the
        one whose owner was served longer ago. The service's own work goes before all of them.

        Args:
            priority: of the other's job.
            n_older: jobs of that priority that the other has before it.
        """
        more_urgent = self.n_above(priority)
        alike = self.stretches.get(priority, 0)
        if self is other:
            return more_urgent + n_older
        if not self.owner or not other.owner:
            return more_urgent + (0 if self.owner else alike)
        runs_by_then = other.n_running + other.n_above(priority) + n_older
        level = runs_by_then - self.n_running - more_urgent  # of those alike, the one that is
        if not 0 <= level < alike:
            return more_urgent + min(max(level, 0), alike)
        goes_first = self.history(priority, level) < other.history(priority, n_older)
        return more_urgent + level + goes_first

    def n_above(self, priority: int) -> int:
        """How many of its jobs are more urgent."""
        return sum(n for urgency, n in self.stretches.items() if urgency > priority)

    def history(self, priority: int, n_older: int) -> tuple[Any, ...]:
        """What was served of it until a job's turn, the last first: the smaller, the longer ago.

        Owners that are level now were level at every step back until one had been served
        something more urgent, and thus before the other, or nothing at all.
        """
        above = [(-urgency, n) for urgency, n in self.stretches.items() if urgency > priority]
        return ((-priority, n_older), *reversed(above)), self.head


def _in_queue(job: type[Job]) -> tuple[ColumnElement[bool], ...]:
    """As the partial indexes have it: a parameter would hide from the planner that they serve."""
    return job.status == literal_column("'queued'"), job.blocked_on.is_(None)


def _is_running(job: type[Job]) -> tuple[ColumnElement[bool], ...]:
    return (job.status == literal_column("'running'"),)  # likewise


_IN_QUEUE = _in_queue(Job)


def _anything(_: Needs) -> Allotment:
    return Allotment()


def enqueue(
    session: Session,
    kind: str,
    subject_id: str,
    *,
    max_attempts: int,
    owner: str = "",
    needs: str = "{}",
    blocked_on: str | None = None,
    priority: int = 0,
    queue_deadline: datetime | None = None,
) -> Job:
    """Add a job in the caller's transaction, so that it exists exactly when its cause does."""
    now = store_time(session)
    job = Job(
        id=new_id("job"),
        kind=kind,
        subject_id=subject_id,
        status="queued",
        priority=priority,
        owner=owner,
        needs=needs,
        queue_deadline=queue_deadline,
        blocked_on=blocked_on,
        attempt=0,
        max_attempts=max_attempts,
        fence=0,
        available_at=now,
        created_at=now,
    )
    session.add(job)
    return job


def is_waiting(session: Session, kind: str, subject_id: str) -> bool:
    """Whether a job of this kind about a subject has yet to begin or to end."""
    found = select(Job.id).where(
        Job.kind == kind, Job.subject_id == subject_id, Job.status.in_(("queued", "running"))
    )
    return session.scalars(found.limit(1)).first() is not None


def claim(
    session: Session,
    worker: str,
    lease_seconds: float,
    allot: Callable[[Needs], Allotment | None] = _anything,
) -> Claim | None:
    """Take the claimable job whose turn it is, or None when there is none.

    The most urgent jobs go first, among these the service's own, then those of the owner who
    has the fewest attempts running or, of several, was served longest ago. Two workers never
    take the same one: PostgreSQL skips rows another transaction has locked, SQLite runs one
    writing transaction at a time.

    Args:
        allot: what the worker can give to a job of these needs now; None: not enough.
    """
    now = store_time(session)
    waiting = session.scalars(_waiting_needs())
    given = {text: allot(Needs.parse(text)) for text in waiting if text is not None}
    served = [text for text, allotment in given.items() if allotment is not None]
    for owner in _owners_in_turn(session, served, now) if served else ():
        asked = {"owner": owner, "served": served, "now": now}
        job = session.scalars(_locked_head(), asked).first()
        if job is not None:
            allotment = given[job.needs]
            assert allotment is not None
            return _claimed(session, job, worker, now, lease_seconds, allotment)
    return None


def _claimed(
    session: Session,
    job: Job,
    worker: str,
    now: datetime,
    lease_seconds: float,
    allotment: Allotment,
) -> Claim:
    job.status = "running"
    job.worker, job.claimed_at = worker, now
    job.attempt += 1
    job.fence += 1
    job.lease_expires_at = now + timedelta(seconds=lease_seconds)
    session.add(
        JobAttempt(
            job_id=job.id,
            number=job.attempt,
            worker=worker,
            started_at=now,
            resources=allotment.to_document(),
        )
    )
    session.flush()
    return Claim(job.id, job.kind, job.subject_id, job.fence, job.attempt, allotment)


def renew(session: Session, claim: Claim, lease_seconds: float) -> bool:
    """Extend the lease; False when the attempt is just writing, and the lease waits for it.

    Raises:
        LeaseLostError: the job was reaped, finished or claimed anew.
    """
    held_by_us = (Job.id == claim.job_id, Job.fence == claim.fence, Job.status == "running")
    job = session.scalars(select(Job).where(*held_by_us).with_for_update(skip_locked=True)).first()
    if job is None:
        if session.scalars(select(Job.id).where(*held_by_us)).first() is None:
            raise _lost(claim.job_id, claim.fence)
        return False
    job.lease_expires_at = store_time(session) + timedelta(seconds=lease_seconds)
    return True


def held(session: Session, job_id: str, fence: int) -> Job:
    """The job, locked until the transaction ends, if `fence` still holds it.

    Every transaction of an attempt begins with this, so a zombie that outlived its lease
    can write nothing.

    Raises:
        LeaseLostError: it does not.
    """
    job = session.scalars(
        select(Job)
        .where(Job.id == job_id, Job.fence == fence, Job.status == "running")
        .with_for_update()
    ).first()
    if job is None:
        raise _lost(job_id, fence)
    return job


def _lost(job_id: str, fence: int) -> LeaseLostError:
    return LeaseLostError(f"job {job_id} is not held by fence {fence} any more")


def finish(session: Session, job: Job, status: str, failure: str | None = None) -> None:
    """End a running job; `status` is succeeded, failed, cancelled or, for a while, paused."""
    job.status = status
    job.stop_requested_at = None
    job.failure = failure
    job.lease_expires_at = None
    _end_attempt(session, job, status)


def retry_or_fail(
    session: Session,
    job: Job,
    outcome: Outcome,
    *,
    delay_seconds: float = 0.0,
    text: str | None = None,
) -> bool:
    """Queue a job again after its attempt ended early; True when it has attempts left.

    An attempt that was handed back, or killed because it was asked to stop, did nothing wrong
    and does not count. One that ran out of memory would do so again.

    Args:
        text: how it ended, for people.
    """
    _end_attempt(session, job, outcome)
    job.lease_expires_at = None
    job.stop_requested_at = None
    if outcome in ("handed_back", "killed"):
        job.max_attempts += 1
    if job.attempt >= job.max_attempts or outcome == "out_of_memory":
        job.status = "failed"
        job.failure = text or f"{outcome}, {job.attempt} attempts"
        return False
    job.status = "queued"
    job.available_at = store_time(session) + timedelta(seconds=delay_seconds)
    return True


def expired(session: Session) -> Sequence[str]:
    """The running jobs whose lease has run out."""
    now = store_time(session)
    return session.scalars(
        select(Job.id).where(*_is_running(Job), Job.lease_expires_at < now)
    ).all()


def take_expired(session: Session, job_id: str) -> Job | None:
    """That job, locked, if its lease has run out and nobody writes on its behalf."""
    now = store_time(session)
    return session.scalars(
        select(Job)
        .where(Job.id == job_id, Job.status == "running", Job.lease_expires_at < now)
        .with_for_update(skip_locked=True)
    ).first()


def pull_back(session: Session, lease_seconds: float) -> int:
    """Shorten what a clock that has been set back since would let last too long; returns how many.

    Nobody leases for longer than `lease_seconds` or delays for longer than that: what lies
    farther ahead was written while the clock was ahead.
    """
    horizon = store_time(session) + timedelta(seconds=2.0 * lease_seconds)
    leases = session.execute(
        update(Job)
        .where(Job.status == "running", Job.lease_expires_at > horizon)
        .values(lease_expires_at=horizon)
    )
    delays = session.execute(
        update(Job)
        .where(Job.status == "queued", Job.available_at > horizon)
        .values(available_at=horizon)
    )
    return sum(cast("CursorResult[Any]", done).rowcount for done in (leases, delays))


def overdue(session: Session) -> Sequence[str]:
    """The jobs that nothing began before their queue deadline."""
    return session.scalars(select(Job.id).where(*_overdue(session))).all()


def end_overdue(session: Session, job_id: str, text: str) -> Job | None:
    """End that job, if nothing has begun it meanwhile."""
    job = session.scalars(
        select(Job).where(Job.id == job_id, *_overdue(session)).with_for_update(skip_locked=True)
    ).first()
    if job is not None:
        job.status, job.failure = "failed", text
    return job


def _overdue(session: Session) -> tuple[ColumnElement[bool], ...]:
    now = store_time(session)
    return Job.status == "queued", Job.attempt == 0, Job.queue_deadline < now


def release(session: Session, blocked_on: str) -> None:
    """Make every job that waited for `blocked_on` claimable."""
    session.execute(update(Job).where(Job.blocked_on == blocked_on).values(blocked_on=None))


def cancel_queued(session: Session, subject_id: str) -> bool:
    """Cancel the job of a subject if no attempt is running; True when there was one."""
    job = session.scalars(
        select(Job)
        .where(Job.subject_id == subject_id, Job.status.in_(("queued", "paused")))
        .with_for_update()
    ).first()
    if job is not None:
        job.status = "cancelled"
    return job is not None


def lock_jobs(session: Session, subject_id: str) -> None:
    """Let nobody change the jobs of a subject until the transaction ends.

    An attempt locks its job first and then its search; whoever needs both takes them in that
    order, or the two would wait for each other.
    """
    session.execute(select(Job.id).where(Job.subject_id == subject_id).with_for_update())


def ask_to_stop(session: Session, subject_id: str) -> bool:
    """Ask the running attempt of a subject to stop; False when none runs.

    It is asked once: a worker that sees no end of it within the stated grace kills it.
    """
    job = session.scalars(
        select(Job).where(Job.subject_id == subject_id, Job.status == "running").with_for_update()
    ).first()
    if job is not None and job.stop_requested_at is None:
        job.stop_requested_at = store_time(session)
    return job is not None


def asked_to_stop(session: Session, worker: str) -> set[str]:
    """The jobs that run on a worker and were asked to stop."""
    return set(
        session.scalars(
            select(Job.id).where(
                Job.worker == worker, Job.status == "running", Job.stop_requested_at.is_not(None)
            )
        )
    )


def set_priority(session: Session, subject_id: str, priority: int) -> None:
    """Give the jobs of a subject another place in the queue."""
    session.execute(update(Job).where(Job.subject_id == subject_id).values(priority=priority))


def park_queued(session: Session, subject_id: str) -> bool:
    """Take a waiting job out of the queue until `unpark`; False when none waits."""
    return _move(session, subject_id, "queued", "paused")


def unpark(session: Session, subject_id: str) -> bool:
    """Put a parked job back into the queue, to be had at once; False when there is none."""
    return _move(session, subject_id, "paused", "queued")


def _move(session: Session, subject_id: str, before: str, after: str) -> bool:
    job = session.scalars(
        select(Job).where(Job.subject_id == subject_id, Job.status == before).with_for_update()
    ).first()
    if job is None:
        return False
    job.status, job.available_at = after, store_time(session)
    return True


def positions(session: Session, job_ids: Collection[str]) -> dict[str, int]:
    """The place in the queue, from 1, of those of the jobs that stand in it.

    The places are the order of claims if no attempt ended and every worker could serve every
    job. They are counted, not played through: of an owner's queue only what it holds of each
    priority is read.
    """
    sought = set(job_ids)
    if not sought:
        return {}
    found = session.execute(_ranks(), {"sought": list(sought)}).all()
    shares = _shares(session)
    queues: dict[str, _OwnersQueue] = {}
    for row in found:
        if row.owner not in queues:
            n_running, served_at = shares.get(row.owner, (0, None))
            head = (served_at is not None, served_at or row.created_at, row.created_at, row.id)
            queues[row.owner] = _OwnersQueue(row.owner, n_running, head)
        if row.n_older == 0:
            queues[row.owner].stretches[row.priority] = row.n
    return {
        row.id: 1
        + sum(
            queue.n_before(queues[row.owner], row.priority, row.n_older)
            for queue in queues.values()
        )
        for row in found
        if row.id in sought
    }


def position(session: Session, job: Job) -> int:
    """The place of one job; of one that is not in the queue, the one it would have at its end."""
    place = positions(session, [job.id]).get(job.id)
    if place is None:
        place = 1 + session.scalars(select(func.count()).select_from(Job).where(*_IN_QUEUE)).one()
    return place


def _owners_in_turn(session: Session, served: Collection[str], now: datetime) -> Sequence[str]:
    """The owners of claimable jobs of these needs, the one whose turn it is first."""
    heads = session.scalars(_heads(), {"served": served, "now": now}).all()
    return session.scalars(_turns(), {"heads": heads}).all()


def _shares(session: Session) -> dict[str, tuple[int, datetime | None]]:
    """The share of every owner in the queue; the service's own work has none."""
    return {row[0]: (row[1], row[2]) for row in session.execute(_owners_shares())}


# -- statements that every claim runs: to build one takes longer than to run it --------


@cache
def _waiting_needs() -> Select[str | None]:
    return select(_distinct_in_queue(Job.needs))


@cache
def _heads() -> Select[str]:
    """Of each owner the job that is claimed first."""
    owners = _distinct_in_queue(Job.owner)
    head = _head(select(Job.id), owners.c.value, owners).scalar_subquery()
    return select(head).select_from(owners)


@cache
def _locked_head() -> Select[Job]:
    head = _head(select(Job), bindparam("owner"))
    return head.with_for_update(skip_locked=True, of=Job)


def _head(
    wanted: Select[Selected], owner: ColumnElement[str] | BindParameter[str], *around: CTE
) -> Select[Selected]:
    """Of an owner's claimable jobs of the needs `served`, the oldest of the most urgent ones.

    Args:
        around: where the owner comes from, if that is a column.
    """
    other = aliased(Job)
    most_urgent = (
        select(func.max(other.priority))
        .where(other.owner == owner, *_claimable(other))
        .correlate(*around)
        .scalar_subquery()
    )
    of_owner = (Job.owner == owner, Job.priority == most_urgent, *_claimable(Job))
    return wanted.where(*of_owner).order_by(Job.created_at, Job.id).limit(1).correlate(*around)


def _claimable(job: type[Job]) -> tuple[ColumnElement[bool], ...]:
    is_served = job.needs.in_(bindparam("served", expanding=True))
    return (*_in_queue(job), job.available_at <= bindparam("now"), is_served)


@cache
def _turns() -> Select[str]:
    """The owners of these jobs in the order in which they are served."""
    n_running, served_at = _share_of(Job.owner, Job)
    return (
        select(Job.owner)
        .where(Job.id.in_(bindparam("heads", expanding=True)))
        .order_by(
            Job.priority.desc(),
            case((Job.owner == "", 0), else_=n_running + 1),
            served_at.asc().nulls_first(),
            Job.created_at,
            Job.id,
        )
    )


@cache
def _owners_shares() -> Select[str, int, datetime | None]:
    owners = _distinct_in_queue(Job.owner)
    owner = owners.c.value
    return select(owner, *_share_of(owner, owners)).where(owner != "")


@cache
def _ranks() -> Select[Any]:
    """The first of each stretch of the queue, and the jobs `sought`: how many go before them."""
    alike = (Job.owner, Job.priority)
    rank = func.row_number().over(partition_by=alike, order_by=(Job.created_at, Job.id))
    ranked = (
        select(
            *(Job.id, Job.owner, Job.priority, Job.created_at),
            (rank - 1).label("n_older"),
            func.count().over(partition_by=alike).label("n"),
        )
        .where(*_IN_QUEUE)
        .subquery()
    )
    is_sought = ranked.c.id.in_(bindparam("sought", expanding=True))
    return (
        select(ranked)
        .where((ranked.c.n_older == 0) | is_sought)
        .order_by(ranked.c.priority.desc(), ranked.c.n_older)
    )


def _distinct_in_queue(column: InstrumentedAttribute[str]) -> CTE:
    """Its values in the queue and a NULL: steps through an index instead of reading the queue."""
    steps = select(func.min(column).label("value")).where(*_IN_QUEUE).cte(recursive=True)
    following = select(func.min(column)).where(*_IN_QUEUE, column > steps.c.value)
    return steps.union_all(select(following.scalar_subquery()).where(steps.c.value.is_not(None)))


def _share_of(
    owner: ColumnElement[str] | InstrumentedAttribute[str], around: FromClause | type[Job]
) -> tuple[ScalarSelect[int], ScalarSelect[datetime | None]]:
    """How many attempts an owner has running, and when it was served last.

    Both are steps in an index, however many jobs have ended.

    Args:
        around: where the owner comes from.
    """
    running, last = aliased(Job), aliased(Job)
    n_running = select(func.count()).where(running.owner == owner, *_is_running(running))
    served_at = select(func.max(last.claimed_at)).where(last.owner == owner)
    return (
        n_running.correlate(around).scalar_subquery(),
        served_at.correlate(around).scalar_subquery(),
    )


def running_on(session: Session, workers: Collection[str]) -> Sequence[tuple[Job, JobAttempt]]:
    """What runs on these workers, oldest claim first."""
    found = session.execute(
        select(Job, JobAttempt)
        .join(JobAttempt, (JobAttempt.job_id == Job.id) & (JobAttempt.number == Job.attempt))
        .where(Job.status == "running", Job.worker.in_(workers))
        .order_by(JobAttempt.started_at, Job.id)
    )
    return [(job, attempt) for job, attempt in found]


def of_subject(session: Session, subject_id: str) -> Job | None:
    """The newest job of a subject."""
    return session.scalars(
        select(Job).where(Job.subject_id == subject_id).order_by(Job.created_at.desc()).limit(1)
    ).first()


def of_subjects(session: Session, subject_ids: Collection[str]) -> dict[str, Job]:
    """The newest job of each subject that has one."""
    found = session.scalars(
        select(Job).where(Job.subject_id.in_(subject_ids)).order_by(Job.created_at, Job.id)
    )
    return {job.subject_id: job for job in found}


def attempts_of(session: Session, job_ids: Collection[str]) -> dict[str, list[JobAttempt]]:
    """Every attempt of each of the jobs, first to last."""
    if not job_ids:
        return {}
    rows = session.scalars(
        select(JobAttempt)
        .where(JobAttempt.job_id.in_(job_ids))
        .order_by(JobAttempt.job_id, JobAttempt.number)
    )
    return {job_id: list(found) for job_id, found in groupby(rows, lambda row: row.job_id)}


def attempts(session: Session, job_id: str) -> Sequence[JobAttempt]:
    """Every attempt of a job, first to last."""
    return attempts_of(session, [job_id]).get(job_id, [])


def _end_attempt(session: Session, job: Job, outcome: str) -> None:
    attempt = session.get_one(JobAttempt, (job.id, job.attempt))
    attempt.ended_at = store_time(session)
    attempt.outcome = outcome
