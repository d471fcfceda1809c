"""The fit of a latency model, as a worker's attempt runs it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from predictor.acquisition import is_known_well
from predictor.block_table import measured_blocks
from predictor.consensus import Consensus
from predictor.errors import MissingMeasurementsError, PredictorError
from predictor.fit import fit_latency_model
from predictor.fit_transfer import fit_by_transfer
from predictor.kits import block_subject, canary_items, chains
from predictor.network import NetworkLatencyModel
from search_core.space.presets import get_space
from search_core.space.space import SearchSpace
from service.agents.repository import agents_of
from service.db.database import take_turns
from service.jobs import repository as jobs
from service.jobs.context import AttemptContext
from service.latency_models.promotion import judge
from service.latency_models.repository import (
    activate,
    active_model,
    add_model,
    models_elsewhere,
)
from service.measurements.models import Kit, Measurement
from service.measurements.priorities import block_priorities
from service.measurements.readings import current, weigh
from service.measurements.repository import (
    blocks_measured_elsewhere,
    failures_of_kit,
    get_kit,
    kit_items,
    measurements_of_subjects,
    open_roles,
    prioritise,
    spare_queued,
    supersede,
)
from service.predictions.files import ask_for_prices
from service.searches.lifecycle import give_up, model_key, release
from service.searches.repository import waiting_for
from service.searches.schemas import SearchCreate

_MOST_REFERENCES = 8
"""Other targets whose blocks teach a target; the fit's time grows with the cube of them."""


def fit_kit(context: AttemptContext, kit_id: str) -> None:
    """Fit the model of a measured kit and let the searches that waited for it run.

    It is stored as a new version, and becomes the active one unless that is better. A kit that
    stops early is fitted while blocks are open: when its networks are known well enough the
    open ones are spared, else those that tell most go first. When no model can be fitted to a
    whole kit, the searches that waited fail with the reason.
    """
    torch.set_num_threads(1)  # matrices of a hundred rows gain nothing from more
    measured = _read(context, kit_id)
    kit, space, found = measured.kit, get_space(measured.kit.space), measured.found
    if measured.open_roles and (kit.until_half_width is None or measured.open_roles != {"block"}):
        with context.transaction() as (session, job):  # its last task queues another fit
            jobs.finish(session, job, "succeeded")
        return
    able = [agent for agent in found.trusted if agent in measured.heard_of]
    if measured.unchecked and able:  # only agents that are not believed have measured these
        latest = max(able, key=measured.heard_of.__getitem__)
        with context.transaction() as (session, job):
            supersede(session, kit_id, measured.unchecked, only_agent_id=latest)
            jobs.finish(session, job, "succeeded")
        return
    key = model_key(kit.target_id, kit.space_digest)
    try:
        model, report = _fit(context, space, measured)
    except PredictorError as error:
        with context.transaction() as (session, job):
            if measured.open_roles:
                jobs.finish(session, job, "succeeded")
                return
            take_turns(session, key)
            give_up(session, key, str(error))
            jobs.finish(session, job, "failed", str(error))
        return
    if measured.open_roles and not _is_enough(context, measured, model):
        with context.transaction() as (session, job):
            prioritise(session, kit.target_id, block_priorities(space, report))
            jobs.finish(session, job, "succeeded")
        return
    report |= measured.report()
    with context.transaction() as (session, job):
        take_turns(session, key)  # a search created meanwhile waits for it, or has it
        if measured.open_roles:
            report["spared"] = spare_queued(session, kit_id)
        active = active_model(session, kit.target_id, kit.space_digest)
        promotion = judge(space, model, active, found.measured_ms)
        report["promotion"] = asdict(promotion)
        row = add_model(session, kit.target_id, space.name, model, report)
        if promotion.promoted:
            activate(session, row)
        session.flush()
        release(session, key)
        ask_for_prices(session, kit.target_id, context.settings)
        jobs.finish(session, job, "succeeded")


