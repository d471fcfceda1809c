"""The contract of launchers: every implementation runs this suite."""

import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from service.db.base import new_id, utc_now
from service.jobs import repository as jobs
from service.jobs.launchers.base import EXIT_HANDED_BACK, EXIT_LEASE_LOST, EXIT_OUT_OF_MEMORY
from service.jobs.launchers.subprocess import SubprocessLauncher
from service.jobs.models import Job
from service.jobs.needs import Allotment
from service.jobs.repository import Claim
from service.measurements.intake import FIT_JOB
from service.measurements.models import Kit

MIB = 2**20
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

START_A_FAMILY = """
import subprocess, sys
if "service.attempt" in sys.orig_argv:
    import pathlib
    child = ["sh", "-c", "sleep 600 & setsid sleep 600 & wait"]  # one grandchild gets away
    subprocess.Popen(child)
    import time
    while pathlib.Path(__file__).with_name("stay").exists():
        time.sleep(0.01)
"""
HOLD_MEMORY = """
import subprocess, sys, time
if "service.attempt" in sys.orig_argv:
    held = bytearray(b"x" * (200 * 2**20))
    subprocess.Popen([sys.executable, "-S", "-c", "h = b'x' * (100 * 2**20); input()"])
    time.sleep(600)
"""
GROW_TOO_FAST = """
import sys
if "service.attempt" in sys.orig_argv:
    import service.latency_models.tasks as tasks
    tasks.fit_kit = lambda *_: bytearray(4 * 2**30)
"""
TELL_WHAT_IT_SEES = """
import json, os, pathlib, sys
if "service.attempt" in sys.orig_argv:
    pathlib.Path(__file__).with_name("seen").write_text(json.dumps(dict(os.environ)))
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
def first_do(monkeypatch, tmp_path):
    """Has every attempt run this Python text before anything else; gives the text's folder."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(text: str) -> Path:
        (tmp_path / "sitecustomize.py").write_text(text)
        return tmp_path

    return write


@pytest.fixture
def attempt_with_a_family(first_do, api, new_launcher, eventually):
    """A launcher, an attempt that has children and grandchildren, all of them, and a file.

    The attempt goes on when the file is removed.
    """
    stay = first_do(START_A_FAMILY) / "stay"
    stay.touch()
    launcher = new_launcher()
    handle = launcher.launch(claim_of(api, FIT_JOB, new_id("kit")))
    attempt = eventually(lambda: attempt_of(psutil.Process()), "no attempt has started")

    def family() -> list[psutil.Process]:
        found = attempt.children(recursive=True)
        return found if [p.name() for p in found].count("sleep") == 2 else []

    processes = [attempt, *eventually(family, "the attempt has not started its family")]
    yield launcher, handle, processes, stay
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


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


def test_killing_ends_an_attempt_with_everything_it_started(attempt_with_a_family, eventually):
    _, handle, processes, _ = attempt_with_a_family
    handle.kill()
    assert handle.poll() < 0 or handle.poll() > 128
    eventually(lambda: all(map(is_gone, processes)), "the attempt left a process behind")
    handle.kill()  # twice is harmless


def test_closing_a_launcher_kills_what_it_runs(attempt_with_a_family, eventually):
    launcher, handle, processes, _ = attempt_with_a_family
    launcher.close()
    assert handle.poll() is not None
    eventually(lambda: all(map(is_gone, processes)), "the attempt left a process behind")


def test_what_an_attempt_leaves_behind_ends_with_it(attempt_with_a_family, eventually):
    _, handle, processes, stay = attempt_with_a_family
    handle.memory_bytes()  # as a worker does, which is how it learns of who got away
    stay.unlink()
    eventually(lambda: handle.poll() is not None, "the attempt has not ended")
    eventually(lambda: all(map(is_gone, processes)), "the attempt left a process behind")


def test_the_memory_of_an_attempt_is_that_of_all_its_processes(
    api, first_do, new_launcher, eventually
):
    first_do(HOLD_MEMORY)
    handle = new_launcher().launch(claim_of(api, FIT_JOB, new_id("kit")))
    eventually(lambda: handle.memory_bytes() > 300 * MIB, "it is not seen to hold 300 MiB")
    assert handle.memory_bytes() < 400 * MIB
    handle.kill()
    assert handle.memory_bytes() == 0


def test_an_attempt_sees_what_it_was_given_and_nothing_else(
    api, first_do, new_launcher, eventually, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    folder = first_do(TELL_WHAT_IT_SEES)
    claim = claim_of(api, FIT_JOB, new_id("kit"))
    given = Allotment(gpus=("2",), threads=3, memory_bytes=2**30)
    handle = new_launcher().launch(replace(claim, given=given))
    eventually(lambda: handle.poll() is not None, "the attempt has not ended")
    seen = json.loads((folder / "seen").read_text())
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["OMP_NUM_THREADS"]) == ("2", "3")
    assert (seen["TAILOR_ATTEMPT_DEVICE"], seen["TAILOR_ATTEMPT_MEMORY_BYTES"]) == (
        "cuda",
        str(2**30),
    )


def test_an_attempt_that_is_refused_memory_says_so(api, first_do, new_launcher, eventually):
    first_do(GROW_TOO_FAST)
    claim = claim_of(api, FIT_JOB, new_id("kit"))
    handle = new_launcher().launch(replace(claim, given=Allotment(memory_bytes=512 * MIB)))
    eventually(lambda: handle.poll() is not None, "the attempt has not ended")
    assert handle.poll() == EXIT_OUT_OF_MEMORY


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
