"""Machines: how a worker makes its own known, with a real calibration in a real process."""

import os
import subprocess
import sys
import threading
from contextlib import contextmanager

import psutil
import pytest

from search_core.effort import MachineProfile
from service.jobs import repository as jobs
from service.jobs.models import Job
from service.machines import identity, introduction
from service.machines.identity import machine_key
from service.machines.introduction import introduce
from service.machines.repository import (
    find_machine,
    keep_profile,
    last_seen_machine,
    list_machines,
)
from service.settings import Settings
from service.worker import Worker


@pytest.fixture
def settings(store, tmp_path) -> Settings:
    """A worker that calibrates as briefly as can be."""
    return Settings(
        home=tmp_path,
        database_url=store.url,
        calibrate=True,
        calibration_seconds=0.01,
        attempt_threads=1,
        worker_poll_seconds=0.05,
    )


@pytest.fixture
def instead(monkeypatch):
    """Has this Python text run in place of a calibration."""

    def run(text: str) -> None:
        monkeypatch.setattr(introduction, "_COMMAND", (sys.executable, "-c", text))

    return run


def machines(database) -> list:
    with database.reading() as session:
        return list(list_machines(session, None, 50))


class Launcher:
    """Launches nothing that lasts."""

    def __init__(self) -> None:
        self.claims = []

    def launch(self, claim):
        self.claims.append(claim)
        return self

    def poll(self) -> int:
        return 1

    def memory_bytes(self) -> int:
        return 0

    def close(self) -> None:
        pass


@contextmanager
def working(settings, store, launcher):
    worker = Worker(settings, store, launcher)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join()


def enqueue(store) -> str:
    with store.transaction() as session:
        return jobs.enqueue(session, "kind", "subject", max_attempts=1).id


def status(store, job_id: str) -> str:
    with store.reading() as session:
        return session.get_one(Job, job_id).status


# -- rows ------------------------------------------------------------------------------


def test_a_machine_is_one_row_however_often_it_is_calibrated(database, new_profile):
    with database.transaction() as session:
        first = keep_profile(session, "key", "host", new_profile())
    with database.transaction() as session:
        again = keep_profile(session, "key", "host", new_profile(threads=2))
    assert first.id == again.id
    (row,) = machines(database)
    assert MachineProfile.from_document(row.document).threads == 2
    assert row.created_at == first.created_at <= row.seen_at


def test_the_machine_seen_last_is_told(database, new_profile):
    with database.reading() as session:
        assert last_seen_machine(session) is None
    for key in ("a", "b", "a"):
        with database.transaction() as session:
            keep_profile(session, key, "host", new_profile())
    with database.reading() as session:
        assert last_seen_machine(session).key == "a"
        assert find_machine(session, "c") is None


def test_machines_are_listed_page_by_page(serve, new_profile):
    with serve() as api:
        assert api.http.get("/v1/machines").json()["items"] == []
        for n in range(3):
            with api.database.transaction() as session:
                keep_profile(session, f"key {n}", "host", new_profile(threads=n + 1))
        page = api.http.get("/v1/machines?limit=2").json()
        rest = api.http.get(f"/v1/machines?limit=2&cursor={page['next_cursor']}").json()
        assert [m["threads"] for m in (*page["items"], *rest["items"])] == [3, 2, 1]
        assert rest["next_cursor"] is None
        assert page["items"][0]["profile"]["format"].startswith("tailor-machine-profile/")
        assert api.client().get("/v1/machines").status_code == 401


def test_a_machine_is_another_with_other_threads_and_the_same_in_another_home(tmp_path):
    here = Settings(home=tmp_path / "a", attempt_threads=1)
    assert machine_key(here) == machine_key(Settings(home=tmp_path / "b", attempt_threads=1))
    assert machine_key(here) != machine_key(Settings(home=tmp_path / "a", attempt_threads=2))


