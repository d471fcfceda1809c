"""An attempt in its worker's care.

Each has a thread that polls it, watches its memory and kills it when its time is over. The
thread never touches the store, so a store that does not answer delays none of this.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from service.jobs.launchers.base import EXIT_HANDED_BACK, EXIT_OUT_OF_MEMORY, Handle, Launcher
from service.jobs.repository import Claim, Outcome
from service.telemetry import logger

_log = logger(__name__)
_POLL_SECONDS = 0.05
_MEMORY_SECONDS = 0.5
_NEVER = float("inf")
_OUTCOMES: Mapping[int, Outcome] = {
    EXIT_HANDED_BACK: "handed_back",
    EXIT_OUT_OF_MEMORY: "out_of_memory",
}


@dataclass(frozen=True)
class Ending:
    """How an attempt ended, unless it has settled its job itself."""

    outcome: Outcome
    text: str


class RunningAttempt:
    """A claim and the attempt that was launched for it.

    Args:
        lease_until: on the monotonic clock; the attempt is handed back and then killed when
            nobody renews its lease, before another worker may take the job over.
        leave_seconds: how long before that it is handed back.
    """

    def __init__(
        self, claim: Claim, launcher: Launcher, lease_until: float, leave_seconds: float
    ) -> None:
        self.claim = claim
        self.ending: Ending | None = None
        """None while it runs."""
        self.renew_at = lease_until - 2.0 * leave_seconds
        """When its lease is to be renewed, on the monotonic clock."""
        self._lease_until = lease_until
        self._leave_seconds = leave_seconds
        self._hand_back = threading.Event()
        self._kill_at = _NEVER
        try:
            handle = launcher.launch(claim)
        except OSError as error:  # no process or no memory is left for it
            self.ending = Ending("crashed", f"It could not be launched: {error}.")
        else:
            threading.Thread(target=self._run, args=(handle,), name=claim.job_id).start()

    def renewed(self, lease_until: float) -> None:
        """Its lease now lasts until then."""
        self._lease_until = lease_until
        self.renew_at = lease_until - 2.0 * self._leave_seconds

    def hand_back(self, grace_seconds: float) -> None:
        """Ask it to checkpoint and leave, and kill it when it has not done so in time."""
        self._hand_back.set()
        self.expect_end(grace_seconds)

    def expect_end(self, grace_seconds: float) -> None:
        """It has been told to end by other means; kill it when it has not done so in time."""
        self._kill_at = min(self._kill_at, time.monotonic() + grace_seconds)

    def _run(self, handle: Handle) -> None:
        try:
            self.ending = self._watch(handle)
        except Exception as error:  # it must not run on with nobody watching it
            _log.exception("an attempt could not be watched", job=self.claim.job_id)
            handle.kill()
            self.ending = Ending("crashed", f"It could not be watched: {error}.")
        _log.info("attempt ended", job=self.claim.job_id, how=self.ending.text)

    def _watch(self, handle: Handle) -> Ending:
        """Wait for its end, or bring it about."""
        limit_bytes, next_look = self.claim.given.memory_bytes, time.monotonic()
        while (status := handle.poll()) is None:
            now = time.monotonic()
            leave_at = self._lease_until - self._leave_seconds
            if self._hand_back.is_set() or now >= leave_at:
                handle.hand_back()
            if now >= min(self._kill_at, self._lease_until):
                handle.kill()
                return Ending("killed", "It did not stop in time and was killed.")
            if limit_bytes and now >= next_look:
                next_look = now + _MEMORY_SECONDS
                if (used_bytes := handle.memory_bytes()) > limit_bytes:
                    handle.kill()
                    return Ending("out_of_memory", _over(used_bytes, limit_bytes))
            time.sleep(_POLL_SECONDS)
        outcome = _OUTCOMES.get(status, "crashed")
        if outcome == "out_of_memory":
            where = "on its GPU or in main memory" if self.claim.given.gpus else "in main memory"
            limit = f"; its limit of main memory is {_mib(limit_bytes)}" if limit_bytes else ""
            return Ending(outcome, f"It was refused memory {where}{limit}.")
        return Ending(outcome, f"Exit status {status}.")


def _over(used_bytes: int, limit_bytes: int) -> str:
    return (
        f"It used {_mib(used_bytes)} of memory; its limit is {_mib(limit_bytes)}. Ask for more "
        "memory, or start a worker with more memory or fewer slots."
    )


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.0f} MiB"
