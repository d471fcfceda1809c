"""One attempt at one job, in a process of its own: ``python -m service.attempt JOB FENCE``.

The exit status tells the worker how it ended: 0 finished, 75 handed back before the end,
76 the lease was lost, 77 out of memory; anything else is a crash.
"""

import resource
import sys
from collections.abc import Callable

from search_core.errors import SearchInterrupted
from service.datasets.lifecycle import CHECK_JOB
from service.datasets.tasks import check_dataset
from service.db.database import Database
from service.errors import LeaseLostError
from service.jobs.context import AttemptContext
from service.jobs.launchers.base import (
    EXIT_HANDED_BACK,
    EXIT_LEASE_LOST,
    EXIT_OUT_OF_MEMORY,
)
from service.latency_models.tasks import fit_kit
from service.measurements.intake import FIT_JOB
from service.predictions.files import PRICES_JOB
from service.predictions.tasks import fit_kernel_prices
from service.searches.lifecycle import SEARCH_JOB
from service.settings import Settings
from service.telemetry import configure_logging, logger

_log = logger(__name__)


def _run_search(context: AttemptContext, subject_id: str) -> None:
    from service.searches.tasks import run_search_job  # loads torch

    run_search_job(context, subject_id)


KINDS: dict[str, Callable[[AttemptContext, str], None]] = {
    SEARCH_JOB: _run_search,
    FIT_JOB: fit_kit,
    PRICES_JOB: fit_kernel_prices,
    CHECK_JOB: check_dataset,
}


def main(job_id: str, fence: int) -> int:
    """Run the attempt and return the exit status."""
    settings = Settings()
    configure_logging(settings.log_level)
    _limit_memory(settings)
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
    except (MemoryError, RuntimeError) as error:  # PyTorch says it with a RuntimeError
        if not _is_out_of_memory(error):
            raise
        _log.exception("out of memory", job=job_id)
        return EXIT_OUT_OF_MEMORY
    return 0


def _limit_memory(settings: Settings) -> None:
    """A wall far behind the worker's watch, for what grows too fast to be seen in time.

    A GPU's driver reserves addresses for all the memory there is; only the watch holds there.
    """
    if settings.attempt_memory_bytes and settings.attempt_device == "cpu":
        wall_bytes = 2 * settings.attempt_memory_bytes
        _, hard_bytes = resource.getrlimit(resource.RLIMIT_DATA)
        if hard_bytes == resource.RLIM_INFINITY or wall_bytes < hard_bytes:
            resource.setrlimit(resource.RLIMIT_DATA, (wall_bytes, hard_bytes))


def _is_out_of_memory(error: Exception) -> bool:
    told = str(error).lower()
    return isinstance(error, MemoryError) or any(
        words in told for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
