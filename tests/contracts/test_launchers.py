"""The contract of launchers: every implementation runs this suite."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from service.db.base import new_id, utc_now
from service.jobs import repository as jobs
from service.jobs.launchers.base import EXIT_HANDED_BACK, EXIT_LEASE_LOST
from service.jobs.launchers.subprocess import SubprocessLauncher
from service.jobs.models import Job
from service.jobs.repository import Claim
from service.measurements.intake import FIT_JOB
from service.measurements.models import Kit

LAUNCHERS = {"subprocess": SubprocessLauncher}

pytestmark = pytest.mark.slow

LAUNCH_AND_WAIT = """
import sys, time
from service.jobs.launchers.subprocess import SubprocessLauncher
from service.jobs.repository import Claim
from service.settings import Settings

job_id, kind, subject_id, fence, attempt = sys.argv[1:]
claim = Claim(job_id, kind, subject_id, int(fence), int(attempt))
handle = SubprocessLauncher(Settings()).launch(claim)
time.sleep(600)
"""

START_A_CHILD = """
import subprocess, sys
if "service.attempt" in sys.orig_argv:
    subprocess.Popen(["sleep", "600"])
"""


@pytest.fixture(params=LAUNCHERS)
def new_launcher(request, api):
    """Makes a launcher over the store of `api`; it is closed in the end."""
    made = []

    def make():
        made.append(LAUNCHERS[request.param](api.settings))
        return made[-1]

    yield make
    for launcher in made:
        launcher.close()


@pytest.fixture
def attempt_with_a_child(monkeypatch, tmp_path, api, new_launcher, eventually):
    """A launcher, a running attempt that has started a process of its own, and both processes."""
    (tmp_path / "sitecustomize.py").write_text(START_A_CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    launcher = new_launcher()
    handle = launcher.launch(claim_of(api, FIT_JOB, new_id("kit")))
    attempt = eventually(lambda: attempt_of(psutil.Process()), "no attempt has started")
    (child,) = eventually(attempt.children, "the attempt has not started its child")
    return launcher, handle, (attempt, child)


def claim_of(api, kind: str, subject_id: str) -> Claim:
    """A fresh job, claimed."""
    with api.database.transaction() as session:
        jobs.enqueue(session, kind, subject_id, max_attempts=5, priority=100)
    claim, _ = api.claim()
    assert claim.subject_id == subject_id
    return claim


def attempt_of(worker: psutil.Process) -> psutil.Process | None:
    """The attempt that runs as a child of `worker`."""
    with suppress(psutil.Error):  # a child may end while we look
        return next((c for c in worker.children() if "service.attempt" in c.cmdline()), None)


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def running_search(api, measured) -> tuple[dict, Claim]:
    """A search long enough to be interrupted, and the claim of its job."""
    search = api.search(measured.target_id, epochs=1000, random_baseline=False)
    claim, _ = api.claim(search)
    return search, claim


def is_searching(api, search: dict) -> bool:
    return api.read(search)["phase"] == "searching"


def test_an_attempt_that_settles_its_job_ends_with_zero(api, new_launcher, eventually):
    kit = Kit(
        id=new_id("kit"),
        target_id=api.enrol().target_id,
        space="micro",
        space_digest="never measured",
        created_at=utc_now(),
    )
    with api.database.transaction() as session:
        session.add(kit)
    claim = claim_of(api, FIT_JOB, kit.id)
    handle = new_launcher().launch(claim)
    eventually(lambda: handle.poll() is not None, "the attempt has not ended")
    assert handle.poll() == 0
    with api.database.reading() as session:
        job = session.get_one(Job, claim.job_id)
    assert job.status == "failed"  # nothing was measured, and the attempt said so
    assert "no measurement" in job.failure


def test_an_attempt_that_crashes_ends_with_another_status(api, new_launcher, eventually):
    handle = new_launcher().launch(claim_of(api, "of no known kind", "nothing"))
    eventually(lambda: handle.poll() is not None, "the attempt has not ended")
    assert handle.poll() not in (0, EXIT_HANDED_BACK, EXIT_LEASE_LOST)


def test_an_attempt_without_the_lease_writes_nothing_and_says_so(api, new_launcher, eventually):
    claim = claim_of(api, FIT_JOB, new_id("kit"))
    old = Claim(claim.job_id, claim.kind, claim.subject_id, claim.fence - 1, claim.attempt)
    handle = new_launcher().launch(old)
    eventually(lambda: handle.poll() is not None, "the attempt has not ended")
    assert handle.poll() == EXIT_LEASE_LOST
    with api.database.reading() as session:
        assert session.get_one(Job, claim.job_id).status == "running"


def test_killing_ends_an_attempt_with_everything_it_started(attempt_with_a_child, eventually):
    _, handle, processes = attempt_with_a_child
    handle.kill()
    assert handle.poll() < 0 or handle.poll() > 128
    eventually(lambda: all(map(is_gone, processes)), "the attempt left a process behind")
    handle.kill()  # twice is harmless


def test_closing_a_launcher_kills_what_it_runs(attempt_with_a_child, eventually):
    launcher, handle, processes = attempt_with_a_child
    launcher.close()
    assert handle.poll() is not None
    eventually(lambda: all(map(is_gone, processes)), "the attempt left a process behind")


def test_an_attempt_that_is_handed_back_stops_and_says_so(api, measured, new_launcher, eventually):
    search, claim = running_search(api, measured)
    handle = new_launcher().launch(claim)
    eventually(lambda: is_searching(api, search), "the attempt does not search")
    handle.hand_back()
    handle.hand_back()  # twice is harmless
    eventually(lambda: handle.poll() is not None, "the attempt goes on")
    assert handle.poll() == EXIT_HANDED_BACK
    assert (api.settings.checkpoints_dir / search["id"] / "search.pt").exists()


def test_an_attempt_whose_worker_is_killed_stops(api, measured, tmp_path, monkeypatch, eventually):
    search, claim = running_search(api, measured)
    script = tmp_path / "worker.py"
    script.write_text(LAUNCH_AND_WAIT)
    monkeypatch.setenv("TAILOR_HOME", str(api.settings.home))
    words = map(str, (claim.job_id, claim.kind, claim.subject_id, claim.fence, claim.attempt))
    worker = subprocess.Popen([sys.executable, str(script), *words], cwd=Path.cwd())
    try:
        attempt = eventually(lambda: attempt_of(psutil.Process(worker.pid)), "no attempt started")
        eventually(lambda: is_searching(api, search), "the attempt does not search")
    finally:
        worker.kill()
        worker.wait()
    eventually(lambda: is_gone(attempt), "the attempt has outlived its worker")
