"""Races, restarts and edges: what processes do to each other, and hostile clients to us."""

import socket
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError

from service.auth.principal import Principal
from service.db.database import Database
from service.jobs import repository as jobs
from service.jobs.models import Job
from service.latency_models.tasks import fit_kit
from service.measurements.intake import take_in
from service.measurements.schemas import BatchCreate
from service.searches.creation import Wish, create
from service.searches.schemas import SearchCreate

N = 6


def at_once(n, work):
    together = threading.Barrier(n)

    def one(index):
        together.wait()
        return work(index)

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(one, range(n)))


def test_creations_with_the_same_key_at_once_create_one_search(api_on_both):
    device = api_on_both.enrol_measured()
    body = {"target": device.target_id, "latency_budget_ms": 0.03}
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    clients = [api_on_both.client(api_on_both.admin_key) for _ in range(N)]
    answers = at_once(N, lambda n: clients[n].post("/v1/searches", json=body, headers=headers))
    assert {answer.is_success for answer in answers} == {True}
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_first_searches_on_a_target_at_once_share_one_kit(api_on_both):
    device = api_on_both.enrol_new_target()
    body = {"target": device.target_id, "latency_budget_ms": 0.03}
    clients = [api_on_both.client(api_on_both.admin_key) for _ in range(N)]
    before = api_on_both.stored()["kits"]
    answers = at_once(N, lambda n: clients[n].post("/v1/searches", json=body))
    assert {answer.status_code for answer in answers} == {201}
    assert api_on_both.stored()["kits"] == before + 1


def test_agents_of_a_new_target_that_enrol_at_once_share_it(api_on_both):
    name = uuid.uuid4().hex
    devices = at_once(N, lambda _: api_on_both.enrol(device_model=name))
    assert len({device.target_id for device in devices}) == 1


@pytest.mark.parametrize(
    "path", ["/v1/searches/%00", "/v1/searches?cursor=%00", "/v1/targets/a%00b"]
)
def test_a_nul_in_a_path_is_no_failure(api_on_both, path):
    assert api_on_both.http.get(path).status_code < 500


def test_a_nul_in_a_body_is_a_422_that_stores_nothing(api_on_both):
    device = api_on_both.enrol_with_kit()
    task = device.lease_one()
    before = api_on_both.stored()
    answers = [
        api_on_both.http.post("/v1/keys", json={"name": "a\0b"}),
        api_on_both.http.post("/v1/searches", json={"target": "a\0", "latency_budget_ms": 1}),
        device.upload([device.result(task)], "a\0bcdefgh"),
    ]
    assert [answer.status_code for answer in answers] == [422] * 3
    assert api_on_both.stored() == before


def test_a_nul_in_an_item_is_refused_and_stores_no_measurement(api_on_both):
    device = api_on_both.enrol_with_kit()
    task = device.lease_one()
    before = api_on_both.stored()["measurements"]
    reports = device.report(
        device.result(task, note="a\0b"),
        device.result(task, facts={"a": "\0"}),
        device.result(task, facts={"\0": 1}),
        device.result(task, provider="\0"),
        device.result(task, quarantined=[{"latency_ms": None, "reason": "\0"}]),
        device.result({**task, "id": "\0"}),
    )
    assert [report["accepted"] for report in reports] == [False] * 6
    assert all("\0" not in report["reason"] for report in reports)
    assert api_on_both.stored()["measurements"] == before
    assert device.report(device.result(task))[0]["accepted"]


@pytest.mark.parametrize("after", [2**31, 2**63, 10**30])
def test_an_event_number_beyond_every_integer_is_a_422(api_on_both, after):
    device = api_on_both.enrol_new_target()
    search = api_on_both.search(device.target_id)
    path = f"/v1/searches/{search['id']}/events"
    answer = api_on_both.http.get(path, params={"after": after})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "after"


def test_a_500_carries_its_request_id_in_the_header_too(serve):
    with serve() as api:
        with api.database.transaction() as session:
            session.execute(text("ALTER TABLE searches RENAME TO elsewhere"))
        answer = api.http.get("/v1/searches", headers={"X-Request-Id": "mine"})
    assert answer.status_code == 500
    assert answer.headers["X-Request-Id"] == answer.json()["request_id"] == "mine"


