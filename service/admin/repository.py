"""Every statement that admin commands and housekeeping make about a whole store."""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import CursorResult, Delete, Update, delete, func, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.agents.models import EnrolmentCode
from service.auth.models import ApiKey
from service.datasets.models import DatasetRow
from service.db.base import utc_now
from service.db.database import Database, store_time
from service.jobs.models import Job
from service.measurements.models import KitFile, MeasurementTask
from service.searches.models import Search, SearchArtifact
from service.searches.schemas import TERMINAL
from service.sessions.models import SessionRow
from service.settings import Settings
from service.webhooks.models import Webhook
from service.webhooks.repository import forget_deliveries

ARTIFACT_REFERENCES: tuple[InstrumentedAttribute[Any], ...] = (
    SearchArtifact.sha256,
    KitFile.sha256,
    MeasurementTask.model_sha256,
    MeasurementTask.anchor_sha256,
    DatasetRow.sha256,
)
"""Every column that names a file of the artifact store; `gc` deletes what none of them names."""

_OPEN = ("queued", "running", "paused")
_AT_ONCE = 1000


def artifact_references(session: Session) -> Iterator[str]:
    """The hash of every file that a row names; one that several columns name comes again."""
    for column in ARTIFACT_REFERENCES:
        found = select(column).where(column.is_not(None)).distinct()
        rows = session.scalars(found.execution_options(yield_per=_AT_ONCE))
        yield from (sha256 for sha256 in rows if sha256 is not None)


def latest_artifacts(session: Session, limit: int) -> Sequence[str]:
    """The hashes of the files of the latest searches."""
    return session.scalars(
        select(SearchArtifact.sha256).order_by(SearchArtifact.search_id.desc()).limit(limit)
    ).all()


def unfinished(session: Session, search_ids: Sequence[str]) -> set[str]:
    """Which of these searches have not ended."""
    return {
        search_id
        for begin in range(0, len(search_ids), _AT_ONCE)
        for search_id in session.scalars(
            select(Search.id).where(
                Search.id.in_(search_ids[begin : begin + _AT_ONCE]), Search.status.not_in(TERMINAL)
            )
        )
    }


def searches_without_job(session: Session) -> Sequence[str]:
    """Searches that have not ended and that no job will ever end."""
    job = select(Job.id).where(Job.subject_id == Search.id, Job.status.in_(_OPEN)).exists()
    return session.scalars(
        select(Search.id).where(Search.status.not_in(TERMINAL), ~job).order_by(Search.id)
    ).all()


def jobs_overdue(session: Session, seconds: float) -> Sequence[str]:
    """Running jobs whose lease ran out longer ago than that."""
    before = store_time(session) - timedelta(seconds=seconds)
    return session.scalars(
        select(Job.id).where(Job.status == "running", Job.lease_expires_at < before)
    ).all()


def admin_keys(session: Session) -> int:
    """How many keys of scope admin are valid."""
    valid = select(func.count()).where(ApiKey.scope == "admin", ApiKey.is_good(utc_now()))
    return session.scalar(valid) or 0


def expired_keys(session: Session) -> Sequence[str]:
    """The ids of the keys that have expired and were never revoked."""
    return session.scalars(
        select(ApiKey.id).where(ApiKey.revoked_at.is_(None), ApiKey.expires_at < utc_now())
    ).all()


def disabled_webhooks(session: Session) -> Sequence[str]:
    """The ids of the webhooks that the service switched off."""
    return session.scalars(
        select(Webhook.id).where(~Webhook.active, Webhook.disabled.is_not(None))
    ).all()


def forget(database: Database, settings: Settings) -> dict[str, int]:
    """Remove what has expired, each kind in a transaction of its own; returns how many rows."""
    now = utc_now()
    idle = now - timedelta(minutes=settings.session_idle_minutes)
    no_longer_repeated = now - timedelta(hours=settings.idempotency_hours)
    statements: dict[str, Delete | Update] = {
        "sessions": delete(SessionRow).where(
            (SessionRow.expires_at < now) | (SessionRow.last_used_at < idle)
        ),
        "enrolment_codes": delete(EnrolmentCode).where(
            EnrolmentCode.expires_at < now - timedelta(days=1)
        ),
        "idempotency_keys": update(Search)
        .where(Search.idempotency_key.is_not(None), Search.created_at < no_longer_repeated)
        .values(idempotency_key=None, body_sha256=None),
    }
    forgotten = {name: _execute(database, statement) for name, statement in statements.items()}
    with database.transaction() as session:
        before = now - timedelta(days=settings.webhook_retention_days)
        forgotten["webhook_deliveries"] = forget_deliveries(session, before)
    return forgotten


def _execute(database: Database, statement: Delete | Update) -> int:
    with database.transaction() as session:
        result = session.execute(statement.execution_options(synchronize_session=False))
        assert isinstance(result, CursorResult)
        return result.rowcount
