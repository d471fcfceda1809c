"""Tells requests that wait for news of a search when there is some."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fastapi.concurrency import run_in_threadpool

from service.db.database import Database
from service.errors import TooBusyError
from service.searches.event_repository import heads
from service.telemetry import logger

_log = logger(__name__)
_COME_AGAIN_SECONDS = 5


@dataclass(eq=False)
class _Waiter:
    search_id: str
    after: int
    news: asyncio.Event = field(default_factory=asyncio.Event)


class SearchFeed:
    """One short query after another on behalf of everybody who waits; nobody waits, no query.

    A waiting request so holds no connection and no thread, however many there are.

    Args:
        poll_seconds: between two queries.
        streams: that may be open at once.
    """

    def __init__(self, database: Database, poll_seconds: float, streams: int) -> None:
        self._database = database
        self._poll_seconds = poll_seconds
        self._streams = self._streams_left = streams
        self._waiters: set[_Waiter] = set()
        self._wanted = asyncio.Event()
        self.closed = False

    @property
    def open_streams(self) -> int:
        """How many are open."""
        return self._streams - self._streams_left

    async def run(self) -> None:
        """Look for news until cancelled."""
        while True:
            await self._wanted.wait()
            try:
                await self._look()
            except Exception:  # the store may be away for a while; who waits goes on waiting
                _log.exception("cannot look for events")
            await asyncio.sleep(self._poll_seconds)

    async def _look(self) -> None:
        ids = list({waiter.search_id for waiter in self._waiters})
        if not ids:
            return self._wanted.clear()
        newest = await run_in_threadpool(self._heads, ids)
        for waiter in self._waiters:
            if newest.get(waiter.search_id, 0) > waiter.after:
                waiter.news.set()
        return None

    def _heads(self, ids: Sequence[str]) -> dict[str, int]:
        with self._database.reading() as session:
            return heads(session, ids)

    async def wait(self, search_id: str, after: int, timeout_seconds: float) -> bool:
        """Whether an event of a number above `after` came in time; False when closed, too."""
        if self.closed:
            return False
        waiter = _Waiter(search_id, after)
        self._waiters.add(waiter)
        self._wanted.set()
        try:
            async with asyncio.timeout(timeout_seconds):
                await waiter.news.wait()
        except TimeoutError:
            return False
        finally:
            self._waiters.discard(waiter)
        return not self.closed

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[None]:
        """A place among the streams that may be open at once.

        Raises:
            TooBusyError: every one is taken.
        """
        if self._streams_left <= 0:
            raise TooBusyError(
                "this API serves as many event streams as it may; come again, or poll the events",
                retry_after_seconds=_COME_AGAIN_SECONDS,
            )
        self._streams_left -= 1
        try:
            yield
        finally:
            self._streams_left += 1

    def close(self) -> None:
        """End every wait at once, and every stream with it."""
        self.closed = True
        for waiter in self._waiters:
            waiter.news.set()
