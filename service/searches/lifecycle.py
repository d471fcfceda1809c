"""What may happen to a search once it exists; every change of status goes through here.

    queued --> running --> succeeded | infeasible | failed
      |           |
      |           +--> pausing ----> paused --> queued     (`resume`)
      |           +--> cancelling -> cancelled
      +--> paused | cancelled, at once

The last four of `schemas.Status` are terminal: nothing changes them again. An attempt that ends
without a word, `attempt_lost`, sends a running search back to the queue and completes what was
asked of a stopping one.
"""

from datetime import datetime
from typing import Any, Literal

from sqlalchemy.orm import Session

from search_core.space.presets import get_space
from service.db.base import utc_now
from service.errors import ConflictError
from service.jobs import repository as jobs
from service.latency_models.repository import active_model
from service.measurements.repository import cancel_tasks, find_kit, kit_progress
from service.searches.models import Search
from service.searches.repository import append_event, get_search, targets_of, waiting_for
from service.searches.schemas import TERMINAL
from service.webhooks.outbox import queue_deliveries

SEARCH_JOB = "search"

Action = Literal["cancel", "pause", "resume"]

_ALLOWED: dict[Action, tuple[str, ...]] = {
    "cancel": ("queued", "running", "pausing", "paused"),
    "pause": ("queued", "running"),
    "resume": ("paused",),
}
_DONE_ALREADY: dict[Action, tuple[str, ...]] = {
    "cancel": ("cancelling", "cancelled"),
    "pause": ("pausing", "paused"),
    "resume": ("queued", "running"),
}


def model_key(target_id: str, space_digest: str) -> str:
    """What a search waits for until its space has been measured and fitted on a target."""
    return f"latency_model:{target_id}:{space_digest}"


def allowed_actions(status: str) -> list[Action]:
    """What may be asked of a search in that status."""
    return [action for action, statuses in _ALLOWED.items() if status in statuses]


# -- what people ask for ---------------------------------------------------------------


def cancel(session: Session, search: Search) -> bool:
    """Stop a search for good: at once while it waits, at its next step while it runs.

    Args:
        search: locked.

    Returns:
        Whether that changed anything; asking twice is harmless.

    Raises:
        ConflictError: it has ended otherwise.
    """
    if not _may(search, "cancel"):
        return False
    if jobs.cancel_queued(session, search.id):
        end(session, search, "cancelled", code="user_cancelled", text="Cancelled while it waited.")
    else:
        jobs.ask_to_stop(session, search.id)
        _set_status(session, search, "cancelling")
    return True


def pause(session: Session, search: Search) -> bool:
    """Keep what was reached and give the worker back, until `resume`; as `cancel` otherwise.

    Raises:
        ConflictError: it has ended, or is being cancelled.
    """
    if not _may(search, "pause"):
        return False
    if jobs.park_queued(session, search.id):
        paused(session, search)
    else:
        jobs.ask_to_stop(session, search.id)
        _set_status(session, search, "pausing")
    return True


def resume(session: Session, search: Search) -> bool:
    """Queue a paused search again; it goes on from its last checkpoint.

    Raises:
        ConflictError: it has ended, or its attempt has not stopped yet.
    """
    if not _may(search, "resume"):
        return False
    jobs.unpark(session, search.id)
    job = jobs.of_subject(session, search.id)
    search.phase_since = utc_now()  # being paused is nobody's time
    waits = job is not None and job.blocked_on is not None
    _set_status(session, search, "queued")
    enter_phase(session, search, "awaiting_measurements" if waits else "waiting_for_worker")
    return True


def _may(search: Search, action: Action) -> bool:
    if search.status in _DONE_ALREADY[action]:
        return False
    if search.status not in _ALLOWED[action]:
        allowed = allowed_actions(search.status)
        hint = f"; possible now: {', '.join(allowed)}" if allowed else ""
        if action == "resume" and search.status == "pausing":
            hint = "; ask again once it is paused"
        raise ConflictError(
            f"search {search.id} is {search.status}: it cannot {action}{hint}",
            current_status=search.status,
            allowed=allowed,
        )
    return True


# -- what attempts do ------------------------------------------------------------------


def start(session: Session, search: Search) -> None:
    """An attempt has begun."""
    search.started_at = search.started_at or utc_now()
    if search.status == "queued":
        _set_status(session, search, "running")