def test_a_machine_is_another_for_attempts_on_its_gpu(tmp_path):
    on_cpu = Settings(home=tmp_path, attempt_threads=1)
    on_gpu = on_cpu.model_copy(update={"attempt_device": "cuda"})
    keys = {machine_key(on_cpu), machine_key(on_gpu, "one GPU"), machine_key(on_gpu, "another")}
    assert len(keys) == 3


# -- the worker ------------------------------------------------------------------------


def test_a_worker_calibrates_its_machine_once_and_then_works(settings, store, eventually):
    job_id = enqueue(store)
    with working(settings, store, Launcher()):
        eventually(lambda: status(store, job_id) == "failed", "no work was done", 180.0)
        (made,) = machines(store)
    profile = MachineProfile.from_document(made.document)
    assert (made.key, profile.threads) == (machine_key(settings), 1)

    job_id = enqueue(store)
    with working(settings, store, Launcher()):
        eventually(lambda: status(store, job_id) == "failed", "no work was done")
    (again,) = machines(store)
    assert (again.id, again.document, again.created_at) == (
        made.id,
        made.document,
        made.created_at,
    )
    assert again.seen_at > made.seen_at


def test_a_worker_that_is_told_not_to_calibrate_does_not(settings, store, instead, eventually):
    instead("raise SystemExit('nobody asked')")
    job_id = enqueue(store)
    with working(settings.model_copy(update={"calibrate": False}), store, Launcher()):
        eventually(lambda: status(store, job_id) == "failed", "no work was done")
    assert machines(store) == []


@pytest.mark.parametrize(
    "text",
    ["raise SystemExit(3)", "import os; os.kill(os.getpid(), 9)", "import time; time.sleep(600)"],
    ids=["fails", "is killed", "hangs"],
)
def test_a_calibration_that_comes_to_nothing_does_not_keep_a_worker_from_work(
    settings, store, instead, eventually, monkeypatch, text
):
    monkeypatch.setattr(introduction, "_PATIENCE_SECONDS", 0.3)
    instead(text)
    job_id = enqueue(store)
    with working(settings, store, Launcher()):
        eventually(lambda: status(store, job_id) == "failed", "no work was done")
    assert machines(store) == []


def test_a_worker_told_to_stop_ends_its_calibration(settings, store, instead, eventually, tmp_path):
    told = tmp_path / "pid"
    instead(
        "import os, pathlib, time; "
        f"pathlib.Path({str(told)!r}).write_text(str(os.getpid())); time.sleep(600)"
    )
    launcher = Launcher()
    with working(settings, store, launcher) as worker:
        pid = int(eventually(lambda: told.exists() and told.read_text(), "no calibration began"))
        worker.stop()
    assert not psutil.pid_exists(pid)
    assert launcher.claims == []


def test_a_calibration_does_not_outlive_its_worker(settings):
    process = subprocess.Popen(
        [sys.executable, "-m", "service.machines.calibrate"],
        stdin=subprocess.PIPE,
        env={**os.environ, "TAILOR_DATABASE_URL": settings.resolved_database_url},
    )
    process.stdin.close()  # as when the worker dies
    assert process.wait(60) == 1


def test_a_profile_that_cannot_be_read_is_made_anew(
    settings, store, new_profile, instead, tmp_path
):
    with store.transaction() as session:
        row = keep_profile(session, machine_key(settings), "host", new_profile())
        row.document = {**row.document, "format": "tailor-machine-profile/0"}
    began = tmp_path / "began"
    instead(f"import pathlib; pathlib.Path({str(began)!r}).touch()")
    introduce(settings, store, lambda: False)
    assert began.exists()
    with store.transaction() as session:
        keep_profile(session, machine_key(settings), "host", new_profile())
    began.unlink()
    introduce(settings, store, lambda: False)
    assert not began.exists()


@pytest.mark.parametrize(
    ("text", "cores"),
    [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("max 100000", None)],
)
def test_a_quota_of_a_container_is_told_in_cores(tmp_path, text, cores):
    path = tmp_path / "cpu.max"
    path.write_text(text)
    assert identity._quota_cores(path) == cores
    assert identity._quota_cores(tmp_path / "nothing") is None
