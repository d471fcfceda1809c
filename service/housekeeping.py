"""What every API does beside its requests: settle what died, forget what is over.

Any number of APIs and workers may do it at once; each row is taken by one of them.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from service.admin.repository import forget
from service.db.database import Database
from service.settings import Settings
from service.telemetry import logger
from service.workers.settling import Housekeeping

_ROUND_SECONDS = 1.0
_FORGET_SECONDS = 3600.0

_log = logger(__name__)


@contextmanager
def housekeeping(settings: Settings, database: Database) -> Iterator[None]:
    """Keep house in a thread of this process until the block ends.

    Without any worker a search so still ends when its queue time is over, and one whose worker
    died is queued again and says that it waits.
    """
    stop = threading.Event()
    settling = Housekeeping(settings, database)
    forgetting = _Forgetting(settings, database)

    def keep_house() -> None:
        while not stop.wait(_ROUND_SECONDS):
            for chore in (settling, forgetting):
                try:
                    chore.tend()
                except Exception:  # the next round may go well, and nobody else would log it
                    _log.exception("housekeeping failed", chore=type(chore).__name__)

    thread = threading.Thread(target=keep_house, name="housekeeping", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class _Forgetting:
    """Removes once an hour what has expired: sessions, codes, idempotency keys, deliveries."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._next = 0.0

    def tend(self) -> None:
        """Do it if an hour has passed."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _FORGET_SECONDS
        forgotten = forget(self._database, self._settings)
        if any(forgotten.values()):
            _log.info("forgot what had expired", **forgotten)
