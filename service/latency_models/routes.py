"""Routes of latency models."""

from typing import Annotated

from fastapi import APIRouter, Query

from predictor.measurements import PROTOCOL_VERSION
from predictor.network import NetworkLatencyModel
from service.auth.access import Admin, Viewer
from service.db.database import take_turns
from service.dependencies import Cursor, Limit, ReadSession, WriteSession
from service.errors import ConflictError
from service.latency_models.models import LatencyModel
from service.latency_models.repository import activate, get_model, list_models
from service.latency_models.schemas import LatencyModelRead
from service.schemas import Page, Text, next_cursor
from service.searches.lifecycle import model_key

router = APIRouter(prefix="/latency-models", tags=["latency models"])


@router.get("")
def list_all(
    session: ReadSession,
    _: Viewer,
    target: Annotated[Text | None, Query(max_length=80)] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Page[LatencyModelRead]:
    """Latency models, newest first."""
    items = [_read(row) for row in list_models(session, target, cursor, limit)]
    return Page[LatencyModelRead](items=items, next_cursor=next_cursor(items, limit))


@router.get("/{model_id}")
def get(model_id: str, session: ReadSession, _: Viewer) -> LatencyModelRead:
    """One latency model with its report."""
    return _read(get_model(session, model_id))


@router.post("/{model_id}/activate")
def make_active(model_id: str, session: WriteSession, _: Admin) -> LatencyModelRead:
    """Let this version price searches instead of the one that does; an admin's key may.

    A new fit takes over by itself when it is at least as good on the same held-out networks;
    this is for going back. 409: the version rests on another measuring protocol, and searches
    would hold its predictions against measurements of this one. A stale version may be
    activated, and stays stale.
    """
    row = get_model(session, model_id)
    take_turns(session, model_key(row.target_id, row.space_digest))  # a fit may be deciding
    protocol = NetworkLatencyModel.from_document(row.document).versions.get("protocol")
    if protocol != PROTOCOL_VERSION:
        raise ConflictError(
            f"version {row.version} rests on measuring protocol {protocol}, and agents follow "
            f"{PROTOCOL_VERSION} now; measure the target again instead"
        )
    activate(session, row)
    return _read(row)


def _read(row: LatencyModel) -> LatencyModelRead:
    model = NetworkLatencyModel.from_document(row.document)
    fastest_ms, slowest_ms = model.band_ms
    held_out = row.report.get("held_out")
    left_out = row.report["leave_one_out"]
    return LatencyModelRead(
        id=row.id,
        target=row.target_id,
        search_space=row.space,
        version=row.version,
        active=row.active,
        stale=row.stale,
        fastest_ms=fastest_ms,
        slowest_ms=slowest_ms,
        margin=model.margin,
        held_out_error=held_out["mape"] if held_out else None,
        left_out_error=left_out["mape"],
        versions=dict(model.versions),
        report=row.report,
        created_at=row.created_at,
    )
