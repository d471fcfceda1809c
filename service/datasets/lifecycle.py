"""What may happen to a data set: it is registered, checked by a job, and deleted.

checking --> ready | rejected
rejected --> checking    when the same is registered again
"""

from typing import Any

from sqlalchemy.orm import Session

from search_core.data.catalogue import datasets
from service.auth.quotas import check_dataset_bytes
from service.datasets.models import DatasetRow
from service.datasets.repository import bytes_of, find_by_name, locked, unfinished_search
from service.db.base import new_id, utc_now
from service.db.database import take_turns
from service.errors import ConflictError, InvalidRequestError
from service.jobs import repository as jobs
from service.settings import Settings

CHECK_JOB = "check_dataset"

_PRIORITY = 100
"""A check is short, and searches wait for it."""


def register(
    session: Session,
    settings: Settings,
    account: str,
    name: str,
    *,
    source: str,
    place: str,
    resize_px: int | None,
    size_bytes: int = 0,
) -> tuple[DatasetRow, bool]:
    """A data set to be checked, and whether it is new; registering the same again is harmless.

    Raises:
        InvalidRequestError: the name is a known set's.
        ConflictError: the account has another data set of that name.
        QuotaExceededError: the account stores too much.
    """
    check_name(name, source, place)
    take_turns(session, f"data sets of {account}")
    row = find_by_name(session, account, name)
    if row is not None:
        if (row.source, row.place, row.resize_px) != (source, place, resize_px):
            raise ConflictError(
                f"data set {name} is another one: {row.source} {row.place}; delete it, or choose "
                "another name"
            )
        if row.status == "rejected":
            row.status, row.reason = "checking", None
            _enqueue(session, settings, row)
        return row, False
    check_dataset_bytes(settings, bytes_of(session, account), size_bytes)
    row = DatasetRow(
        id=new_id("dset"),
        owner=account,
        name=name,
        source=source,
        place=place,
        resize_px=resize_px,
        sha256=place if source == "upload" else None,
        size_bytes=size_bytes,
        status="checking",
        created_at=utc_now(),
    )
    session.add(row)
    session.flush()
    _enqueue(session, settings, row)
    return row, True


def check_name(name: str, source: str, place: str) -> None:
    """Keep the names of known sets for these.

    Raises:
        InvalidRequestError: it is one, and something else is to be called so.
    """
    if name in {info.name for info in datasets()} and (source, place) != ("builtin", name):
        raise InvalidRequestError(
            f"{name} is the name of a known set; choose another one", field="name"
        )


def _enqueue(session: Session, settings: Settings, row: DatasetRow) -> None:
    jobs.enqueue(
        session,
        CHECK_JOB,
        row.id,
        owner=row.owner,
        max_attempts=settings.max_attempts,
        priority=_PRIORITY,
    )


def ready(row: DatasetRow, facts: dict[str, Any]) -> None:
    """The check found a data set."""
    row.status, row.reason, row.facts, row.checked_at = "ready", None, facts, utc_now()


def rejected(row: DatasetRow, reason: str) -> None:
    """The check found none."""
    row.status, row.reason, row.checked_at = "rejected", reason, utc_now()


def check_lost(session: Session, dataset_id: str, outcome: str) -> None:
    """No attempt could finish the check."""
    row = locked(session, dataset_id)
    if row is not None and row.status == "checking":
        rejected(
            row,
            f"the check was begun several times and never ended ({outcome}); register it again "
            "to have it checked once more",
        )


def delete(session: Session, row: DatasetRow) -> None:
    """Delete a data set, locked; its upload goes with the next `tailor admin gc`.

    Raises:
        ConflictError: a search that has not ended uses it.
    """
    search_id = unfinished_search(session, row)
    if search_id is not None:
        raise ConflictError(
            f"search {search_id} has not ended and uses data set {row.name}; wait for it, or "
            "cancel it"
        )
    jobs.cancel_queued(session, row.id)
    session.delete(row)
