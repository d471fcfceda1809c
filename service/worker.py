"""The worker: claim a job, launch its attempt, keep the lease, settle how it ended.

Read `Worker.run` first. Any number of workers share one store; the rows decide who does
what, and a worker that dies loses nothing but its leases.
"""

import os
import socket
import threading
import time

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from service.db.base import utc_now
from service.db.database import Database
from service.errors import LeaseLostError
from service.jobs import repository as jobs
from service.jobs.launchers.base import EXIT_HANDED_BACK, Handle, Launcher
from service.jobs.models import Job
from service.jobs.repository import Claim
from service.machines.introduction import introduce
from service.searches.lifecycle import SEARCH_JOB, attempt_lost
from service.settings import Settings
from service.telemetry import logger

_log = logger(__name__)
_RETRY_SECONDS = 1.0
_HAND_BACK_SECONDS = 20.0
_LEAVE_SECONDS = 5.0
_CHILD_POLL_SECONDS = 0.05
_OUTCOMES = {EXIT_HANDED_BACK: "handed_back"}


class Worker:
    """Runs one attempt at a time until told to stop."""

    def __init__(self, settings: Settings, database: Database, launcher: Launcher) -> None:
        self._settings = settings
        self._database = database
        self._launcher = launcher
        self._name = f"{socket.gethostname()}-{os.getpid()}"
        self._stop = threading.Event()

    def stop(self) -> None:
        """Hand back what runs and return from `run`; safe to call from a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Work until `stop`."""
        _log.info("worker started", worker=self._name)
        introduced = False
        while not self._stop.is_set():
            try:
                if not introduced:
                    introduce(self._settings, self._database, self._stop)
                    introduced = True
                    continue
                claim = self._claim()
                if claim is not None:
                    self._attempt(claim)
                    continue
            except OperationalError:  # the store restarts, or is out of reach
                _log.exception("the store does not answer; trying again")
            self._stop.wait(self._settings.worker_poll_seconds)
        self._launcher.close()
        _log.info("worker stopped", worker=self._name)

    def _claim(self) -> Claim | None:
        reap(self._database)
        with self._database.transaction() as session:
            return jobs.claim(session, self._name, self._settings.job_lease_seconds)

    def _attempt(self, claim: Claim) -> None:
        _log.info("attempt started", job=claim.job_id, kind=claim.kind, number=claim.attempt)
        handle = self._launcher.launch(claim)
        status = self._watch(claim, handle)
        _log.info("attempt ended", job=claim.job_id, exit_status=status)
        with self._database.transaction() as session:
            try:
                job = jobs.held(session, claim.job_id, claim.fence)
            except LeaseLostError:
                return  # settled by itself, as every attempt that ends well is
            _settle(session, job, _OUTCOMES.get(status, "crashed"))

    def _watch(self, claim: Claim, handle: Handle) -> int:
        """Keep the lease while the attempt runs; returns its exit status."""
        renew_every = self._settings.job_lease_seconds / 3
        next_renewal = time.monotonic() + renew_every
        kill_at = float("inf")
        while (status := handle.poll()) is None:
            now = time.monotonic()
            if now >= kill_at:
                handle.kill()
            elif self._stop.is_set() and kill_at == float("inf"):
                handle.hand_back()
                kill_at = now + _HAND_BACK_SECONDS
            if now >= next_renewal:
                next_renewal = now + renew_every
                try:
                    with self._database.transaction() as session:
                        jobs.renew(session, claim, self._settings.job_lease_seconds)
                except LeaseLostError:  # just finished, or another worker has it
                    kill_at = min(kill_at, now + _LEAVE_SECONDS)
                except OperationalError:  # the attempt goes on; its fence protects the rows
                    _log.exception("the store does not answer; the lease is not renewed")
            time.sleep(_CHILD_POLL_SECONDS)
        return status


def reap(database: Database) -> int:
    """Settle every job whose lease ran out because its worker died; returns how many."""
    with database.transaction() as session:
        lost = jobs.expired(session, utc_now())
        for job in lost:
            _log.warning("lease expired", job=job.id, worker=job.worker)
            _settle(session, job, "worker_lost")
        return len(lost)


def _settle(session: Session, job: Job, outcome: str) -> None:
    """Queue the job again, or give it up, and tell the search."""
    has_attempts_left = jobs.retry_or_fail(session, job, outcome, delay_seconds=_RETRY_SECONDS)
    if job.kind == SEARCH_JOB:
        attempt_lost(session, job.subject_id, outcome, has_attempts_left=has_attempts_left)
