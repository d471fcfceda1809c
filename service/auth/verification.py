"""Whose a secret is: looked up once in some seconds, and its use written down once a minute."""

import asyncio
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Literal

from cachetools import TTLCache
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import event
from sqlalchemy.orm import Session

from service.auth.principal import Principal
from service.auth.repository import find_key, note_last_use
from service.auth.tokens import token_hash
from service.db.base import utc_now
from service.db.database import Database
from service.sessions.repository import find_session, note_use
from service.telemetry import logger

Kind = Literal["key", "session"]

CACHE_SECONDS = 5.0
"""How long another process may go on believing a key that this one has revoked."""

_CACHED = 4096
_NOTE_SECONDS = 60.0
_log = logger(__name__)


class Verifier:
    """Turns secrets into principals; any thread may ask.

    A principal is remembered for `CACHE_SECONDS`, under the hash of its secret; unknown secrets
    are not remembered, so a new key is good at once. `forget_after` makes a revocation take
    effect at once in this process.

    Args:
        idle: a session that was not used for this long has ended.
    """

    def __init__(self, database: Database, idle: timedelta) -> None:
        self._database = database
        self._look_up: dict[Kind, Callable[[Session, str], Principal | None]] = {
            "key": find_key,
            "session": lambda session, token: find_session(session, token, idle),
        }
        self._lock = threading.Lock()
        self._known: TTLCache[tuple[Kind, str], Principal] = TTLCache(_CACHED, CACHE_SECONDS)
        self._epoch = 0
        self._used: dict[Kind, dict[str, datetime]] = {"key": {}, "session": {}}

    async def verify(self, kind: Kind, token: str) -> Principal | None:
        """Whose secret this is; None when it is nobody's, or no longer good."""
        name = (kind, token_hash(token))
        with self._lock:
            principal, epoch = self._known.get(name), self._epoch
        if principal is None:
            principal = await run_in_threadpool(self._find, kind, token)
            with self._lock:
                if principal is not None and epoch == self._epoch:  # nothing revoked meanwhile
                    self._known[name] = principal
        now = utc_now()
        if principal is None or (principal.expires_at and principal.expires_at <= now):
            return None
        with self._lock:
            self._used["key"][principal.id] = now
            if principal.session_id is not None:
                self._used["session"][principal.session_id] = now
        return principal

    def forget_after(self, session: Session) -> None:
        """Look every secret up again once the transaction of `session` is committed."""

        @event.listens_for(session, "after_commit", once=True)
        def forget(_: Session) -> None:
            with self._lock:
                self._known.clear()
                self._epoch += 1

    async def note_uses(self) -> None:
        """Write down once a minute what was used, until cancelled, and then once more."""
        try:
            while True:
                await asyncio.sleep(_NOTE_SECONDS)
                await run_in_threadpool(self.write_uses)
        finally:
            self.write_uses()

    def write_uses(self) -> None:
        """Write down when keys and sessions were last used; a store that is away is no error."""
        with self._lock:
            used, self._used = self._used, {"key": {}, "session": {}}
        if not used["key"]:
            return
        try:
            with self._database.transaction() as session:
                note_last_use(session, used["key"])
                note_use(session, used["session"])
        except Exception:  # nobody waits for it; the next minute brings another chance
            _log.exception("the last use of keys was not written down", n_keys=len(used["key"]))

    def _find(self, kind: Kind, token: str) -> Principal | None:
        # the connection goes back at once: a request that kept it while it waits, for work or
        # for a second connection, would starve the others of the pool
        with self._database.reading() as session:
            return self._look_up[kind](session, token)
