"""A calibration in a process of its own: ``python -m service.machines.calibrate``.

It times this machine as an attempt would use it, keeps the profile and leaves with 0. When the
worker that started it is gone, so is it.
"""

import os
import sys
import threading

from service.db.database import Database
from service.machines.identity import host_name, machine_key, processor
from service.machines.repository import keep_profile
from service.settings import Settings
from service.telemetry import configure_logging, logger

_log = logger(__name__)


def main() -> int:
    """Calibrate, keep the profile, and return the exit status."""
    threading.Thread(target=_leave_with_worker, daemon=True).start()
    settings = Settings()
    configure_logging(settings.log_level)

    import torch

    from search_core.calibration import calibrate
    from search_core.memory import keep_freed_memory

    keep_freed_memory()  # as attempts do
    torch.set_num_threads(settings.attempt_threads or torch.get_num_threads())
    device = settings.attempt_device
    gpu_model = torch.cuda.get_device_name() if device == "cuda" else ""
    profile = calibrate(
        device=device,
        name=gpu_model or processor(),
        seconds=settings.calibration_seconds,
        modules=("service.searches.tasks",),
    )
    database = Database(settings.resolved_database_url)
    with database.transaction() as session:
        machine = keep_profile(session, machine_key(settings, gpu_model), host_name(), profile)
    _log.info("machine calibrated", machine=machine.id, error=round(profile.error, 3))
    return 0


def _leave_with_worker() -> None:
    os.read(0, 1)  # returns when the worker closes its end, or dies
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
