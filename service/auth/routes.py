"""Routes of API keys; admins only, but for what a key may know and do of itself."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Body, status

from service.auth.access import Admin, CurrentVerifier, Viewer
from service.auth.principal import Principal
from service.auth.repository import create_key, get_key, list_keys, revoke_key, rotate_key
from service.auth.schemas import KeyCreate, KeyCreated, KeyRead, KeyRotate
from service.dependencies import Cursor, Limit, ReadSession, WriteSession
from service.errors import NotFoundError
from service.schemas import Page, next_cursor

router = APIRouter(prefix="/keys", tags=["keys"])


@router.post("", status_code=status.HTTP_201_CREATED)
def create(body: KeyCreate, session: WriteSession, admin: Admin) -> KeyCreated:
    """Create a key; its secret is in this answer and nowhere else."""
    key, token = create_key(
        session,
        body.name,
        body.scope,
        body.account,
        created_by=admin.id,
        expires_at=body.expires_at,
    )
    session.info["audited"] = key.id
    return KeyCreated(**KeyRead.model_validate(key).model_dump(), token=token)


@router.get("")
def list_all(
    session: ReadSession, _: Admin, cursor: Cursor = None, limit: Limit = 50
) -> Page[KeyRead]:
    """Keys without their secrets, newest first."""
    items = [KeyRead.model_validate(key) for key in list_keys(session, cursor, limit)]
    return Page[KeyRead](items=items, next_cursor=next_cursor(items, limit))


@router.get("/self")
def read_itself(session: ReadSession, principal: Viewer) -> KeyRead:
    """The key that asks, or that the session was opened with."""
    return KeyRead.model_validate(get_key(session, principal.id))


@router.get("/{key_id}")
def read(key_id: str, session: ReadSession, _: Admin) -> KeyRead:
    """One key without its secret."""
    return KeyRead.model_validate(get_key(session, key_id))


@router.post("/{key_id}/rotate")
def rotate(
    key_id: str,
    session: WriteSession,
    principal: Viewer,
    verifier: CurrentVerifier,
    body: Annotated[KeyRotate | None, Body()] = None,
) -> KeyCreated:
    """Give a key a new secret; `self` is the key that asks, and only admins name another.

    The old secret stays good for `grace_minutes`, and so do sessions that were opened with it.
    """
    grace = timedelta(minutes=(body or KeyRotate()).grace_minutes)
    key, token = rotate_key(session, _own_or_any(key_id, principal), grace)
    session.info["audited"] = key.id
    verifier.forget_after(session)
    return KeyCreated(**KeyRead.model_validate(key).model_dump(), token=token)


@router.delete("/{key_id}", status_code=status.HTTP_204_NO_CONTENT)
def revoke(key_id: str, session: WriteSession, _: Admin, verifier: CurrentVerifier) -> None:
    """Revoke a key and end its sessions: at once here, within 5 s in other API processes."""
    revoke_key(session, key_id)
    verifier.forget_after(session)


def _own_or_any(key_id: str, principal: Principal) -> str:
    if key_id in ("self", principal.id):
        return principal.id
    if not principal.may("admin"):
        raise NotFoundError(f"no API key has id {key_id}")
    return key_id
