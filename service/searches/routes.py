"""Routes of searches: ask for them, read them, act on them."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response, status
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from service.auth.access import User, Viewer
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
from service.errors import PreconditionFailedError, PreconditionRequiredError, TailorError
from service.jobs import repository as jobs
from service.schemas import Name, Page, Request, Text, next_cursor
from service.searches import creation, lifecycle
from service.searches.models import Search
from service.searches.preflight import preflight
from service.searches.reading import compared, read_search, read_searches
from service.searches.repository import SearchFilter, get_seen, list_searches
from service.searches.schemas import (
    BulkAction,
    BulkItem,
    BulkResult,
    Comparison,
    Feasibility,
    Kind,
    SearchClone,
    SearchCreate,
    SearchDerive,
    SearchExtend,
    SearchPatch,
    SearchRead,
    Status,
)

router = APIRouter(prefix="/searches", tags=["searches"])

_WAIT_POLL_SECONDS = 0.2
_MAKES: dict[int | str, dict[str, Any]] = {
    200: {"model": SearchRead, "description": "Made before, under the same key."}
}
_ACTS: dict[int | str, dict[str, Any]] = {
    202: {"model": SearchRead, "description": "It will stop at its next step."}
}

IdempotencyKey = Annotated[
    Text | None,
    Header(
        min_length=1,
        max_length=200,
        description="The same key makes the same search once, however often it is asked for.",
    ),
]
IfMatch = Annotated[str | None, Header(max_length=200)]

_DO = {"cancel": lifecycle.cancel, "pause": lifecycle.pause, "resume": lifecycle.resume}


@dataclass(frozen=True)
class _Changing:
    """What routes take that change searches, and how they answer."""

    session: WriteSession
    settings: CurrentSettings
    user: User
    response: Response

    def locked(self, search_id: str) -> Search:
        """The search, which nobody else changes until the transaction ends."""
        jobs.lock_jobs(self.session, search_id)
        return get_seen(self.session, search_id, self.user, lock=True)

    def act(self, search_id: str, action: lifecycle.Action) -> SearchRead:
        """Do one of `_DO`."""
        search = self.locked(search_id)
        if _DO[action](self.session, search) and search.status in ("pausing", "cancelling"):
            self.response.status_code = status.HTTP_202_ACCEPTED
        return self.answer(search)

    def answer(self, search: Search) -> SearchRead:
        """The search as it is now, with its `ETag`."""
        self.session.flush()
        self.response.headers["ETag"] = _etag(search)
        return read_search(self.session, search, self.settings)


@dataclass(frozen=True)
class _Making(_Changing):
    """What routes take that make searches, and how they make them."""

    database: CurrentDatabase
    artifacts: Artifacts
    idempotency_key: IdempotencyKey = None

    def make(
        self,
        spec: SearchCreate,
        asked: Request | None,
        kind: Kind = "search",
        parent: Search | None = None,
    ) -> SearchRead:
        """Queue a search; under a key that was used before, answer the one that is there."""
        # writes on its own, so before this transaction does
        creation.build_kit_files(self.database, self.artifacts, self.user.account, spec)
        wish = creation.Wish(spec, asked, kind, parent, self.idempotency_key)
        search, is_new = creation.create(self.session, self.settings, self.user, wish)
        self.session.info["audited"] = search.id
        self.response.status_code = status.HTTP_201_CREATED if is_new else status.HTTP_200_OK
        self.response.headers["Location"] = f"/v1/searches/{search.id}"
        return self.answer(search)

    def make_from(
        self,
        search_id: str,
        kind: Kind,
        asked: Request | None,
        spec_of: Callable[[Session, Search], SearchCreate],
    ) -> SearchRead:
        """Queue a search that comes from another, with what `spec_of` makes of that one."""
        with self.database.reading() as session:
            parent = get_seen(session, search_id, self.user)
            spec = spec_of(session, parent)
        return self.make(spec, asked, kind, parent)


Changing = Annotated[_Changing, Depends()]
Making = Annotated[_Making, Depends()]


@router.post(
    "",
    status_code=status.HTTP_201_CREATED,
    response_model=SearchRead | Feasibility,
    responses={
        200: {"model": SearchRead | Feasibility, "description": "Made before; a preflight."}
    },
)
def create(
    body: SearchCreate,
    making: Making,
    dry_run: Annotated[bool, Query(description="Answer the preflight, store nothing.")] = False,
) -> SearchRead | Feasibility:
    """Queue a search: targets and latency budgets in, measured networks out."""
    if dry_run:
        making.response.status_code = status.HTTP_200_OK
        return preflight(making.session, making.user.account, body, making.settings)
    return making.make(body, body)


@router.get("")
def list_all(
    session: ReadSession,
    settings: CurrentSettings,
    viewer: Viewer,
    status: Annotated[Status | None, Query()] = None,
    kind: Annotated[Kind | None, Query()] = None,
    target: Annotated[Name | None, Query()] = None,
    parent: Annotated[Name | None, Query()] = None,
    owner: Annotated[
        Name | None, Query(description="Operators see every account's, others their own.")
    ] = None,
    tag: Annotated[
        list[Text] | None, Query(max_length=10, description="name:value; repeat for several.")
    ] = None,
    archived: Annotated[bool | None, Query(description="Only these, or none of them.")] = None,
    order: Annotated[str, Query(pattern="^-?created_at$")] = "-created_at",
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Page[SearchRead]:
    """Searches, newest first."""
    pairs = (one.partition(":") for one in tag or ())
    wanted = SearchFilter(
        owner=owner if viewer.may("operator") else viewer.account,
        status=status,
        kind=kind,
        target_id=target,
        parent_id=parent,
        tags={name: value for name, _, value in pairs},
        archived=archived,
    )
    if owner is not None and not viewer.sees(owner):
        return Page[SearchRead](items=[])
    rows = list_searches(session, wanted, cursor, limit, oldest_first=order == "created_at")
    items = read_searches(session, rows, settings)
    return Page[SearchRead](items=items, next_cursor=next_cursor(items, limit))


@router.get("/compare")
def compare(
    session: ReadSession,
    settings: CurrentSettings,
    viewer: Viewer,
    ids: Annotated[list[Name], Query(min_length=2, max_length=6)],
) -> Comparison:
    """Two to six searches side by side, and what their specs do not share."""
    found = [get_seen(session, one, viewer) for one in ids]
    return compared(read_searches(session, found, settings))


@router.post("/bulk")
def bulk(body: BulkAction, changing: Changing) -> BulkResult:
    """One action on up to 200 searches; each is done or refused by itself."""
    # in one order, so that two requests about the same searches never wait for each other
    done = {one: _one_of_many(changing, body, one) for one in sorted(set(body.ids))}
    return BulkResult(items=[done[one] for one in body.ids])


@router.get("/{search_id}")
async def get(
    search_id: str,
    database: CurrentDatabase,
    settings: CurrentSettings,
    viewer: Viewer,
    response: Response,
    wait: Annotated[float, Query(ge=0, le=30, description="Seconds to wait for a change.")] = 0.0,
    if_none_match: IfMatch = None,
) -> SearchRead:
    """One search: status, phase, progress, result.

    With the `ETag` of an earlier answer as `If-None-Match`, 304 when nothing has changed; with
    `wait` besides, the answer comes when something has.
    """

    def look() -> SearchRead | None:
        with database.reading() as session:
            search = get_seen(session, search_id, viewer)
            if if_none_match is not None and _etag(search) in _etags(if_none_match):
                return None
            response.headers["ETag"] = _etag(search)
            return read_search(session, search, settings)

    deadline = time.monotonic() + wait
    while (found := await run_in_threadpool(look)) is None:
        if time.monotonic() >= deadline:
            assert if_none_match is not None
            return Response(  # type: ignore[return-value]
                status_code=status.HTTP_304_NOT_MODIFIED, headers={"ETag": if_none_match}
            )
        await asyncio.sleep(_WAIT_POLL_SECONDS)
    return found


@router.patch("/{search_id}")
def change(
    search_id: str, body: SearchPatch, changing: Changing, if_match: IfMatch = None
) -> SearchRead:
    """Change tags, priority or whether it is archived; needs `If-Match` with its `ETag`."""
    search = changing.locked(search_id)
    _check_match(search, if_match)
    if body.tags is not None:
        search.tags = body.tags
    if body.priority is not None:
        search.priority = body.priority
        jobs.set_priority(changing.session, search.id, body.priority)
    if body.archived is not None:
        search.archived_at = (search.archived_at or utc_now()) if body.archived else None
    return changing.answer(search)


# -- actions ---------------------------------------------------------------------------


@router.post("/{search_id}/cancel", responses=_ACTS)
def cancel(search_id: str, changing: Changing) -> SearchRead:
    """Stop a search for good: at once while queued, at its next step while running."""
    return changing.act(search_id, "cancel")


@router.post("/{search_id}/pause", responses=_ACTS)
def pause(search_id: str, changing: Changing) -> SearchRead:
    """Keep what was reached and give the worker back."""
    return changing.act(search_id, "pause")


@router.post("/{search_id}/resume")
def resume(search_id: str, changing: Changing) -> SearchRead:
    """Queue a paused search again; it goes on from its last checkpoint."""
    return changing.act(search_id, "resume")


@router.post("/{search_id}/clone", status_code=status.HTTP_201_CREATED, responses=_MAKES)
def clone(search_id: str, body: SearchClone, making: Making) -> SearchRead:
    """Queue the same search once more, with what the body changes."""
    return making.make_from(
        search_id, "search", body, lambda _, parent: creation.cloned(parent, body)
    )


@router.post("/{search_id}/extend", status_code=status.HTTP_201_CREATED, responses=_MAKES)
def extend(search_id: str, body: SearchExtend, making: Making) -> SearchRead:
    """Go on with a search that has ended: more epochs, or more time."""
    return making.make_from(
        search_id, "extend", body, lambda session, parent: creation.extended(session, parent, body)
    )


@router.post("/{search_id}/derive", status_code=status.HTTP_201_CREATED, responses=_MAKES)
def derive(search_id: str, body: SearchDerive, making: Making) -> SearchRead:
    """Networks at other budgets from the supernet of a search, without searching again."""
    return making.make_from(
        search_id, "derive", body, lambda session, parent: creation.derived(session, parent, body)
    )


@router.post("/{search_id}/reproduce", status_code=status.HTTP_201_CREATED, responses=_MAKES)
def reproduce(search_id: str, making: Making) -> SearchRead:
    """Run a search once more and say whether its logits and its network come out the same."""
    return making.make_from(search_id, "reproduce", None, creation.reproduced)


def _one_of_many(changing: _Changing, body: BulkAction, search_id: str) -> BulkItem:
    try:
        search = changing.locked(search_id)
        if body.action in _DO:
            _DO[body.action](changing.session, search)
        elif body.action == "tag":
            search.tags = {**search.tags, **body.tags}
        else:
            search.archived_at = utc_now() if body.action == "archive" else None
    except TailorError as error:
        return BulkItem(id=search_id, done=False, code=error.code, detail=error.detail)
    return BulkItem(id=search_id, done=True, status=search.status)


def _etag(search: Search) -> str:
    return f'W/"{search.version}"'


def _etags(header: str) -> list[str]:
    """The tags of `If-Match` or `If-None-Match`, weak or not."""
    bare = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return [f"W/{tag}" for tag in bare]


def _check_match(search: Search, if_match: str | None) -> None:
    if if_match is None:
        raise PreconditionRequiredError(
            "send the ETag of the search you read as If-Match, so that nobody's change is lost"
        )
    if if_match.strip() != "*" and _etag(search) not in _etags(if_match):
        raise PreconditionFailedError(
            f"search {search.id} is at version {search.version} now; read it again",
            version=search.version,
        )
