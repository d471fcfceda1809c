"""Every statement on kits, measurement tasks and measurements."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, cast

from psycopg.types.json import Jsonb
from sqlalchemy import (
    ARRAY,
    ColumnElement,
    CursorResult,
    Table,
    any_,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute, Session

from predictor.kits import BUILDER_VERSION
from predictor.measurements import Effort
from service.db.base import JsonValue, new_id, utc_now
from service.errors import NotFoundError
from service.measurements.models import (
    Kit,
    KitFile,
    KitItem,
    Measurement,
    MeasurementTask,
    UploadedBatch,
)

# -- kits ------------------------------------------------------------------------------


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


def kits_of(session: Session, target_id: str) -> Sequence[Kit]:
    """The kits of a target, oldest first."""
    return session.scalars(select(Kit).where(Kit.target_id == target_id).order_by(Kit.id)).all()


def kits_with_tasks(session: Session, task_ids: Sequence[str]) -> Sequence[str]:
    """The ids of the kits that need any of these tasks, in order."""
    found = select(KitItem.kit_id).where(_among(session, KitItem.task_id, task_ids)).distinct()
    return session.scalars(found.order_by(KitItem.kit_id)).all()


def kit_items(session: Session, kit_id: str) -> Sequence[KitItem]:
    """Everything a kit needs."""
    return session.scalars(select(KitItem).where(KitItem.kit_id == kit_id)).all()


def kit_progress(session: Session, kit_id: str) -> dict[str, int]:
    """How many tasks of a kit have each status."""
    rows = session.execute(
        select(MeasurementTask.status, func.count())
        .join(KitItem, KitItem.task_id == MeasurementTask.id)
        .where(KitItem.kit_id == kit_id)
        .group_by(MeasurementTask.status)
    )
    return {row[0]: row[1] for row in rows}


def n_flagged(session: Session, kit_id: str) -> int:
    """How many measurements of a kit are stored flagged."""
    return (
        session.scalar(
            select(func.count())
            .select_from(Measurement)
            .join(KitItem, KitItem.task_id == Measurement.task_id)
            .where(KitItem.kit_id == kit_id, Measurement.flagged)
        )
        or 0
    )


def failures_of_kit(session: Session, kit_id: str) -> dict[str, dict[str, Any]]:
    """What could not be measured, and why, by subject."""
    rows = session.execute(
        select(MeasurementTask.subject, MeasurementTask.failure)
        .join(KitItem, KitItem.task_id == MeasurementTask.id)
        .where(KitItem.kit_id == kit_id, MeasurementTask.status == "failed")
    )
    return {subject: failure or {} for subject, failure in rows}


def find_files(
    session: Session, subjects: Sequence[str], precision: str, batch: int
) -> dict[str, KitFile]:
    """The model files built for these subjects, by subject."""
    rows = session.scalars(
        select(KitFile).where(
            KitFile.subject.in_(subjects),
            KitFile.precision == precision,
            KitFile.batch == batch,
            KitFile.builder_version == BUILDER_VERSION,
        )
    )
    return {row.subject: row for row in rows}


def is_kit_file(session: Session, sha256: str) -> bool:
    """Whether a file was built for a kit."""
    found = select(KitFile.sha256).where(KitFile.sha256 == sha256).limit(1)
    return session.scalars(found).first() is not None


# -- tasks -----------------------------------------------------------------------------


def add_task(
    session: Session,
    *,
    target_id: str,
    purpose: str,
    subject: str,
    effort: Effort,
    model_sha256: str,
    anchor_sha256: str,
    search_id: str | None = None,
    only_agent_id: str | None = None,
    priority: float = 0.0,
) -> MeasurementTask:
    """Queue one model file for the agents of a target, or for one of them."""
    task = MeasurementTask(
        id=new_id("mtk"),
        target_id=target_id,
        purpose=purpose,
        search_id=search_id,
        only_agent_id=only_agent_id,
        subject=subject,
        effort=effort,
        priority=priority,
        model_sha256=model_sha256,
        anchor_sha256=anchor_sha256,
        status="queued",
        tries=0,
        fence=0,
        created_at=utc_now(),
    )
    session.add(task)
    return task


def reusable_tasks(
    session: Session, target_id: str, sha256_by_subject: Mapping[str, str]
) -> dict[str, MeasurementTask]:
    """Tasks of any kit of a target that measure, or have measured, these files; by subject."""
    rows = session.scalars(
        select(MeasurementTask)
        .where(
            MeasurementTask.target_id == target_id,
            MeasurementTask.subject.in_(sha256_by_subject),
            MeasurementTask.purpose == "kit",
            MeasurementTask.status != "cancelled",
        )
        .order_by(MeasurementTask.id)
    )
    return {
        task.subject: task for task in rows if task.model_sha256 == sha256_by_subject[task.subject]
    }


def supersede(
    session: Session,
    kit_id: str,
    subjects: Sequence[str] | None = None,
    only_agent_id: str | None = None,
) -> int:
    """Have measured subjects of a kit measured anew; what was measured is kept.

    Args:
        subjects: which; None: all.
        only_agent_id: by whom; None: by any agent of the target.

    Returns:
        How many were queued.
    """
    rows = session.execute(
        select(KitItem.subject, MeasurementTask)
        .join(MeasurementTask, KitItem.task_id == MeasurementTask.id)
        .where(KitItem.kit_id == kit_id, MeasurementTask.status == "done")
    ).all()
    chosen = [task for subject, task in rows if subjects is None or subject in subjects]
    for task in chosen:
        again = add_task(
            session,
            target_id=task.target_id,
            purpose="kit",
            only_agent_id=only_agent_id,
            subject=task.subject,
            effort="table",
            model_sha256=task.model_sha256,
            anchor_sha256=task.anchor_sha256,
            priority=task.priority,
        )
        session.flush()
        session.execute(update(KitItem).where(KitItem.task_id == task.id).values(task_id=again.id))
    return len(chosen)


def prioritise(session: Session, target_id: str, weights: Mapping[str, float]) -> None:
    """Let queued tasks of a target go by how much their subject weighs, heaviest first."""
    rows = session.execute(
        select(MeasurementTask.id, MeasurementTask.subject).where(
            MeasurementTask.target_id == target_id,
            MeasurementTask.purpose == "kit",
            MeasurementTask.status == "queued",
        )
    ).all()
    changes = [
        {"id": task_id, "priority": weights[subject]}
        for task_id, subject in rows
        if subject in weights
    ]
    if changes:
        session.execute(update(MeasurementTask), changes)


def finishing_times(session: Session, target_id: str, limit: int = 64) -> Sequence[datetime]:
    """When the latest measured tasks of a target's kits ended, newest first."""
    times = session.scalars(
        select(MeasurementTask.finished_at)
        .where(
            MeasurementTask.target_id == target_id,
            MeasurementTask.purpose == "kit",
            MeasurementTask.status == "done",
        )
        .order_by(MeasurementTask.finished_at.desc())
        .limit(limit)
    ).all()
    return [time for time in times if time is not None]


