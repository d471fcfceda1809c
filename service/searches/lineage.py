"""What a search comes from: other searches, latency models, measurements, devices."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy.orm import Session

from service.auth.principal import Principal
from service.latency_models.repository import get_model
from service.measurements.repository import measurements_named
from service.searches.models import Search
from service.searches.repository import children_of, get_search, targets_of
from service.searches.schemas import Lineage, LineageMeasurement, LineageModel

_MOST_CHILDREN = 200
_MOST_ANCESTORS = 100


def lineage_of(session: Session, search: Search, principal: Principal) -> Lineage:
    """The lineage of a search, as far as who asks may see it."""
    rows = measurements_named(session, sorted(set(_measurements(search.result))))
    return Lineage(
        search=search.id,
        ancestors=[one.id for one in _ancestors(session, search) if principal.sees(one.owner)],
        children=[
            child.id
            for child in children_of(session, search.id, _MOST_CHILDREN)
            if principal.sees(child.owner)
        ],
        latency_models=[
            _model(session, row.latency_model_id)
            for row in targets_of(session, search.id)
            if row.latency_model_id is not None
        ],
        measurements=[
            LineageMeasurement(
                id=row.id,
                subject=row.subject,
                target=row.target_id,
                agent=row.agent_id,
                latency_ms=row.latency_ms,
                measured_at=row.measured_at,
                environment=row.facts,
            )
            for row in rows
        ],
    )


def _ancestors(session: Session, search: Search) -> Iterator[Search]:
    for _ in range(_MOST_ANCESTORS):
        if search.parent_id is None:
            return
        search = get_search(session, search.parent_id)
        yield search


def _model(session: Session, model_id: str) -> LineageModel:
    row = get_model(session, model_id)
    return LineageModel(
        id=row.id,
        target=row.target_id,
        version=row.version,
        created_at=row.created_at,
        measurements=row.report.get("measurements", {}).get("n", 0),
    )


def _measurements(result: Any) -> Iterator[str]:
    """The ids of measurements anywhere in a result."""
    if isinstance(result, dict):
        if isinstance(result.get("measurement"), str):
            yield result["measurement"]
        for value in result.values():
            yield from _measurements(value)
    elif isinstance(result, list):
        for value in result:
            yield from _measurements(value)
