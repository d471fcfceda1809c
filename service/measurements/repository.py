"""Every statement on kits, measurement tasks and measurements."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.orm import Session

from predictor.measurements import Effort
from service.db.base import new_id, utc_now
from service.errors import NotFoundError
from service.measurements.models import Kit, Measurement, MeasurementTask, UploadedBatch


def find_kit(session: Session, target_id: str, space_digest: str) -> Kit | None:
    """The kit of a space on a target."""
    return session.scalars(
        select(Kit).where(Kit.target_id == target_id, Kit.space_digest == space_digest)
    ).first()


def get_kit(session: Session, kit_id: str) -> Kit:
    """The kit of that id.

    Raises:
        NotFoundError: there is none.
    """
    kit = session.get(Kit, kit_id)
    if kit is None:
        raise NotFoundError(f"no kit has id {kit_id}")
    return kit


def kit_progress(session: Session, kit_id: str) -> dict[str, int]:
    """How many tasks of a kit have each status."""
    rows = session.execute(
        select(MeasurementTask.status, func.count())
        .where(MeasurementTask.kit_id == kit_id)
        .group_by(MeasurementTask.status)
    )
    return {row[0]: row[1] for row in rows}


def add_task(
    session: Session,
    *,
    target_id: str,
    subject: str,
    effort: Effort,
    model_sha256: str,
    anchor_sha256: str,
    kit_id: str | None = None,
    search_id: str | None = None,
) -> MeasurementTask:
    """Queue one model file for the agents of a target."""
    task = MeasurementTask(
        id=new_id("mtk"),
        target_id=target_id,
        kit_id=kit_id,
        search_id=search_id,
        subject=subject,
        effort=effort,
        model_sha256=model_sha256,
        anchor_sha256=anchor_sha256,
        status="queued",
        tries=0,
        fence=0,
        created_at=utc_now(),
    )
    session.add(task)
    return task


def finishing_times(session: Session, target_id: str, limit: int = 64) -> Sequence[datetime]:
    """When the latest measured tasks of a target's kits ended, newest first."""
    times = session.scalars(
        select(MeasurementTask.finished_at)
        .where(
            MeasurementTask.target_id == target_id,
            MeasurementTask.kit_id.is_not(None),
            MeasurementTask.status == "done",
        )
        .order_by(MeasurementTask.finished_at.desc())
        .limit(limit)
    ).all()
    return [time for time in times if time is not None]


def lease_tasks(
    session: Session, target_id: str, agent_id: str, limit: int, lease_seconds: float
) -> Sequence[MeasurementTask]:
    """Give an agent up to `limit` tasks of its target; certificates first, then oldest first."""
    now = utc_now()
    tasks = session.scalars(
        select(MeasurementTask)
        .where(_open(target_id, now))
        .order_by(MeasurementTask.effort, MeasurementTask.created_at, MeasurementTask.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    for task in tasks:
        task.status = "leased"
        task.agent_id = agent_id
        task.fence += 1
        task.lease_expires_at = now + timedelta(seconds=lease_seconds)
    return tasks


def has_open_task(session: Session, target_id: str) -> bool:
    """Whether an agent of the target would be given work."""
    found = select(MeasurementTask.id).where(_open(target_id, utc_now())).limit(1)
    return session.scalars(found).first() is not None


def _open(target_id: str, now: datetime) -> ColumnElement[bool]:
    return (MeasurementTask.target_id == target_id) & or_(
        MeasurementTask.status == "queued",
        (MeasurementTask.status == "leased") & (MeasurementTask.lease_expires_at < now),
    )


def get_task_locked(session: Session, task_id: str) -> MeasurementTask | None:
    """A task, locked until the transaction ends."""
    return session.scalars(
        select(MeasurementTask).where(MeasurementTask.id == task_id).with_for_update()
    ).first()


def get_task(session: Session, task_id: str) -> MeasurementTask:
    """The task of that id.

    Raises:
        NotFoundError: there is none.
    """
    task = session.get(MeasurementTask, task_id)
    if task is None:
        raise NotFoundError(f"no measurement task has id {task_id}")
    return task


def cancel_tasks(session: Session, search_id: str) -> None:
    """Take back what a search still waits for."""
    session.execute(
        update(MeasurementTask)
        .where(
            MeasurementTask.search_id == search_id,
            MeasurementTask.status.in_(("queued", "leased")),
        )
        .values(status="cancelled", finished_at=utc_now())
    )


def retry_failed(session: Session, kit_id: str) -> None:
    """Queue the tasks of a kit that have failed, with all their tries."""
    session.execute(
        update(MeasurementTask)
        .where(MeasurementTask.kit_id == kit_id, MeasurementTask.status == "failed")
        .values(status="queued", tries=0, failure=None, finished_at=None)
    )


def is_model_of_target(session: Session, target_id: str, sha256: str) -> bool:
    """Whether a file was announced to the agents of a target."""
    announced = or_(MeasurementTask.model_sha256 == sha256, MeasurementTask.anchor_sha256 == sha256)
    found = select(MeasurementTask.id).where(MeasurementTask.target_id == target_id, announced)
    return session.scalars(found.limit(1)).first() is not None


def find_batch(session: Session, agent_id: str, batch_id: str) -> UploadedBatch | None:
    """What an agent was told about a batch it uploaded before."""
    return session.get(UploadedBatch, (agent_id, batch_id))


def measurement_of_task(session: Session, task_id: str) -> Measurement | None:
    """What was measured for a task."""
    return session.scalars(select(Measurement).where(Measurement.task_id == task_id)).first()


def kit_measurements(session: Session, kit_id: str) -> Sequence[Measurement]:
    """Every measurement of a kit, oldest first."""
    return session.scalars(
        select(Measurement)
        .join(MeasurementTask, Measurement.task_id == MeasurementTask.id)
        .where(MeasurementTask.kit_id == kit_id)
        .order_by(Measurement.created_at)
    ).all()


def list_measurements(
    session: Session, target_id: str | None, cursor: str | None, limit: int
) -> Sequence[Measurement]:
    """A page of measurements, newest first."""
    statement = select(Measurement).order_by(Measurement.id.desc()).limit(limit)
    if target_id:
        statement = statement.where(Measurement.target_id == target_id)
    if cursor:
        statement = statement.where(Measurement.id < cursor)
    return session.scalars(statement).all()
