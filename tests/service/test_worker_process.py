"""`tailor worker` as a process: real attempts, real signals, real memory."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
from sqlalchemy import delete

from service.db.base import new_id
from service.jobs import repository as jobs
from service.jobs.models import Job, JobAttempt
from service.measurements.intake import FIT_JOB

pytestmark = pytest.mark.slow

PATIENCE = {"seconds": 180.0}  # only an end to waiting
BUSY = """
import sys, time
if "service.attempt" in sys.orig_argv:
    time.sleep(600)
"""
GREEDY = """
import sys, time
if "service.attempt" in sys.orig_argv:
    held = [bytearray(b"x" * 2**20) for _ in range(400)]
    time.sleep(600)
"""


@contextmanager
def worker_of(api, folder, first_do: str, *words: str, **settings: str) -> Iterator[psutil.Process]:
    """`tailor worker run` whose attempts do this before anything else."""
    (folder / "sitecustomize.py").write_text(first_do)
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "TAILOR_HOME": str(api.settings.home),
        "TAILOR_JOB_LEASE_SECONDS": "3",
        **settings,
    }
    command = [sys.executable, "-m", "service.cli", "worker", "run", *words]
    with (folder / "worker.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stderr=log)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def work(api) -> str:
    """The id of the one job that waits for a worker."""
    with api.database.transaction() as session:
        for table in (JobAttempt, Job):
            session.execute(delete(table))
        return jobs.enqueue(session, FIT_JOB, new_id("kit"), max_attempts=9, priority=9).id


def read(api, job_id: str) -> tuple[Job, list[str | None]]:
    with api.database.reading() as session:
        outcomes = [attempt.outcome for attempt in jobs.attempts(session, job_id)]
        return session.get_one(Job, job_id), outcomes


def workers(api) -> list[dict]:
    return api.http.get("/v1/workers?online=true").json()["items"]


def running(api, job_id: str, eventually) -> dict:
    """The worker on which the job runs, as soon as it does."""

    def found() -> dict | None:
        return next((w for w in workers(api) if job_id in [a["job"] for a in w["attempts"]]), None)

    return eventually(found, "the job does not run", **PATIENCE)


def test_a_worker_says_what_it_has_and_leaves_when_it_is_told(api, tmp_path, eventually):
    words = ("--slots", "3", "--memory-gb", "1.5", "--label", "room=12", "--gpus", "none")
    with worker_of(api, tmp_path, "", *words, TAILOR_WORKER_LABELS="never=used") as process:
        (worker,) = eventually(lambda: workers(api), "no worker is online", **PATIENCE)
        assert worker["name"].endswith(f"-{process.pid}")
        assert (worker["slots"], worker["resources"]["gpus"]) == (3, [])
        assert worker["resources"]["memory_bytes"] == 3 * 2**29
        assert worker["labels"]["room"] == "12"
        process.terminate()
        assert process.wait(PATIENCE["seconds"]) == 0
    assert workers(api) == []
    assert api.http.get(f"/v1/workers/{worker['id']}").json()["state"] == "left"


def test_a_worker_that_is_drained_in_a_hurry_kills_who_does_not_leave(
    api, tmp_path, work, eventually
):
    with worker_of(api, tmp_path, BUSY, TAILOR_STOP_GRACE_SECONDS="0.5") as process:
        worker = running(api, work, eventually)
        drained = api.http.post(f"/v1/workers/{worker['id']}/drain?hand_back=true")
        assert drained.status_code == 202
        assert process.wait(PATIENCE["seconds"]) == 0
    assert read(api, work)[1] == ["killed"]


def test_an_attempt_that_ignores_being_asked_to_stop_is_killed(api, tmp_path, work, eventually):
    with worker_of(api, tmp_path, BUSY, TAILOR_STOP_GRACE_SECONDS="0.5"):
        running(api, work, eventually)
        with api.database.transaction() as session:
            jobs.ask_to_stop(session, session.get_one(Job, work).subject_id)
        eventually(lambda: read(api, work)[1][0] == "killed", "the attempt goes on", **PATIENCE)


def test_an_attempt_over_its_memory_is_killed_and_says_by_how_much(api, tmp_path, work, eventually):
    with worker_of(api, tmp_path, GREEDY, "--memory-gb", "0.25"):
        eventually(lambda: read(api, work)[0].status == "failed", "it goes on", **PATIENCE)
    job, outcomes = read(api, work)
    assert outcomes == ["out_of_memory"]
    assert "its limit is 256 MiB" in job.failure


def test_a_second_signal_kills_at_once(api, tmp_path, work, eventually):
    with worker_of(api, tmp_path, BUSY, TAILOR_STOP_GRACE_SECONDS="3600") as process:
        running(api, work, eventually)
        attempt = next(c for c in process.children() if "service.attempt" in c.cmdline())
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE["seconds"]) == 0
        assert not attempt.is_running()
    assert read(api, work)[1] == ["killed"]


def test_a_worker_that_is_killed_takes_its_attempt_along_and_another_goes_on(
    api, tmp_path, work, eventually
):
    leave = BUSY.replace("time.sleep(600)", "sys.stdin.read(); sys.exit(75)")
    with worker_of(api, tmp_path, leave) as process:
        running(api, work, eventually)
        attempt = next(c for c in process.children() if "service.attempt" in c.cmdline())
        process.kill()
        eventually(lambda: not attempt.is_running(), "the attempt outlives it", **PATIENCE)
    with worker_of(api, tmp_path, BUSY):
        eventually(lambda: len(read(api, work)[1]) > 1, "nobody takes it over", **PATIENCE)
    assert read(api, work)[1][0] == "worker_lost"
