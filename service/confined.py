"""A process for what strangers sent: under limits, without secrets, gone when its parent is.

The parent calls `run_confined`; the process begins with `take_request` and ends with `answer`.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from service.telemetry import logger

_KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "LANG")
_POLL_SECONDS = 0.05
_ANSWER_BYTES = 64 * 2**20
_log = logger(__name__)


class ConfinedError(Exception):
    """The process ended without an answer; the message says of what."""


def run_confined(
    module: str,
    request: dict[str, Any],
    folder: Path,
    *,
    seconds: float,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """What ``python -m MODULE`` answers to a request; None when it was stopped before.

    Args:
        folder: the process's own; it works there and writes nowhere else.
        seconds: after which it is killed.
        should_stop: asked all the while.

    Raises:
        ConfinedError: it took longer, crossed another limit, or crashed.
    """
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment |= {"TMPDIR": str(folder), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    out_path, err_path = folder / ".answer.json", folder / ".complaints"
    with out_path.open("wb") as out, err_path.open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,  # its end tells the process that we are gone
            stdout=out,
            stderr=err,
            env=environment,
            start_new_session=True,
        )
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            ends_at = time.monotonic() + seconds
            while process.poll() is None:
                if should_stop():
                    return None
                if time.monotonic() > ends_at:
                    raise ConfinedError(f"it takes longer than {seconds:g} s")
                time.sleep(_POLL_SECONDS)
        except BrokenPipeError:
            process.wait()
        finally:
            if process.poll() is None:
                _kill(process)
            with suppress(BrokenPipeError):  # what it never took
                process.stdin.close()
    if process.returncode or out_path.stat().st_size > _ANSWER_BYTES:
        tail = err_path.read_bytes()[-2000:].decode(errors="replace")
        _log.warning("a process ended early", of=module, status=process.returncode, said=tail)
        raise ConfinedError("it takes more time or memory than is given to it, or crashes")
    told: dict[str, Any] = json.loads(out_path.read_bytes())
    return told


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End it, with all that it may have started."""
    if sys.platform == "win32":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def take_request() -> dict[str, Any]:
    """In the process: what is asked; from now on it ends when its parent does."""
    request: dict[str, Any] = json.loads(sys.stdin.buffer.readline())

    def wait_for_parent() -> None:
        os.read(0, 1)  # returns when the parent closes its end, or dies
        os._exit(1)

    threading.Thread(target=wait_for_parent, daemon=True).start()
    return request


def limit_resources(*, memory_bytes: int, cpu_seconds: int, file_bytes: int) -> None:
    """In the process: take on limits that it cannot lift again.

    Args:
        memory_bytes: of addresses.
        file_bytes: of any one file that it writes.
    """
    try:
        import resource
    except ImportError:  # Windows has none of these; the time limit of the parent remains
        return
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        _, hard = resource.getrlimit(kind)
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (limit, limit))


def answer(document: dict[str, Any]) -> None:
    """In the process: answer, once."""
    json.dump(document, sys.stdout, allow_nan=False)
    sys.stdout.flush()
