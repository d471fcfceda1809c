"""Every statement on API keys."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import get_args

from sqlalchemy import and_, func, or_, select, update
from sqlalchemy.orm import Session

from service.auth.models import ApiKey
from service.auth.principal import Principal, Scope
from service.auth.tokens import new_token, token_hash
from service.db.base import new_id, utc_now
from service.db.database import take_turns
from service.errors import ConflictError, NotFoundError
from service.searches.models import Search
from service.searches.schemas import TERMINAL, Status
from service.sessions.repository import end_sessions

_UNFINISHED = [status for status in get_args(Status) if status not in TERMINAL]


def create_key(
    session: Session,
    name: str,
    scope: Scope,
    account: str | None = None,
    *,
    created_by: str | None = None,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """A new key and its secret, which nobody can read again.

    Args:
        account: whose key it is; its name makes an account of its own.
        created_by: id of the key it is made with.
    """
    token = new_token("tlr")
    key = ApiKey(
        id=new_id("key"),
        name=name,
        account=account or name,
        scope=scope,
        token_hash=token_hash(token),
        created_by=created_by,
        created_at=utc_now(),
        expires_at=expires_at,
    )
    session.add(key)
    return key, token


def first_key(session: Session) -> str | None:
    """The secret of an admin key made because there was none yet; None when there was one."""
    take_turns(session, "first key")
    if session.scalar(select(func.count()).select_from(ApiKey)):
        return None
    return create_key(session, "first start", "admin")[1]


def find_key(session: Session, token: str) -> Principal | None:
    """Who may use this secret: that of a key, or the one before its last rotation for a while."""
    now, digest = utc_now(), token_hash(token)
    key = session.scalars(
        select(ApiKey).where(
            or_(
                ApiKey.token_hash == digest,
                and_(ApiKey.previous_hash == digest, ApiKey.previous_expires_at > now),
            ),
            ApiKey.is_good(now),
        )
    ).first()
    if key is None:
        return None
    if key.previous_hash == digest and key.previous_expires_at is not None:
        return key.principal().until(key.previous_expires_at)
    return key.principal()


def get_key(session: Session, key_id: str, *, lock: bool = False) -> ApiKey:
    """The key of that id.

    Raises:
        NotFoundError: there is none.
    """
    # others may write rows that name the key meanwhile
    key = session.get(ApiKey, key_id, with_for_update={"key_share": True} if lock else None)
    if key is None:
        raise NotFoundError(f"no API key has id {key_id}")
    return key


def list_keys(session: Session, cursor: str | None, limit: int) -> Sequence[ApiKey]:
    """A page of keys, newest first."""
    statement = select(ApiKey).order_by(ApiKey.id.desc()).limit(limit)
    if cursor:
        statement = statement.where(ApiKey.id < cursor)
    return session.scalars(statement).all()


def revoke_key(session: Session, key_id: str) -> None:
    """Make a key worthless, and end its sessions.

    Raises:
        NotFoundError: no key has that id.
        ConflictError: it is the last admin key that stays good; nobody could make another.
    """
    take_turns(session, "keys")
    key = get_key(session, key_id, lock=True)
    if key.revoked_at is not None:
        return
    if key.scope == "admin" and key.expires_at is None and not _other_lasting_admins(session, key):
        raise ConflictError(
            "this is the last admin key without an end; make another one first: "
            "`tailor keys create NAME --scope admin`"
        )
    key.revoked_at = utc_now()
    end_sessions(session, key.id, key.revoked_at)


def _other_lasting_admins(session: Session, key: ApiKey) -> int:
    return (
        session.scalar(
            select(func.count())
            .select_from(ApiKey)
            .where(
                ApiKey.scope == "admin",
                ApiKey.id != key.id,
                ApiKey.expires_at.is_(None),
                ApiKey.revoked_at.is_(None),
            )
        )
        or 0
    )


def rotate_key(session: Session, key_id: str, grace: timedelta) -> tuple[ApiKey, str]:
    """The key with a new secret; the old one, and sessions opened with it, end after `grace`.

    Raises:
        NotFoundError: no key has that id.
        ConflictError: it is revoked or has expired.
    """
    take_turns(session, "keys")
    key = get_key(session, key_id, lock=True)
    now = utc_now()
    if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now):
        raise ConflictError(f"key {key.name!r} is no longer valid; make a new one")
    token = new_token("tlr")
    key.previous_hash, key.previous_expires_at = key.token_hash, now + grace
    key.token_hash = token_hash(token)
    end_sessions(session, key.id, key.previous_expires_at)
    return key, token


def note_last_use(session: Session, at_by_key: Mapping[str, datetime]) -> None:
    """Write down when keys were last used."""
    for key_id, at in sorted(at_by_key.items()):  # in one order, so that no two processes block
        earlier = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < at)
        session.execute(update(ApiKey).where(ApiKey.id == key_id, earlier).values(last_used_at=at))


def n_unfinished_searches(session: Session, account: str) -> int:
    """How many searches of an account have not ended."""
    unfinished = (Search.owner == account, Search.status.in_(_UNFINISHED))
    return session.scalar(select(func.count()).select_from(Search).where(*unfinished)) or 0
