"""Every statement on API keys."""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.auth.models import ApiKey
from service.auth.tokens import new_token, token_hash
from service.db.base import new_id, utc_now
from service.db.database import take_turns
from service.errors import NotFoundError


def create_key(
    session: Session, name: str, scope: str, account: str | None = None
) -> tuple[ApiKey, str]:
    """A new key and its secret, which nobody can read again.

    Args:
        account: whose key it is; its name makes an account of its own.
    """
    token = new_token("tlr")
    key = ApiKey(
        id=new_id("key"),
        name=name,
        account=account or name,
        scope=scope,
        token_hash=token_hash(token),
        created_at=utc_now(),
    )
    session.add(key)
    return key, token


def first_key(session: Session) -> str | None:
    """The secret of an admin key made because there was none yet; None when there was one."""
    take_turns(session, "first key")
    if session.scalar(select(func.count()).select_from(ApiKey)):
        return None
    return create_key(session, "first start", "admin")[1]


def find_key(session: Session, token: str) -> ApiKey | None:
    """The valid key with this secret."""
    return session.scalars(
        select(ApiKey).where(ApiKey.token_hash == token_hash(token), ApiKey.revoked_at.is_(None))
    ).first()


def list_keys(session: Session) -> Sequence[ApiKey]:
    """Every key, newest first."""
    return session.scalars(select(ApiKey).order_by(ApiKey.id.desc())).all()


def revoke_key(session: Session, key_id: str) -> None:
    """Make a key worthless at once.

    Raises:
        NotFoundError: no key has that id.
    """
    key = session.get(ApiKey, key_id)
    if key is None:
        raise NotFoundError(f"no API key has id {key_id}")
    key.revoked_at = key.revoked_at or utc_now()
