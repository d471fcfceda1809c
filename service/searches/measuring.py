"""Asking a target's agents to measure a file, and waiting for the answer."""

import time
from collections.abc import Callable
from operator import attrgetter

from predictor.kits import anchor_item
from predictor.measurements import Effort
from search_core.errors import SearchInterrupted
from service.agents.repository import n_online
from service.db.base import utc_now
from service.jobs.context import AttemptContext
from service.measurements.models import Measurement
from service.measurements.repository import (
    add_task,
    find_files,
    get_task,
    measurement_of_task,
)
from service.searches.repository import append_event, get_search
from service.targets.repository import get_target

_POLL_SECONDS = 0.1
_TRIES = 3


class NotMeasurableError(Exception):
    """The target cannot tell how long a file takes; `code` is the search's reason to fail."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def too_noisy(what: str, measurement: Measurement) -> NotMeasurableError:
    """The device was not quiet enough for what was to be known."""
    return NotMeasurableError(
        "device_too_noisy",
        f"{what} failed a noise gate, the last because {measurement.note}; quiet the device "
        "and search again",
    )


class Stopwatch:
    """Has files measured by the agents of one search's target.

    Args:
        should_stop: asked while waiting.
    """

    def __init__(
        self,
        context: AttemptContext,
        search_id: str,
        target_id: str,
        should_stop: Callable[[], bool],
    ) -> None:
        self._context = context
        self._search_id = search_id
        self._target_id = target_id
        self._anchor_sha256 = _anchor_sha256(context, target_id)
        self._should_stop = should_stop

    def measure(self, model: bytes, subject: str, effort: Effort) -> Measurement:
        """The measurement of the file `model`.

        One that failed a noise gate proves nothing, and is asked for again. If none passes, the
        fastest of them has to do for the effort of a table; it is still flagged.

        Raises:
            NotMeasurableError: the file does not run there, or the device is never quiet.
            SearchInterrupted: `should_stop` said so.
        """
        flagged: list[Measurement] = []
        while len(flagged) < _TRIES:
            measurement = self._once(model, subject, effort)
            if not measurement.flagged:
                return measurement
            flagged.append(measurement)
        if effort == "table":
            return min(flagged, key=attrgetter("latency_ms"))
        raise too_noisy(f"{_TRIES} measurements of the final file", measurement)

    def _once(self, model: bytes, subject: str, effort: Effort) -> Measurement:
        sha256 = self._context.artifacts.put(model)
        with self._context.transaction() as (session, _):
            task_id = add_task(
                session,
                target_id=self._target_id,
                purpose="search",
                search_id=self._search_id,
                subject=subject,
                effort=effort,
                model_sha256=sha256,
                anchor_sha256=self._anchor_sha256,
            ).id
        said_that_nobody_is_there = False
        while True:
            if self._should_stop():
                raise SearchInterrupted("stopped while waiting for a measurement")
            with self._context.database.reading() as session:
                task = get_task(session, task_id)
                measurement = measurement_of_task(session, task_id)
                online = n_online(
                    session, self._target_id, self._context.settings.agent_offline_seconds
                )
            if measurement is not None:
                break
            if task.status == "failed":
                failure = task.failure or {"code": "unknown", "detail": ""}
                code = "device_too_noisy" if failure["code"] == "too_noisy" else failure["code"]
                raise NotMeasurableError(code, failure["detail"])
            if not online and not said_that_nobody_is_there:
                self._say_why_we_wait()
                said_that_nobody_is_there = True
            time.sleep(_POLL_SECONDS)
        with self._context.transaction() as (session, _):
            search = get_search(session, self._search_id, lock=True)
            search.status_reason = None
            append_event(
                session,
                self._search_id,
                "measurement",
                {"subject": subject, "effort": effort, "median_ms": measurement.latency_ms},
            )
        return measurement

    def _say_why_we_wait(self) -> None:
        with self._context.transaction() as (session, _):
            search = get_search(session, self._search_id, lock=True)
            search.status_reason = {
                "code": "no_agent_online",
                "text": "No agent of the target is online; start one with `tailor agent run`.",
                "since": utc_now().isoformat(),
            }


def _anchor_sha256(context: AttemptContext, target_id: str) -> str:
    """The anchor in the precision and batch of a target; the kit that was fitted brought it."""
    subject = anchor_item().subject
    with context.database.reading() as session:
        profile = get_target(session, target_id).profile
        files = find_files(session, [subject], profile["precision"], profile["batch"])
    if subject in files:
        return files[subject].sha256
    return context.artifacts.put(anchor_item().build(profile["batch"]))
