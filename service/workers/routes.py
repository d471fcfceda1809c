"""Routes of workers."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Response, status
from sqlalchemy.orm import Session

from service.auth.access import Operator, Viewer
from service.auth.principal import Principal
from service.db.database import store_time
from service.dependencies import CurrentSettings, Cursor, Limit, ReadSession, WriteSession
from service.jobs.repository import running_on
from service.schemas import Page, next_cursor
from service.settings import Settings
from service.workers.models import WorkerRow
from service.workers.repository import drain, get_worker, list_workers
from service.workers.schemas import (
    GivenRead,
    ResourcesRead,
    State,
    WorkerAttemptRead,
    WorkerRead,
)

router = APIRouter(prefix="/workers", tags=["workers"])


@router.get("")
def list_all(
    session: ReadSession,
    settings: CurrentSettings,
    viewer: Viewer,
    online: Annotated[bool, Query(description="Only those that are there.")] = False,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Page[WorkerRead]:
    """The workers, newest first, with what runs on them; one that left is told of for a week."""
    seconds = settings.worker_offline_seconds if online else None
    rows = list_workers(session, cursor, limit, seconds)
    items = _read(session, rows, settings, viewer)
    return Page[WorkerRead](items=items, next_cursor=next_cursor(items, limit))


@router.get("/{worker_id}")
def read(
    worker_id: str, session: ReadSession, settings: CurrentSettings, viewer: Viewer
) -> WorkerRead:
    """One worker."""
    (found,) = _read(session, [get_worker(session, worker_id)], settings, viewer)
    return found


@router.post(
    "/{worker_id}/drain",
    status_code=status.HTTP_202_ACCEPTED,
    responses={200: {"model": WorkerRead, "description": "It was told before."}},
)
def drain_one(
    worker_id: str,
    session: WriteSession,
    settings: CurrentSettings,
    operator: Operator,
    response: Response,
    hand_back: Annotated[
        bool, Query(description="Checkpoint and hand back what runs instead of finishing it.")
    ] = False,
) -> WorkerRead:
    """Let a worker take no new work and leave once nothing runs; 200 when it was told before."""
    if not drain(session, worker_id, hand_back=hand_back):
        response.status_code = status.HTTP_200_OK
    (found,) = _read(session, [get_worker(session, worker_id)], settings, operator)
    return found


def _read(
    session: Session, rows: Sequence[WorkerRow], settings: Settings, principal: Principal
) -> list[WorkerRead]:
    attempts: dict[str | None, list[WorkerAttemptRead]] = {}
    for job, attempt in running_on(session, [row.id for row in rows]):
        read = WorkerAttemptRead(
            job=job.id,
            kind=job.kind,
            subject=job.subject_id if principal.sees(job.owner) else None,
            number=attempt.number,
            started_at=attempt.started_at,
            stop_requested_at=job.stop_requested_at,
            given=GivenRead.model_validate(attempt.resources),
        )
        attempts.setdefault(job.worker, []).append(read)
    online_since = store_time(session) - timedelta(seconds=settings.worker_offline_seconds)
    return [
        WorkerRead(
            id=row.id,
            name=row.name,
            host=row.host,
            version=row.version,
            state=_state(row, is_seen=row.seen_at >= online_since),
            hand_back=row.hand_back,
            slots=row.slots,
            slots_in_use=len(attempts.get(row.id, [])),
            resources=ResourcesRead.model_validate(row.resources),
            labels=row.labels,
            attempts=attempts.get(row.id, []),
            started_at=row.started_at,
            seen_at=row.seen_at,
            stopped_at=row.stopped_at,
        )
        for row in rows
    ]


def _state(row: WorkerRow, *, is_seen: bool) -> State:
    if row.stopped_at is not None:
        return "left"
    if not is_seen:
        return "offline"
    return "draining" if row.draining else "online"
