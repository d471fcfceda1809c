"""An API and a worker as processes of this machine, for benchmarks that go through HTTP."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_STOP_SECONDS = 20.0


@dataclass(frozen=True)
class Installation:
    """Where it answers, the key of its first start, and the environment of its processes."""

    url: str
    key: str
    environment: dict[str, str]


@contextmanager
def installation(home: Path, **settings: str) -> Iterator[Installation]:
    """API and worker over an empty home; both are gone afterwards.

    A home that an earlier run left goes on, on the same port.

    Args:
        settings: further ``TAILOR_`` variables, by name in lower case.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # clean up first
    home.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "TAILOR_HOME": str(home),
        "TAILOR_CALIBRATE": "false",  # nothing is trained here
        **{f"TAILOR_{name.upper()}": value for name, value in settings.items()},
    }
    kept = home / "installation.json"
    before = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    command = [sys.executable, "-m", "service.cli"]
    processes: list[subprocess.Popen[str]] = []
    try:
        with (home / "api.log").open("w") as log:
            api = subprocess.Popen(
                [*command, "api", "--port", before.get("port", "0")],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        processes.append(api)
        assert api.stdout is not None
        told: dict[str, str] = {}
        for line in api.stdout:
            name, _, value = line.strip().partition("=")
            told[name] = value
            if name == "TAILOR_READY":
                break
        if "TAILOR_READY" not in told:
            raise SystemExit(f"the API did not start:\n{(home / 'api.log').read_text()}")
        key = told.get("TAILOR_API_KEY") or before["key"]
        with suppress(FileExistsError), kept.open("x", encoding="utf-8") as file:
            kept.chmod(0o600)
            json.dump({"key": key, "port": told["TAILOR_URL"].rsplit(":", 1)[1]}, file)
        with (home / "worker.log").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [*command, "worker"], stdout=log, stderr=log, text=True, env=environment
                )
            )
        yield Installation(told["TAILOR_URL"], key, environment)
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
