"""Attempts as child processes on this machine: the default, with nothing to install."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

import psutil

from service.jobs.needs import Allotment
from service.jobs.repository import Claim
from service.settings import Settings


class SubprocessHandle:
    """A child that leads a session of its own, and what descends from it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._turn = threading.RLock()  # who watches it and who kills it may be two threads
        self._family: Sequence[psutil.Process] = ()
        """Its descendants as last seen; they are found through it, and stay when it is gone."""

    def poll(self) -> int | None:
        """See `Handle.poll`."""
        with self._turn:
            if self._process.returncode is None and self._has_ended():
                self._end_family()
                self._process.wait()
            return self._process.returncode

    def hand_back(self) -> None:
        """See `Handle.hand_back`: closing its standard input is the sign it waits for."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()

    def memory_bytes(self) -> int:
        """See `Handle.memory_bytes`: pages that several of its processes share count once."""
        processes = self._look()
        if len(processes) == 1:
            return _bytes(processes[0], shared=False)
        return sum(_bytes(process, shared=True) for process in processes)

    def kill(self) -> None:
        """See `Handle.kill`."""
        with self._turn:
            if self.poll() is None:
                self._look()
                self._end_family()
                self._process.wait()
            self.hand_back()

    def _has_ended(self) -> bool:
        """Whether it has, without reaping it: its number is not given away before that."""
        seen = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return seen is not None

    def _look(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            attempt = psutil.Process(self._process.pid)
            self._family = attempt.children(recursive=True)
            return [attempt, *self._family]
        return []

    def _end_family(self) -> None:
        """Kill its session, and the descendants that left it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for process in self._family:
            with suppress(psutil.NoSuchProcess):
                process.kill()  # psutil makes sure that the number is still the same process


class SubprocessLauncher:
    """See `Launcher`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._handles: list[SubprocessHandle] = []

    def launch(self, claim: Claim) -> SubprocessHandle:
        """See `Launcher.launch`."""
        process = subprocess.Popen(
            [sys.executable, "-m", "service.attempt", claim.job_id, str(claim.fence)],
            stdin=subprocess.PIPE,  # closes when this worker dies, however it dies
            env={**os.environ, **self._environment(), **environment_of(claim.given)},
            start_new_session=True,
        )
        handle = SubprocessHandle(process)
        self._handles = [h for h in self._handles if h.poll() is None] + [handle]
        return handle

    def close(self) -> None:
        """See `Launcher.close`."""
        for handle in self._handles:
            handle.kill()

    def _environment(self) -> dict[str, str]:
        return {
            "TAILOR_HOME": str(self._settings.home.resolve()),
            "TAILOR_DATABASE_URL": self._settings.resolved_database_url,
            "TAILOR_ARTIFACTS_URL": self._settings.resolved_artifacts_url,
            # threads that spin while they wait made a step 10 times slower on a busy machine
            "OMP_WAIT_POLICY": "PASSIVE",
        }


def environment_of(given: Allotment) -> dict[str, str]:
    """How an attempt learns what it was given."""
    threads = (
        {"OMP_NUM_THREADS": str(given.threads), "TAILOR_ATTEMPT_THREADS": str(given.threads)}
        if given.threads
        else {}
    )
    return {
        "CUDA_VISIBLE_DEVICES": ",".join(given.gpus),
        "TAILOR_ATTEMPT_DEVICE": "cuda" if given.gpus else "cpu",
        "TAILOR_ATTEMPT_MEMORY_BYTES": str(given.memory_bytes),
        **threads,
    }


def _bytes(process: psutil.Process, *, shared: bool) -> int:
    """Resident memory of a process; what it shares with others is divided among them.

    To divide takes the system some milliseconds a gigabyte, and is only done where it counts.
    """
    try:
        return int(process.memory_full_info().pss if shared else process.memory_info().rss)
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
