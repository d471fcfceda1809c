"""What may happen to a search, and when; every change of status goes through here."""

from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from predictor.kits import plan_kit
from predictor.network import NetworkLatencyModel
from search_core.data.catalogue import dataset_info
from search_core.space.presets import get_space, space_names
from search_core.space.space import SearchSpace
from service.agents.repository import n_online
from service.artifacts import ArtifactStore
from service.auth.models import ApiKey
from service.db.base import new_id, utc_now
from service.db.database import Database, take_turns
from service.errors import BudgetUnreachableError, ConflictError, InvalidRequestError
from service.jobs import repository as jobs
from service.latency_models.repository import active_model
from service.measurements.kits import build_files, ensure_kit
from service.measurements.repository import cancel_tasks, find_kit, kit_progress, supersede
from service.searches.effort import expected_effort
from service.searches.models import Search
from service.searches.repository import append_event, find_by_idempotency_key, get_search
from service.searches.schemas import TERMINAL, Feasibility, NoEffort, SearchCreate
from service.settings import Settings
from service.spaces.catalogue import searchable_datasets, searchable_space
from service.targets.models import Target
from service.targets.repository import named_target

SEARCH_JOB = "search"


def model_key(target_id: str, space_digest: str) -> str:
    """What a search waits for until its space has been measured and fitted on its target."""
    return f"latency_model:{target_id}:{space_digest}"


def preflight(session: Session, spec: SearchCreate, settings: Settings) -> Feasibility:
    """Which budgets the target can meet, and what the search costs, before anything is paid for.

    Raises:
        InvalidRequestError: unknown target or data set, or images that do not fit the space.
        UnknownSpaceError: no space of that name.
    """
    space = searchable_space(spec.search_space)
    target = named_target(session, spec.target)
    _check_dataset(spec, space)
    feasibility = _feasibility(session, spec, space, target.id)
    feasibility.agents_online = n_online(session, target.id, settings.agent_offline_seconds)
    found = expected_effort(session, spec, space, feasibility.missing_measurements)
    if isinstance(found, NoEffort):
        feasibility.no_effort = found
    else:
        feasibility.effort = found
    return feasibility


def _feasibility(
    session: Session, spec: SearchCreate, space: SearchSpace, target_id: str
) -> Feasibility:
    row = active_model(session, target_id, space.digest)
    if row is None:
        kit = find_kit(session, target_id, space.digest)
        done = kit_progress(session, kit.id).get("done", 0) if kit else 0
        return Feasibility(
            feasible=None,
            fastest_ms=None,
            slowest_ms=None,
            latency_model=None,
            margin=None,
            missing_measurements=len(plan_kit(space)) - done,
            agents_online=0,
        )
    model = NetworkLatencyModel.from_document(row.document)
    fastest_ms, slowest_ms = model.band_ms
    return Feasibility(
        feasible=spec.latency_budget_ms >= fastest_ms,
        fastest_ms=fastest_ms,
        slowest_ms=slowest_ms,
        latency_model=row.id,
        margin=model.margin,
        missing_measurements=0,
        agents_online=0,
        stale=row.stale["text"] if row.stale else None,
    )


def build_kit_files(database: Database, artifacts: ArtifactStore, spec: SearchCreate) -> None:
    """Build what has to be measured before `spec` can be searched, if anything has.

    What is wrong with `spec` is for `create` to say.
    """
    if spec.search_space not in space_names():
        return
    space = get_space(spec.search_space)
    with database.reading() as session:
        target = session.get(Target, spec.target)
        if target is None or spec.dataset not in searchable_datasets(space):
            return
        if active_model(session, target.id, space.digest) is not None:
            return
        precision, batch = target.profile["precision"], target.profile["batch"]
    build_files(database, artifacts, space, precision, batch)


