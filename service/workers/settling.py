"""How what ended without a word is written down: each job in a transaction of its own.

Any worker settles for every other; it takes one job at a time, so that one that cannot be
settled keeps no other waiting.
"""

import time
from collections.abc import Callable, Sequence

from sqlalchemy.orm import Session

from service.datasets.lifecycle import CHECK_JOB, check_lost
from service.db.database import STORE_ERRORS, Database, store_time
from service.jobs import repository as jobs
from service.jobs.models import Job
from service.jobs.repository import Outcome
from service.measurements.repository import pull_back_leases
from service.searches.lifecycle import SEARCH_JOB, attempt_lost, end
from service.searches.repository import get_search
from service.settings import Settings
from service.telemetry import logger
from service.workers.repository import note_gone

_log = logger(__name__)
_RETRY_SECONDS = 1.0
_STEP_SECONDS = 2.0
_TEND_SECONDS = 1.0
_TEND_RARELY_SECONDS = 30.0


def settle(session: Session, job: Job, outcome: Outcome, text: str | None = None) -> None:
    """Queue the job again, or give it up, and tell the search."""
    has_attempts_left = jobs.retry_or_fail(
        session, job, outcome, delay_seconds=_RETRY_SECONDS, text=text
    )
    if job.kind == SEARCH_JOB:
        attempt_lost(
            session, job.subject_id, outcome, has_attempts_left=has_attempts_left, text=text
        )
    elif job.kind == CHECK_JOB and not has_attempts_left:
        check_lost(session, job.subject_id, outcome)


def reap(database: Database) -> int:
    """Settle every job whose lease ran out because its worker died; returns how many."""
    with database.reading() as session:
        found = jobs.expired(session)
    return _one_by_one(database, found, _reap_one)


def _reap_one(session: Session, job_id: str) -> bool:
    job = jobs.take_expired(session, job_id)
    if job is None:
        return False
    _log.warning("lease expired", job=job.id, worker=job.worker)
    settle(session, job, "worker_lost")
    return True


def end_overdue(database: Database) -> int:
    """End every job that nothing began before its queue deadline; returns how many."""
    with database.reading() as session:
        found = jobs.overdue(session)
    return _one_by_one(database, found, _end_overdue_one)


def _end_overdue_one(session: Session, job_id: str) -> bool:
    text = (
        "No worker had a place for it before its queue time was over; allow more time, or "
        "start another worker."
    )
    job = jobs.end_overdue(session, job_id, text)
    if job is None:
        return False
    if job.kind == SEARCH_JOB:
        search = get_search(session, job.subject_id, lock=True)
        end(session, search, "failed", code="queue_time_limit", text=text)
    return True


def _one_by_one(
    database: Database, job_ids: Sequence[str], settle_one: Callable[[Session, str], bool]
) -> int:
    settled = 0
    for job_id in job_ids:
        try:
            with database.transaction() as session:
                settled += settle_one(session, job_id)
        except STORE_ERRORS:
            raise
        except Exception:  # a row that is broken must not stop the work on all others
            _log.exception("a job could not be settled", job=job_id)
    return settled


class Housekeeping:
    """Settles what dead workers have left, again and again; every worker and every API does.

    Leases are times of day, so that every process can read them; when the clock is set
    forward, all of them seem to have run out. Who sees it step leaves the leases alone for as
    long as one lasts, in which each living worker renews its own.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._next = self._next_rare = self._trusted_from = 0.0
        self._clock_was_set = True  # for all we know, while nobody looked
        self._clock_zero: float | None = None
        """The time of day at which the monotonic clock stood at zero."""

    def tend(self) -> None:
        """Do what is due; most calls do nothing.

        Raises:
            OperationalError: the store does not answer.
        """
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _TEND_SECONDS
        with self._database.reading() as session:  # most often there is nothing to do
            is_any_lost = self._is_clock_steady(session) and bool(jobs.expired(session))
            is_any_late = bool(jobs.overdue(session))
        if is_any_lost:
            reap(self._database)
        if self._clock_was_set:
            self._clock_was_set = False
            self._pull_back()
        if is_any_late:
            end_overdue(self._database)
        if now >= self._next_rare:
            self._next_rare = now + _TEND_RARELY_SECONDS
            with self._database.transaction() as session:
                note_gone(session, self._settings.worker_offline_seconds)

    def _pull_back(self) -> None:
        """Undo what a clock that was ahead, and has been set back, has written of the future."""
        with self._database.transaction() as session:
            n = jobs.pull_back(session, self._settings.job_lease_seconds)
            n += pull_back_leases(session, self._settings.task_lease_seconds)
        if n:
            _log.warning("leases of the future were shortened", n=n)

    def _is_clock_steady(self, session: Session) -> bool:
        time_of_day = store_time(session).timestamp()
        monotonic = time.monotonic()
        before, self._clock_zero = self._clock_zero, time_of_day - monotonic
        if before is not None and abs(self._clock_zero - before) > _STEP_SECONDS:
            _log.warning("the clock was set", by_seconds=round(self._clock_zero - before, 1))
            self._trusted_from = monotonic + self._settings.job_lease_seconds
            self._clock_was_set = True
        return monotonic >= self._trusted_from
