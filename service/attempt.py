"""One attempt at one job, in a process of its own: ``python -m service.attempt JOB FENCE``.

The exit status tells the worker how it ended: 0 finished, 75 handed back before the end,
76 the lease was lost; anything else is a crash.
"""

import sys
from collections.abc import Callable

from search_core.errors import SearchInterrupted
from service.db.database import Database
from service.errors import LeaseLostError
from service.jobs.context import AttemptContext
from service.jobs.launchers.base import EXIT_HANDED_BACK, EXIT_LEASE_LOST
from service.latency_models.tasks import fit_kit
from service.measurements.intake import FIT_JOB
from service.predictions.files import PRICES_JOB
from service.predictions.tasks import fit_kernel_prices
from service.searches.lifecycle import SEARCH_JOB
from service.settings import Settings
from service.telemetry import configure_logging


def _run_search(context: AttemptContext, subject_id: str) -> None:
    from service.searches.tasks import run_search_job  # loads torch

    run_search_job(context, subject_id)


KINDS: dict[str, Callable[[AttemptContext, str], None]] = {
    SEARCH_JOB: _run_search,
    FIT_JOB: fit_kit,
    PRICES_JOB: fit_kernel_prices,
}


def main(job_id: str, fence: int) -> int:
    """Run the attempt and return the exit status."""
    settings = Settings()
    configure_logging(settings.log_level)
    context = AttemptContext(settings, Database(settings.resolved_database_url), job_id, fence)
    context.listen()
    try:
        with context.transaction() as (_, job):
            kind, subject_id = job.kind, job.subject_id
        KINDS[kind](context, subject_id)
    except SearchInterrupted:
        return EXIT_HANDED_BACK
    except LeaseLostError:
        return EXIT_LEASE_LOST
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
