"""The fit of a latency model, as a worker's attempt runs it."""

from predictor.errors import PredictorError
from predictor.fit import fit_latency_model
from search_core.space.presets import get_space
from service.db.database import take_turns
from service.jobs import repository as jobs
from service.jobs.context import AttemptContext
from service.latency_models.repository import activate
from service.measurements.repository import get_kit, kit_measurements
from service.searches.lifecycle import end, enter_phase, model_key
from service.searches.repository import waiting_for


def fit_kit(context: AttemptContext, kit_id: str) -> None:
    """Fit the model of a measured kit and let the searches that waited for it run.

    When no model can be fitted, those searches fail with the reason.
    """
    with context.database.reading() as session:
        kit = get_kit(session, kit_id)
        rows = kit_measurements(session, kit_id)
    space = get_space(kit.space)
    measured_ms = {row.subject: row.latency_ms for row in rows}
    key = model_key(kit.target_id, kit.space_digest)
    try:
        model, report = fit_latency_model(space, measured_ms)
    except PredictorError as error:
        with context.transaction() as (session, job):
            take_turns(session, key)
            for search in waiting_for(session, key):
                jobs.cancel_queued(session, search.id)
                end(session, search, "failed", code="no_latency_model", text=str(error))
            jobs.finish(session, job, "failed", str(error))
        return
    report["measurements"] = {
        "n": len(rows),
        "flagged": sum(row.flagged for row in rows),
        "mean_contended_share": sum(row.contended_share for row in rows) / len(rows),
    }
    with context.transaction() as (session, job):
        take_turns(session, key)  # a search created meanwhile waits for it, or has it
        activate(session, kit.target_id, space.name, model, report)
        for search in waiting_for(session, key):
            enter_phase(session, search, "waiting_for_worker")
        jobs.release(session, key)
        jobs.finish(session, job, "succeeded")
