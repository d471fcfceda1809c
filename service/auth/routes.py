"""Routes of API keys; admins only."""

from fastapi import APIRouter, status

from service.auth.access import Admin
from service.auth.repository import create_key, list_keys, revoke_key
from service.auth.schemas import KeyCreate, KeyCreated, KeyRead
from service.dependencies import ReadSession, WriteSession
from service.schemas import Page

router = APIRouter(prefix="/keys", tags=["keys"])


@router.post("", status_code=status.HTTP_201_CREATED)
def create(body: KeyCreate, session: WriteSession, _: Admin) -> KeyCreated:
    """Create a key; its secret is in this answer and nowhere else."""
    key, token = create_key(session, body.name, body.scope)
    return KeyCreated(**KeyRead.model_validate(key).model_dump(), token=token)


@router.get("")
def list_all(session: ReadSession, _: Admin) -> Page[KeyRead]:
    """Every key, without secrets."""
    return Page[KeyRead](items=[KeyRead.model_validate(key) for key in list_keys(session)])


@router.delete("/{key_id}", status_code=status.HTTP_204_NO_CONTENT)
def revoke(key_id: str, session: WriteSession, _: Admin) -> None:
    """Revoke a key at once."""
    revoke_key(session, key_id)
