"""What agents upload: checked item by item, stored once, and acted upon."""

from dataclasses import dataclass

from sqlalchemy.orm import Session

from service.agents.models import Agent
from service.db.base import new_id, utc_now
from service.db.database import take_turns
from service.jobs.repository import enqueue
from service.measurements.models import Measurement, MeasurementTask, UploadedBatch
from service.measurements.repository import find_batch, get_task_locked, kit_progress
from service.measurements.schemas import BatchCreate, BatchReport, ItemReport, ResultCreate
from service.settings import Settings

NOISY_TRIES = 4
"""How often a task that found the device too noisy is handed out before it has failed."""

FIT_JOB = "fit_latency_model"


@dataclass(frozen=True)
class _Refused(Exception):  # noqa: N818 - control flow inside this module
    reason: str


def take_in(session: Session, agent: Agent, batch: BatchCreate, settings: Settings) -> BatchReport:
    """Store what is valid of `batch` and report on each item.

    A batch that was taken in before gets the same report again and stores nothing. When the
    last task of a kit ends, the fit of its latency model is queued in the same transaction.
    """
    known = find_batch(session, agent.id, batch.batch_id)
    if known is not None:
        return BatchReport.model_validate(known.report)
    reports: list[ItemReport] = []
    kits: set[str] = set()
    for item in batch.items:
        try:
            task = _leased_task(session, agent, item)
        except _Refused as refused:
            reports.append(ItemReport(task_id=item.task_id, accepted=False, reason=refused.reason))
            continue
        _settle(session, agent, task, item)
        reports.append(ItemReport(task_id=item.task_id, accepted=True))
        if task.kit_id is not None:
            kits.add(task.kit_id)
    session.flush()
    for kit_id in sorted(kits):
        take_turns(session, f"last of {kit_id}")  # two last tasks may end at once
        if set(kit_progress(session, kit_id)) <= {"done", "failed"}:
            enqueue(session, FIT_JOB, kit_id, max_attempts=settings.max_attempts, priority=10)
    report = BatchReport(batch_id=batch.batch_id, items=reports)
    session.add(
        UploadedBatch(
            agent_id=agent.id,
            batch_id=batch.batch_id,
            report=report.model_dump(),
            created_at=utc_now(),
        )
    )
    return report


def _leased_task(session: Session, agent: Agent, item: ResultCreate) -> MeasurementTask:
    task = get_task_locked(session, item.task_id)
    if task is None or task.target_id != agent.target_id:
        raise _Refused("unknown_task")
    if task.status != "leased" or task.agent_id != agent.id or task.fence != item.fence:
        raise _Refused("stale_lease")
    return task


def _settle(session: Session, agent: Agent, task: MeasurementTask, item: ResultCreate) -> None:
    now = utc_now()
    task.tries += 1
    task.lease_expires_at = None
    if item.measurement is not None:
        task.status, task.finished_at = "done", now
        session.add(
            Measurement(
                id=new_id("mea"),
                task_id=task.id,
                target_id=task.target_id,
                agent_id=agent.id,
                subject=task.subject,
                model_sha256=task.model_sha256,
                created_at=now,
                **item.measurement.model_dump(),
            )
        )
    elif item.failure is not None:
        task.failure = item.failure.model_dump()
        if item.failure.code == "too_noisy" and task.tries < NOISY_TRIES:
            task.status = "queued"
        else:
            task.status, task.finished_at = "failed", now
