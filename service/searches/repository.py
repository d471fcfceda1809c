"""Every statement on searches, their events and their files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, func, insert, select, type_coerce
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from service.auth.principal import Principal
from service.db.base import utc_now
from service.errors import NotFoundError
from service.jobs.models import Job
from service.searches.models import Search, SearchArtifact, SearchEvent, SearchTarget
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


def get_seen(
    session: Session, search_id: str, principal: Principal, *, lock: bool = False
) -> Search:
    """The same for who asks: what he may not see does not exist for him.

    Raises:
        NotFoundError: there is none that he may see.
    """
    search = get_search(session, search_id, lock=lock)
    if not principal.sees(search.owner):
        raise NotFoundError(f"no search has id {search_id}")
    return search


def find_by_idempotency_key(session: Session, owner: str, key: str) -> Search | None:
    """The search an owner created with this key."""
    return session.scalars(
        select(Search).where(Search.owner == owner, Search.idempotency_key == key)
    ).first()


_LATEST = 300


@dataclass(frozen=True)
class SearchFilter:
    """Which searches a list is to have; None means any.

    Attributes:
        owner: their account.
        tags: all of which they have.
        archived: archived ones instead of the others; None: both.
    """

    owner: str | None = None
    status: str | None = None
    kind: str | None = None
    target_id: str | None = None
    parent_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    archived: bool | None = None


def list_searches(
    session: Session, wanted: SearchFilter, cursor: str | None, limit: int, *, oldest_first: bool
) -> Sequence[Search]:
    """A page of searches by the time of their creation; the cursor is the last id seen."""
    order = Search.id if oldest_first else Search.id.desc()
    statement = select(Search).order_by(order).limit(limit)
    for column, value in (
        (Search.owner, wanted.owner),
        (Search.status, wanted.status),
        (Search.kind, wanted.kind),
        (Search.parent_id, wanted.parent_id),
    ):
        if value is not None:
            statement = statement.where(column == value)
    if wanted.target_id is not None:
        statement = statement.join(SearchTarget).where(SearchTarget.target_id == wanted.target_id)
    if wanted.tags:
        statement = statement.where(*_has_tags(session, wanted.tags))
    if wanted.archived is not None:
        there = Search.archived_at.is_not(None)
        statement = statement.where(there if wanted.archived else ~there)
    if cursor:
        statement = statement.where(Search.id > cursor if oldest_first else Search.id < cursor)
    return session.scalars(statement).all()


def _has_tags(session: Session, tags: Mapping[str, str]) -> list[ColumnElement[bool]]:
    if session.get_bind().dialect.name == "postgresql":  # one look into the index
        return [type_coerce(Search.tags, JSONB).contains(dict(tags))]
    return [Search.tags[name].as_string() == value for name, value in tags.items()]


def targets_of(session: Session, search_id: str) -> Sequence[SearchTarget]:
    """The targets of a search."""
    return session.scalars(
        select(SearchTarget)
        .where(SearchTarget.search_id == search_id)
        .order_by(SearchTarget.target_id)
    ).all()


def origin_of(session: Session, search: Search, kind: str) -> Search:
    """The search itself or its nearest ancestor that is of another kind."""
    while search.kind == kind and search.parent_id is not None:
        search = get_search(session, search.parent_id)
    return search


def children_of(session: Session, search_id: str, limit: int) -> Sequence[Search]:
    """The latest searches that come from one."""
    return session.scalars(
        select(Search).where(Search.parent_id == search_id).order_by(Search.id.desc()).limit(limit)
    ).all()


def alike_succeeded(session: Session, spec: SearchCreate, limit: int) -> Sequence[Search]:
    """The latest searches of the same space, data and algorithm whose first attempt succeeded.

    Among the last few hundred that succeeded: what is older tells little of today's machines.
    """
    latest = (
        select(Search.id)
        .where(Search.status == "succeeded")
        .order_by(Search.id.desc())
        .limit(_LATEST)
        .subquery()
    )
    alike = [
        Search.spec[name].as_string() == getattr(spec, name)
        for name in ("search_space", "dataset", "algorithm")
    ]
    return session.scalars(
        select(Search)
        .join(latest, latest.c.id == Search.id)
        .join(Job, Job.subject_id == Search.id)
        .where(Job.attempt == 1, Search.kind == "search", *alike)
        .order_by(Search.finished_at.desc(), Search.id.desc())
        .limit(limit)
    ).all()


def waiting_for(session: Session, blocked_on: str, *, lock: bool = False) -> Sequence[Search]:
    """The searches whose job waits for `blocked_on`, paused ones among them.

    Args:
        lock: let nobody else change them, or their jobs, until the transaction ends.
    """
    waits = (Job.blocked_on == blocked_on, Job.status.in_(("queued", "paused")))
    if lock:  # jobs first, as everybody does
        session.execute(select(Job.id).where(*waits).order_by(Job.id).with_for_update())
    found = select(Search).join(Job, Job.subject_id == Search.id).where(*waits).order_by(Search.id)
    if lock:
        found = found.with_for_update(of=Search).execution_options(populate_existing=True)
    return session.scalars(found).all()


def append_event(session: Session, search_id: str, type_: str, data: dict[str, Any]) -> None:
    """Append one event; numbers are dense and start at 1."""
    session.flush()
    last = select(func.max(SearchEvent.number)).where(SearchEvent.search_id == search_id)
    session.execute(
        insert(SearchEvent).values(
            search_id=search_id,
            number=func.coalesce(last.scalar_subquery(), 0) + 1,
            type=type_,
            data=data,
            created_at=utc_now(),
        )
    )


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


def has_artifact(session: Session, search_id: str, name: str) -> bool:
    """Whether a search has a file of that name."""
    return session.get(SearchArtifact, (search_id, name)) is not None
