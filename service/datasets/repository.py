"""Every statement on data sets."""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.auth.principal import Principal
from service.datasets.models import DatasetRow
from service.errors import NotFoundError
from service.searches.models import Search
from service.searches.schemas import TERMINAL


def get_dataset(
    session: Session, principal: Principal, id_or_name: str, *, lock: bool = False
) -> DatasetRow:
    """A data set that the principal sees by its id, or one of his own by its name.

    Args:
        lock: nobody else changes it, and no search begins to use it, until the transaction ends.

    Raises:
        NotFoundError: there is none.
    """
    statement = select(DatasetRow).where(
        (DatasetRow.id == id_or_name)
        | ((DatasetRow.owner == principal.account) & (DatasetRow.name == id_or_name))
    )
    if lock:
        statement = statement.with_for_update()
    row = session.scalars(statement).first()
    if row is None or not principal.sees(row.owner):
        raise NotFoundError(f"no data set of this account has the id or name {id_or_name}")
    return row


def find_by_name(session: Session, owner: str, name: str) -> DatasetRow | None:
    """The data set of that name of an account."""
    return session.scalars(
        select(DatasetRow).where(DatasetRow.owner == owner, DatasetRow.name == name)
    ).first()


def find_for_use(session: Session, owner: str, id_or_name: str) -> DatasetRow | None:
    """The same, or by id; it cannot be deleted before the caller's transaction ends."""
    return session.scalars(
        select(DatasetRow)
        .where(
            DatasetRow.owner == owner,
            (DatasetRow.name == id_or_name) | (DatasetRow.id == id_or_name),
        )
        .with_for_update(read=True, key_share=True)
    ).first()


def locked(session: Session, dataset_id: str) -> DatasetRow | None:
    """The data set of that id for the attempt that checks it; None when it was deleted."""
    return session.get(DatasetRow, dataset_id, with_for_update=True)


def list_datasets(
    session: Session, owner: str, cursor: str | None, limit: int
) -> Sequence[DatasetRow]:
    """A page of an account's data sets, newest first."""
    statement = (
        select(DatasetRow)
        .where(DatasetRow.owner == owner)
        .order_by(DatasetRow.id.desc())
        .limit(limit)
    )
    if cursor:
        statement = statement.where(DatasetRow.id < cursor)
    return session.scalars(statement).all()


def names_of(session: Session, owner: str, limit: int) -> Sequence[str]:
    """Names of an account's data sets that are ready, the newest ones."""
    return session.scalars(
        select(DatasetRow.name)
        .where(DatasetRow.owner == owner, DatasetRow.status == "ready")
        .order_by(DatasetRow.id.desc())
        .limit(limit)
    ).all()


def bytes_of(session: Session, owner: str) -> int:
    """What an account's uploads take in the artifact store."""
    stored = select(func.coalesce(func.sum(DatasetRow.size_bytes), 0))
    return int(session.scalar(stored.where(DatasetRow.owner == owner)) or 0)


def unfinished_search(session: Session, row: DatasetRow) -> str | None:
    """The id of a search that has not ended and uses the data set."""
    named = Search.spec["dataset"].as_string()
    return session.scalars(
        select(Search.id)
        .where(
            Search.owner == row.owner,
            Search.status.not_in(TERMINAL),
            named.in_((row.name, row.id)),
        )
        .limit(1)
    ).first()
