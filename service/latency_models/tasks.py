"""The fit of a latency model, as a worker's attempt runs it."""

from dataclasses import asdict

from predictor.errors import PredictorError
from predictor.fit import fit_latency_model
from predictor.kits import canary_items
from search_core.space.presets import get_space
from service.agents.repository import agents_of
from service.db.database import take_turns
from service.jobs import repository as jobs
from service.jobs.context import AttemptContext
from service.latency_models.promotion import judge
from service.latency_models.repository import activate, active_model, add_model
from service.measurements.readings import current, weigh
from service.measurements.repository import (
    failures_of_kit,
    get_kit,
    kit_items,
    kit_progress,
    measurements_of_subjects,
    supersede,
)
from service.predictions.files import ask_for_prices
from service.searches.lifecycle import end, enter_phase, model_key
from service.searches.repository import waiting_for


def fit_kit(context: AttemptContext, kit_id: str) -> None:
    """Fit the model of a measured kit and let the searches that waited for it run.

    It is stored as a new version, and becomes the active one unless that is better. When no
    model can be fitted, those searches fail with the reason.
    """
    with context.database.reading() as session:
        kit = get_kit(session, kit_id)
        tasks = {item.subject: item.task_id for item in kit_items(session, kit_id)}
        canaries = [item.subject for item in canary_items()]
        rows = measurements_of_subjects(session, kit.target_id, [*tasks, *canaries])
        failures = failures_of_kit(session, kit_id)
        is_whole = set(kit_progress(session, kit_id)) <= {"done", "failed"}
        heard_of = {
            agent.id: agent.last_seen_at
            for agent in agents_of(session, kit.target_id)
            if not agent.draining
        }
    if not is_whole:  # asked for again meanwhile: the last task of it queues another fit
        with context.transaction() as (session, job):
            jobs.finish(session, job, "succeeded")
        return
    space = get_space(kit.space)
    rows = current(rows, tasks)
    found = weigh(rows)
    unsupported = {s for s, f in failures.items() if f.get("code") == "unsupported"}
    unchecked = set(tasks) - set(found.measured_ms) - set(failures)
    able = [agent for agent in found.trusted if agent in heard_of]
    if unchecked and able:  # only agents that are not believed have measured these
        latest = max(able, key=heard_of.__getitem__)
        with context.transaction() as (session, job):
            supersede(session, kit_id, sorted(unchecked), only_agent_id=latest)
            jobs.finish(session, job, "succeeded")
        return
    measured_ms = found.measured_ms
    key = model_key(kit.target_id, kit.space_digest)
    try:
        model, report = fit_latency_model(space, measured_ms, unsupported)
    except PredictorError as error:
        with context.transaction() as (session, job):
            take_turns(session, key)
            for search in waiting_for(session, key):
                jobs.cancel_queued(session, search.id)
                end(session, search, "failed", code="no_latency_model", text=str(error))
            jobs.finish(session, job, "failed", str(error))
        return
    of_kit = [row for row in rows if row.subject in tasks]
    report["measurements"] = {
        "n": len(of_kit),
        "flagged": sum(row.flagged for row in of_kit),
        "mean_contended_share": sum(row.contended_share for row in of_kit) / len(of_kit),
        "grades": {g: sum(row.grade == g for row in of_kit) for g in ("A", "B", "C")},
    }
    report["agents"] = [asdict(verdict) for verdict in found.verdicts]
    report["unsupported"] = {s: failures[s] for s in sorted(unsupported)}
    with context.transaction() as (session, job):
        take_turns(session, key)  # a search created meanwhile waits for it, or has it
        active = active_model(session, kit.target_id, kit.space_digest)
        promotion = judge(space, model, active, measured_ms)
        report["promotion"] = asdict(promotion)
        row = add_model(session, kit.target_id, space.name, model, report)
        if promotion.promoted:
            activate(session, row)
        for search in waiting_for(session, key):
            enter_phase(session, search, "waiting_for_worker")
        jobs.release(session, key)
        ask_for_prices(session, kit.target_id, context.settings)
        jobs.finish(session, job, "succeeded")
