"""What must hold before a request can be served: the store, its schema, files, space."""

import shutil
from collections.abc import Callable
from pathlib import Path

import anyio
from anyio import to_thread
from sqlalchemy import text

from service.artifacts import ArtifactStore
from service.db.database import Database
from service.db.migrate import newest_revision, revision_of
from service.settings import Settings
from service.telemetry import logger

OK = "ok"
SECONDS = 3.0
"""A check that takes longer has failed."""

_log = logger(__name__)


class Readiness:
    """Runs every check beside the others; one that hangs holds up neither answer nor thread."""

    def __init__(self, checks: dict[str, Callable[[], str]]) -> None:
        self._checks = checks
        self._running: set[str] = set()

    async def run(self) -> dict[str, str]:
        """What each check says: `ok`, or what is wrong; never what an exception said."""
        found = dict.fromkeys(self._checks, f"no answer within {SECONDS:g} s")

        async def run(name: str) -> None:
            if name in self._running:
                return  # it hangs since the last time, and would take one more thread each time
            found[name] = await to_thread.run_sync(self._check, name, abandon_on_cancel=True)

        with anyio.move_on_after(SECONDS):
            async with anyio.create_task_group() as group:
                for name in self._checks:
                    group.start_soon(run, name)
        return found

    def _check(self, name: str) -> str:
        self._running.add(name)  # here: who is cancelled before it has a thread never runs
        try:
            return self._checks[name]()
        except Exception:
            _log.exception("a readiness check failed", check=name)
            return "no answer; the log says more"
        finally:
            self._running.discard(name)


def checks(
    settings: Settings, database: Database, artifacts: ArtifactStore
) -> dict[str, Callable[[], str]]:
    """Each check by name: it returns `ok` or what to do, or raises where nothing answers."""
    return {
        "database": lambda: _database(database),
        "schema": lambda: _schema(database),
        "artifacts": lambda: _artifacts(artifacts),
        "disk": lambda: _disk(settings),
    }


def _database(database: Database) -> str:
    with database.reading() as session:
        session.execute(text("SELECT 1"))
    return OK


def _schema(database: Database) -> str:
    found, newest = revision_of(database), newest_revision()
    if found == newest:
        return OK
    return f"the store's schema is {found}, this version's is {newest}; run `tailor admin migrate`"


def _artifacts(artifacts: ArtifactStore) -> str:
    artifacts.check()
    return OK


def _disk(settings: Settings) -> str:
    for folder in local_folders(settings):
        free = shutil.disk_usage(folder).free
        if free < settings.free_disk_bytes:
            return (
                f"{free / 2**20:.0f} MiB are free, less than TAILOR_FREE_DISK_BYTES; make room, or "
                "run `tailor admin gc`"
            )
    return OK


def local_folders(settings: Settings) -> list[Path]:
    """Where this process writes on disks of its own: SQLite, artifacts; those that exist."""
    urls = (settings.resolved_database_url, settings.resolved_artifacts_url)
    prefixes = ("sqlite:///", "file://")
    paths = [
        Path(url.removeprefix(prefix))
        for url, prefix in zip(urls, prefixes, strict=True)
        if url.startswith(prefix)
    ]
    return [folder for path in paths if (folder := path if path.is_dir() else path.parent).is_dir()]
