"""Routes of searches."""

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response, status
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from predictor.network import NetworkLatencyModel
from search_core.space.presets import get_space
from service.agents.repository import n_online
from service.auth.access import User
from service.dependencies import (
    Artifacts,
    CurrentDatabase,
    CurrentSettings,
    Cursor,
    Limit,
    ReadSession,
    WriteSession,
)
from service.errors import ConflictError
from service.jobs import repository as jobs
from service.latency_models.repository import get_model
from service.measurements.repository import find_kit, kit_progress
from service.schemas import Page, next_cursor
from service.searches import lifecycle
from service.searches.models import Search
from service.searches.repository import (
    get_artifact,
    get_search,
    list_artifacts,
    list_events,
    list_searches,
)
from service.searches.schemas import (
    TERMINAL,
    ArchitectureRead,
    ArtifactList,
    ArtifactRead,
    AttemptRead,
    EventList,
    EventRead,
    Feasibility,
    SearchCreate,
    SearchRead,
    Status,
    StatusReason,
)
from service.settings import Settings

router = APIRouter(prefix="/searches", tags=["searches"])

_WAIT_POLL_SECONDS = 0.2


@router.post(
    "",
    status_code=status.HTTP_201_CREATED,
    responses={200: {"model": Feasibility, "description": "The preflight, with `dry_run`."}},
)
def create(
    body: SearchCreate,
    session: WriteSession,
    database: CurrentDatabase,
    artifacts: Artifacts,
    settings: CurrentSettings,
    user: User,
    response: Response,
    dry_run: Annotated[bool, Query(description="Answer the preflight, store nothing.")] = False,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
) -> SearchRead | Feasibility:
    """Queue a search: a target and a latency budget in, a measured network out."""
    if dry_run:
        response.status_code = status.HTTP_200_OK
        return lifecycle.preflight(session, body, settings)
    lifecycle.build_kit_files(database, artifacts, body)
    search = lifecycle.create(session, settings, user, body, idempotency_key)
    session.flush()
    response.headers["Location"] = f"/v1/searches/{search.id}"
    return _read(session, search, settings)


