"""Every statement on the audit log; none changes what is there."""

from collections.abc import Sequence

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from service.audit.models import AuditEntry


def append_entry(session: Session, entry: AuditEntry) -> None:
    """Write one entry, in the transaction of what it tells of."""
    session.add(entry)


def list_entries(
    session: Session,
    cursor: str | None,
    limit: int,
    *,
    actor: str | None = None,
    action: str | None = None,
    object_id: str | None = None,
) -> Sequence[AuditEntry]:
    """A page of entries, newest first.

    Args:
        actor: id of a key, or an account.
        action: how the action begins: ``DELETE``, ``POST /v1/keys``.
    """
    statement = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
    if cursor:
        statement = statement.where(AuditEntry.id < cursor)
    if actor:
        statement = statement.where(or_(AuditEntry.key_id == actor, AuditEntry.account == actor))
    if action:
        statement = statement.where(AuditEntry.action.startswith(action, autoescape=True))
    if object_id:
        statement = statement.where(AuditEntry.object_id == object_id)
    return session.scalars(statement).all()
