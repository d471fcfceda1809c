"""Every statement on jobs: enqueue, claim, renew, reap, finish."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from service.db.base import new_id, utc_now
from service.errors import LeaseLostError
from service.jobs.models import Job, JobAttempt


@dataclass(frozen=True)
class Claim:
    """What a worker holds while an attempt runs.

    Attributes:
        fence: proves that this claim is the newest one.
        attempt: 1 for the first.
    """

    job_id: str
    kind: str
    subject_id: str
    fence: int
    attempt: int


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
    now = utc_now()
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


def claim(session: Session, worker: str, lease_seconds: float) -> Claim | None:
    """Take the most urgent claimable job, or None when there is none.

    Two workers never take the same one: PostgreSQL skips rows another transaction has
    locked, SQLite runs one writing transaction at a time.
    """
    now = utc_now()
    job = session.scalars(
        select(Job)
        .where(Job.status == "queued", Job.blocked_on.is_(None), Job.available_at <= now)
        .order_by(Job.priority.desc(), Job.created_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    ).first()
    if job is None:
        return None
    job.status = "running"
    job.worker = worker
    job.attempt += 1
    job.fence += 1
    job.lease_expires_at = now + timedelta(seconds=lease_seconds)
    session.add(JobAttempt(job_id=job.id, number=job.attempt, worker=worker, started_at=now))
    session.flush()
    return Claim(job.id, job.kind, job.subject_id, job.fence, job.attempt)


def renew(session: Session, claim: Claim, lease_seconds: float) -> None:
    """Extend the lease.

    Raises:
        LeaseLostError: the job was reaped, finished or claimed anew.
    """
    held(session, claim.job_id, claim.fence).lease_expires_at = utc_now() + timedelta(
        seconds=lease_seconds
    )


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
        raise LeaseLostError(f"job {job_id} is not held by fence {fence} any more")
    return job


def finish(session: Session, job: Job, status: str, failure: str | None = None) -> None:
    """End a running job; `status` is succeeded, failed, cancelled or, for a while, paused."""
    job.status = status
    job.stop_requested_at = None
    job.failure = failure
    job.lease_expires_at = None
    _end_attempt(session, job, status)


def retry_or_fail(session: Session, job: Job, outcome: str, *, delay_seconds: float = 0.0) -> bool:
    """Queue a job again after its attempt ended early; True when it has attempts left.

    An attempt that was handed back did nothing wrong and does not count.
    """
    _end_attempt(session, job, outcome)
    job.lease_expires_at = None
    job.stop_requested_at = None
    if outcome == "handed_back":
        job.max_attempts += 1
    if job.attempt >= job.max_attempts:
        job.status = "failed"
        job.failure = f"{outcome}, {job.attempt} attempts"
        return False
    job.status = "queued"
    job.available_at = utc_now() + timedelta(seconds=delay_seconds)
    return True


def expired(session: Session, now: datetime) -> Sequence[Job]:
    """Running jobs whose lease has run out, locked."""
    return session.scalars(
        select(Job)
        .where(Job.status == "running", Job.lease_expires_at < now)
        .with_for_update(skip_locked=True)
    ).all()


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


def ask_to_stop(session: Session, subject_id: str) -> bool:
    """Ask the running attempt of a subject to stop; False when none runs.

    It is asked once: a worker that sees no end of it within the stated grace kills it.
    """
    job = session.scalars(
        select(Job).where(Job.subject_id == subject_id, Job.status == "running").with_for_update()
    ).first()
    if job is not None and job.stop_requested_at is None:
        job.stop_requested_at = utc_now()
    return job is not None


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
    job.status, job.available_at = after, utc_now()
    return True


def position(session: Session, job: Job) -> int:
    """How many claimable jobs stand before `job`, plus one."""
    ahead = (Job.priority > job.priority) | (
        (Job.priority == job.priority) & (Job.created_at < job.created_at)
    )
    count = session.scalar(
        select(func.count())
        .select_from(Job)
        .where(Job.status == "queued", Job.blocked_on.is_(None), ahead)
    )
    return 1 + (count or 0)


def of_subject(session: Session, subject_id: str) -> Job | None:
    """The newest job of a subject."""
    return session.scalars(
        select(Job).where(Job.subject_id == subject_id).order_by(Job.created_at.desc()).limit(1)
    ).first()


def attempts(session: Session, job_id: str) -> Sequence[JobAttempt]:
    """Every attempt of a job, first to last."""
    return session.scalars(
        select(JobAttempt).where(JobAttempt.job_id == job_id).order_by(JobAttempt.number)
    ).all()


def _end_attempt(session: Session, job: Job, outcome: str) -> None:
    attempt = session.get_one(JobAttempt, (job.id, job.attempt))
    attempt.ended_at = utc_now()
    attempt.outcome = outcome