def enter_phase(session: Session, search: Search, phase: str) -> None:
    """Move to `phase`; the time spent in the one before is added to its account."""
    now = utc_now()
    _charge(search, now)
    search.phase, search.phase_since = phase, now
    search.progress = None
    search.status_reason = None
    append_event(session, search.id, "phase", {"phase": phase})
    queue_deliveries(session, search, "search.phase", {"phase": phase})


def paused(session: Session, search: Search) -> None:
    """No attempt runs any more, and none will before `resume`."""
    now = utc_now()
    _charge(search, now)
    search.phase_since = now
    search.status_reason = {
        "code": "user_paused",
        "text": "Paused; `resume` goes on from the last checkpoint.",
        "since": now.isoformat(),
    }
    _set_status(session, search, "paused")


def end(
    session: Session,
    search: Search,
    status: str,
    *,
    code: str,
    text: str = "",
    result: dict[str, Any] | None = None,
) -> None:
    """Move to a terminal status; it never changes again.

    Raises:
        ConflictError: the search has ended already.
    """
    if search.status in TERMINAL:
        raise ConflictError(f"search {search.id} has already {search.status}")
    now = utc_now()
    if search.status != "paused":
        _charge(search, now)
    search.phase, search.phase_since = "done", now
    search.finished_at = now
    search.progress = None
    search.status_reason = {"code": code, "text": text, "since": now.isoformat()}
    search.result = result
    cancel_tasks(session, search.id)
    _set_status(session, search, status, code=code, text=text)


def attempt_lost(
    session: Session,
    search_id: str,
    outcome: str,
    *,
    has_attempts_left: bool,
    text: str | None = None,
) -> None:
    """The attempt ended without a word: do what was asked of it, wait for another, or end.

    Args:
        outcome: a reason's code, such as ``worker_lost`` or ``out_of_memory``.
    """
    search = get_search(session, search_id, lock=True)
    if search.status in TERMINAL:
        return
    if search.status == "cancelling":
        jobs.cancel_queued(session, search.id)
        end(session, search, "cancelled", code="user_cancelled", text="Cancelled.")
    elif not has_attempts_left:
        told = text or "Every attempt ended this way; the worker's log says why."
        end(session, search, "failed", code=outcome, text=told)
    elif search.status == "pausing":
        jobs.park_queued(session, search.id)
        paused(session, search)
    else:
        if search.status != "queued":  # it was lost before it began
            _set_status(session, search, "queued")
        enter_phase(session, search, "waiting_for_worker")
        append_event(session, search.id, "warning", {"code": outcome, "text": text or ""})


# -- what searches wait for ------------------------------------------------------------


def release(session: Session, key: str) -> None:
    """A latency model is there: let go who waited for it, unless it lacks another one."""
    for search in waiting_for(session, key, lock=True):
        job = jobs.of_subject(session, search.id)
        assert job is not None
        job.blocked_on = first_missing(session, search)
        if job.blocked_on is None:
            if search.status == "queued":
                enter_phase(session, search, "waiting_for_worker")
        elif _cannot_come(session, job.blocked_on):
            _give_up(session, search, "no model could be fitted to what was measured")


def give_up(session: Session, key: str, text: str) -> None:
    """A latency model will not come: end who waited for it."""
    for search in waiting_for(session, key, lock=True):
        _give_up(session, search, text)


def first_missing(session: Session, search: Search) -> str | None:
    """The key of the first latency model that a search still lacks."""
    space = get_space(search.spec["search_space"])
    for row in targets_of(session, search.id):
        if active_model(session, row.target_id, space.digest) is None:
            return model_key(row.target_id, space.digest)
    return None


def _cannot_come(session: Session, key: str) -> bool:
    _, target_id, digest = key.split(":")
    kit = find_kit(session, target_id, digest)
    if kit is None or {"queued", "leased"} & kit_progress(session, kit.id).keys():
        return False  # it is being measured, perhaps once more
    fit = jobs.of_subject(session, kit.id)
    return fit is not None and fit.status == "failed"


def _give_up(session: Session, search: Search, text: str) -> None:
    jobs.cancel_queued(session, search.id)
    end(session, search, "failed", code="no_latency_model", text=text)


def _set_status(session: Session, search: Search, status: str, **told: str) -> None:
    search.status = status
    append_event(session, search.id, "status", {"status": status, **told})
    queue_deliveries(session, search, f"search.{status}", {"status": status, **told})  # type: ignore[arg-type]


def _charge(search: Search, now: datetime) -> None:
    spent = (now - search.phase_since).total_seconds()
    before = search.seconds_by_phase.get(search.phase, 0.0)
    search.seconds_by_phase = {**search.seconds_by_phase, search.phase: before + spent}