def create(
    session: Session,
    settings: Settings,
    key: ApiKey,
    spec: SearchCreate,
    idempotency_key: str | None,
) -> Search:
    """A new search and its job, in one transaction; the same key gives the same search.

    A space that was never measured on the target gets its kit, and the job waits for the
    latency model.

    Raises:
        InvalidRequestError: something the spec names does not exist.
        BudgetUnreachableError: no network of the space is that fast on the target.
        ConflictError: the idempotency key was used for another spec.
    """
    if idempotency_key is not None:
        take_turns(session, f"idempotency:{key.account}:{idempotency_key}")
        earlier = find_by_idempotency_key(session, key.account, idempotency_key)
        if earlier is not None:
            if earlier.spec != spec.model_dump():
                raise ConflictError(
                    f"Idempotency-Key {idempotency_key!r} was used for search {earlier.id} "
                    "with another body"
                )
            return earlier
    space = searchable_space(spec.search_space)
    take_turns(session, model_key(spec.target, space.digest))  # it may be fitted right now
    feasibility = preflight(session, spec, settings)
    if feasibility.feasible is False:
        assert feasibility.fastest_ms is not None
        raise BudgetUnreachableError(
            f"no network of {spec.search_space} runs in {spec.latency_budget_ms:g} ms on this "
            f"target; the fastest takes {feasibility.fastest_ms:.4g} ms",
            field="latency_budget_ms",
            fastest_ms=feasibility.fastest_ms,
            slowest_ms=feasibility.slowest_ms,
        )
    measured = feasibility.latency_model is not None
    now = utc_now()
    search = Search(
        id=new_id("srch"),
        owner_key_id=key.id,
        owner=key.account,
        idempotency_key=idempotency_key,
        target_id=spec.target,
        spec=spec.model_dump(),
        status="queued",
        phase="waiting_for_worker" if measured else "awaiting_measurements",
        phase_since=now,
        feasibility=feasibility.model_dump(),
        seconds_by_phase={},
        latency_model_id=feasibility.latency_model,
        created_at=now,
    )
    session.add(search)
    session.flush()
    if not measured:
        kit = ensure_kit(session, named_target(session, spec.target), space)
        fit = jobs.of_subject(session, kit.id)
        if fit and fit.status == "failed" and set(kit_progress(session, kit.id)) == {"done"}:
            supersede(session, kit.id)  # no model could be fitted to what was measured
    jobs.enqueue(
        session,
        SEARCH_JOB,
        search.id,
        owner=key.account,
        max_attempts=settings.max_attempts,
        blocked_on=None if measured else model_key(spec.target, space.digest),
    )
    append_event(session, search.id, "status", {"status": "queued"})
    return search


def enter_phase(session: Session, search: Search, phase: str) -> None:
    """Move to `phase`; the time spent in the one before is added to its account."""
    now = utc_now()
    _charge(search, now)
    search.phase, search.phase_since = phase, now
    search.progress = None
    search.status_reason = None
    append_event(session, search.id, "phase", {"phase": phase})


def start(session: Session, search: Search, latency_model_id: str) -> None:
    """An attempt has begun."""
    search.latency_model_id = latency_model_id
    search.started_at = search.started_at or utc_now()
    if search.status == "queued":
        search.status = "running"
        append_event(session, search.id, "status", {"status": "running"})


def end(
    session: Session,
    search: Search,
    status: str,
    *,
    code: str | None = None,
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
    _charge(search, now)
    search.status, search.phase, search.phase_since = status, "done", now
    search.finished_at = now
    search.progress = None
    search.status_reason = (
        {"code": code, "text": text, "since": now.isoformat()} if code is not None else None
    )
    search.result = result
    cancel_tasks(session, search.id)
    append_event(session, search.id, "status", {"status": status, "code": code, "text": text})


def cancel(session: Session, search_id: str) -> Search:
    """Stop a search: at once while it is queued, at its next step while it runs.

    Raises:
        ConflictError: it has ended already.
    """
    search = get_search(session, search_id, lock=True)
    if search.status in TERMINAL:
        raise ConflictError(f"search {search.id} has already {search.status}")
    if jobs.cancel_queued(session, search.id):
        end(session, search, "cancelled", code="user_cancelled", text="Cancelled while queued.")
    elif search.status != "cancelling":
        search.status = "cancelling"
        append_event(session, search.id, "status", {"status": "cancelling"})
    return search


def attempt_lost(
    session: Session, search_id: str, outcome: str, *, has_attempts_left: bool
) -> None:
    """The attempt died without a word: wait for the next one, or end."""
    search = get_search(session, search_id, lock=True)
    if search.status in TERMINAL:
        return
    if search.status == "cancelling":
        job = jobs.of_subject(session, search_id)
        if job is not None and job.status == "queued":
            jobs.cancel_queued(session, search_id)
        end(session, search, "cancelled", code="user_cancelled", text="Cancelled.")
    elif has_attempts_left:
        search.status = "queued"
        enter_phase(session, search, "waiting_for_worker")
        append_event(session, search.id, "warning", {"code": outcome})
    else:
        end(
            session,
            search,
            "failed",
            code=outcome,
            text="Every attempt ended this way; the worker's log says why.",
        )


def _check_dataset(spec: SearchCreate, space: SearchSpace) -> None:
    info = dataset_info(spec.dataset)
    got = (info.channels, info.resolution_px, info.n_classes)
    needed = (space.in_channels, space.resolution_px, space.n_classes)
    if got != needed:
        raise InvalidRequestError(
            f"{space.name} takes (channels, pixels, classes) {needed}, {info.name} has {got}",
            field="dataset",
        )


def _charge(search: Search, now: datetime) -> None:
    spent = (now - search.phase_since).total_seconds()
    before = search.seconds_by_phase.get(search.phase, 0.0)
    search.seconds_by_phase = {**search.seconds_by_phase, search.phase: before + spent}