def test_agents_that_wait_for_work_keep_nobody_else_waiting(api_on_both):
    device = api_on_both.enrol_new_target()
    waiting_agents = [api_on_both.client(device.token) for _ in range(50)]
    arrived = threading.Semaphore(0)

    def wait_for_work(client) -> int:
        arrived.release()
        body = {"limit": 1, "wait_seconds": 25}
        return client.post("/v1/measurement-tasks/lease", json=body).status_code

    with ThreadPoolExecutor(50) as pool:
        waiting = [pool.submit(wait_for_work, client) for client in waiting_agents]
        for _ in waiting:
            arrived.acquire()
        for _ in range(20):
            listed = api_on_both.client(api_on_both.admin_key).get("/v1/searches", timeout=15)
            assert listed.status_code == 200
        assert not any(done.done() for done in waiting)
        api_on_both.http.post("/v1/kits", json={"target": device.target_id})
        assert {done.result() for done in waiting} == {200}


def test_forty_writers_at_once_are_all_answered(api_on_both):
    clients = [api_on_both.client(api_on_both.admin_key) for _ in range(40)]
    answers = at_once(40, lambda n: clients[n].post("/v1/enrolment-codes", timeout=25))
    assert {answer.status_code for answer in answers} == {201}


def until_it_waits_or_ends(database: Database, future, eventually) -> None:
    """Return once the future has ended, or its transaction waits for a lock."""

    def waits() -> bool:
        with database.reading() as session:
            waiting = session.scalar(
                text(
                    "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
                    " WHERE NOT l.granted AND a.datname = current_database()"
                )
            )
        return future.done() or waiting

    eventually(waits, "the other transaction neither waits nor ends")


def batch(device, tasks) -> BatchCreate:
    items = [device.result(task) for task in tasks]
    return BatchCreate(batch_id=uuid.uuid4().hex, items=items)


@pytest.fixture
def on_postgres(serve, new_store):
    with serve(database_url=new_store("postgres", migrated=True)) as api:
        yield api


def agent_of(session, device):
    from service.agents.models import Agent

    return session.get_one(Agent, device.agent_id)


def test_two_agents_that_finish_a_kit_at_once_queue_its_fit_once(on_postgres, eventually):
    api = on_postgres
    device = api.enrol_with_kit()
    tasks = device.lease_all()
    device.report(*(device.result(task) for task in tasks[2:]))

    def finish_second() -> None:
        with api.database.transaction() as session:
            take_in(session, agent_of(session, device), batch(device, tasks[1:2]), api.settings)

    with ThreadPoolExecutor(1) as pool:
        with api.database.transaction() as session:
            take_in(session, agent_of(session, device), batch(device, tasks[:1]), api.settings)
            session.flush()
            second = pool.submit(finish_second)
            until_it_waits_or_ends(api.database, second, eventually)
        second.result()
    with api.database.reading() as session:
        fits = session.scalars(select(Job).where(Job.kind == "fit_latency_model")).all()
    assert len(fits) == 1


def test_a_search_created_while_its_model_is_fitted_does_not_wait_for_ever(on_postgres, eventually):
    from service.auth.models import ApiKey

    api = on_postgres
    device = api.enrol_with_kit()
    device.answer_everything()
    claim, context = api.claim()
    spec = SearchCreate(target=device.target_id, latency_budget_ms=0.03)
    with ThreadPoolExecutor(1) as pool:
        with api.database.transaction() as session:
            key = session.scalars(select(ApiKey)).first()
            principal = Principal(key.id, key.name, key.account, "admin")
            search, _ = create(session, api.settings, principal, Wish(spec, spec))
            session.flush()
            fit = pool.submit(fit_kit, context, claim.subject_id)
            until_it_waits_or_ends(api.database, fit, eventually)
        fit.result()
    with api.database.reading() as session:
        assert jobs.of_subject(session, search.id).blocked_on is None


