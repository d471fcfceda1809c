"""What a running attempt holds: its claim, the stores, and whether it should stop."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from sqlalchemy.orm import Session
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from service.artifacts import ArtifactStore
from service.db.database import STORE_ERRORS, Database
from service.jobs.models import Job
from service.jobs.repository import held
from service.settings import Settings

_CANCEL_CHECK_SECONDS = 1.0


class AttemptContext:
    """One attempt's view of the service; every write proves that it still holds its job."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        job_id: str,
        fence: int,
    ) -> None:
        self.settings = settings
        self.database = database
        self.artifacts = ArtifactStore(settings.resolved_artifacts_url)
        self._job_id = job_id
        self._fence = fence
        self._handed_back = threading.Event()
        self._next_cancel_check = 0.0

    @contextmanager
    def transaction(self) -> Iterator[tuple[Session, Job]]:
        """A transaction that begins by locking the job and checking the fence.

        It waits for a store that restarts, for as long as a lease lasts.

        Raises:
            LeaseLostError: another attempt may be running.
        """
        for attempt in Retrying(
            retry=retry_if_exception_type(STORE_ERRORS),
            stop=stop_after_delay(self.settings.job_lease_seconds),
            wait=wait_random_exponential(0.1, 2.0),
            reraise=True,
        ):
            with attempt, ExitStack() as opening:
                session = opening.enter_context(self.database.transaction())
                job = held(session, self._job_id, self._fence)
                opened = opening.pop_all()
        with opened:
            yield session, job

    def listen(self) -> None:
        """Hand the job back on SIGTERM, or when the worker that started us is gone."""
        signal.signal(signal.SIGTERM, lambda *_: self._handed_back.set())

        def wait_for_worker() -> None:
            os.read(0, 1)  # returns when the worker closes its end, or dies
            self._handed_back.set()

        threading.Thread(target=wait_for_worker, daemon=True).start()

    @property
    def handed_back(self) -> bool:
        """Whether the worker wants the job back (drain, shutdown, death)."""
        return self._handed_back.is_set()

    def stop_check(self, is_cancelled: Callable[[Session], bool]) -> Callable[[], bool]:
        """A `should_stop` that also asks the store, at most once a second."""

        def should_stop() -> bool:
            if self.handed_back:
                return True
            now = time.monotonic()
            if now < self._next_cancel_check:
                return False
            self._next_cancel_check = now + _CANCEL_CHECK_SECONDS
            with suppress(*STORE_ERRORS), self.database.reading() as session:
                return is_cancelled(session)
            return False  # the store restarts; the worker sees to it that somebody asks again

        return should_stop
