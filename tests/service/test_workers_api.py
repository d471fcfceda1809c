"""Workers as they are listed and drained, over HTTP and on the command line."""

import socket
from datetime import timedelta

import pytest
from sqlalchemy import delete

from service.db.base import utc_now
from service.jobs import repository as jobs
from service.jobs.models import Job, JobAttempt
from service.jobs.needs import Allotment, needs
from service.workers.matching import who_could_serve
from service.workers.models import WorkerRow
from service.workers.repository import add_worker, note_gone

GIB = 2**30
ONLINE_SECONDS = 60.0


@pytest.fixture(autouse=True)
def _nobody(request):
    """No worker and no job are left of the test before."""
    if "api" not in request.fixturenames:
        return
    with request.getfixturevalue("api").database.transaction() as session:
        for table in (JobAttempt, Job, WorkerRow):
            session.execute(delete(table))


def start(database, name: str, *, gpus: int = 0, memory_bytes: int = 4 * GIB, **labels) -> str:
    """The id of a worker that has just started."""
    found = [{"id": str(n), "model": "H100", "memory_bytes": 80 * GIB} for n in range(gpus)]
    resources = {"cpus": 2, "memory_bytes": memory_bytes, "gpus": found}
    with database.transaction() as session:
        return add_worker(
            session,
            f"wrk_{name}",
            name=name,
            host=socket.gethostname(),
            slots=2,
            resources=resources,
            labels=labels,
        ).id


def change(database, worker_id: str, **values) -> None:
    with database.transaction() as session:
        for name, value in values.items():
            setattr(session.get_one(WorkerRow, worker_id), name, value)


def run_on(database, worker_id: str, owner: str) -> str:
    """The id of a job that now runs there."""
    with database.transaction() as session:
        job = jobs.enqueue(session, "search", f"srch of {owner}", max_attempts=1, owner=owner)
        given = Allotment(("0",), 1, GIB)
        assert jobs.claim(session, worker_id, 600.0, lambda _: given).job_id == job.id
        return job.id


def key_of(api, account: str, scope: str):
    body = {"name": account, "scope": scope, "account": account}
    return api.client(api.http.post("/v1/keys", json=body).json()["token"])


# -- listing ---------------------------------------------------------------------------


def test_a_worker_is_listed_with_what_it_has_and_what_runs_on_it(api):
    assert api.http.get("/v1/workers").json()["items"] == []
    worker_id = start(api.database, "a", gpus=1, gpu_model="H100")
    job_id = run_on(api.database, worker_id, "ann")
    (worker,) = api.http.get("/v1/workers").json()["items"]
    assert (worker["id"], worker["state"], worker["slots"]) == (worker_id, "online", 2)
    assert worker["resources"]["gpus"] == [{"id": "0", "model": "H100", "memory_bytes": 80 * GIB}]
    assert worker["labels"] == {"gpu_model": "H100"}
    assert worker["slots_in_use"] == 1
    (attempt,) = worker["attempts"]
    assert (attempt["job"], attempt["subject"]) == (job_id, "srch of ann")
    assert attempt["given"] == {"gpus": ["0"], "threads": 1, "memory_bytes": GIB}
    assert api.http.get(f"/v1/workers/{worker_id}").json() == worker


def test_who_does_not_own_a_search_does_not_learn_its_id(api):
    worker_id = start(api.database, "a")
    run_on(api.database, worker_id, "ann")
    subjects = {
        account: key_of(api, account, "viewer")
        .get(f"/v1/workers/{worker_id}")
        .json()["attempts"][0]["subject"]
        for account in ("ann", "bob")
    }
    assert subjects == {"ann": "srch of ann", "bob": None}
    assert api.client().get("/v1/workers").status_code == 401


def test_workers_are_listed_page_by_page_and_by_presence(api):
    long_ago = utc_now() - timedelta(hours=1)
    for name in ("1", "2", "3", "4"):
        start(api.database, name)
    change(api.database, "wrk_1", stopped_at=long_ago)
    change(api.database, "wrk_2", seen_at=long_ago)
    change(api.database, "wrk_3", draining=True)
    page = api.http.get("/v1/workers?limit=3").json()
    rest = api.http.get(f"/v1/workers?limit=3&cursor={page['next_cursor']}").json()
    states = [worker["state"] for worker in (*page["items"], *rest["items"])]
    assert states == ["online", "draining", "offline", "left"]
    present = api.http.get("/v1/workers?online=true").json()["items"]
    assert [worker["name"] for worker in present] == ["4", "3"]


