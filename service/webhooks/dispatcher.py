"""Sends what is due, in the API's own process; several APIs share the work by the rows."""

import time
from collections.abc import Callable
from typing import TypeVar

import anyio
from anyio import CapacityLimiter, to_thread
from anyio.abc import TaskGroup

from service.db.database import Database
from service.settings import Settings
from service.telemetry import logger
from service.version import VERSION
from service.webhooks.guard import Guard
from service.webhooks.lifecycle import settle
from service.webhooks.repository import Sending, is_due, take
from service.webhooks.sender import Sender
from service.webhooks.signing import DELIVERY_HEADER, EVENT_HEADER, SIGNATURE_HEADER, signature

_log = logger(__name__)
_LANES = 64
_LEASE_MARGIN_SECONDS = 30.0
Result = TypeVar("Result")


class Dispatcher:
    """Sends each webhook's deliveries one after the other, and many webhooks' side by side.

    So a slow receiver waits for itself alone. A delivery is sent at least once: whoever dies
    between sending and writing so down leaves it to be sent again, under the same id.
    """

    def __init__(self, settings: Settings, database: Database, guard: Guard) -> None:
        self._settings = settings
        self._database = database
        self._sender = Sender(guard, settings.webhook_ports, settings.webhook_timeout_seconds)
        self._busy: set[str] = set()  # webhooks that a lane is sending to
        self._freed = anyio.Event()
        self._threads = CapacityLimiter(2)  # routes can neither starve it nor be starved by it

    async def run(self) -> None:
        """Send until cancelled."""
        async with anyio.create_task_group() as lanes:
            while True:
                self._freed = anyio.Event()
                try:
                    await self._send_due(lanes)
                except Exception:  # the store may be away for a while
                    _log.exception("webhooks: cannot read what is due")
                with anyio.move_on_after(self._settings.webhook_poll_seconds):
                    await self._freed.wait()

    async def _send_due(self, lanes: TaskGroup) -> None:
        free = _LANES - len(self._busy)
        if free and await self._in_thread(self._is_due):
            for sending in await self._in_thread(lambda: self._take(free)):
                self._busy.add(sending.webhook_id)
                lanes.start_soon(self._send, sending)

    async def _send(self, sending: Sending) -> None:
        try:
            timestamp = int(time.time())  # noqa: TID251 - the receiver compares it to its clock
            headers = {
                "Content-Type": "application/json",
                "User-Agent": f"tailor-webhooks/{VERSION}",
                DELIVERY_HEADER: sending.delivery_id,
                EVENT_HEADER: sending.event_type,
                SIGNATURE_HEADER: signature(sending.secrets, timestamp, sending.body),
            }
            outcome = await self._sender.post(sending.url, headers, sending.body)

            def write_down() -> None:
                with self._database.transaction() as session:
                    settle(session, self._settings, sending, outcome)

            await self._in_thread(write_down)
        except Exception:  # one delivery must not end the others; it is due again later
            _log.exception("webhooks: a delivery failed", delivery=sending.delivery_id)
        finally:
            self._busy.discard(sending.webhook_id)
            self._freed.set()

    def _is_due(self) -> bool:
        with self._database.reading() as session:
            return is_due(session, list(self._busy))

    def _take(self, limit: int) -> list[Sending]:
        lease_seconds = self._settings.webhook_timeout_seconds + _LEASE_MARGIN_SECONDS
        with self._database.transaction() as session:
            return take(session, list(self._busy), limit, lease_seconds)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await to_thread.run_sync(work, limiter=self._threads)
