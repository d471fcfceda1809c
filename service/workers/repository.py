"""Every statement on workers."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.orm import Session

from service.db.database import store_time
from service.errors import ConflictError, NotFoundError
from service.version import VERSION
from service.workers.models import WorkerRow

_KEPT_DAYS = 7
"""For which a worker that has left is still told of."""


def add_worker(
    session: Session,
    worker_id: str,
    *,
    name: str,
    host: str,
    slots: int,
    resources: dict[str, Any],
    labels: Mapping[str, str],
) -> WorkerRow:
    """A worker that starts now."""
    now = store_time(session)
    worker = WorkerRow(
        id=worker_id,
        name=name,
        host=host,
        version=VERSION,
        slots=slots,
        resources=resources,
        labels=dict(labels),
        started_at=now,
        seen_at=now,
    )
    session.add(worker)
    session.flush()
    return worker


def find_worker(session: Session, worker_id: str) -> WorkerRow | None:
    """The worker of that id."""
    return session.get(WorkerRow, worker_id)


def get_worker(session: Session, worker_id: str, *, lock: bool = False) -> WorkerRow:
    """The worker of that id.

    Raises:
        NotFoundError: there is none, or it left long ago.
    """
    worker = session.get(WorkerRow, worker_id, with_for_update=lock or None)
    if worker is None:
        raise NotFoundError(f"no worker has id {worker_id}; `tailor worker list` names them")
    return worker


def list_workers(
    session: Session, cursor: str | None, limit: int, online_seconds: float | None = None
) -> Sequence[WorkerRow]:
    """A page of workers, newest first.

    Args:
        online_seconds: only those that are online, and were seen within this.
    """
    statement = select(WorkerRow).order_by(WorkerRow.id.desc()).limit(limit)
    if online_seconds is not None:
        statement = statement.where(*_online(session, online_seconds))
    if cursor:
        statement = statement.where(WorkerRow.id < cursor)
    return session.scalars(statement).all()


def workers_taking_work(session: Session, online_seconds: float) -> Sequence[WorkerRow]:
    """The workers that are online and take new claims."""
    statement = select(WorkerRow).where(
        *_online(session, online_seconds), WorkerRow.draining.is_(False)
    )
    return session.scalars(statement.order_by(WorkerRow.id)).all()


def _online(session: Session, online_seconds: float) -> tuple[ColumnElement[bool], ...]:
    since = store_time(session) - timedelta(seconds=online_seconds)
    return WorkerRow.stopped_at.is_(None), WorkerRow.seen_at >= since


def beat(session: Session, worker_id: str) -> bool:
    """The worker lives, whatever was thought of it meanwhile; False when nobody knows it."""
    worker = find_worker(session, worker_id)
    if worker is not None:
        worker.seen_at, worker.stopped_at = store_time(session), None
    return worker is not None


def leave(session: Session, worker_id: str) -> None:
    """The worker leaves."""
    session.execute(
        update(WorkerRow).where(WorkerRow.id == worker_id).values(stopped_at=store_time(session))
    )


def drain(session: Session, worker_id: str, *, hand_back: bool) -> bool:
    """Let a worker take no new claim, and leave once nothing runs; False when it was told so.

    Args:
        hand_back: what runs is checkpointed and handed back instead of finished.

    Raises:
        NotFoundError: there is no such worker.
        ConflictError: it has left.
    """
    worker = get_worker(session, worker_id, lock=True)
    if worker.stopped_at is not None:
        raise ConflictError(f"worker {worker.name} has left already")
    told = worker.draining and (worker.hand_back or not hand_back)
    worker.draining, worker.hand_back = True, worker.hand_back or hand_back
    return not told


def note_gone(session: Session, online_seconds: float) -> None:
    """Mark the workers that were not seen for so long as gone, and forget old ones."""
    now = store_time(session)
    session.execute(
        update(WorkerRow)
        .where(
            WorkerRow.stopped_at.is_(None),
            WorkerRow.seen_at < now - timedelta(seconds=online_seconds),
        )
        .values(stopped_at=now)
    )
    session.execute(delete(WorkerRow).where(WorkerRow.stopped_at < now - timedelta(_KEPT_DAYS)))
