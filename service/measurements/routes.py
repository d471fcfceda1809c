"""Routes of kits, leases, model files and uploads."""

import asyncio
import time
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response, status
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from predictor.kits import anchor_item, plan_kit
from predictor.measurements import Precision
from service.agents.repository import get_agent, n_online, seen
from service.agents.signing import Signer
from service.agents.versions import require_recent
from service.auth.access import CurrentAgent, User, Viewer
from service.db.base import utc_now
from service.dependencies import (
    Artifacts,
    CurrentDatabase,
    CurrentSettings,
    CurrentSigner,
    Cursor,
    Limit,
    ReadSession,
    WriteSession,
)
from service.errors import NotFoundError
from service.measurements.intake import take_in
from service.measurements.kits import build_files, ensure_kit, read_progress
from service.measurements.models import Kit, MeasurementTask
from service.measurements.repository import (
    find_files,
    get_kit,
    has_open_task,
    is_kit_file,
    is_model_of_targets,
    lease_tasks,
    list_measurements,
    supersede,
)
from service.measurements.schemas import (
    BatchCreate,
    BatchReport,
    KitCreate,
    KitFilesRead,
    KitRead,
    LeaseCreate,
    LeasedTaskRead,
    LeaseRead,
    MeasurementRead,
)
from service.operations.metrics import CurrentInstruments
from service.schemas import Page, Text, next_cursor
from service.settings import Settings
from service.spaces.catalogue import listed_space
from service.targets.repository import named_target

router = APIRouter(tags=["measurements"])

_LEASE_POLL_SECONDS = 0.2
_FILE: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}


@router.post("/kits", status_code=status.HTTP_201_CREATED)
def create_kit(
    body: KitCreate,
    session: WriteSession,
    database: CurrentDatabase,
    artifacts: Artifacts,
    settings: CurrentSettings,
    _: User,
) -> KitRead:
    """Have a space measured on a target; asking again returns the kit there is."""
    space = listed_space(body.search_space)
    with database.reading() as reading:
        profile = named_target(reading, body.target).profile
    build_files(database, artifacts, space, profile["precision"], profile["batch"])
    target = named_target(session, body.target)
    kit = ensure_kit(session, target, space, body.until_half_width)
    if body.again:
        supersede(session, kit.id)
        session.flush()
    return _read_kit(session, kit, settings)


@router.get("/kits/{kit_id}")
def read_kit(kit_id: str, session: ReadSession, settings: CurrentSettings, _: Viewer) -> KitRead:
    """A kit and how far its measuring is."""
    return _read_kit(session, get_kit(session, kit_id), settings)


@router.get("/kit-files")
def read_kit_files(
    database: CurrentDatabase,
    artifacts: Artifacts,
    signer: CurrentSigner,
    _: Viewer,
    search_space: Annotated[Text, Query(max_length=80)],
    precision: Precision = "float32",
    batch: Annotated[int, Query(ge=1, le=4096)] = 1,
) -> KitFilesRead:
    """The files of a space's kit and their hashes, signed, for devices without network."""
    space = listed_space(search_space)
    build_files(database, artifacts, space, precision, batch)
    items = {item.subject: item for item in plan_kit(space)}
    anchor = anchor_item().subject
    with database.reading() as session:
        files = find_files(session, [*items, anchor], precision, batch)
    document: dict[str, Any] = {
        "format": "tailor-kit/1",
        "search_space": space.name,
        "precision": precision,
        "batch": batch,
        "anchor_sha256": files[anchor].sha256,
        "items": [
            {
                "subject": subject,
                "role": item.role,
                "model_sha256": files[subject].sha256,
                "n_bytes": files[subject].n_bytes,
            }
            for subject, item in items.items()
        ],
        "signing_key": signer.public_key,
    }
    return KitFilesRead(**document, signature=signer.sign_document(document))


