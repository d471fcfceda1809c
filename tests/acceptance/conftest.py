"""Installations of real processes, for the tests of whole journeys."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from service.settings import Settings

_END_SECONDS = 300.0


@contextmanager
def process(home: Path, *words: str, lease_seconds: float, **options) -> Iterator[subprocess.Popen]:
    """`tailor` with these words over the installation in `home`, until the block ends."""
    environment = {
        **os.environ,
        "TAILOR_HOME": str(home),
        "TAILOR_JOB_LEASE_SECONDS": str(lease_seconds),
        "TAILOR_ATTEMPT_THREADS": "1",  # sums in one order, so that runs can be compared
    }
    with (home / f"{words[0]}.log").open("ab") as log:
        command = [sys.executable, "-m", "service.cli", *words]
        started = subprocess.Popen(command, env=environment, stderr=log, **options)
    try:
        yield started
    finally:
        started.terminate()
        started.wait(_END_SECONDS)
        if started.stdout is not None:
            started.stdout.close()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For networks so small that a second thread gains nothing, and loses on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def lease_seconds() -> float:
    """How long nobody takes over from a worker that has died."""
    return 30.0


@pytest.fixture(scope="module")
def installation(tmp_path_factory, connect, lease_seconds):
    """A running API of an empty installation, as the client sees it."""
    home = tmp_path_factory.mktemp("installation")
    options = {"lease_seconds": lease_seconds, "stdout": subprocess.PIPE, "text": True}
    with process(home, "api", "--port", "0", **options) as api:
        told: dict[str, str] = {}
        for line in api.stdout:  # ends when the API dies
            name, _, value = line.strip().partition("=")
            told[name] = value
            if name == "TAILOR_READY":
                break
        assert set(told) == {"TAILOR_API_KEY", "TAILOR_URL", "TAILOR_READY"}
        client = connect(Settings(home=home), told["TAILOR_URL"], told["TAILOR_API_KEY"])
        yield client
        client.close()


@pytest.fixture(scope="module")
def working(installation, lease_seconds):
    """A worker of the installation while a block runs: ``with working("--slots", "2")``."""

    @contextmanager
    def worker(*words: str) -> Iterator[psutil.Process]:
        home = installation.settings.home
        with process(home, "worker", *words, lease_seconds=lease_seconds) as started:
            yield psutil.Process(started.pid)

    return worker
