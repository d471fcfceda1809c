"""Routes of latency models."""

from typing import Annotated

from fastapi import APIRouter, Query

from predictor.network import NetworkLatencyModel
from service.auth.access import User
from service.dependencies import Cursor, Limit, ReadSession
from service.latency_models.models import LatencyModel
from service.latency_models.repository import get_model, list_models
from service.latency_models.schemas import LatencyModelRead
from service.schemas import Page, next_cursor

router = APIRouter(prefix="/latency-models", tags=["latency models"])


@router.get("")
def list_all(
    session: ReadSession,
    _: User,
    target: Annotated[str | None, Query(max_length=80)] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Page[LatencyModelRead]:
    """Latency models, newest first."""
    items = [_read(row) for row in list_models(session, target, cursor, limit)]
    return Page[LatencyModelRead](items=items, next_cursor=next_cursor(items, limit))


@router.get("/{model_id}")
def get(model_id: str, session: ReadSession, _: User) -> LatencyModelRead:
    """One latency model with its report."""
    return _read(get_model(session, model_id))


def _read(row: LatencyModel) -> LatencyModelRead:
    model = NetworkLatencyModel.from_document(row.document)
    fastest_ms, slowest_ms = model.band_ms
    return LatencyModelRead(
        id=row.id,
        target=row.target_id,
        search_space=row.space,
        active=row.active,
        stale=row.stale,
        fastest_ms=fastest_ms,
        slowest_ms=slowest_ms,
        margin=model.margin,
        report=row.report,
        created_at=row.created_at,
    )