def lease_tasks(
    session: Session, target_ids: Sequence[str], agent_id: str, limit: int, lease_seconds: float
) -> Sequence[MeasurementTask]:
    """Give an agent up to `limit` tasks of its targets.

    Certificates come first, then what weighs most, then what waits longest.
    """
    now = utc_now()
    tasks = session.scalars(
        select(MeasurementTask)
        .where(_open(target_ids, agent_id, now))
        .order_by(
            MeasurementTask.effort,
            MeasurementTask.priority.desc(),
            MeasurementTask.created_at,
            MeasurementTask.id,
        )
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    for task in tasks:
        task.status = "leased"
        task.agent_id = agent_id
        task.fence += 1
        task.lease_expires_at = now + timedelta(seconds=lease_seconds)
    return tasks


def extend_leases(
    session: Session, agent_id: str, lease_seconds: float, task_ids: Sequence[str] | None
) -> None:
    """An agent that lives keeps what it holds.

    Args:
        task_ids: what that is; None: all it has leased. An agent that was killed lives on in
            its next process, which knows nothing of what the last one had leased.
    """
    held = (MeasurementTask.agent_id == agent_id) & (MeasurementTask.status == "leased")
    if task_ids is not None:
        held &= MeasurementTask.id.in_(task_ids)
    session.execute(
        update(MeasurementTask)
        .where(held)
        .values(lease_expires_at=utc_now() + timedelta(seconds=lease_seconds))
    )


def pull_back_leases(session: Session, lease_seconds: float) -> int:
    """Shorten leases that a clock which has been set back since gave; returns how many."""
    horizon = utc_now() + timedelta(seconds=2.0 * lease_seconds)
    shortened = session.execute(
        update(MeasurementTask)
        .where(MeasurementTask.status == "leased", MeasurementTask.lease_expires_at > horizon)
        .values(lease_expires_at=horizon)
    )
    return cast("CursorResult[Any]", shortened).rowcount


def give_back_tasks(session: Session, agent_id: str) -> None:
    """An agent will not come back: others measure what it held or alone was to measure."""
    is_open = MeasurementTask.status.in_(("queued", "leased"))
    pinned = is_open & (MeasurementTask.only_agent_id == agent_id)
    session.execute(
        update(MeasurementTask)
        .where(pinned, MeasurementTask.purpose == "canary")  # tells nothing of another agent
        .values(status="cancelled", finished_at=utc_now())
    )
    session.execute(update(MeasurementTask).where(pinned).values(only_agent_id=None))
    session.execute(
        update(MeasurementTask)
        .where(MeasurementTask.agent_id == agent_id, MeasurementTask.status == "leased")
        .values(status="queued", lease_expires_at=None)
    )


def tasks_held(session: Session, agent_id: str) -> Sequence[MeasurementTask]:
    """What an agent is measuring."""
    return session.scalars(
        select(MeasurementTask)
        .where(MeasurementTask.agent_id == agent_id, MeasurementTask.status == "leased")
        .order_by(MeasurementTask.id)
    ).all()


def has_open_task(session: Session, target_ids: Sequence[str], agent_id: str) -> bool:
    """Whether an agent would be given work."""
    found = select(MeasurementTask.id).where(_open(target_ids, agent_id, utc_now())).limit(1)
    return session.scalars(found).first() is not None


def _open(target_ids: Sequence[str], agent_id: str, now: datetime) -> ColumnElement[bool]:
    return (
        MeasurementTask.target_id.in_(target_ids)
        & or_(
            MeasurementTask.status == "queued",
            (MeasurementTask.status == "leased") & (MeasurementTask.lease_expires_at < now),
        )
        & or_(MeasurementTask.only_agent_id.is_(None), MeasurementTask.only_agent_id == agent_id)
    )


class LockedTask(NamedTuple):
    """What intake must know of a task; plain, because it asks for a thousand at a time."""

    id: str
    target_id: str
    agent_id: str | None
    purpose: str
    subject: str
    model_sha256: str
    status: str
    fence: int
    tries: int


_LOCKED = [MeasurementTask.__table__.c[name] for name in LockedTask._fields]


def lock_tasks(session: Session, task_ids: Sequence[str]) -> dict[str, LockedTask]:
    """These tasks, locked until the transaction ends, by id."""
    rows = session.execute(
        select(*_LOCKED)
        .where(_among(session, MeasurementTask.id, task_ids))
        .order_by(MeasurementTask.id)  # two uploads lock in one order, so neither waits in vain
        .with_for_update()
    )
    return {row[0]: LockedTask._make(row) for row in rows}


def finish_tasks(session: Session, task_ids: Sequence[str], now: datetime) -> None:
    """Note that these tasks were measured."""
    session.execute(
        update(MeasurementTask)
        .where(_among(session, MeasurementTask.id, task_ids))
        .values(
            status="done",
            finished_at=now,
            lease_expires_at=None,
            tries=MeasurementTask.tries + 1,
        )
        .execution_options(synchronize_session=False)
    )


def _among(
    session: Session, column: InstrumentedAttribute[str], values: Sequence[str]
) -> ColumnElement[bool]:
    """Whether `column` is one of many values; PostgreSQL takes them as one parameter."""
    if session.get_bind().dialect.name == "postgresql":
        return column == any_(literal(list(values), ARRAY(column.type)))
    return column.in_(values)


def get_task(session: Session, task_id: str) -> MeasurementTask:
    """The task of that id.

    Raises:
        NotFoundError: there is none.
    """
    task = session.get(MeasurementTask, task_id)
    if task is None:
        raise NotFoundError(f"no measurement task has id {task_id}")
    return task


def open_roles(session: Session, kit_id: str) -> set[str]:
    """Roles of the items of a kit that are not measured yet."""
    rows = session.scalars(
        select(KitItem.role)
        .join(MeasurementTask, MeasurementTask.id == KitItem.task_id)
        .where(KitItem.kit_id == kit_id, MeasurementTask.status.in_(("queued", "leased")))
        .distinct()
    )
    return set(rows)


def spare_queued(session: Session, kit_id: str) -> list[str]:
    """Drop what a kit still waits for and no agent has begun; its subjects."""
    rows = session.execute(
        select(KitItem, MeasurementTask)
        .join(MeasurementTask, MeasurementTask.id == KitItem.task_id)
        .where(KitItem.kit_id == kit_id, MeasurementTask.status == "queued")
        .with_for_update(of=MeasurementTask)
    ).all()
    others = set(
        session.scalars(
            select(KitItem.task_id).where(
                KitItem.kit_id != kit_id, KitItem.task_id.in_([task.id for _, task in rows])
            )
        )
    )
    for item, task in rows:
        session.delete(item)
        if task.id not in others:
            task.status, task.finished_at = "cancelled", utc_now()
    return [item.subject for item, _ in rows]


def blocks_measured_elsewhere(
    session: Session, target_id: str, subjects: Sequence[str], limit: int
) -> dict[str, dict[str, float]]:
    """Latest unflagged latency in ms of each subject on other targets, by target.

    Args:
        limit: the targets that have measured most of them.
    """
    rows = session.execute(
        select(Measurement.target_id, Measurement.subject, Measurement.latency_ms)
        .where(
            Measurement.target_id != target_id,
            Measurement.subject.in_(subjects),
            Measurement.flagged.is_(False),
        )
        .order_by(Measurement.created_at, Measurement.id)
    )
    found: dict[str, dict[str, float]] = {}
    for other, subject, latency_ms in rows:
        found.setdefault(other, {})[subject] = latency_ms
    most = sorted(found, key=lambda other: (-len(found[other]), other))[:limit]
    return {other: found[other] for other in most}


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
    of_kit = select(KitItem.task_id).where(KitItem.kit_id == kit_id)
    session.execute(
        update(MeasurementTask)
        .where(MeasurementTask.id.in_(of_kit), MeasurementTask.status == "failed")
        .values(status="queued", tries=0, failure=None, finished_at=None)
    )


def is_model_of_targets(session: Session, target_ids: Sequence[str], sha256: str) -> bool:
    """Whether a file was announced to the agents of these targets."""
    announced = or_(MeasurementTask.model_sha256 == sha256, MeasurementTask.anchor_sha256 == sha256)
    found = select(MeasurementTask.id).where(MeasurementTask.target_id.in_(target_ids), announced)
    return session.scalars(found.limit(1)).first() is not None


# -- uploads and measurements ----------------------------------------------------------


def find_batch(session: Session, agent_id: str, batch_id: str) -> UploadedBatch | None:
    """What an agent was told about a batch it uploaded before."""
    return session.get(UploadedBatch, (agent_id, batch_id))


def add_measurements(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store measurements, each given with every column; what intake's speed hangs on."""
    table = Measurement.__table__
    assert isinstance(table, Table)
    connection = session.connection()
    if connection.dialect.name != "postgresql":
        connection.execute(insert(table), rows)
        return
    names = [column.name for column in table.columns]
    documents = {column.name for column in table.columns if column.type is JsonValue}
    raw = connection.connection.driver_connection
    assert raw is not None
    statement = f"COPY {table.name} ({', '.join(names)}) FROM STDIN"
    with raw.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row([Jsonb(row[name]) if name in documents else row[name] for name in names])


def measurement_of_task(session: Session, task_id: str) -> Measurement | None:
    """What was measured for a task."""
    return session.scalars(select(Measurement).where(Measurement.task_id == task_id)).first()


def measurements_of_subjects(
    session: Session, target_id: str, subjects: Sequence[str]
) -> Sequence[Measurement]:
    """Everything measured of these subjects on a target, oldest first."""
    return session.scalars(
        select(Measurement)
        .where(Measurement.target_id == target_id, Measurement.subject.in_(subjects))
        .order_by(Measurement.created_at, Measurement.id)
    ).all()


def latest_canary(session: Session, target_id: str, agent_id: str) -> datetime | None:
    """When an agent was last asked for the canaries of a target."""
    return session.scalar(
        select(func.max(MeasurementTask.created_at)).where(
            MeasurementTask.target_id == target_id,
            MeasurementTask.purpose == "canary",
            MeasurementTask.only_agent_id == agent_id,
        )
    )


def canaries_of(session: Session, target_id: str, agent_id: str) -> Sequence[Measurement]:
    """An agent's canaries on a target, oldest first; what failed a noise gate tells nothing."""
    return session.scalars(
        select(Measurement)
        .join(MeasurementTask, Measurement.task_id == MeasurementTask.id)
        .where(
            MeasurementTask.target_id == target_id,
            MeasurementTask.purpose == "canary",
            Measurement.agent_id == agent_id,
            ~Measurement.flagged,
        )
        .order_by(Measurement.created_at, Measurement.id)
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


def measurements_named(session: Session, ids: Sequence[str]) -> Sequence[Measurement]:
    """The measurements of these ids, oldest first."""
    return session.scalars(
        select(Measurement).where(Measurement.id.in_(ids)).order_by(Measurement.created_at)
    ).all()
