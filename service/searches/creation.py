"""How searches come to be: asked for, or made from one that is there."""

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pydantic import ValidationError
from sqlalchemy.orm import Session

from search_core.errors import UnknownDatasetError, UnknownSpaceError
from search_core.space.presets import get_space
from service.artifacts import ArtifactStore
from service.auth.principal import Principal
from service.auth.quotas import check_searches
from service.db.base import new_id, utc_now
from service.db.database import Database, take_turns
from service.errors import (
    BudgetUnreachableError,
    ConflictError,
    IdempotencyKeyReusedError,
    InvalidRequestError,
    NotFoundError,
)
from service.jobs import repository as jobs
from service.latency_models.documents import parsed
from service.latency_models.repository import active_model
from service.measurements.kits import build_files, ensure_kit
from service.measurements.repository import kit_progress, supersede
from service.schemas import Request
from service.searches.lifecycle import SEARCH_JOB, model_key
from service.searches.models import Search, SearchTarget
from service.searches.preflight import check_budgets, fitted, needs_of, preflight
from service.searches.repository import (
    append_event,
    find_by_idempotency_key,
    get_seen,
    has_artifact,
    origin_of,
    targets_of,
)
from service.searches.schemas import (
    TERMINAL,
    Feasibility,
    Kind,
    SearchClone,
    SearchCreate,
    SearchDerive,
    SearchExtend,
)
from service.settings import Settings
from service.targets.models import Target
from service.targets.repository import named_target
from service.webhooks.outbox import queue_deliveries

SUPERNET = "supernet.pt"
"""The artifact that other searches start from: where the search stood when it ended."""


@dataclass(frozen=True)
class Wish:
    """A search to be made.

    Attributes:
        kind: see `models.Search`.
        parent: the search it comes from.
        asked: the body of the request, of which the spec was made.
        idempotency_key: the same key of the same account makes it once.
    """

    spec: SearchCreate
    asked: Request | None
    kind: Kind = "search"
    parent: Search | None = None
    idempotency_key: str | None = None

    @property
    def sha256(self) -> str:
        """Of the request: what its spec would be may change, as a parent's tags do."""
        body = self.asked.model_dump_json() if self.asked else ""
        told = (self.kind, self.parent.id if self.parent else "", body)
        return hashlib.sha256("\n".join(told).encode()).hexdigest()


def build_kit_files(
    database: Database, artifacts: ArtifactStore, account: str, spec: SearchCreate
) -> None:
    """Build what has to be measured before `spec` can be searched, if anything has.

    What is wrong with `spec` is for `create` to say.
    """
    with database.reading() as session:
        try:
            _, space, _ = fitted(session, account, spec)
        except (InvalidRequestError, UnknownDatasetError, UnknownSpaceError):
            return
        asked = [session.get(Target, one) for one in {budget.target for budget in spec.budgets}]
        forms = {
            (target.profile["precision"], target.profile["batch"])
            for target in asked
            if target is not None and active_model(session, target.id, space.digest) is None
        }
    for precision, batch in forms:
        build_files(database, artifacts, space, precision, batch)