@router.get("")
def list_all(
    session: ReadSession,
    settings: CurrentSettings,
    _: User,
    status: Annotated[Status | None, Query()] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Page[SearchRead]:
    """Searches, newest first."""
    rows = list_searches(session, status, cursor, limit)
    items = [_read(session, row, settings) for row in rows]
    return Page[SearchRead](items=items, next_cursor=next_cursor(items, limit))


@router.get("/{search_id}")
def get(search_id: str, session: ReadSession, settings: CurrentSettings, _: User) -> SearchRead:
    """One search: status, phase, progress, result."""
    return _read(session, get_search(session, search_id), settings)


@router.post("/{search_id}/cancel")
def cancel(search_id: str, session: WriteSession, settings: CurrentSettings, _: User) -> SearchRead:
    """Stop a search: at once while queued, at its next step while running."""
    search = lifecycle.cancel(session, search_id)
    session.flush()
    return _read(session, search, settings)


@router.get("/{search_id}/events")
async def events(
    search_id: str,
    database: CurrentDatabase,
    _: User,
    after: Annotated[int, Query(ge=0, lt=2**31, description="Number of the last event seen.")] = 0,
    limit: Limit = 200,
    wait: Annotated[float, Query(ge=0, le=25, description="Seconds to wait for news.")] = 0.0,
) -> EventList:
    """Events after a number, oldest first; waits for some unless the search has ended."""

    def look() -> tuple[EventList, bool]:
        with database.reading() as session:
            search = get_search(session, search_id)
            rows = list_events(session, search_id, after, limit)
            items = [EventRead.model_validate(row) for row in rows]
            return EventList(items=items), search.status in TERMINAL

    deadline = time.monotonic() + wait
    while True:
        found, ended = await run_in_threadpool(look)
        if found.items or ended or time.monotonic() >= deadline:
            return found
        await asyncio.sleep(_WAIT_POLL_SECONDS)


@router.get("/{search_id}/architecture")
def architecture(search_id: str, session: ReadSession, _: User) -> ArchitectureRead:
    """The network that was found: predicted, measured, and where its time goes."""
    search = get_search(session, search_id)
    if search.result is None or search.latency_model_id is None:
        raise ConflictError(
            f"search {search.id} is {search.status} and has no architecture"
            + ("" if search.status in TERMINAL else " yet")
        )
    network: dict[str, Any] = search.result["network"]
    spec = SearchCreate.model_validate(search.spec)
    space = get_space(spec.search_space)
    decided = space.parse(network["architecture"])
    model = NetworkLatencyModel.from_document(get_model(session, search.latency_model_id).document)
    rows = zip(model.table_ms, decided.choices, strict=True)
    return ArchitectureRead(
        **network,
        search=search.id,
        search_space=spec.search_space,
        latency_budget_ms=spec.latency_budget_ms,
        within_budget=search.status == "succeeded",
        layers=[str(block) for block in space.blocks(decided)],
        layer_ms=[row[choice] for row, choice in rows],
        seconds_by_phase=search.seconds_by_phase,
    )


@router.get("/{search_id}/artifacts")
def artifacts_of(search_id: str, session: ReadSession, _: User) -> ArtifactList:
    """The files of a search."""
    get_search(session, search_id)
    items = [
        ArtifactRead(
            name=row.name,
            sha256=row.sha256,
            size_bytes=row.size_bytes,
            media_type=row.media_type,
            url=f"/v1/searches/{search_id}/artifacts/{row.name}",
        )
        for row in list_artifacts(session, search_id)
    ]
    return ArtifactList(items=items)


@router.get("/{search_id}/artifacts/{name}", response_class=Response)
def download(
    search_id: str, name: str, session: ReadSession, artifacts: Artifacts, _: User
) -> Response:
    """One file; its ETag is the sha256 of its content."""
    get_search(session, search_id)
    row = get_artifact(session, search_id, name)
    return Response(
        artifacts.get(row.sha256),
        media_type=row.media_type,
        headers={
            "ETag": f'"{row.sha256}"',
            "Content-Disposition": f'attachment; filename="{row.name}"',
        },
    )


def _read(session: Session, search: Search, settings: Settings) -> SearchRead:
    job = jobs.of_subject(session, search.id)
    attempts = jobs.attempts(session, job.id) if job else []
    base = f"/v1/searches/{search.id}"
    return SearchRead(
        id=search.id,
        status=search.status,
        phase=search.phase,
        status_reason=_reason(session, search, settings),
        version=search.version,
        spec=SearchCreate.model_validate(search.spec),
        progress=search.progress,
        feasibility=search.feasibility,
        result=search.result,
        seconds_by_phase=search.seconds_by_phase,
        latency_model=search.latency_model_id,
        attempts=[AttemptRead.model_validate(attempt) for attempt in attempts],
        created_at=search.created_at,
        started_at=search.started_at,
        finished_at=search.finished_at,
        links={
            "self": base,
            "events": f"{base}/events",
            "architecture": f"{base}/architecture",
            "artifacts": f"{base}/artifacts",
        },
    )


def _reason(session: Session, search: Search, settings: Settings) -> StatusReason | None:
    """Why the search waits or ended; a queued one always has a reason."""
    if search.status_reason is not None:
        return StatusReason.model_validate(search.status_reason)
    if search.status != "queued":
        return None
    job = jobs.of_subject(session, search.id)
    if job is not None and job.blocked_on is not None:
        space = get_space(search.spec["search_space"])
        kit = find_kit(session, search.target_id, space.digest)
        counts = kit_progress(session, kit.id) if kit else {}
        done, total = counts.get("done", 0), sum(counts.values())
        text = f"{done} of {total} subjects of the space are measured on the target"
        if n_online(session, search.target_id, settings.agent_offline_seconds):
            return StatusReason(
                code="awaiting_measurements", text=f"{text}.", since=search.phase_since
            )
        return StatusReason(
            code="no_agent_online",
            text=f"{text}, and none of its agents is online; start one with `tailor agent run`.",
            since=search.phase_since,
        )
    place = jobs.position(session, job) if job else None
    return StatusReason(
        code="queue_position",
        text="Waiting for a free worker; start one with `tailor worker`.",
        since=search.phase_since,
        position=place,
    )
