"""Searches as they are answered: rows of several tables, read for a whole page at once."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from search_core.space.presets import get_space
from service.agents.repository import n_online
from service.db.base import utc_now
from service.jobs import repository as jobs
from service.jobs.models import Job
from service.jobs.needs import Needs
from service.measurements.repository import find_kit, kit_progress
from service.searches.models import Search
from service.searches.schemas import (
    STOPPING,
    AttemptRead,
    Comparison,
    SearchCreate,
    SearchRead,
    StatusReason,
)
from service.settings import Settings
from service.workers.matching import verdict_on
from service.workers.repository import workers_taking_work

_FORESEEABLE_SECONDS = 100 * 365 * 86_400
"""Nobody estimates the end of what lies farther ahead."""


def read_searches(
    session: Session, searches: Sequence[Search], settings: Settings
) -> list[SearchRead]:
    """The searches with their attempts, and with a reason for every wait."""
    newest = jobs.of_subjects(session, [search.id for search in searches])
    attempts = jobs.attempts_of(session, [job.id for job in newest.values() if job.attempt])
    queued = [newest[s.id] for s in searches if s.status == "queued" and s.id in newest]
    positions = jobs.positions(session, [job.id for job in queued if job.blocked_on is None])
    asked = {job.needs for job in queued}
    workers = workers_taking_work(session, settings.worker_offline_seconds) if asked else ()
    verdicts = {needs: verdict_on(workers, Needs.parse(needs)) for needs in asked}

    def reason(search: Search, job: Job | None) -> StatusReason | None:
        if search.status_reason is not None:
            return StatusReason.model_validate(search.status_reason)
        if job is not None and search.status in STOPPING:
            return StatusReason(
                code="stopping",
                text="Asked to stop; its attempt does so at its next step, or is killed after "
                f"{settings.stop_grace_seconds:g} s.",
                since=job.stop_requested_at or search.phase_since,
            )
        if search.status != "queued" or job is None:
            return None
        if job.blocked_on is not None:
            return _awaiting_measurements(session, search, job.blocked_on, settings)
        verdict = verdicts[job.needs]
        return StatusReason(
            code=verdict.code,
            text=verdict.text,
            since=search.phase_since,
            position=positions.get(job.id),
        )

    def read(search: Search) -> SearchRead:
        job = newest.get(search.id)
        base = f"/v1/searches/{search.id}"
        return SearchRead(
            id=search.id,
            kind=search.kind,
            owner=search.owner,
            status=search.status,
            phase=search.phase,
            status_reason=reason(search, job),
            version=search.version,
            spec=SearchCreate.model_validate(search.spec),
            tags=search.tags,
            priority=search.priority,
            parent=search.parent_id,
            progress=search.progress,
            estimated_finish_at=_finish(search, positions.get(job.id) if job else None),
            feasibility=search.feasibility,
            result=search.result,
            seconds_by_phase=search.seconds_by_phase,
            latency_model=search.latency_model_id,
            attempts=[AttemptRead.model_validate(one) for one in attempts.get(job.id, ())]
            if job
            else [],
            created_at=search.created_at,
            started_at=search.started_at,
            finished_at=search.finished_at,
            archived_at=search.archived_at,
            links={
                "self": base,
                **{
                    name: f"{base}/{name}"
                    for name in ("events", "metrics", "architecture", "artifacts", "lineage")
                },
                **({"parent": f"/v1/searches/{search.parent_id}"} if search.parent_id else {}),
            },
        )

    return [read(search) for search in searches]


def read_search(session: Session, search: Search, settings: Settings) -> SearchRead:
    """One search."""
    return read_searches(session, [search], settings)[0]


def _awaiting_measurements(
    session: Session, search: Search, blocked_on: str, settings: Settings
) -> StatusReason:
    target_id = blocked_on.split(":")[1]
    space = get_space(search.spec["search_space"])
    kit = find_kit(session, target_id, space.digest)
    counts = kit_progress(session, kit.id) if kit else {}
    done, total = counts.get("done", 0), sum(counts.values())
    text = f"{done} of {total} subjects of the space are measured on the target"
    if n_online(session, target_id, settings.agent_offline_seconds):
        return StatusReason(code="awaiting_measurements", text=f"{text}.", since=search.phase_since)
    return StatusReason(
        code="no_agent_online",
        text=f"{text}, and none of its agents is online; start one with `tailor agent run`.",
        since=search.phase_since,
    )


def _finish(search: Search, position: int | None) -> datetime | None:
    """When a search ends if all goes as expected.

    What is left of the present phase, told by the attempt, and then the phases to come as the
    preflight saw them. A search in the queue takes those before it for as long as itself.
    """
    effort = (search.feasibility or {}).get("effort")
    if effort is None:
        return None
    if search.status == "queued" and position is not None:
        seconds = effort["seconds"] * position
        return utc_now() + timedelta(seconds=seconds) if seconds < _FORESEEABLE_SECONDS else None
    expected: dict[str, float] = effort["seconds_by_phase"]
    if search.status != "running" or search.phase not in expected:
        return None
    order = list(expected)
    later = sum(expected[phase] for phase in order[order.index(search.phase) + 1 :])
    told = search.progress or {}
    if told.get("remaining_seconds") is not None:
        at = datetime.fromisoformat(told["updated_at"])
        return max(utc_now(), at + timedelta(seconds=told["remaining_seconds"])) + timedelta(
            seconds=later
        )
    ends = search.phase_since + timedelta(seconds=expected[search.phase])
    return max(utc_now(), ends) + timedelta(seconds=later)


# -- side by side ----------------------------------------------------------------------


def compared(items: list[SearchRead]) -> Comparison:
    """Searches side by side."""
    specs = [item.spec.model_dump() for item in items]
    differs = {
        name: [spec[name] for spec in specs]
        for name in specs[0]
        if any(spec[name] != specs[0][name] for spec in specs)
    }
    return Comparison(items=items, differs=differs, agreement=_agreement(items))


def _agreement(items: list[SearchRead]) -> float | None:
    found = [item.result.network.architecture for item in items if item.result is not None]
    spaces = {item.spec.search_space for item in items}
    if len(found) < len(items) or len(spaces) > 1:
        return None
    space = get_space(spaces.pop())
    decided = zip(*(space.parse(text).choices for text in found), strict=True)
    return sum(len(set(choices)) == 1 for choices in decided) / len(space.slots)
