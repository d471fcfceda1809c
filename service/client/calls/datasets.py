"""Calls about data sets."""

import time
from collections.abc import Callable
from pathlib import Path

from service.client.asking import Ask, Pause, Steps, get, given, listed, post
from service.client.errors import DatasetTimeoutError
from service.client.files import FileBody, name_of
from service.datasets.schemas import DatasetDetail, DatasetRead

_POLL_SECONDS = 0.5
_FILE_SECONDS = 240.0  # a piece of it is sent in that time


def datasets() -> Steps[list[DatasetRead]]:
    """The account's data sets, newest first, and after them the known ones."""
    return (yield from listed("/v1/datasets", DatasetRead))


def dataset(id_or_name: str) -> Steps[DatasetDetail]:
    """One data set with its classes."""
    return (yield from get(f"/v1/datasets/{id_or_name}", DatasetDetail))


def upload_dataset(
    path: Path | str,
    name: str | None = None,
    *,
    resolution_px: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Steps[DatasetRead]:
    """A data set from an `.npz`, `.zip` or `.tar.gz` file, which is never held in memory.

    It can be searched on once a worker has checked it, see `wait_for_dataset`.

    Args:
        name: the file's own, without what its form says, unless given.
        resolution_px: cut the images of a folder to their square, and resize them to this.
        on_progress: called with how many bytes were sent.
    """
    body = FileBody(Path(path), on_progress)
    asked = {"name": name or name_of(Path(path)), "resolution_px": resolution_px}
    answer = yield Ask(
        "POST",
        "/v1/datasets/uploads",
        params=given(asked),
        content=body,
        headers=body.headers(),
        timeout=_FILE_SECONDS,
    )
    return DatasetRead.model_validate(answer.json())


def register_dataset(
    name: str,
    *,
    builtin: str | None = None,
    path: str | None = None,
    resolution_px: int | None = None,
) -> Steps[DatasetRead]:
    """A data set from what the workers have: a known set, or a path under an allowed root."""
    asked = {"builtin": builtin, "path": path, "resolution_px": resolution_px}
    return (yield from post("/v1/datasets", {"name": name, **given(asked)}, DatasetRead))


def wait_for_dataset(dataset_id: str, timeout_seconds: float) -> Steps[DatasetDetail]:
    """The data set once it was checked, ready or rejected.

    Raises:
        DatasetTimeoutError: it was not by then; a worker may still do it.
    """
    deadline = time.monotonic() + timeout_seconds
    while (found := (yield from dataset(dataset_id))).status == "checking":
        if time.monotonic() >= deadline:
            raise DatasetTimeoutError(
                f"data set {found.name} is still being checked; does a worker run?"
            )
        yield Pause(_POLL_SECONDS)
    return found


def delete_dataset(dataset_id: str) -> Steps[None]:
    """Delete a data set that no unfinished search uses."""
    yield Ask("DELETE", f"/v1/datasets/{dataset_id}")
