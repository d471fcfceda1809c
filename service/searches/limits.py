"""When an attempt has used up what its search was allowed, or has nothing left to find."""

import time
from collections.abc import Callable

from search_core.events import Notice
from service.db.base import utc_now
from service.jobs import repository as jobs
from service.jobs.context import AttemptContext
from service.searches.models import Search
from service.searches.schemas import STOPPING, Limits

_COLLAPSED = "collapsed_to_"
"""Begins the codes of notices that say so."""


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
        self._stop_on_collapse = limits.stop_on_collapse
        self._collapse: str | None = None

    def heed(self, notice: Notice) -> None:
        """Let a collapse end the search, if it was to."""
        if self._stop_on_collapse and notice.code.startswith(_COLLAPSED):
            self._collapse = notice.text

    @property
    def reason(self) -> tuple[str, str] | None:
        """Code and text of what ends the search, once something does."""
        if self._collapse is not None:
            return "search_collapsed", self._collapse
        if time.monotonic() >= self._end:
            return "time_limit", f"{self._text}. `extend` goes on from where it stood."
        return None

    def stop_check(self, context: AttemptContext, search_id: str) -> Callable[[], bool]:
        """A `should_stop` that asks whether the search is to stop, or its time is over."""
        asked = context.stop_check(
            lambda session: session.get_one(Search, search_id).status in STOPPING
        )
        return lambda: self.reason is not None or asked()
