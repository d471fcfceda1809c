"""Jobs and their attempts as rows."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, Id

_IN_QUEUE = text("status = 'queued' AND blocked_on IS NULL")
_RUNNING = text("status = 'running'")


class Job(Base):
    """Work for a worker.

    A job is claimable when it is queued, not blocked, and `available_at` has passed. `fence`
    grows with every claim; whoever writes on behalf of an attempt proves that it holds the
    newest one.

    Attributes:
        status: queued, running, paused, succeeded, failed or cancelled.
        priority: larger first.
        owner: whose share of the workers it uses; empty for the service's own work.
        needs: canonical JSON of what a worker must have for it (`service.jobs.needs`).
        stop_requested_at: when its attempt was asked to stop; it is killed some time later.
        queue_deadline: after which it is not worth beginning.
        worker: the id of the worker that claimed it last, at `claimed_at`.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "status", "priority", "created_at"),
        Index(  # the queue itself, which stays small however many jobs have ended
            "ix_jobs_queue",
            "owner",
            "priority",
            "created_at",
            "id",
            postgresql_where=_IN_QUEUE,
            sqlite_where=_IN_QUEUE,
        ),
        Index(
            "ix_jobs_queue_needs",
            "needs",
            postgresql_where=_IN_QUEUE,
            sqlite_where=_IN_QUEUE,
        ),
        Index(  # an owner's share, and when it was served last
            "ix_jobs_running", "owner", postgresql_where=_RUNNING, sqlite_where=_RUNNING
        ),
        Index(None, "owner", "claimed_at"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    kind: Mapped[str] = mapped_column(Text)
    subject_id: Mapped[str] = mapped_column(Id, index=True)
    status: Mapped[str] = mapped_column(Text)
    priority: Mapped[int] = mapped_column(default=0)
    blocked_on: Mapped[str | None] = mapped_column(Text, index=True)
    attempt: Mapped[int] = mapped_column(default=0)
    max_attempts: Mapped[int]
    fence: Mapped[int] = mapped_column(default=0)
    owner: Mapped[str] = mapped_column(Text, default="")
    needs: Mapped[str] = mapped_column(Text, default="{}")
    worker: Mapped[str | None] = mapped_column(Text, index=True)
    claimed_at: Mapped[datetime | None]
    lease_expires_at: Mapped[datetime | None]
    stop_requested_at: Mapped[datetime | None]
    queue_deadline: Mapped[datetime | None] = mapped_column(index=True)
    available_at: Mapped[datetime]
    created_at: Mapped[datetime]
    failure: Mapped[str | None] = mapped_column(Text)


class JobAttempt(Base):
    """One claim of a job and how it ended."""

    __tablename__ = "job_attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    worker: Mapped[str] = mapped_column(Text)
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None] = mapped_column(Text)  # a status, or an `Outcome`
    resources: Mapped[dict[str, Any]] = mapped_column(default=dict)  # what it was given
