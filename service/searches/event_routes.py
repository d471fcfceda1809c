"""Routes of what happens to a search: poll, long poll, a stream, and curves."""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event

from service.auth.access import Viewer
from service.auth.principal import Principal
from service.db.database import Database
from service.dependencies import CurrentDatabase, CurrentSettings, Limit, ReadSession
from service.jobs import repository as jobs
from service.schemas import Text
from service.searches.curves import thinned_curves
from service.searches.event_repository import events_after, heads, metrics_backwards
from service.searches.event_schemas import MetricsRead
from service.searches.feed import SearchFeed
from service.searches.repository import get_seen
from service.searches.schemas import TERMINAL, EventList, EventRead
from service.settings import Settings

router = APIRouter(prefix="/searches/{search_id}", tags=["events"])

_MOST_NAMES = 50
_BATCH = 200
_RETRY_MS = 2000
_SSE = "text/event-stream"


def _parts(text: Text | None) -> list[str]:
    return [part for part in (text or "").split(",")[:_MOST_NAMES] if part]


def _types(
    types: Annotated[
        Text | None,
        Query(max_length=500, description="Only of these, as in `status,phase`; else of all."),
    ] = None,
) -> list[str]:
    return _parts(types)


def _names(
    names: Annotated[
        Text | None,
        Query(max_length=2000, description="Only these, as in `train_loss,latency`; else all."),
    ] = None,
) -> list[str]:
    return _parts(names)


def _feed(request: Request) -> SearchFeed:
    feed: SearchFeed = request.app.state.feed
    return feed


async def _place(feed: Annotated[SearchFeed, Depends(_feed)]) -> AsyncIterator[SearchFeed]:
    async with feed.stream():
        yield feed


Types = Annotated[list[str], Depends(_types)]
Names = Annotated[list[str], Depends(_names)]
Feed = Annotated[SearchFeed, Depends(_feed)]
# scope "request": the place is free again when the stream has ended, however it ends
Place = Annotated[SearchFeed, Depends(_place, scope="request")]
After = Annotated[int, Query(ge=0, lt=2**31, description="Number of the last event seen.")]


@dataclass(frozen=True)
class _Found:
    """Events, and how the search was just before they were read."""

    items: list[EventRead]
    status: str
    complete: bool

    @property
    def ended(self) -> bool:
        """Whether nothing will follow."""
        return self.complete and self.status in TERMINAL


@dataclass
class _Reader:
    """Reads on in a search's events; each reading has a connection for that long only.

    Attributes:
        after: every event up to this number has been read, or is of a type not wanted.
    """

    database: Database
    search_id: str
    principal: Principal
    types: list[str]
    after: int
    limit: int

    async def read(self) -> _Found:
        """What has happened since the last reading.

        Raises:
            NotFoundError: there is no such search, or none any more.
        """
        return await run_in_threadpool(self._read)

    def _read(self) -> _Found:
        with self.database.reading() as session:
            status = get_seen(session, self.search_id, self.principal).status  # before its events
            newest = heads(session, [self.search_id]).get(self.search_id, 0)
            rows = events_after(session, self.search_id, self.after, newest, self.limit, self.types)
            items = [EventRead.model_validate(row) for row in rows]
        complete = len(items) < self.limit
        self.after = max(self.after, newest) if complete else items[-1].number
        return _Found(items, status, complete)


@router.get("/events")
async def events(
    search_id: str,
    database: CurrentDatabase,
    feed: Feed,
    viewer: Viewer,
    types: Types,
    after: After = 0,
    limit: Limit = 200,
    wait: Annotated[float, Query(ge=0, le=25, description="Seconds to wait for news.")] = 0.0,
) -> EventList:
    """Events after a number, oldest first; waits for some unless the search has ended."""
    reader = _Reader(database, search_id, viewer, types, after, limit)
    deadline = time.monotonic() + wait
    while True:
        found = await reader.read()
        left = deadline - time.monotonic()
        if found.items or found.ended or left <= 0:
            return EventList(items=found.items)
        if not await feed.wait(search_id, reader.after, left):
            return EventList(items=[])


@router.get(
    "/events/stream",
    response_class=StreamingResponse,
    responses={200: {"content": {_SSE: {}}}},
)
async def stream(
    search_id: str,
    database: CurrentDatabase,
    settings: CurrentSettings,
    feed: Place,
    viewer: Viewer,
    types: Types,
    after: After = 0,
    last_event_id: Annotated[
        int | None, Header(ge=0, lt=2**31, description="Goes before `after`.")
    ] = None,
) -> StreamingResponse:
    """Events as they happen, as server-sent events; `end` follows when the search has ended.

    `id` is the event's number, `event` its type, `data` the event as the poll gives it. A stream
    is ended after some minutes; go on with `Last-Event-ID`, as browsers do by themselves.
    """
    seen = after if last_event_id is None else last_event_id
    reader = _Reader(database, search_id, viewer, types, seen, _BATCH)
    first = await reader.read()  # what is wrong is answered before the stream begins
    return StreamingResponse(
        _told(reader, first, feed, settings),
        media_type=_SSE,
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _told(
    reader: _Reader, found: _Found, feed: SearchFeed, settings: Settings
) -> AsyncIterator[bytes]:
    deadline = time.monotonic() + 60.0 * settings.event_stream_minutes
    yield format_sse_event(retry=_RETRY_MS)
    while True:
        for event in found.items:
            yield format_sse_event(
                id=str(event.number), event=event.type, data_str=event.model_dump_json()
            )
        if found.ended:
            yield format_sse_event(event="end", data_str=json.dumps({"status": found.status}))
            return
        if found.complete:
            seconds = min(settings.event_heartbeat_seconds, deadline - time.monotonic())
            if not await feed.wait(reader.search_id, reader.after, seconds):
                if feed.closed or time.monotonic() >= deadline:
                    return
                yield format_sse_event(comment="nothing new")
        found = await reader.read()


@router.get("/metrics")
def metrics(
    search_id: str,
    session: ReadSession,
    viewer: Viewer,
    names: Names,
    max_points: Annotated[int, Query(ge=4, le=10_000, description="Of each curve.")] = 500,
) -> MetricsRead:
    """The metrics of a search as curves, thinned so that they still look the same."""
    get_seen(session, search_id, viewer)
    job = jobs.of_subject(session, search_id)
    began = [attempt.started_at for attempt in jobs.attempts(session, job.id)] if job else []
    curves = thinned_curves(metrics_backwards(session, search_id), began, names, max_points)
    return MetricsRead(search=search_id, max_points=max_points, items=curves)
