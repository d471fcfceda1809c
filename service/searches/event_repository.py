"""Every statement that reads events."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.searches.models import Search, SearchEvent

_ROWS_AT_ONCE = 1000


def events_after(
    session: Session, search_id: str, after: int, newest: int, limit: int, types: Sequence[str]
) -> Sequence[SearchEvent]:
    """Events numbered above `after` up to `newest`, oldest first; of all types if none is named."""
    statement = select(SearchEvent).where(
        SearchEvent.search_id == search_id,
        SearchEvent.number > after,
        SearchEvent.number <= newest,
    )
    if types:
        statement = statement.where(SearchEvent.type.in_(types))
    return session.scalars(statement.order_by(SearchEvent.number).limit(limit)).all()


def heads(session: Session, search_ids: Sequence[str]) -> dict[str, int]:
    """The number of the newest event of each search."""
    newest = (
        select(func.max(SearchEvent.number))
        .where(SearchEvent.search_id == Search.id)
        .correlate(Search)
        .scalar_subquery()
    )  # for each search one step in the index, where grouping would read all its events
    rows = session.execute(select(Search.id, newest).where(Search.id.in_(search_ids)))
    return {search_id: number or 0 for search_id, number in rows}


def metrics_backwards(
    session: Session, search_id: str
) -> Iterator[tuple[datetime, dict[str, Any]]]:
    """When and what every metrics event told, newest first; a few in memory at a time."""
    statement = (
        select(SearchEvent.created_at, SearchEvent.data)
        .where(SearchEvent.search_id == search_id, SearchEvent.type == "metrics")
        .order_by(SearchEvent.number.desc())
        .execution_options(yield_per=_ROWS_AT_ONCE)
    )
    yield from session.execute(statement)
