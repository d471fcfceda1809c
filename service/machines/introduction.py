"""How a worker makes its machine known, so that searches can be priced before they start."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

from search_core.effort import MachineProfile
from search_core.errors import ProfileDocumentError
from service.db.base import utc_now
from service.db.database import Database
from service.machines.identity import machine_key
from service.machines.repository import find_machine
from service.settings import Settings
from service.telemetry import logger

_log = logger(__name__)
_POLL_SECONDS = 0.05
_COMMAND = (sys.executable, "-m", "service.machines.calibrate")
_PATIENCE_SECONDS = 180.0
"""After which a calibration hangs, besides ten times the seconds it was given."""


def introduce(
    settings: Settings,
    database: Database,
    should_stop: Callable[[], bool],
    *,
    gpu_model: str = "",
    environment: Mapping[str, str] | None = None,
) -> None:
    """Say that a worker starts on this machine; calibrate it first where it is new.

    A calibration that fails, hangs or is killed leaves the machine unknown, and that is all.

    Args:
        gpu_model: what attempts train on, where it is no CPU.
        environment: what every attempt of the worker is given, besides this process's own.

    Raises:
        OperationalError: the store does not answer.
    """
    if not settings.calibrate or _greeted(settings, database, gpu_model):
        return
    _log.info("calibrating this machine", seconds=settings.calibration_seconds)
    status = _calibrate(settings, should_stop, environment or {})
    if status != 0 and not should_stop():
        _log.warning(
            "no calibration: searches cannot be priced before they start", exit_status=status
        )


def _greeted(settings: Settings, database: Database, gpu_model: str) -> bool:
    """Whether the store has a profile of this machine that can be read; it is seen now."""
    with database.transaction() as session:
        machine = find_machine(session, machine_key(settings, gpu_model))
        if machine is None:
            return False
        try:
            MachineProfile.from_document(machine.document)
        except ProfileDocumentError:
            return False
        machine.seen_at = utc_now()
        return True


def _calibrate(
    settings: Settings, should_stop: Callable[[], bool], environment: Mapping[str, str]
) -> int:
    """Run the calibration; returns its exit status, negative when it had to be killed."""
    process = subprocess.Popen(
        _COMMAND,
        stdin=subprocess.PIPE,  # closes when this worker dies, however it dies
        env={**_environment(settings), **environment},
        start_new_session=True,
    )
    deadline = time.monotonic() + _PATIENCE_SECONDS + 10.0 * settings.calibration_seconds
    try:
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)
            if should_stop() or time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    finally:
        assert process.stdin is not None
        process.stdin.close()
    return int(process.returncode)


def _environment(settings: Settings) -> dict[str, str]:
    return {
        **os.environ,
        "TAILOR_DATABASE_URL": settings.resolved_database_url,
        "TAILOR_ATTEMPT_DEVICE": settings.attempt_device,
        "TAILOR_ATTEMPT_THREADS": str(settings.attempt_threads),
        "TAILOR_CALIBRATION_SECONDS": str(settings.calibration_seconds),
        "OMP_WAIT_POLICY": "PASSIVE",  # as attempts have it
    }
