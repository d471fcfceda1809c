"""When an attempt has used up what its search was allowed."""

import time
from collections.abc import Callable

from service.db.base import utc_now
from service.jobs import repository as jobs
from service.jobs.context import AttemptContext
from service.searches.models import Search
from service.searches.schemas import STOPPING, Limits


class RunLimit:
    """How long an attempt may still run; attempts before it have used some, waiting has not."""

    def __init__(self, context: AttemptContext, limits: Limits) -> None:
        with context.transaction() as (session, job):
            attempts = jobs.attempts(session, job.id)
        now = utc_now()
        seconds = [((one.ended_at or now) - one.started_at).total_seconds() for one in attempts]
        gpus = [len(one.resources.get("gpus") or ()) for one in attempts]
        left = []
        if limits.wall_minutes is not None:
            text = f"It ran for the {limits.wall_minutes:g} minutes it was allowed"
            left.append((limits.wall_minutes * 60.0 - sum(seconds), text))
        if limits.gpu_hours is not None and attempts and gpus[-1]:
            used = sum(s * n for s, n in zip(seconds, gpus, strict=True))
            text = f"It used the {limits.gpu_hours:g} GPU-hours it was allowed"
            left.append(((limits.gpu_hours * 3600.0 - used) / gpus[-1], text))
        least_seconds, self._text = min(left, default=(float("inf"), ""))
        self._end = time.monotonic() + least_seconds

    @property
    def text(self) -> str | None:
        """What was used up, once it is."""
        return self._text if time.monotonic() >= self._end else None

    def stop_check(self, context: AttemptContext, search_id: str) -> Callable[[], bool]:
        """A `should_stop` that asks whether the search is to stop, or its time is over."""
        asked = context.stop_check(
            lambda session: session.get_one(Search, search_id).status in STOPPING
        )
        return lambda: self.text is not None or asked()
