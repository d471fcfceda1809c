"""What can be said of a search before anything is paid for."""

from sqlalchemy.orm import Session

from predictor.kits import plan_kit
from search_core.space.space import SearchSpace
from service.agents.repository import n_online
from service.datasets.known import DatasetFacts, find_dataset
from service.errors import InvalidRequestError
from service.jobs.needs import Needs, needs
from service.latency_models.documents import parsed
from service.latency_models.repository import active_model
from service.measurements.repository import find_kit, kit_progress
from service.searches.effort import expected_effort
from service.searches.schedule import BATCH_SIZE
from service.searches.schemas import (
    Feasibility,
    NoEffort,
    SearchCreate,
    Service,
    TargetBudget,
    TargetFeasibility,
)
from service.settings import Settings
from service.spaces.catalogue import fitting_space
from service.targets.repository import named_target
from service.workers.matching import who_could_serve


def fitted(
    session: Session, account: str, spec: SearchCreate
) -> tuple[SearchCreate, SearchSpace, DatasetFacts]:
    """The spec with its space fitted to the account's data set, the space, and the data set.

    Raises:
        InvalidRequestError: a data set that is not ready, or whose images the space cannot take.
        UnknownSpaceError, UnknownDatasetError: none of that name.
    """
    data = find_dataset(session, account, spec.dataset)
    if data.n_train < BATCH_SIZE:
        raise InvalidRequestError(
            f"data set {data.name} has {data.n_train} training images, fewer than the "
            f"{BATCH_SIZE} of one step",
            field="dataset",
        )
    space = fitting_space(spec.search_space, data)
    return spec.model_copy(update={"search_space": space.name}), space, data


def preflight(
    session: Session, account: str, spec: SearchCreate, settings: Settings
) -> Feasibility:
    """Which budgets the targets can meet, what the search costs, and who could run it.

    Raises:
        InvalidRequestError: no target, an unknown one or one twice; or as `fitted`.
        UnknownSpaceError, UnknownDatasetError: none of that name.
    """
    spec, space, data = fitted(session, account, spec)
    check_budgets(spec)
    found = [_of_target(session, budget, space, settings) for budget in spec.budgets]
    tightest = min(found, key=_room)
    feasibility = Feasibility(
        **tightest.model_dump(exclude={"target", "latency_budget_ms", "feasible"}),
        feasible=_all(found),
        targets=found,
    )
    feasibility.missing_measurements = sum(one.missing_measurements for one in found)
    effort = expected_effort(session, spec, space, data, feasibility.missing_measurements)
    if isinstance(effort, NoEffort):
        feasibility.no_effort = effort
    else:
        feasibility.effort = effort
    verdict = who_could_serve(session, needs_of(spec), settings.worker_offline_seconds)
    feasibility.service = Service(
        code="ready" if verdict.code == "queue_position" else verdict.code,
        text=verdict.text,
        workers=len(verdict.able),
    )
    return feasibility


def check_budgets(spec: SearchCreate) -> None:
    """Refuse a request that names no target, or names targets in two ways at once.

    Raises:
        InvalidRequestError: naming the field.
    """
    if spec.targets:
        for name in ("target", "latency_budget_ms"):
            if getattr(spec, name) is not None:
                raise InvalidRequestError(f"give {name} or targets, not both", field=name)
        asked = [budget.target for budget in spec.targets]
        if spec.together == "worst_case" and len(set(asked)) < len(asked):
            raise InvalidRequestError("one network has one budget a target", field="targets")
    elif spec.target is None:
        raise InvalidRequestError("name the target to search for", field="target")
    elif spec.latency_budget_ms is None:
        raise InvalidRequestError("say how long a network may take", field="latency_budget_ms")


def needs_of(spec: SearchCreate) -> Needs:
    """What a worker must have to run the search."""
    return needs(
        gpus=spec.worker.gpus,
        uses_gpu=True,
        memory_bytes=spec.worker.memory_bytes or 0,
        labels=spec.worker.labels,
    )


def _of_target(
    session: Session, budget: TargetBudget, space: SearchSpace, settings: Settings
) -> TargetFeasibility:
    target = named_target(session, budget.target)
    asked = {"target": target.id, "latency_budget_ms": budget.latency_budget_ms}
    online = n_online(session, target.id, settings.agent_offline_seconds)
    row = active_model(session, target.id, space.digest)
    if row is None:
        kit = find_kit(session, target.id, space.digest)
        done = kit_progress(session, kit.id).get("done", 0) if kit else 0
        return TargetFeasibility(
            **asked,
            feasible=None,
            fastest_ms=None,
            slowest_ms=None,
            latency_model=None,
            margin=None,
            missing_measurements=len(plan_kit(space)) - done,
            agents_online=online,
        )
    model = parsed(row)
    fastest_ms, slowest_ms = model.band_ms
    return TargetFeasibility(
        **asked,
        feasible=budget.latency_budget_ms >= fastest_ms,
        fastest_ms=fastest_ms,
        slowest_ms=slowest_ms,
        latency_model=row.id,
        margin=model.margin,
        missing_measurements=0,
        agents_online=online,
        stale=row.stale["text"] if row.stale else None,
    )


def _room(found: TargetFeasibility) -> float:
    """How far a budget is above the fastest network; what is not known comes first."""
    return found.latency_budget_ms / found.fastest_ms if found.fastest_ms else 0.0


def _all(found: list[TargetFeasibility]) -> bool | None:
    verdicts = {one.feasible for one in found}
    return False if False in verdicts else None if None in verdicts else True
