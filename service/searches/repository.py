"""Every statement on searches, their events and their files."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.db.base import utc_now
from service.errors import NotFoundError
from service.jobs.models import Job
from service.searches.models import Search, SearchArtifact, SearchEvent
from service.searches.schemas import SearchCreate


def get_search(session: Session, search_id: str, *, lock: bool = False) -> Search:
    """The search of that id; with `lock`, nobody else changes it until the transaction ends.

    Raises:
        NotFoundError: there is none.
    """
    search = session.get(Search, search_id, with_for_update=lock or None)
    if search is None:
        raise NotFoundError(f"no search has id {search_id}")
    return search


def find_by_idempotency_key(session: Session, owner: str, key: str) -> Search | None:
    """The search an owner created with this key."""
    return session.scalars(
        select(Search).where(Search.owner == owner, Search.idempotency_key == key)
    ).first()


def list_searches(
    session: Session, status: str | None, cursor: str | None, limit: int
) -> Sequence[Search]:
    """A page of searches, newest first."""
    statement = select(Search).order_by(Search.id.desc()).limit(limit)
    if status:
        statement = statement.where(Search.status == status)
    if cursor:
        statement = statement.where(Search.id < cursor)
    return session.scalars(statement).all()


def alike_succeeded(session: Session, spec: SearchCreate, limit: int) -> Sequence[Search]:
    """The latest searches of the same space, data and algorithm whose first attempt succeeded."""
    alike = [
        Search.spec[name].as_string() == getattr(spec, name)
        for name in ("search_space", "dataset", "algorithm")
    ]
    return session.scalars(
        select(Search)
        .join(Job, Job.subject_id == Search.id)
        .where(Search.status == "succeeded", Job.attempt == 1, *alike)
        .order_by(Search.finished_at.desc(), Search.id.desc())
        .limit(limit)
    ).all()


def waiting_for(session: Session, blocked_on: str) -> Sequence[Search]:
    """The searches whose job waits for `blocked_on`."""
    return session.scalars(
        select(Search)
        .join(Job, Job.subject_id == Search.id)
        .where(Job.blocked_on == blocked_on, Job.status == "queued")
    ).all()


def append_event(session: Session, search_id: str, type_: str, data: dict[str, Any]) -> None:
    """Append one event; numbers are dense and start at 1."""
    last = session.scalar(
        select(func.max(SearchEvent.number)).where(SearchEvent.search_id == search_id)
    )
    session.add(
        SearchEvent(
            search_id=search_id,
            number=(last or 0) + 1,
            type=type_,
            data=data,
            created_at=utc_now(),
        )
    )
    session.flush()


def list_events(session: Session, search_id: str, after: int, limit: int) -> Sequence[SearchEvent]:
    """Events with a number above `after`, oldest first."""
    return session.scalars(
        select(SearchEvent)
        .where(SearchEvent.search_id == search_id, SearchEvent.number > after)
        .order_by(SearchEvent.number)
        .limit(limit)
    ).all()


def list_artifacts(session: Session, search_id: str) -> Sequence[SearchArtifact]:
    """The files of a search by name."""
    return session.scalars(
        select(SearchArtifact)
        .where(SearchArtifact.search_id == search_id)
        .order_by(SearchArtifact.name)
    ).all()


def get_artifact(session: Session, search_id: str, name: str) -> SearchArtifact:
    """One file of a search.

    Raises:
        NotFoundError: naming the files there are.
    """
    artifact = session.get(SearchArtifact, (search_id, name))
    if artifact is None:
        names = ", ".join(a.name for a in list_artifacts(session, search_id)) or "none yet"
        raise NotFoundError(f"search {search_id} has no artifact {name!r}; it has: {names}")
    return artifact
