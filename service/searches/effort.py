"""What a search is expected to cost: a machine's profile, corrected by what searches took."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from sqlalchemy.orm import Session

from predictor.agent.protocol import EFFORTS
from predictor.measurements import Effort as MeasuringEffort
from predictor.network import NetworkLatencyModel
from search_core.effort import Effort, MachineProfile, Row, predict, spending
from search_core.errors import ProfileDocumentError
from search_core.space.space import SearchSpace
from service.datasets.known import DatasetFacts
from service.latency_models.documents import parsed
from service.latency_models.repository import active_model
from service.machines.models import Machine
from service.machines.repository import last_seen_machine
from service.measurements.repository import finishing_times
from service.searches.models import Search
from service.searches.repository import alike_succeeded
from service.searches.schedule import search_plan
from service.searches.schemas import EffortRead, NoEffort, SearchCreate

N_EARLIER = 5
"""How many earlier searches correct a prediction, the latest ones."""

FACTORS = (0.25, 4.0)
"""What an earlier search may change a phase by; beyond that something else has happened."""

_TRANSPORT_SECONDS = 0.15  # leasing, uploading, and asking every tenth of a second
_QUIET_SHARE = 0.8  # of a measurement's slices; the rest is the anchor, or is discarded
_PUBLISHING_SHARE = 0.6  # of starting up: exporting the files and checking them
_SUBJECT_SECONDS = (0.02, 20.0)


@dataclass(frozen=True)
class _Known:
    """A machine with its profile."""

    row: Machine
    profile: MachineProfile


def expected_effort(
    session: Session,
    spec: SearchCreate,
    space: SearchSpace,
    data: DatasetFacts,
    missing_measurements: int,
) -> EffortRead | NoEffort:
    """What a search of `spec` will cost once a worker has it, or why that cannot be told.

    Args:
        missing_measurements: of the space on the target, before the search can start.
    """
    machine = _known_machine(session)
    if isinstance(machine, NoEffort):
        return machine
    effort = _modelled(session, spec, space, data, machine.profile)
    earlier = alike_succeeded(session, spec, N_EARLIER)
    if data.source != "builtin":  # another account's data set of that name is another one
        earlier = [search for search in earlier if search.owner == data.owner]
    factors = _factors(session, space, data, machine.profile, earlier)
    if factors:
        effort = effort.corrected(factors, len(earlier))
    if missing_measurements:
        seconds = missing_measurements * _subject_seconds(session, spec.budgets[0].target)
        effort = effort.plus({"awaiting_measurements": seconds})
    return _read(effort, machine)


def _known_machine(session: Session) -> _Known | NoEffort:
    row = last_seen_machine(session)
    if row is None:
        return NoEffort(
            code="no_machine_profile",
            text="No worker has timed its machine yet; start one with `tailor worker` "
            "(and TAILOR_CALIBRATE left on), and ask again in half a minute.",
        )
    try:
        return _Known(row, MachineProfile.from_document(row.document))
    except ProfileDocumentError as error:
        return NoEffort(
            code="machine_profile_unreadable",
            text=f"{error}. Start a worker of this version with `tailor worker`.",
        )


def _modelled(
    session: Session,
    spec: SearchCreate,
    space: SearchSpace,
    data: DatasetFacts,
    machine: MachineProfile,
) -> Effort:
    """The model's prediction, with the measurements that the search waits for."""
    plan = search_plan(spec, space, data)
    n_goals = len(spec.budgets) if spec.together == "each" else 1
    budget = spec.budgets[0]
    row = active_model(session, budget.target, space.digest)
    decided = None
    if row is not None:
        decided = _decided(parsed(row), budget.latency_budget_ms)
    table = sum(measuring_seconds("table", b.latency_budget_ms) for b in spec.budgets)
    certificate = sum(measuring_seconds("certificate", b.latency_budget_ms) for b in spec.budgets)
    waiting = {"deriving": table, "verifying": certificate}
    n_baselines = spec.random_baseline + spec.hand_made_baseline
    if n_baselines:
        waiting["comparing"] = n_baselines * table / n_goals
    last = "comparing" if n_baselines else "verifying"
    effort = predict(plan, machine, decided)
    if n_goals > 1:  # each network is trained for itself
        training = effort.seconds_by_phase.get("training", 0.0)
        effort = effort.plus({"training": (n_goals - 1) * training})
    return effort.plus(waiting).plus({last: _PUBLISHING_SHARE * machine.start_up_seconds})


def _decided(model: NetworkLatencyModel, budget_ms: float) -> tuple[Row, ...]:
    """The candidates of a network that spends its budget."""
    return spending(model.table_ms, budget_ms - model.offset_ms)


def measuring_seconds(effort: MeasuringEffort, latency_ms: float) -> float:
    """How long an idle agent takes for a file that runs so long, until its answer is here."""
    protocol, run_seconds = EFFORTS[effort], latency_ms / 1e3
    warming = max(protocol.warmup_seconds, protocol.warmup_runs * run_seconds)
    counting = max(protocol.min_seconds, protocol.min_runs * run_seconds) / _QUIET_SHARE
    return min(protocol.max_seconds, warming + counting) + _TRANSPORT_SECONDS


def _subject_seconds(session: Session, target_id: str) -> float:
    """What one subject of a kit takes on a target: by its latest tasks, else by the protocol."""
    times = finishing_times(session, target_id)  # newest first; a batch ends at one moment
    waited = sum(time > times[-1] for time in times) if times else 0
    if not waited:
        return measuring_seconds("table", 0.0)
    seconds = (times[0] - times[-1]).total_seconds() / waited
    least, most = _SUBJECT_SECONDS
    return min(most, max(least, seconds))


def _factors(
    session: Session,
    space: SearchSpace,
    data: DatasetFacts,
    machine: MachineProfile,
    earlier: Sequence[Search],
) -> dict[str, float]:
    """For each phase, the median of what earlier searches took over what the model says."""
    ratios: dict[str, list[float]] = {}
    for search in earlier:
        spec = SearchCreate.model_validate(search.spec)
        modelled = _modelled(session, spec, space, data, machine).seconds_by_phase
        for phase, taken in search.seconds_by_phase.items():
            if modelled.get(phase, 0.0) > 0.0:
                ratios.setdefault(phase, []).append(taken / modelled[phase])
    least, most = FACTORS
    return {phase: min(most, max(least, median(found))) for phase, found in ratios.items()}


def _read(effort: Effort, machine: _Known) -> EffortRead:
    return EffortRead(
        seconds=effort.seconds,
        seconds_by_phase=dict(effort.seconds_by_phase),
        gpu_hours=effort.gpu_hours,
        core_hours=effort.core_hours,
        memory_bytes=effort.memory_bytes,
        machine=machine.row.id,
        machine_name=f"{machine.row.host}: {machine.profile.name}",
        device=effort.device,
        threads=effort.threads,
        basis="history" if effort.n_earlier else "model",
        earlier_searches=effort.n_earlier,
    )
