"""Removing what nothing needs any more: files that no row names, checkpoints of ended searches.

A file that was written moments ago may be named by a transaction that has yet to commit, so
only files older than a grace are looked at; storing the same content again makes a file young.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shutil import rmtree

from service.admin.repository import artifact_references, forget, unfinished
from service.artifacts import ArtifactStore, StoredFile
from service.db.base import utc_now
from service.db.database import Database
from service.settings import Settings


@dataclass(frozen=True)
class Cleaned:
    """What was removed, or would be."""

    artifacts: int
    artifact_bytes: int
    checkpoints: int
    rows: dict[str, int]


def clean(
    settings: Settings, database: Database, artifacts: ArtifactStore, *, dry_run: bool
) -> Cleaned:
    """Remove what nothing needs; with `dry_run` only count the files, and touch nothing."""
    oldest_kept = utc_now() - timedelta(hours=settings.artifact_grace_hours)
    files = list(orphans(database, artifacts, oldest_kept))
    folders = list(_ended_checkpoints(settings, database, oldest_kept))
    if not dry_run:
        files = [file for file in files if _delete(artifacts, file, oldest_kept)]
        for folder in folders:
            rmtree(folder, ignore_errors=True)
    return Cleaned(
        artifacts=len(files),
        artifact_bytes=sum(file.n_bytes for file in files),
        checkpoints=len(folders),
        rows={} if dry_run else forget(database, settings),
    )


def orphans(
    database: Database, artifacts: ArtifactStore, oldest_kept: datetime
) -> Iterator[StoredFile]:
    """The files that no row names and that were stored before `oldest_kept`.

    Files are listed before rows are read: what is stored in between is not looked at.
    """
    files = [file for file in artifacts.stored() if _is_older(file, oldest_kept)]
    with database.reading() as session:
        named = set(artifact_references(session))
    yield from (file for file in files if file.sha256 not in named)


def _delete(artifacts: ArtifactStore, file: StoredFile, oldest_kept: datetime) -> bool:
    """Delete a file unless somebody has stored its content again meanwhile."""
    now = artifacts.look(file.path)
    if now is None or not _is_older(now, oldest_kept):
        return False
    artifacts.delete(file.path)
    return True


def _is_older(file: StoredFile, than: datetime) -> bool:
    return file.changed_at is not None and file.changed_at < than


def _ended_checkpoints(
    settings: Settings, database: Database, oldest_kept: datetime
) -> Iterator[Path]:
    """Folders of searches that have ended or are unknown, and that nobody wrote to lately."""
    root = settings.checkpoints_dir
    folders = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    with database.reading() as session:
        needed = unfinished(session, [folder.name for folder in folders])
    for folder in folders:
        changed_at = datetime.fromtimestamp(folder.stat().st_mtime, UTC)
        if folder.name not in needed and changed_at < oldest_kept:
            yield folder