def test_a_kit_that_failed_is_measured_again_for_the_next_search(api_on_both):
    api = api_on_both
    device = api.enrol_with_kit()
    while tasks := device.lease():
        device.report(*(device.failure(task, "unsupported") for task in tasks))
    with api.database.transaction() as session:
        session.execute(text("UPDATE jobs SET priority = 100 WHERE kind = 'fit_latency_model'"))
    api.run_fit()
    search = api.search(device.target_id)
    assert api.read(search)["status"] == "queued"
    device.answer_everything()
    with api.database.transaction() as session:
        session.execute(text("UPDATE jobs SET priority = 100 WHERE kind = 'fit_latency_model'"))
    api.run_fit()
    assert api.read(search)["phase"] == "waiting_for_worker"


def test_times_of_other_zones_are_stored_as_the_same_moment(database):
    moment = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    with database.transaction() as session:
        job = jobs.enqueue(session, "kind", "subject", max_attempts=1)
        job.available_at = moment.astimezone(timezone(timedelta(hours=5)))
    with database.reading() as session:
        assert list(session.scalars(select(Job.available_at))) == [moment]


@pytest.mark.postgres
def test_installations_that_start_at_once_migrate_once_and_make_one_key(new_store, tmp_path):
    script = (
        "import asyncio, sys; from service.app import create_app; "
        "from service.settings import Settings\n"
        "async def cycle():\n"
        "    app = create_app(Settings(home=sys.argv[1], database_url=sys.argv[2]))\n"
        "    async with app.router.lifespan_context(app): pass\n"
        "asyncio.run(cycle())"
    )
    url = new_store("postgres", migrated=False)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    told = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0] * 3, told[-1][1][-500:]
    assert sum("TAILOR_API_KEY=" in out for out, _ in told) == 1


def test_a_worker_outlasts_a_store_that_is_out_of_reach(tmp_path, new_store, eventually):
    from service.settings import Settings
    from service.worker import Worker

    settings = Settings(home=tmp_path, worker_poll_seconds=0.05, job_lease_seconds=0.9)
    store = Database(new_store("sqlite", migrated=True))
    launched = []

    class Attempt:
        def __init__(self):
            self.status = None

        def poll(self):
            return self.status

        def hand_back(self):
            self.status = 75

        def memory_bytes(self):
            return 0

        def kill(self):
            self.status = -9

    class Launcher:
        def launch(self, _claim):
            launched.append(Attempt())
            return launched[-1]

        def close(self):
            pass

    with store.transaction() as session:
        for n in range(2):
            jobs.enqueue(session, "kind", f"s{n}", max_attempts=4)
    failures = []
    transaction = store.transaction

    def unreliable():
        if launched and not failures:
            failures.append("the store restarts")
            raise OperationalError("SELECT 1", {}, Exception(failures[0]))
        return transaction()

    store.transaction = unreliable
    worker = Worker(settings, store, Launcher())
    thread = threading.Thread(target=worker.run)
    thread.start()

    def lease_end():
        with store.reading() as session:
            ends = session.scalars(
                select(Job.lease_expires_at).where(Job.status == "running").order_by(Job.id)
            ).all()
        return ends[0] if ends else None

    try:
        first_end = eventually(lease_end, "nothing was claimed")
        eventually(lambda: failures, "the store did not fail")
        eventually(
            lambda: len(launched) > 1 or (lease_end() or first_end) > first_end,
            "the worker neither keeps its lease nor claims anew",
        )
        assert len(launched) == 1, "a second attempt runs beside the first"
    finally:
        worker.stop()
        thread.join()
        store.dispose()


def test_answers_leave_at_once():
    """Nagle's algorithm would hold the body of each answer back for 40 ms."""
    from service.cli.processes import listen

    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()) as _:
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_search_that_ended_leaves_no_checkpoints(api, measured):
    from service.searches.tasks import run_search_job

    search = api.search(measured.target_id, epochs=1000)
    claim, context = api.claim(search)
    api.http.post(f"/v1/searches/{search['id']}/cancel")
    run_search_job(context, claim.subject_id)
    assert api.read(search)["status"] == "cancelled"
    assert not (api.settings.checkpoints_dir / search["id"]).exists()