def create(
    session: Session, settings: Settings, principal: Principal, wish: Wish
) -> tuple[Search, bool]:
    """A search and its job, in one transaction; and whether it is new.

    A space that was never measured on a target gets its kit, and the job waits for the latency
    model.

    Raises:
        InvalidRequestError: something the spec names does not exist.
        BudgetUnreachableError: no network of the space is that fast on a target.
        IdempotencyKeyReusedError: the key was used for another request.
        QuotaExceededError: the account has as many unfinished searches as it may.
    """
    spec, key = wish.spec, wish.idempotency_key
    if key is not None:
        take_turns(session, f"idempotency:{principal.account}:{key}")
        earlier = find_by_idempotency_key(session, principal.account, key)
        if earlier is not None:
            if earlier.body_sha256 not in (None, wish.sha256):
                raise IdempotencyKeyReusedError(
                    f"Idempotency-Key {key!r} was used for search {earlier.id} with another "
                    "body; use a new key for a new search"
                )
            return earlier, False
    check_budgets(spec)
    spec, space, _ = fitted(session, principal.account, spec)
    target_ids = sorted({budget.target for budget in spec.budgets})
    for target_id in target_ids:
        take_turns(session, model_key(target_id, space.digest))  # it may be fitted right now
    feasibility = preflight(session, principal.account, spec, settings)
    if wish.kind != "derive":  # which tells of each budget what became of it
        _refuse_unreachable(spec, feasibility)
    if spec.warm_start is not None:
        _check_start(session, principal, spec)
    check_searches(session, settings, principal.account)
    now = utc_now()
    missing = sorted({one.target for one in feasibility.targets if one.latency_model is None})
    search = Search(
        id=new_id("srch"),
        kind=wish.kind,
        owner_key_id=principal.id,
        owner=principal.account,
        idempotency_key=key,
        body_sha256=wish.sha256,
        parent_id=wish.parent.id if wish.parent else None,
        target_id=spec.budgets[0].target,
        spec=spec.model_dump(),
        tags=spec.tags,
        priority=spec.priority,
        status="queued",
        phase="awaiting_measurements" if missing else "waiting_for_worker",
        phase_since=now,
        feasibility=feasibility.model_dump(),
        seconds_by_phase={},
        latency_model_id=feasibility.latency_model if len(target_ids) == 1 else None,
        created_at=now,
    )
    session.add(search)
    session.flush()
    priced_by = _latency_models_of(session, wish)
    session.add_all(
        SearchTarget(search_id=search.id, target_id=one, latency_model_id=priced_by.get(one))
        for one in target_ids
    )
    for target_id in missing:
        kit = ensure_kit(session, named_target(session, target_id), space)
        fit = jobs.of_subject(session, kit.id)
        if fit and fit.status == "failed" and set(kit_progress(session, kit.id)) == {"done"}:
            supersede(session, kit.id)  # no model could be fitted to what was measured
    queue_minutes = spec.limits.queue_minutes
    jobs.enqueue(
        session,
        SEARCH_JOB,
        search.id,
        owner=principal.account,
        needs=needs_of(spec).format(),
        priority=spec.priority,
        max_attempts=settings.max_attempts,
        blocked_on=model_key(missing[0], space.digest) if missing else None,
        queue_deadline=now + timedelta(minutes=queue_minutes) if queue_minutes else None,
    )
    append_event(session, search.id, "status", {"status": "queued"})
    queue_deliveries(session, search, "search.queued", {"status": "queued"})
    return search, True


# -- from a search that is there -------------------------------------------------------


def cloned(parent: Search, changes: SearchClone) -> SearchCreate:
    """The spec of a copy.

    Raises:
        InvalidRequestError: the changes contradict what stays.
    """
    changed = changes.model_dump(exclude_unset=True)
    spec = _spec_of(parent).model_dump()
    if "targets" in changed:
        spec |= {"target": None, "latency_budget_ms": None}
    elif "target" in changed:
        spec["targets"] = []
    return _valid({**spec, **changed})


def extended(session: Session, parent: Search, asked: SearchExtend) -> SearchCreate:
    """The spec of more of a search: with more epochs, or with more time than it had.

    Raises:
        InvalidRequestError: it asks for neither.
        ConflictError: it has not ended, or there is nothing to go on from.
    """
    _check_ended(parent)
    _check_supernet(session, parent)
    if asked.epochs is None and asked.limits is None:
        raise InvalidRequestError("ask for more epochs, or for other limits", field="epochs")
    spec = _spec_of(parent).model_dump()
    if asked.epochs is not None:
        spec["epochs"] += asked.epochs
    if asked.limits is not None:
        spec["limits"] = asked.limits.model_dump()
    return _valid(spec)


def derived(session: Session, parent: Search, asked: SearchDerive) -> SearchCreate:
    """The spec of other budgets from a search's supernet.

    Raises:
        InvalidRequestError: no budgets, or both budgets and a number of points; a target that
            has not been measured for the space.
        ConflictError: the search kept no supernet.
    """
    _check_ended(parent)
    _check_supernet(session, origin_of(session, parent, "derive"))
    spec = _spec_of(parent)
    target_id = asked.target or parent.target_id
    if bool(asked.budgets_ms) == (asked.points is not None):
        raise InvalidRequestError("give budgets_ms or points", field="budgets_ms")
    budgets_ms = sorted(set(asked.budgets_ms))
    if asked.points is not None:
        budgets_ms = _spread(session, named_target(session, target_id).id, spec, asked.points)
    changed = {
        "target": None,
        "latency_budget_ms": None,
        "targets": [
            {"target": target_id, "latency_budget_ms": budget_ms} for budget_ms in budgets_ms
        ],
        "together": "each",
        "train_epochs": asked.train_epochs,
        "warm_start": None,
        "random_baseline": False,
        "hand_made_baseline": False,
    }
    return _valid({**spec.model_dump(), **changed})


