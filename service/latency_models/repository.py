"""Every statement on latency models."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, defer

from predictor.network import NetworkLatencyModel
from service.db.base import new_id, utc_now
from service.errors import NotFoundError
from service.latency_models.models import LatencyModel


def active_model(session: Session, target_id: str, space_digest: str) -> LatencyModel | None:
    """The model that prices searches of a space on a target.

    What it says, which is long, is read when somebody looks; mostly it is known already.
    """
    return session.scalars(
        select(LatencyModel)
        .options(defer(LatencyModel.document), defer(LatencyModel.report))
        .where(
            LatencyModel.target_id == target_id,
            LatencyModel.space_digest == space_digest,
            LatencyModel.active,
        )
    ).first()


def active_models(
    session: Session, target_id: str
) -> list[tuple[LatencyModel, NetworkLatencyModel]]:
    """The models that price searches on a target, one a space, with their numbers."""
    rows = session.scalars(
        select(LatencyModel)
        .where(LatencyModel.target_id == target_id, LatencyModel.active)
        .order_by(LatencyModel.id)
    )
    return [(row, NetworkLatencyModel.from_document(row.document)) for row in rows]


def models_elsewhere(
    session: Session, target_id: str, space_digest: str
) -> dict[str, NetworkLatencyModel]:
    """The active models of a space on other targets that still hold, by target."""
    rows = session.scalars(
        select(LatencyModel).where(
            LatencyModel.target_id != target_id,
            LatencyModel.space_digest == space_digest,
            LatencyModel.active,
        )
    )
    return {
        row.target_id: NetworkLatencyModel.from_document(row.document)
        for row in rows
        if row.stale is None
    }


def mark_stale(
    session: Session, target_id: str, code: str, text: str, model_id: str | None = None
) -> bool:
    """Say why models of a target no longer hold, where it is not said yet.

    Every version is told, unless one is named: any of them may be made active.

    Returns:
        Whether any of them still held.
    """
    holding = [
        row
        for row in _versions(session, target_id)
        if row.stale is None and model_id in (None, row.id)
    ]
    for row in holding:
        row.stale = {"code": code, "text": text, "since": utc_now().isoformat()}
    return bool(holding)


def clear_stale(session: Session, target_id: str, code: str) -> None:
    """Take back what made models of a target stale."""
    for row in _versions(session, target_id):
        if row.stale is not None and row.stale["code"] == code:
            row.stale = None


def _versions(session: Session, target_id: str) -> Sequence[LatencyModel]:
    """Every model of a target; numbers and reports stay in the store, heartbeats ask often."""
    return session.scalars(
        select(LatencyModel)
        .where(LatencyModel.target_id == target_id)
        .options(defer(LatencyModel.document), defer(LatencyModel.report))
    ).all()


def get_model(session: Session, model_id: str) -> LatencyModel:
    """The latency model of that id.

    Raises:
        NotFoundError: there is none.
    """
    model = session.get(LatencyModel, model_id)
    if model is None:
        raise NotFoundError(f"no latency model has id {model_id}")
    return model


def add_model(
    session: Session,
    target_id: str,
    space: str,
    model: NetworkLatencyModel,
    report: dict[str, Any],
) -> LatencyModel:
    """Store a fit as the next version of a space on a target; it is not active yet.

    The caller holds the turn of that space and target.
    """
    newest = session.scalar(
        select(func.max(LatencyModel.version)).where(
            LatencyModel.target_id == target_id, LatencyModel.space_digest == model.space_digest
        )
    )
    row = LatencyModel(
        id=new_id("lmd"),
        target_id=target_id,
        space=space,
        space_digest=model.space_digest,
        version=(newest or 0) + 1,
        document=model.to_document(),
        report=report,
        active=False,
        created_at=utc_now(),
    )
    session.add(row)
    return row


def activate(session: Session, row: LatencyModel) -> None:
    """Let a version price the searches of its space on its target, and no other version."""
    session.execute(
        update(LatencyModel)
        .where(
            LatencyModel.target_id == row.target_id,
            LatencyModel.space_digest == row.space_digest,
            LatencyModel.active,
        )
        .values(active=False)
    )
    row.active = True


def list_models(
    session: Session, target_id: str | None, cursor: str | None, limit: int
) -> Sequence[LatencyModel]:
    """A page of latency models, newest first."""
    statement = select(LatencyModel).order_by(LatencyModel.id.desc()).limit(limit)
    if target_id:
        statement = statement.where(LatencyModel.target_id == target_id)
    if cursor:
        statement = statement.where(LatencyModel.id < cursor)
    return session.scalars(statement).all()