@router.get("/kit-files/{sha256}", response_class=Response, responses=_FILE)
def download_kit_file(
    sha256: str, session: ReadSession, artifacts: Artifacts, _: Viewer
) -> Response:
    """One file of a kit."""
    if not is_kit_file(session, sha256):
        raise NotFoundError(f"no kit has a file {sha256}")
    return Response(artifacts.get(sha256), media_type="application/octet-stream")


@router.post(
    "/measurement-tasks/lease", responses={426: {"description": "The agent must be updated."}}
)
async def lease(
    body: LeaseCreate,
    database: CurrentDatabase,
    settings: CurrentSettings,
    signer: CurrentSigner,
    agent: CurrentAgent,
) -> LeaseRead:
    """Work for an agent, of its own targets only; waits up to `wait_seconds` for some."""
    require_recent(agent.version)
    targets = agent.target_ids

    def try_lease(*, first: bool) -> LeaseRead:
        expires_at = utc_now() + timedelta(seconds=settings.task_lease_seconds)
        with database.reading() as session:
            nothing = not first and not has_open_task(session, targets, agent.id)
            draining = get_agent(session, agent.id).draining
        if nothing or draining:
            return LeaseRead(items=[], expires_at=expires_at, draining=draining)
        with database.transaction() as session:
            seen(session, agent.id)
            tasks = lease_tasks(session, targets, agent.id, body.limit, settings.task_lease_seconds)
            items = [_leased(task, signer) for task in tasks]
            return LeaseRead(items=items, expires_at=expires_at, draining=False)

    deadline = time.monotonic() + body.wait_seconds
    leased = await run_in_threadpool(try_lease, first=True)
    while not (leased.items or leased.draining) and time.monotonic() < deadline:
        await asyncio.sleep(_LEASE_POLL_SECONDS)
        leased = await run_in_threadpool(try_lease, first=False)
    return leased


@router.get("/models/{sha256}", response_class=Response, responses=_FILE)
def download_model(
    sha256: str, session: ReadSession, artifacts: Artifacts, agent: CurrentAgent
) -> Response:
    """A model file that was announced to the agent's targets."""
    if not is_model_of_targets(session, agent.target_ids, sha256):
        raise NotFoundError(f"no model {sha256} was announced to this target")
    return Response(artifacts.get(sha256), media_type="application/octet-stream")


@router.post("/measurements")
def upload(
    body: BatchCreate,
    session: WriteSession,
    settings: CurrentSettings,
    instruments: CurrentInstruments,
    agent: CurrentAgent,
) -> BatchReport:
    """Take in a batch of results, gzipped or not; idempotent by `batch_id`."""
    report = take_in(session, agent, body, settings)
    for item in report.items:
        instruments.uploaded(item.reason)
    return report


@router.get("/measurements")
def list_all(
    session: ReadSession,
    _: Viewer,
    target: Annotated[Text | None, Query(max_length=80)] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Page[MeasurementRead]:
    """Measurements, newest first."""
    rows = list_measurements(session, target, cursor, limit)
    items = [MeasurementRead.model_validate(row) for row in rows]
    return Page[MeasurementRead](items=items, next_cursor=next_cursor(items, limit))


def _read_kit(session: Session, kit: Kit, settings: Settings) -> KitRead:
    return KitRead(
        id=kit.id,
        target=kit.target_id,
        search_space=kit.space,
        agents_online=n_online(session, kit.target_id, settings.agent_offline_seconds),
        until_half_width=kit.until_half_width,
        created_at=kit.created_at,
        **read_progress(session, kit.id)._asdict(),
    )


def _leased(task: MeasurementTask, signer: Signer) -> LeasedTaskRead:
    return LeasedTaskRead(
        id=task.id,
        target_id=task.target_id,
        subject=task.subject,
        effort=task.effort,
        fence=task.fence,
        model_sha256=task.model_sha256,
        anchor_sha256=task.anchor_sha256,
        signature=signer.sign_task(
            task.target_id, task.subject, task.model_sha256, task.anchor_sha256
        ),
    )
