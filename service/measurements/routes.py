"""Routes of kits, leases, model files and uploads."""

import asyncio
import time
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Response, status
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from service.agents.repository import n_online, seen
from service.auth.access import CurrentAgent, User
from service.db.base import utc_now
from service.dependencies import (
    Artifacts,
    CurrentDatabase,
    CurrentSettings,
    Cursor,
    Limit,
    ReadSession,
    WriteSession,
)
from service.errors import NotFoundError
from service.measurements.intake import take_in
from service.measurements.kits import ensure_kit
from service.measurements.models import Kit
from service.measurements.repository import (
    get_kit,
    has_open_task,
    is_model_of_target,
    kit_progress,
    lease_tasks,
    list_measurements,
)
from service.measurements.schemas import (
    BatchCreate,
    BatchReport,
    KitCreate,
    KitRead,
    LeaseCreate,
    LeasedTaskRead,
    LeaseRead,
    MeasurementRead,
)
from service.schemas import Page, next_cursor
from service.settings import Settings
from service.spaces.catalogue import listed_space
from service.targets.repository import named_target

router = APIRouter(tags=["measurements"])

_LEASE_POLL_SECONDS = 0.2


@router.post("/kits", status_code=status.HTTP_201_CREATED)
def create_kit(
    body: KitCreate,
    session: WriteSession,
    artifacts: Artifacts,
    settings: CurrentSettings,
    _: User,
) -> KitRead:
    """Have a space measured on a target; asking again returns the kit there is."""
    space = listed_space(body.search_space)
    target = named_target(session, body.target)
    kit = ensure_kit(session, artifacts, target.id, space)
    session.flush()
    return _read_kit(session, kit, settings)


@router.get("/kits/{kit_id}")
def read_kit(kit_id: str, session: ReadSession, settings: CurrentSettings, _: User) -> KitRead:
    """A kit and how far its measuring is."""
    return _read_kit(session, get_kit(session, kit_id), settings)


@router.post("/measurement-tasks/lease")
async def lease(
    body: LeaseCreate, database: CurrentDatabase, settings: CurrentSettings, agent: CurrentAgent
) -> LeaseRead:
    """Work for an agent, of its own target only; waits up to `wait_seconds` for some."""

    def try_lease(*, first: bool) -> LeaseRead:
        expires_at = utc_now() + timedelta(seconds=settings.task_lease_seconds)
        with database.reading() as session:
            if not first and not has_open_task(session, agent.target_id):
                return LeaseRead(items=[], expires_at=expires_at)
        with database.transaction() as session:
            seen(session, agent.id)
            tasks = lease_tasks(
                session, agent.target_id, agent.id, body.limit, settings.task_lease_seconds
            )
            items = [LeasedTaskRead.model_validate(task) for task in tasks]
            return LeaseRead(items=items, expires_at=expires_at)

    deadline = time.monotonic() + body.wait_seconds
    leased = await run_in_threadpool(try_lease, first=True)
    while not leased.items and time.monotonic() < deadline:
        await asyncio.sleep(_LEASE_POLL_SECONDS)
        leased = await run_in_threadpool(try_lease, first=False)
    return leased


@router.get("/models/{sha256}", response_class=Response)
def download_model(
    sha256: str, session: ReadSession, artifacts: Artifacts, agent: CurrentAgent
) -> Response:
    """A model file that was announced to the agent's target."""
    if not is_model_of_target(session, agent.target_id, sha256):
        raise NotFoundError(f"no model {sha256} was announced to this target")
    return Response(artifacts.get(sha256), media_type="application/octet-stream")


@router.post("/measurements")
def upload(
    body: BatchCreate, session: WriteSession, settings: CurrentSettings, agent: CurrentAgent
) -> BatchReport:
    """Take in a batch of results; idempotent by `batch_id`."""
    seen(session, agent.id)
    return take_in(session, agent, body, settings)


@router.get("/measurements")
def list_all(
    session: ReadSession,
    _: User,
    target: Annotated[str | None, Query(max_length=80)] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Page[MeasurementRead]:
    """Measurements, newest first."""
    rows = list_measurements(session, target, cursor, limit)
    items = [MeasurementRead.model_validate(row) for row in rows]
    return Page[MeasurementRead](items=items, next_cursor=next_cursor(items, limit))


def _read_kit(session: Session, kit: Kit, settings: Settings) -> KitRead:
    counts = kit_progress(session, kit.id)
    total, done, failed = sum(counts.values()), counts.get("done", 0), counts.get("failed", 0)
    open_tasks = total - done - failed
    return KitRead(
        id=kit.id,
        target=kit.target_id,
        search_space=kit.space,
        status="measuring" if open_tasks else "incomplete" if failed else "measured",
        completed=done,
        failed=failed,
        total=total,
        agents_online=n_online(session, kit.target_id, settings.agent_offline_seconds),
        created_at=kit.created_at,
    )
