"""Attempts as child processes on this machine: the default, with nothing to install."""

import os
import signal
import subprocess
import sys

from service.jobs.repository import Claim
from service.settings import Settings


class SubprocessHandle:
    """A child in a process group of its own."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def poll(self) -> int | None:
        """See `Handle.poll`."""
        return self._process.poll()

    def hand_back(self) -> None:
        """See `Handle.hand_back`: closing its standard input is the sign it waits for."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()

    def kill(self) -> None:
        """See `Handle.kill`."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.hand_back()


class SubprocessLauncher:
    """See `Launcher`."""

    def __init__(self, settings: Settings) -> None:
        self._environment = {
            **os.environ,
            "TAILOR_HOME": str(settings.home.resolve()),
            "TAILOR_DATABASE_URL": settings.resolved_database_url,
            "TAILOR_ARTIFACTS_URL": settings.resolved_artifacts_url,
            # threads that spin while they wait made a step 10 times slower on a busy machine
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        self._handles: list[SubprocessHandle] = []

    def launch(self, claim: Claim) -> SubprocessHandle:
        """See `Launcher.launch`."""
        process = subprocess.Popen(
            [sys.executable, "-m", "service.attempt", claim.job_id, str(claim.fence)],
            stdin=subprocess.PIPE,  # closes when this worker dies, however it dies
            env=self._environment,
            start_new_session=True,
        )
        handle = SubprocessHandle(process)
        self._handles = [h for h in self._handles if h.poll() is None] + [handle]
        return handle

    def close(self) -> None:
        """See `Launcher.close`."""
        for handle in self._handles:
            handle.kill()
