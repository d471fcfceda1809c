"""What agents upload: checked item by item, stored once, and acted upon."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import insert, update
from sqlalchemy.orm import Session

from service.agents.models import Agent
from service.agents.repository import count_items
from service.db.base import new_id, utc_now
from service.db.database import take_turns
from service.jobs.repository import enqueue
from service.measurements.drift import check_canaries
from service.measurements.models import Measurement, MeasurementTask, UploadedBatch
from service.measurements.repository import (
    find_batch,
    kit_progress,
    kits_with_tasks,
    lock_tasks,
)
from service.measurements.schemas import BatchCreate, BatchReport, ItemReport, ResultCreate
from service.settings import Settings

NOISY_TRIES = 4
"""How often a task that found the device too noisy is handed out before it has failed."""

FIT_JOB = "fit_latency_model"

_CLOCK_TOLERANCE = timedelta(minutes=5)
_result = TypeAdapter(ResultCreate)


@dataclass(frozen=True)
class _Refused(Exception):  # noqa: N818 - control flow inside this module
    reason: str


def take_in(session: Session, agent: Agent, batch: BatchCreate, settings: Settings) -> BatchReport:
    """Store what is valid of `batch` and report on each item.

    A batch that was taken in before gets the same report again and stores nothing. When the
    last task of a kit ends, the fit of its latency model is queued in the same transaction.
    """
    take_turns(session, f"uploads of {agent.id}")  # the same batch may arrive twice at once
    known = find_batch(session, agent.id, batch.batch_id)
    if known is not None:
        return BatchReport.model_validate(known.report)
    now = utc_now()
    checked = [_check_form(item, now) for item in batch.items]
    wanted = {result.task_id for result in checked if isinstance(result, ResultCreate)}
    tasks = lock_tasks(session, sorted(wanted))
    reports: list[ItemReport] = []
    measured: list[tuple[MeasurementTask, ResultCreate]] = []
    failed: list[tuple[MeasurementTask, ResultCreate]] = []
    for item, result in zip(batch.items, checked, strict=True):
        try:
            if isinstance(result, _Refused):
                raise result
            task = tasks.pop(_check_lease(tasks, agent, result))
        except _Refused as refused:
            named = item.get("task_id")
            reports.append(
                ItemReport(
                    task_id=named[:200] if isinstance(named, str) else None,
                    accepted=False,
                    reason=refused.reason,
                )
            )
            continue
        (measured if result.measurement is not None else failed).append((task, result))
        reports.append(ItemReport(task_id=task.id, accepted=True))
    _store(session, agent, measured, now)
    for task, result in failed:
        _note_failure(task, result, now)
    report = BatchReport(batch_id=batch.batch_id, items=reports)
    session.add(
        UploadedBatch(
            agent_id=agent.id, batch_id=batch.batch_id, report=report.model_dump(), created_at=now
        )
    )
    n_accepted = len(measured) + len(failed)
    count_items(
        session,
        agent.id,
        accepted=n_accepted,
        rejected=len(reports) - n_accepted,
        flagged=sum(r.measurement is not None and r.measurement.flagged for _, r in measured),
    )
    session.flush()
    _act(session, agent, [task for task, _ in (*measured, *failed)], settings)
    return report


def _check_form(item: dict[str, Any], now: datetime) -> ResultCreate | _Refused:
    """An item as what it should be, or what is wrong with it."""
    try:
        result = _result.validate_python(item)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        return _Refused(f"invalid: {field}: {first['msg']}"[:500].replace("\0", " "))
    measurement = result.measurement
    if measurement is not None and measurement.measured_at > now + _CLOCK_TOLERANCE:
        return _Refused(
            f"clock_in_future: measured at {measurement.measured_at.isoformat()}, and here it is "
            f"{now.isoformat(timespec='seconds')}; set the device's clock"
        )
    return result


def _check_lease(tasks: dict[str, MeasurementTask], agent: Agent, result: ResultCreate) -> str:
    """The id of the task that `result` answers, if it is the agent's to answer."""
    task = tasks.get(result.task_id)
    if task is None or task.target_id not in agent.target_ids:
        raise _Refused("unknown_task")
    if task.status != "leased" or task.agent_id != agent.id or task.fence != result.fence:
        raise _Refused("stale_lease")
    if task.model_sha256 != result.model_sha256:
        raise _Refused("hash_mismatch: another file than the task's was measured")
    return task.id


def _store(
    session: Session,
    agent: Agent,
    measured: Sequence[tuple[MeasurementTask, ResultCreate]],
    now: datetime,
) -> None:
    """All measurements of a batch in two statements: intake must keep up with many agents."""
    if not measured:
        return
    rows = [
        {
            "id": new_id("mea"),
            "task_id": task.id,
            "target_id": task.target_id,
            "agent_id": agent.id,
            "subject": task.subject,
            "model_sha256": task.model_sha256,
            "created_at": now,
            **result.measurement.model_dump(exclude={"unit"}),
        }
        for task, result in measured
        if result.measurement is not None
    ]
    session.execute(insert(Measurement), rows)
    session.execute(
        update(MeasurementTask)
        .where(MeasurementTask.id.in_([task.id for task, _ in measured]))
        .values(
            status="done",
            finished_at=now,
            lease_expires_at=None,
            tries=MeasurementTask.tries + 1,
        )
        .execution_options(synchronize_session=False)
    )


def _note_failure(task: MeasurementTask, result: ResultCreate, now: datetime) -> None:
    assert result.failure is not None
    task.tries += 1
    task.lease_expires_at = None
    task.failure = result.failure.model_dump()
    if result.failure.code == "too_noisy" and task.tries < NOISY_TRIES:
        task.status = "queued"
    else:
        task.status, task.finished_at = "failed", now


def _act(
    session: Session, agent: Agent, ended: Sequence[MeasurementTask], settings: Settings
) -> None:
    """What follows from tasks that ended: drift is noted, kits that are whole are fitted."""
    canaries = {task.target_id for task in ended if task.purpose == "canary"}
    for target_id in sorted(canaries):
        check_canaries(session, target_id, agent.id)
    of_kits = [task.id for task in ended if task.purpose == "kit"]
    for kit_id in kits_with_tasks(session, of_kits) if of_kits else ():
        take_turns(session, f"last of {kit_id}")  # two last tasks may end at once
        if set(kit_progress(session, kit_id)) <= {"done", "failed"}:
            enqueue(session, FIT_JOB, kit_id, max_attempts=settings.max_attempts, priority=10)
