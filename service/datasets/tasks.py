"""The check of a data set, as a worker's attempt runs it."""

from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any

from search_core.errors import DatasetError, SearchInterrupted
from service.confined import ConfinedError, run_confined
from service.datasets.cache import fetch
from service.datasets.lifecycle import ready, rejected
from service.datasets.models import DatasetRow
from service.datasets.places import allowed
from service.datasets.repository import locked
from service.errors import InvalidRequestError, NotFoundError
from service.jobs import repository as jobs
from service.jobs.context import AttemptContext


def check_dataset(context: AttemptContext, dataset_id: str) -> None:
    """Look at a data set in a process of its own, and write down what it found.

    Raises:
        SearchInterrupted: the worker wants the job back.
    """
    with context.transaction() as (session, job):
        row = locked(session, dataset_id)
        if row is None:
            return jobs.finish(session, job, "cancelled", "the data set was deleted")
        session.expunge(row)
    scratch = context.settings.home.resolve() / "dataset-checks"
    scratch.mkdir(parents=True, exist_ok=True)
    for left in scratch.glob(f"{dataset_id}-*"):  # by an attempt that was killed
        rmtree(left, ignore_errors=True)
    with TemporaryDirectory(dir=scratch, prefix=f"{dataset_id}-") as folder:
        found = _found(context, row, Path(folder))
    with context.transaction() as (session, job):
        row = locked(session, dataset_id)
        if row is None:
            return jobs.finish(session, job, "cancelled", "the data set was deleted")
        if "rejected" in found:
            rejected(row, found["rejected"])
        else:
            ready(row, found)
        jobs.finish(session, job, "succeeded")


def _found(context: AttemptContext, row: DatasetRow, folder: Path) -> dict[str, Any]:
    """The facts, or under `rejected` the reason."""
    settings = context.settings
    work = folder / "work"
    work.mkdir()
    request = {
        "name": row.name,
        "source": row.source,
        "builtin": row.place,
        "place": "",
        "resize_px": row.resize_px,
        "folder": str(work),
        "seconds": settings.dataset_check_minutes * 60,
        "most_bytes": settings.max_dataset_unpacked_bytes,
        "most_files": settings.max_dataset_files,
    }
    try:
        place = _place(context, row, folder)
        found = run_confined(
            "service.datasets.child",
            request | {"place": str(place)},
            folder,
            seconds=settings.dataset_check_minutes * 60,
            should_stop=lambda: context.handed_back,
        )
    except ConfinedError as error:
        return {"rejected": f"it cannot be checked: {error}"}
    except (DatasetError, InvalidRequestError, NotFoundError) as error:
        return {"rejected": str(error)}
    if found is None:
        raise SearchInterrupted("handed back while checking a data set")
    return found


def _place(context: AttemptContext, row: DatasetRow, folder: Path) -> Path:
    settings = context.settings
    if row.source == "builtin":
        return settings.datasets_dir / row.place
    if row.source == "path":
        return allowed(row.place, settings.dataset_roots)
    fetch(context.artifacts, row.place, folder / "upload")
    return folder / "upload"
