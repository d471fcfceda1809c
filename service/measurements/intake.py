"""What agents upload: checked item by item, stored once, and acted upon."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import update
from sqlalchemy.orm import Session

from service.agents.models import Agent
from service.agents.repository import count_items
from service.db.base import new_id, utc_now
from service.db.database import take_turns
from service.jobs.repository import enqueue, is_waiting
from service.measurements.drift import check_canaries
from service.measurements.models import MeasurementTask, UploadedBatch
from service.measurements.repository import (
    LockedTask,
    add_measurements,
    find_batch,
    finish_tasks,
    get_kit,
    kits_with_tasks,
    lock_tasks,
    open_roles,
)
from service.measurements.schemas import (
    BatchCreate,
    BatchReport,
    ItemReport,
    MeasurementCreate,
    ResultCreate,
)
from service.settings import Settings

NOISY_TRIES = 4
"""How often a task that found the device too noisy is handed out before it has failed."""

FIT_JOB = "fit_latency_model"

_CLOCK_TOLERANCE = timedelta(minutes=5)
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)  # where clocks start that were never set
_COLUMNS = [name for name in MeasurementCreate.model_fields if name != "unit"]
_result = TypeAdapter(ResultCreate)
_results = TypeAdapter(list[ResultCreate])


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
    checked = _check_forms(batch.items)
    wanted = {result.task_id for result in checked if isinstance(result, ResultCreate)}
    tasks = lock_tasks(session, sorted(wanted))
    targets = frozenset(agent.target_ids)
    reports: list[ItemReport] = []
    measured: list[tuple[LockedTask, ResultCreate]] = []
    failed: list[tuple[LockedTask, ResultCreate]] = []
    for item, result in zip(batch.items, checked, strict=True):
        try:
            if isinstance(result, _Refused):
                raise result
            _check_clock(item, result, now)
            _check_lease(tasks.get(result.task_id), agent.id, targets, result)
        except _Refused as refused:
            reports.append(ItemReport(task_id=_named(item), accepted=False, reason=refused.reason))
            continue
        task = tasks[result.task_id]
        tasks[task.id] = task._replace(status="done")  # the same again is late, like any other
        (measured if result.measurement is not None else failed).append((task, result))
        reports.append(ItemReport(task_id=task.id, accepted=True))
    _store(session, agent, measured, now)
    _note_failures(session, failed, now)
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


def _check_forms(items: Sequence[dict[str, Any]]) -> Sequence[ResultCreate | _Refused]:
    """Each item as what it should be, or what is wrong with it.

    They are read as JSON once more because only then can it be strict: a number must be a
    number and a time may be text.
    """
    try:
        return _results.validate_json(json.dumps(items), strict=True)
    except (ValidationError, RecursionError):
        return [_check_form(item) for item in items]


def _check_form(item: dict[str, Any]) -> ResultCreate | _Refused:
    try:
        return _result.validate_json(json.dumps(item), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = _place(item, first["loc"], missing=first["type"] == "missing")
        text = ": ".join(["invalid", *([place] if place else []), first["msg"]])
        return _Refused(text[:500].replace("\0", " "))
    except RecursionError:
        return _Refused("invalid: nested too deeply")


def _place(item: Any, location: Sequence[int | str], *, missing: bool) -> str:
    """The field at fault as the agent wrote it; pydantic adds which kind of value it tried."""
    names = []
    for step in location:
        of_list = isinstance(item, list) and isinstance(step, int)
        if of_list or (isinstance(item, dict) and step in item):
            item = item[step]
        elif missing:
            item = None
        else:
            break
        names.append(str(step))
    return ".".join(names)


def _named(item: dict[str, Any]) -> str | None:
    """The task an item names, as far as it can be written down."""
    named = item.get("task_id")
    if not isinstance(named, str):
        return None
    return named[:200].replace("\0", " ").encode(errors="replace").decode()


def _check_clock(item: dict[str, Any], result: ResultCreate, now: datetime) -> None:
    if result.measurement is None:
        return
    written = item["measurement"]["measured_at"]
    if not isinstance(written, str) or "T" not in written:  # seconds since 1970 are read, too
        raise _Refused("invalid: measurement.measured_at: write the time as ISO 8601 with its zone")
    measured_at = result.measurement.measured_at
    if measured_at > now + _CLOCK_TOLERANCE:
        raise _Refused(
            f"clock_in_future: measured at {measured_at.isoformat()}, and here it is "
            f"{now.isoformat(timespec='seconds')}; set the device's clock"
        )
    if measured_at < _EARLIEST:
        raise _Refused(
            f"clock_in_past: measured at {measured_at.isoformat()}; set the device's clock"
        )


def _check_lease(
    task: LockedTask | None, agent_id: str, targets: frozenset[str], result: ResultCreate
) -> None:
    """Check that `task` is what `result` answers, and the agent's to answer."""
    if task is None or task.target_id not in targets:
        raise _Refused("unknown_task")
    if task.status != "leased" or task.agent_id != agent_id or task.fence != result.fence:
        raise _Refused("stale_lease")
    if task.model_sha256 != result.model_sha256:
        raise _Refused("hash_mismatch: another file than the task's was measured")


def _store(
    session: Session,
    agent: Agent,
    measured: Sequence[tuple[LockedTask, ResultCreate]],
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
            **{name: getattr(result.measurement, name) for name in _COLUMNS},
            "quarantined": [tried.model_dump() for tried in result.measurement.quarantined],
        }
        for task, result in measured
        if result.measurement is not None
    ]
    add_measurements(session, rows)
    finish_tasks(session, [task.id for task, _ in measured], now)


def _note_failures(
    session: Session, failed: Sequence[tuple[LockedTask, ResultCreate]], now: datetime
) -> None:
    changes = []
    for task, result in failed:
        assert result.failure is not None
        again = result.failure.code == "too_noisy" and task.tries + 1 < NOISY_TRIES
        changes.append(
            {
                "id": task.id,
                "tries": task.tries + 1,
                "lease_expires_at": None,
                "failure": result.failure.model_dump(),
                "status": "queued" if again else "failed",
                "finished_at": None if again else now,
            }
        )
    if changes:
        session.execute(update(MeasurementTask), changes)


def _act(session: Session, agent: Agent, ended: Sequence[LockedTask], settings: Settings) -> None:
    """What follows from tasks that ended: drift is noted, kits that are whole are fitted."""
    canaries = {task.target_id for task in ended if task.purpose == "canary"}
    for target_id in sorted(canaries):
        check_canaries(session, target_id, agent.id)
    of_kits = [task.id for task in ended if task.purpose == "kit"]
    for kit_id in kits_with_tasks(session, of_kits) if of_kits else ():
        take_turns(session, f"last of {kit_id}")  # two last tasks may end at once
        roles = open_roles(session, kit_id)
        if not roles or (roles == {"block"} and _may_be_enough(session, kit_id)):
            enqueue(session, FIT_JOB, kit_id, max_attempts=settings.max_attempts, priority=10)


def _may_be_enough(session: Session, kit_id: str) -> bool:
    """Whether a kit that stops early has not been looked at since its networks are measured."""
    stops_early = get_kit(session, kit_id).until_half_width is not None
    return stops_early and not is_waiting(session, FIT_JOB, kit_id)