def reproduced(session: Session, parent: Search) -> SearchCreate:
    """The spec of the same search once more.

    Raises:
        ConflictError: it has no manifest to compare with.
    """
    if parent.kind not in ("search", "extend") or not has_artifact(
        session, parent.id, "manifest.json"
    ):
        raise ConflictError(
            f"search {parent.id} ({parent.kind}, {parent.status}) has no manifest to compare "
            "with; one that searched and succeeded does"
        )
    return _spec_of(parent)


def _spec_of(search: Search) -> SearchCreate:
    """As it was asked for, with what was changed since."""
    spec = SearchCreate.model_validate(search.spec)
    return spec.model_copy(update={"tags": search.tags, "priority": search.priority})


def _valid(spec: dict[str, Any]) -> SearchCreate:
    try:
        return SearchCreate.model_validate(spec)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidRequestError(first["msg"], field=".".join(map(str, first["loc"]))) from None


def _check_ended(parent: Search) -> None:
    if parent.status not in TERMINAL:
        raise ConflictError(
            f"search {parent.id} is {parent.status}; wait until it has ended",
            current_status=parent.status,
        )


def _check_supernet(session: Session, parent: Search) -> None:
    if not has_artifact(session, parent.id, SUPERNET):
        raise ConflictError(
            f"search {parent.id} kept no supernet to go on from: it was made by an older "
            "version, or ended before it had searched; clone it"
        )


def _check_start(session: Session, principal: Principal, spec: SearchCreate) -> None:
    assert spec.warm_start is not None
    try:
        start = get_seen(session, spec.warm_start, principal)
    except NotFoundError as error:
        raise InvalidRequestError(str(error), field="warm_start") from None
    if start.spec["search_space"] != spec.search_space:
        raise InvalidRequestError(
            f"search {start.id} is of {start.spec['search_space']}, not of {spec.search_space}",
            field="warm_start",
        )
    if not has_artifact(session, start.id, SUPERNET):
        raise InvalidRequestError(
            f"search {start.id} has no supernet to start from; one that has finished searching "
            "does",
            field="warm_start",
        )


def _spread(session: Session, target_id: str, spec: SearchCreate, points: int) -> list[float]:
    """Budgets spread evenly over what a target can do."""
    space = get_space(spec.search_space)
    row = active_model(session, target_id, space.digest)
    if row is None:
        raise InvalidRequestError(
            f"{spec.search_space} was never measured on this target, so that nothing says what "
            "it can do; give budgets_ms",
            field="points",
        )
    fastest_ms, slowest_ms = parsed(row).band_ms
    # a few per cent inside, where networks are that can be measured under their budget
    first, last = fastest_ms * 1.05, slowest_ms
    return [round(first + (last - first) * place / (points - 1), 6) for place in range(points)]


def _latency_models_of(session: Session, wish: Wish) -> dict[str, str | None]:
    """What the parent was priced by, for a search that does the same once more or longer."""
    if wish.parent is None or wish.kind not in ("extend", "reproduce"):
        return {}
    return {row.target_id: row.latency_model_id for row in targets_of(session, wish.parent.id)}


def _refuse_unreachable(spec: SearchCreate, feasibility: Feasibility) -> None:
    for place, found in enumerate(feasibility.targets):
        if found.feasible is False:
            assert found.fastest_ms is not None
            field = "latency_budget_ms"
            raise BudgetUnreachableError(
                f"no network of {spec.search_space} runs in {found.latency_budget_ms:g} ms on "
                f"this target; the fastest takes {found.fastest_ms:.4g} ms",
                field=f"targets.{place}.{field}" if spec.targets else field,
                target=found.target,
                fastest_ms=found.fastest_ms,
                slowest_ms=found.slowest_ms,
            )
