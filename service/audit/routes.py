"""The route of the audit log; admins only, and nobody writes there."""

from typing import Annotated

from fastapi import APIRouter, Query

from service.audit.repository import list_entries
from service.audit.schemas import AuditEntryRead
from service.auth.access import Admin
from service.dependencies import Cursor, Limit, ReadSession
from service.schemas import Page, Text, next_cursor

router = APIRouter(prefix="/audit", tags=["audit"])


@router.get("")
def list_all(
    session: ReadSession,
    _: Admin,
    actor: Annotated[
        Text | None, Query(max_length=200, description="Id of a key, or an account.")
    ] = None,
    action: Annotated[
        Text | None, Query(max_length=200, description="How it begins: DELETE, POST /v1/keys.")
    ] = None,
    object_id: Annotated[
        Text | None, Query(alias="object", max_length=200, description="What was changed.")
    ] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Page[AuditEntryRead]:
    """Who changed what, newest first."""
    rows = list_entries(session, cursor, limit, actor=actor, action=action, object_id=object_id)
    items = [AuditEntryRead.model_validate(row) for row in rows]
    return Page[AuditEntryRead](items=items, next_cursor=next_cursor(items, limit))
