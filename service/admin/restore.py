"""Bringing back a backup into an empty store, after proof that it is whole."""

import gzip
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from alembic import command
from sqlalchemy import Connection, inspect

from service.admin.backup import (
    ARTIFACTS,
    FORMAT,
    MANIFEST,
    SQLITE_COPY,
    Backup,
    copy_statement,
    psycopg_of,
    sha256_of,
    tables_of,
)
from service.artifacts import ArtifactStore
from service.db.database import Database
from service.db.migrate import changing_schema, is_known
from service.errors import StoreUnfitError

_CHUNK_BYTES = 2**20


def restore_backup(database: Database, artifacts: ArtifactStore, path: Path) -> Backup:
    """Fill an empty store with a backup; the store keeps the backup's schema until it is migrated.

    Files come first, rows last and at once: a restore that was killed leaves an empty store, and
    is begun again.

    Raises:
        StoreUnfitError: it is no whole backup, one of another kind of store, or the store has
            tables already.
    """
    manifest = read_manifest(path)
    dialect = database.engine.dialect.name
    if manifest["store"] != dialect:
        raise StoreUnfitError(
            f"{path} is a backup of {manifest['store']}, and TAILOR_DATABASE_URL names "
            f"{dialect}; restore it into a store of its own kind"
        )
    if inspect(database.engine).get_table_names():
        raise StoreUnfitError(
            "the store has tables already; restore into an empty one, so that nothing is lost"
        )
    check_files(path, manifest)
    n_artifacts = sum(_store(artifacts, path / name) for name in manifest["files"])
    if dialect == "sqlite":
        _fill_sqlite(database, path / SQLITE_COPY)
    else:
        _fill_tables(database, path, manifest)
    return Backup(
        path=str(path),
        n_bytes=sum(facts["bytes"] for facts in manifest["files"].values()),
        artifacts=n_artifacts,
        missing=manifest["missing_artifacts"],
    )


def read_manifest(path: Path) -> dict[str, Any]:
    """What a backup says of itself.

    Raises:
        StoreUnfitError: there is none, or this version cannot read it.
    """
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise StoreUnfitError(
            f"{path} holds no readable {MANIFEST}, so it is no backup, or one that was not finished"
        ) from None
    if manifest.get("format") != FORMAT or not is_known(manifest["revision"]):
        raise StoreUnfitError(
            f"{path} was made by Tailor {manifest.get('tailor')}, whose format or schema this "
            "version does not know; restore it with that version"
        )
    return manifest


def check_files(path: Path, manifest: dict[str, Any]) -> None:
    """Raises StoreUnfitError unless every file of the backup is there and unchanged."""
    for name, facts in manifest["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != facts["bytes"]:
            raise StoreUnfitError(f"{name} of {path} is missing or cut short; use another backup")
        if sha256_of(file) != facts["sha256"]:
            raise StoreUnfitError(f"{name} of {path} has changed since; use another backup")


def _store(artifacts: ArtifactStore, file: Path) -> bool:
    """Store a file of the backup, if it is an artifact."""
    if file.parent.parent.name != ARTIFACTS:
        return False
    with file.open("rb") as source, artifacts.writing() as incoming:
        while piece := source.read(_CHUNK_BYTES):
            incoming.write(piece)
    return True


def _fill_sqlite(database: Database, source: Path) -> None:
    """Copy the whole store in one transaction of SQLite's own."""
    to = database.url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(source)) as copy, closing(sqlite3.connect(to)) as store:
        copy.backup(store)
        store.execute("PRAGMA journal_mode=WAL")


def _fill_tables(database: Database, path: Path, manifest: dict[str, Any]) -> None:
    """Make the schema of the backup and copy every table into it, in one transaction."""
    with changing_schema(database) as config:
        command.upgrade(config, manifest["revision"])
        connection: Connection = config.attributes["connection"]
        tables = tables_of(connection)
        for table in tables.sorted_tables:  # those that others refer to come first
            facts = manifest["tables"][table.name]
            connection.execute(table.delete())  # what a migration has put there itself
            _fill_table(connection, table.name, facts, path / "tables" / f"{table.name}.copy.gz")


def _fill_table(connection: Connection, table: str, facts: dict[str, Any], source: Path) -> None:
    with psycopg_of(connection).cursor() as cursor:
        with (
            gzip.open(source, "rb") as file,
            cursor.copy(copy_statement(table, facts["columns"], "FROM STDIN")) as copy,
        ):
            while chunk := file.read(_CHUNK_BYTES):
                copy.write(chunk)
        if cursor.rowcount != facts["rows"]:
            raise StoreUnfitError(
                f"table {table} has {cursor.rowcount} rows in the backup, not {facts['rows']}"
            )
