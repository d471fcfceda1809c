"""Routes of machines."""

from fastapi import APIRouter

from service.auth.access import Viewer
from service.dependencies import Cursor, Limit, ReadSession
from service.machines.models import Machine
from service.machines.repository import list_machines
from service.machines.schemas import MachineRead
from service.schemas import Page, next_cursor

router = APIRouter(prefix="/machines", tags=["machines"])


@router.get("")
def list_all(
    session: ReadSession, _: Viewer, cursor: Cursor = None, limit: Limit = 50
) -> Page[MachineRead]:
    """The machines that have run workers, newest first."""
    items = [_read(row) for row in list_machines(session, cursor, limit)]
    return Page[MachineRead](items=items, next_cursor=next_cursor(items, limit))


def _read(row: Machine) -> MachineRead:
    profile = row.document
    return MachineRead(
        id=row.id,
        host=row.host,
        name=profile["name"],
        device=profile["device"],
        threads=profile["threads"],
        torch=profile["torch"],
        error=profile["error"],
        created_at=row.created_at,
        seen_at=row.seen_at,
        profile=profile,
    )
