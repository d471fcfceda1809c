"""Every statement on sessions."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from service.auth.models import ApiKey
from service.auth.principal import Principal
from service.auth.tokens import new_token, token_hash
from service.db.base import new_id, utc_now
from service.errors import NotFoundError
from service.sessions.models import SessionRow


def create_session(
    session: Session, principal: Principal, lasting: timedelta
) -> tuple[SessionRow, str]:
    """A new session of a key and its secret; it ends with the key at the latest."""
    token = new_token("tls")
    now = utc_now()
    session.execute(delete(SessionRow).where(SessionRow.expires_at <= now))
    row = SessionRow(
        id=new_id("ses"),
        key_id=principal.id,
        token_hash=token_hash(token),
        created_at=now,
        last_used_at=now,
        expires_at=min(now + lasting, principal.expires_at or now + lasting),
    )
    session.add(row)
    return row, token


def find_session(session: Session, token: str, idle: timedelta) -> Principal | None:
    """Who asks with the session of this secret, unless it or its key has ended."""
    now = utc_now()
    found = session.execute(
        select(SessionRow, ApiKey)
        .join(ApiKey, ApiKey.id == SessionRow.key_id)
        .where(
            SessionRow.token_hash == token_hash(token),
            SessionRow.expires_at > now,
            SessionRow.last_used_at > now - idle,
            ApiKey.is_good(now),
        )
    ).first()
    if found is None:
        return None
    row, key = found
    return key.principal().within(row.id, row.expires_at)


def get_session(session: Session, session_id: str) -> SessionRow:
    """The session of that id.

    Raises:
        NotFoundError: there is none.
    """
    row = session.get(SessionRow, session_id)
    if row is None:
        raise NotFoundError(f"no session has id {session_id}")
    return row


def delete_session(session: Session, session_id: str) -> None:
    """Sign a browser out."""
    session.execute(delete(SessionRow).where(SessionRow.id == session_id))


def end_sessions(session: Session, key_id: str, at: datetime) -> None:
    """Let no session of a key outlast that moment."""
    session.execute(
        update(SessionRow)
        .where(SessionRow.key_id == key_id, SessionRow.expires_at > at)
        .values(expires_at=at)
    )


def note_use(session: Session, at_by_session: Mapping[str, datetime]) -> None:
    """Write down when sessions were last used."""
    for session_id, at in sorted(at_by_session.items()):
        session.execute(
            update(SessionRow)
            .where(SessionRow.id == session_id, SessionRow.last_used_at < at)
            .values(last_used_at=at)
        )