@dataclass(frozen=True)
class _Measured:
    """What is known of a kit.

    Attributes:
        tasks: the latest task of each subject.
        rows: measurements of them, and of canaries, since they were last asked for.
        found: what the agents say together.
        failures: why a subject has no measurement.
        open_roles: of the items that are not measured yet; empty when the kit is whole.
        heard_of: when each agent that is not draining was last heard of.
    """

    kit: Kit
    tasks: Mapping[str, str]
    rows: Sequence[Measurement]
    found: Consensus
    failures: Mapping[str, Mapping[str, Any]]
    open_roles: Collection[str]
    heard_of: Mapping[str, Any]

    @property
    def unsupported(self) -> set[str]:
        """Subjects that the target cannot run."""
        return {s for s, f in self.failures.items() if f.get("code") == "unsupported"}

    @property
    def unchecked(self) -> list[str]:
        """Subjects of a whole kit that no agent to be believed has measured."""
        told = set(self.found.measured_ms) | set(self.failures)
        return [] if self.open_roles else sorted(set(self.tasks) - told)

    def report(self) -> dict[str, Any]:
        """What a model's report says of its measurements."""
        of_kit = [row for row in self.rows if row.subject in self.tasks]
        return {
            "measurements": {
                "n": len(of_kit),
                "flagged": sum(row.flagged for row in of_kit),
                "mean_contended_share": sum(r.contended_share for r in of_kit) / len(of_kit),
                "grades": {g: sum(row.grade == g for row in of_kit) for g in ("A", "B", "C")},
            },
            "agents": [asdict(verdict) for verdict in self.found.verdicts],
            "unsupported": {s: self.failures[s] for s in sorted(self.unsupported)},
        }


def _read(context: AttemptContext, kit_id: str) -> _Measured:
    with context.database.reading() as session:
        kit = get_kit(session, kit_id)
        tasks = {item.subject: item.task_id for item in kit_items(session, kit_id)}
        canaries = [item.subject for item in canary_items()]
        rows = measurements_of_subjects(session, kit.target_id, [*tasks, *canaries])
        rows = current(rows, tasks)
        return _Measured(
            kit=kit,
            tasks=tasks,
            rows=rows,
            found=weigh(rows),
            failures=failures_of_kit(session, kit_id),
            open_roles=open_roles(session, kit_id),
            heard_of={
                agent.id: agent.last_seen_at
                for agent in agents_of(session, kit.target_id)
                if not agent.draining
            },
        )


def _fit(
    context: AttemptContext, space: SearchSpace, measured: _Measured
) -> tuple[NetworkLatencyModel, dict[str, Any]]:
    """From this target's measurements; where blocks are missing, from other targets' as well.

    A kit that stops early may have its networks alone, and is fitted to them by transfer.

    Raises:
        PredictorError: no model can be fitted.
    """
    measured_ms, unsupported = measured.found.measured_ms, measured.unsupported
    known, elsewhere, references = measured_blocks(measured_ms), {}, {}
    if any(block not in known for block in space.distinct_blocks):
        subjects = [block_subject(b, n) for b in space.distinct_blocks for n in chains(b)]
        kit = measured.kit
        with context.database.reading() as session:
            elsewhere = blocks_measured_elsewhere(
                session, kit.target_id, subjects, _MOST_REFERENCES
            )
            if kit.until_half_width is not None and not unsupported:
                references = models_elsewhere(session, kit.target_id, kit.space_digest)
    try:
        return fit_latency_model(space, measured_ms, unsupported, elsewhere=elsewhere)
    except MissingMeasurementsError:
        if not references:
            raise
        return fit_by_transfer(space, measured_ms, references)


def _is_enough(context: AttemptContext, measured: _Measured, model: NetworkLatencyModel) -> bool:
    """Whether the networks in question are known as well as the kit asks for.

    In question are those at the budgets of the searches that wait, else those in the middle.
    """
    kit = measured.kit
    assert kit.until_half_width is not None
    key = model_key(kit.target_id, kit.space_digest)
    with context.database.reading() as session:
        specs = [SearchCreate.model_validate(s.spec) for s in waiting_for(session, key)]
    asked_of = [budget for spec in specs for budget in spec.budgets]
    budgets = [one.latency_budget_ms for one in asked_of if one.target == kit.target_id]
    networks = [ms for s, ms in measured.found.measured_ms.items() if s.startswith("network:")]
    asked = budgets or [median(networks)]
    return all(is_known_well(model, ms, kit.until_half_width) for ms in asked)
