"""The worker: claim jobs, launch their attempts, keep the leases, settle how they ended.

Read `Worker.run` first. Any number of workers share one store; the rows decide who does
what, and a worker that dies loses nothing but its leases. Each attempt has a thread that
watches it (`service.workers.running`); the store is this loop's alone.
"""

import os
import time
from contextlib import suppress

from service.db.base import new_id
from service.db.database import STORE_ERRORS, Database
from service.errors import LeaseLostError
from service.jobs import repository as jobs
from service.jobs.launchers.base import Launcher
from service.jobs.launchers.subprocess import environment_of
from service.jobs.needs import Allotment, Needs
from service.machines.identity import host_name
from service.machines.introduction import introduce
from service.settings import Settings
from service.telemetry import logger
from service.workers import repository as workers
from service.workers.resources import Resources, find_resources
from service.workers.running import RunningAttempt
from service.workers.settling import Housekeeping, settle

_log = logger(__name__)
_POLL_SECONDS = 0.05
_LOOK_SECONDS = 1.0
_STORE_RETRY_SECONDS = 1.0
_LEAVE_SECONDS = 5.0


class Worker:
    """Runs attempts side by side until told to stop or to drain.

    Args:
        resources: what it gives to its attempts; None: all that is found.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        launcher: Launcher,
        resources: Resources | None = None,
    ) -> None:
        self._settings = settings
        self._database = database
        self._launcher = launcher
        self._resources = resources or find_resources()
        self._id = new_id("wrk")
        self._housekeeping = Housekeeping(settings, database)
        self._attempts: list[RunningAttempt] = []  # until they are settled
        self._n_stops = self._n_stops_obeyed = 0
        self._is_introduced = self._is_draining = False
        self._gives_up_at = float("inf")
        self._next_try = self._next_beat = self._next_look = self._next_claim = 0.0

    def stop(self) -> None:
        """Hand back what runs and return from `run`; called again, kill what runs.

        It only counts, and so is safe to call from a signal handler.
        """
        self._n_stops += 1

    def run(self) -> None:
        """Work until `stop`, or until drained."""
        _log.info("worker started", worker=self._id, slots=self._resources.slots)
        while not self._has_left():
            self._obey()
            if time.monotonic() >= self._next_try:
                try:
                    self._serve()
                except STORE_ERRORS:
                    _log.exception("the store does not answer; trying again")
                    pause_seconds = min(_STORE_RETRY_SECONDS, self._lease_seconds / 10.0)
                    self._next_try = time.monotonic() + pause_seconds
            time.sleep(_POLL_SECONDS)
        self._launcher.close()
        self._say_goodbye()
        _log.info("worker stopped", worker=self._id)

    def _serve(self) -> None:
        """Everything that needs the store; what runs comes before what waits."""
        self._settle_ended()
        self._keep_leases()
        self._beat()
        if not self._is_leaving:
            self._introduce()
        self._look()
        self._housekeeping.tend()
        if not self._is_leaving:
            self._claim()

    # -- coming and going --------------------------------------------------------------

    @property
    def _is_leaving(self) -> bool:
        return self._n_stops > 0 or self._is_draining

    def _has_left(self) -> bool:
        """Whether nothing runs any more, and all of it is settled or will not be by us."""
        if not self._is_leaving or any(attempt.ending is None for attempt in self._attempts):
            return False
        return not self._attempts or time.monotonic() >= self._gives_up_at

    def _obey(self) -> None:
        """Pass the signals on that came since the last time."""
        if self._n_stops == self._n_stops_obeyed:
            return
        self._n_stops_obeyed = self._n_stops
        grace_seconds = self._settings.stop_grace_seconds if self._n_stops == 1 else 0.0
        # if the store is gone then, the leases tell the others
        self._gives_up_at = time.monotonic() + grace_seconds + _LEAVE_SECONDS
        for attempt in self._attempts:
            attempt.hand_back(grace_seconds)

    def _beat(self) -> None:
        """Say that this worker lives; make it known first, or when it was forgotten."""
        now = time.monotonic()
        if now < self._next_beat:
            return
        with self._database.transaction() as session:
            if not workers.beat(session, self._id):
                workers.add_worker(
                    session,
                    self._id,
                    name=f"{host_name()}-{os.getpid()}",
                    host=host_name(),
                    slots=self._resources.slots,
                    resources=self._resources.to_document(),
                    labels=self._resources.labels,
                )
        self._next_beat = now + self._lease_seconds / 3.0

    def _introduce(self) -> None:
        """Have the machine calibrated as an attempt here would find it, once."""
        if self._is_introduced:
            return
        given = self._resources.allot(Needs(uses_gpu=True), []) or Allotment()
        changes: dict[str, object] = {"attempt_device": "cuda" if given.gpus else "cpu"}
        if given.threads:
            changes["attempt_threads"] = given.threads
        introduce(
            self._settings.model_copy(update=changes),
            self._database,
            self._is_called_off,
            gpu_model=self._resources.gpus[0].model if given.gpus else "",
            environment=environment_of(given),
        )
        self._is_introduced = True

    def _is_called_off(self) -> bool:
        """Whether the calibration is to end; asked meanwhile, so that the worker stays online."""
        with suppress(*STORE_ERRORS):
            self._beat()
        return self._n_stops > 0

    def _say_goodbye(self) -> None:
        try:
            with self._database.transaction() as session:
                workers.leave(session, self._id)
        except STORE_ERRORS:  # it will be found gone
            _log.exception("the store does not answer; leaving without a word")

    # -- attempts ----------------------------------------------------------------------

    @property
    def _lease_seconds(self) -> float:
        return self._settings.job_lease_seconds

    def _claim(self) -> None:
        """Take jobs until nothing is free, or nothing waits that could be served."""
        now = time.monotonic()
        while now >= self._next_claim and len(self._attempts) < self._resources.slots:
            with self._database.transaction() as session:
                claim = jobs.claim(session, self._id, self._lease_seconds, self._allot)
            if claim is None:
                self._next_claim = now + self._settings.worker_poll_seconds
                return
            _log.info("attempt started", job=claim.job_id, kind=claim.kind, number=claim.attempt)
            lease = now + self._lease_seconds
            self._attempts.append(
                RunningAttempt(claim, self._launcher, lease, self._lease_seconds / 3.0)
            )

    def _allot(self, needs: Needs) -> Allotment | None:
        return self._resources.allot(needs, [attempt.claim.given for attempt in self._attempts])

    def _keep_leases(self) -> None:
        """Renew the leases that are due, by the monotonic clock."""
        for attempt in self._attempts:
            now = time.monotonic()
            if attempt.ending is not None or now < attempt.renew_at:
                continue
            try:
                with self._database.transaction() as session:
                    renewed = jobs.renew(session, attempt.claim, self._lease_seconds)
            except LeaseLostError:  # just finished, or another worker has it
                attempt.expect_end(_LEAVE_SECONDS)
                attempt.renew_at = float("inf")
                continue
            if renewed:
                attempt.renewed(now + self._lease_seconds)
            else:
                attempt.renew_at = now + _LOOK_SECONDS

    def _look(self) -> None:
        """See which attempts were asked to stop, and whether this worker is to drain."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        grace_seconds = self._settings.stop_grace_seconds
        with self._database.reading() as session:
            asked = jobs.asked_to_stop(session, self._id)
            row = workers.find_worker(session, self._id)
        for attempt in self._attempts:
            if attempt.claim.job_id in asked:  # it has seen so itself
                attempt.expect_end(grace_seconds)
            if row is not None and row.hand_back:
                attempt.hand_back(grace_seconds)
        self._is_draining = row is not None and row.draining

    def _settle_ended(self) -> None:
        """Write down how attempts ended that did not do so themselves; try until it is written."""
        for attempt in [attempt for attempt in self._attempts if attempt.ending is not None]:
            assert attempt.ending is not None
            claim, ending = attempt.claim, attempt.ending
            try:
                with self._database.transaction() as session:
                    job = jobs.held(session, claim.job_id, claim.fence)
                    settle(session, job, ending.outcome, ending.text)
            except LeaseLostError:
                pass  # settled by itself, as every attempt that ends well is
            except STORE_ERRORS:
                raise
            except Exception:  # a row that is broken must not stop the work on all others
                _log.exception("a job could not be settled", job=claim.job_id)
            self._attempts.remove(attempt)
