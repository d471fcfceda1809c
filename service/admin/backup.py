"""A backup: one folder with everything that an installation has stored, and what proves it whole.

    BACKUP/
      manifest.json       written last: what the backup is of, and the sha256 of its files
      store.sqlite        SQLite: a copy made by SQLite itself while writers go on
      tables/NAME.copy.gz PostgreSQL: each table as COPY writes it, all in one transaction
      artifacts/ab/ab...  the files that rows name, under their sha256

The rows are read first, as they are at one moment; the files they name never change, so they
can be copied afterwards. The folder gets its name when all of it is on the disk: one whose name
ends in `.partial` is no backup.
"""

import gzip
import hashlib
import json
import os
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, MetaData, create_engine
from sqlalchemy.orm import Session

from service.admin.repository import artifact_references
from service.artifacts import ArtifactStore
from service.db.base import utc_now
from service.db.database import Database
from service.db.migrate import check_migrated, newest_revision
from service.errors import NotFoundError, StoreUnfitError
from service.version import VERSION

FORMAT = 1
MANIFEST = "manifest.json"
SQLITE_COPY = "store.sqlite"
ARTIFACTS = "artifacts"


_GZIP_LEVEL = 1  # rows shrink to a fifth at the speed of a disk; more costs minutes a gigabyte


@dataclass(frozen=True)
class Backup:
    """What a backup holds.

    Attributes:
        missing: hashes that rows name and the artifact store does not have, or has damaged.
    """

    path: str
    n_bytes: int
    artifacts: int
    missing: list[str]


def make_backup(database: Database, artifacts: ArtifactStore, path: Path) -> Backup:
    """Write a backup to the new folder `path`; nothing has to stop meanwhile.

    Raises:
        StoreUnfitError: `path` exists, or the store has not this version's schema.
    """
    if path.exists():
        raise StoreUnfitError(f"{path} exists; name a new folder for each backup")
    check_migrated(database)
    folder = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    folder.mkdir(parents=True, mode=0o700)  # it holds signing keys and hashes of secrets
    try:
        backup = _fill(database, artifacts, folder, path)
        folder.rename(path)
        _sync(path.parent)
    except BaseException:
        rmtree(folder, ignore_errors=True)
        raise
    return backup


def _fill(database: Database, artifacts: ArtifactStore, folder: Path, path: Path) -> Backup:
    dialect = database.engine.dialect.name
    if dialect == "sqlite":
        tables = None
        named = _copy_sqlite(database, folder / SQLITE_COPY)
    else:
        tables, named = _copy_tables(database, folder / "tables")
    missing = [sha256 for sha256 in named if not _copy_artifact(artifacts, sha256, folder)]
    files: dict[str, dict[str, Any]] = {
        str(file.relative_to(folder)): {"sha256": sha256_of(file), "bytes": file.stat().st_size}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    manifest = {
        "format": FORMAT,
        "tailor": VERSION,
        "made_at": utc_now().isoformat(),
        "store": dialect,
        "revision": newest_revision(),
        "tables": tables,
        "files": files,
        "missing_artifacts": missing,
    }
    for file in (folder / name for name in files):
        _sync(file)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    _sync(folder / MANIFEST)
    _sync(folder)
    return Backup(
        path=str(path),
        n_bytes=sum(facts["bytes"] for facts in files.values()),
        artifacts=len(named) - len(missing),
        missing=missing,
    )


# -- rows ------------------------------------------------------------------------------


def _copy_sqlite(database: Database, to: Path) -> list[str]:
    """Copy the store and return the hashes of the files that the copy names."""
    source = database.url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(source)) as store, closing(sqlite3.connect(to)) as copy:
        store.backup(copy)  # in one step: it reads one state, and in WAL mode holds up nobody
        copy.execute("PRAGMA journal_mode=DELETE")  # one file, without a journal beside it
        (verdict,) = copy.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        raise StoreUnfitError(f"the store is damaged: {verdict}; restore an earlier backup")
    engine = create_engine(f"sqlite:///{to}")
    with Session(engine) as session:
        named = sorted(set(artifact_references(session)))
    engine.dispose()
    return named


def _copy_tables(database: Database, to: Path) -> tuple[dict[str, Any], list[str]]:
    """Copy every table and return what they are, and the hashes of the files that they name."""
    to.mkdir()
    with one_state(database.engine) as connection:
        tables = {}
        for table in tables_of(connection).sorted_tables:
            columns = [column.name for column in table.columns]
            rows = _copy_table(connection, table.name, columns, to / f"{table.name}.copy.gz")
            tables[table.name] = {"columns": columns, "rows": rows}
        named = sorted(set(artifact_references(Session(connection))))
    return tables, named


@contextmanager
def one_state(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees the rows as they were when it began, whatever others commit."""
    options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with engine.connect().execution_options(**options) as connection, connection.begin():
        yield connection


def tables_of(connection: Connection) -> MetaData:
    """The tables that a store has, whatever its revision, but for Alembic's own."""
    found = MetaData()
    found.reflect(connection, only=lambda name, _: name != "alembic_version")
    return found


def copy_statement(table: str, columns: list[str], direction: str) -> str:
    """COPY of a table in PostgreSQL's text format, with the columns in that order."""
    names = ", ".join(f'"{column}"' for column in columns)
    return f'COPY "{table}" ({names}) {direction}'


def psycopg_of(connection: Connection) -> psycopg.Connection[Any]:
    """The driver's own connection, which COPY needs."""
    raw: Any = connection.connection.dbapi_connection
    assert isinstance(raw, psycopg.Connection)
    return raw


def _copy_table(connection: Connection, table: str, columns: list[str], to: Path) -> int:
    with (
        psycopg_of(connection).cursor() as cursor,
        gzip.open(to, "wb", compresslevel=_GZIP_LEVEL) as file,
    ):
        with cursor.copy(copy_statement(table, columns, "TO STDOUT")) as copy:
            for chunk in copy:
                file.write(chunk)
        return int(cursor.rowcount)


# -- files -----------------------------------------------------------------------------


def _copy_artifact(artifacts: ArtifactStore, sha256: str, folder: Path) -> bool:
    """Copy a file; False when the store does not have it as its name says."""
    to = folder / ARTIFACTS / sha256[:2] / sha256
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        artifacts.copy_out(sha256, to)
    except NotFoundError:
        return False
    if sha256_of(to) == sha256:
        return True
    to.unlink()
    return False


def sha256_of(path: Path) -> str:
    """The hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """See to it that a file or folder outlives a power cut."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
