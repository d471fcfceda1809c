"""Routes of targets."""

from fastapi import APIRouter
from sqlalchemy.orm import Session

from service.agents.repository import n_online
from service.auth.access import Viewer
from service.dependencies import CurrentSettings, Cursor, Limit, ReadSession
from service.schemas import Page, next_cursor
from service.settings import Settings
from service.targets.models import Target
from service.targets.repository import get_target, list_targets
from service.targets.schemas import TargetRead

router = APIRouter(prefix="/targets", tags=["targets"])


@router.get("")
def list_all(
    session: ReadSession,
    settings: CurrentSettings,
    _: Viewer,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Page[TargetRead]:
    """Targets, newest first."""
    items = [_read(t, session, settings) for t in list_targets(session, cursor, limit)]
    return Page[TargetRead](items=items, next_cursor=next_cursor(items, limit))


@router.get("/{target_id}")
def get(target_id: str, session: ReadSession, settings: CurrentSettings, _: Viewer) -> TargetRead:
    """One target."""
    return _read(get_target(session, target_id), session, settings)


def _read(target: Target, session: Session, settings: Settings) -> TargetRead:
    return TargetRead(
        id=target.id,
        name=target.name,
        profile=target.profile,
        created_at=target.created_at,
        agents_online=n_online(session, target.id, settings.agent_offline_seconds),
    )