def test_a_worker_that_vanished_is_found_gone_and_forgotten_in_the_end(database):
    for name, age in (("new", 0), ("silent", 100), ("old", 100)):
        start(database, name)
        change(database, f"wrk_{name}", seen_at=utc_now() - timedelta(seconds=age))
    change(database, "wrk_old", stopped_at=utc_now() - timedelta(days=8))
    with database.transaction() as session:
        note_gone(session, ONLINE_SECONDS)
    with database.reading() as session:
        assert session.get(WorkerRow, "wrk_new").stopped_at is None
        assert session.get(WorkerRow, "wrk_silent").stopped_at is not None
        assert session.get(WorkerRow, "wrk_old") is None


# -- draining --------------------------------------------------------------------------


def test_draining_is_asked_for_once_and_may_become_more_urgent(api):
    worker_id = start(api.database, "a")
    path = f"/v1/workers/{worker_id}/drain"
    asked = [api.http.post(path), api.http.post(path), api.http.post(f"{path}?hand_back=true")]
    asked += [api.http.post(f"{path}?hand_back=true"), api.http.post(path)]
    assert [answer.status_code for answer in asked] == [202, 200, 202, 200, 200]
    assert [answer.json()["hand_back"] for answer in asked] == [False, False, True, True, True]
    assert asked[0].json()["state"] == "draining"


def test_only_an_operator_drains_and_only_who_is_there_is_drained(api):
    worker_id = start(api.database, "a")
    path = f"/v1/workers/{worker_id}/drain"
    assert key_of(api, "ann", "user").post(path).status_code == 403
    assert key_of(api, "ops", "operator").post(path).status_code == 202
    assert api.http.post("/v1/workers/wrk_nobody/drain").status_code == 404
    change(api.database, worker_id, stopped_at=utc_now())
    answer = api.http.post(path)
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


def test_workers_are_listed_and_drained_on_the_command_line(api, tailor, tailor_json):
    worker_id = start(api.database, "a", gpus=1)
    run_on(api.database, worker_id, "ann")
    printed = tailor("worker", "list").out
    assert worker_id in printed
    assert "srch of ann" in printed
    assert [worker["id"] for worker in tailor_json("worker", "list", "--online")] == [worker_id]
    (drained,) = tailor_json("worker", "drain", "--here", "--hand-back")
    assert (drained["id"], drained["hand_back"]) == (worker_id, True)
    assert worker_id in tailor("worker", "drain", worker_id).out


@pytest.mark.parametrize(
    "words",
    [
        ("drain",),
        ("drain", "wrk_a", "--here"),
        ("drain", "--here"),
        ("drain", "wrk_nobody"),
        ("run", "--gpus", "first"),
        ("run", "--gpus", "7"),
        ("run", "--label", "no value"),
        ("run", "--memory-gb", "1e9"),
        ("--gpus", "first"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(api, tailor, words):
    ran = tailor("worker", *words)
    assert ran.status == 2
    assert ran.err.strip()


# -- who could serve -------------------------------------------------------------------


def verdict(database, **needed):
    with database.reading() as session:
        return who_could_serve(session, needs(**needed), ONLINE_SECONDS)


def test_nobody_online_is_told_from_nobody_able(database):
    assert verdict(database).code == "no_worker_online"
    start(database, "small", memory_bytes=GIB)
    start(database, "drains", gpus=8)
    change(database, "wrk_drains", draining=True)
    start(database, "vanished", gpus=8)
    change(database, "wrk_vanished", seen_at=utc_now() - timedelta(hours=1))
    found = verdict(database, gpus=1, memory_bytes=2 * GIB, labels={"gpu_model": "*H100*"})
    assert (found.code, found.able, list(found.lacking)) == ("no_worker_can_serve", (), ["small"])
    for said in ("1 GPU is needed", "2 GiB of memory", "it has 1 GiB", "gpu_model=*H100*"):
        assert said in found.text
    start(database, "large", gpus=1, gpu_model="NVIDIA H100 80GB HBM3")
    found = verdict(database, gpus=1, memory_bytes=2 * GIB, labels={"gpu_model": "*h100*"})
    assert (found.code, found.able) == ("queue_position", ("large",))
    assert "large" in found.text


def test_of_many_workers_a_text_names_a_few(database):
    for n in range(5):
        start(database, f"w{n}")
    assert verdict(database).text == "Waiting for a free place on w0, w1, w2 or 2 more."
