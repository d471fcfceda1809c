"""Engine and sessions: one request or one task is one transaction."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

import service.db.models  # noqa: F401 - relations resolve only when every table is known
from service.db.base import utc_now

STORE_ERRORS = (OperationalError, InterfaceError)
"""The store restarts, is full or out of reach, or broke a deadlock: the same may go well later."""

_WRITES = "tailor_writes"
_SQLITE_BUSY_SECONDS = 30


class Database:
    """SQLite or PostgreSQL behind the same two methods.

    On SQLite a writing transaction takes the write lock when it begins; it waits for its
    turn then and can never fail half-way because another writer was faster.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        if url.startswith("sqlite:///"):
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            self._engine = create_engine(url, connect_args={"timeout": _SQLITE_BUSY_SECONDS})
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
        else:
            self._engine = create_engine(url, pool_pre_ping=True, pool_size=10, max_overflow=30)
        self._writer = self._engine.execution_options(**{_WRITES: True})

    @property
    def engine(self) -> Engine:
        """For migrations and tests; everything else uses sessions."""
        return self._engine

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees one state of the store and writes nothing."""
        with Session(self._engine) as session:
            yield session

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session that commits when the block ends and rolls back when it raises."""
        with Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def dispose(self) -> None:
        """Close every pooled connection."""
        self._engine.dispose()


def take_turns(session: Session | Connection, name: str) -> None:
    """Wait until no other transaction holds `name`, and hold it until this one ends.

    For what must not happen twice at once and has no row to lock yet. SQLite's writing
    transactions take turns anyway.
    """
    dialect = session.dialect if isinstance(session, Connection) else session.get_bind().dialect
    if dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))


def store_time(session: Session) -> datetime:
    """The clock that leases are measured by: PostgreSQL's, which is one for every machine.

    SQLite has none of its own, and everybody who uses it shares this machine's.
    """
    if session.get_bind().dialect.name == "postgresql":
        now: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
        return now.astimezone(UTC)
    return utc_now()


def _prepare_sqlite(connection: Any, _: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves, see _begin_sqlite
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
