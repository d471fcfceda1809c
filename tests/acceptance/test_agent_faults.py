"""Whatever dies, is cut or is sent twice, each task is measured and stored exactly once.

Real processes: an API, device agents that measure this machine, SIGKILL, and a TCP proxy that
cuts the network between them.
"""

import gzip
import json
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from sqlalchemy import delete, func, select, update

from predictor.agent.connection import Connection
from predictor.agent.journal import Journal, JournalEntry
from predictor.agent.run import Agent
from service.db.base import utc_now
from service.measurements.models import Kit, KitItem, Measurement, MeasurementTask, UploadedBatch
from service.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.alone]  # agents that wait for quiet

N_TASKS = 9  # what is left of the kit: a sweep that ends soon, in two leases
QUARTER = 2
LEASE_SECONDS = 3.0
PATIENCE = {"seconds": 240.0, "pause_seconds": 0.1}  # only an end to waiting


# -- processes -------------------------------------------------------------------------


def start(home: Path, *words: str, **options) -> subprocess.Popen:
    """`tailor` with these words over the installation in `home`."""
    environment = {
        **os.environ,
        "TAILOR_HOME": str(home),
        "TAILOR_TASK_LEASE_SECONDS": str(LEASE_SECONDS),
        "TAILOR_HEARTBEAT_SECONDS": "0.5",
        "OMP_NUM_THREADS": "1",
    }
    with (home / f"{words[0]}.log").open("ab") as log:
        command = [sys.executable, "-m", "service.cli", *words]
        return subprocess.Popen(command, env=environment, stderr=log, **options)


class Service:
    """`tailor api` on one port, which may die and come back."""

    def __init__(self, home: Path) -> None:
        self.home = home
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = str(free.getsockname()[1])
        self.told: dict[str, str] = {}
        self.start()

    def start(self) -> None:
        self._process = start(
            self.home, "api", "--port", self._port, stdout=subprocess.PIPE, text=True
        )
        for line in self._process.stdout:  # ends when the API dies
            name, _, value = line.strip().partition("=")
            self.told[name] = value
            if name == "TAILOR_READY":
                return
        raise AssertionError((self.home / "api.log").read_text())

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


class RealAgent:
    """A device agent: its state, and the process that lives in it from time to time."""

    def __init__(self, installation, url: str, state: Path, batch: int) -> None:
        self._home, self.state = installation.settings.home, state
        enrolling = start(
            *(self._home, "agent", "enrol", installation.code(), "--url", url, "--name", "real"),
            *("--batch", str(batch), "--state", str(state), "--json"),
            stdout=subprocess.PIPE,
        )
        told = json.loads(enrolling.communicate()[0])
        self.id, self.target_id = told["agent"], told["target"]

    def start(self) -> psutil.Process:
        started = start(self._home, "agent", "run", "--state", str(self.state))
        self._started = started
        return psutil.Process(started.pid)

    def kill(self) -> None:
        assert self._started.poll() is None, "the agent has ended by itself"
        self._started.kill()
        self._started.wait()

    @contextmanager
    def running(self) -> Iterator[None]:
        """The agent runs until the block ends; then it is asked to leave, and must."""
        self.start()
        try:
            yield
            self._started.terminate()
            status = self._started.wait(PATIENCE["seconds"])
            assert status in (0, -signal.SIGTERM)  # the latter while it was still starting
        finally:
            if self._started.poll() is None:
                self.kill()

    def journalled(self) -> int:
        """How many results lie in its journal."""
        found = 0
        for path in (self.state / "journal").glob("*.json"):
            with suppress(FileNotFoundError):
                found += len(json.loads(path.read_text())["items"])
        return found


class Proxy:
    """A TCP proxy in front of `port`; while it is cut, every connection is broken at once."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._cut = threading.Event()
        self._stop = threading.Event()
        self.refused = 0
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def cut(self) -> None:
        self._cut.set()

    def restore(self) -> None:
        self._cut.clear()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._stop.is_set():
                for key, _ in selector.select(0.05):
                    if key.fileobj is self._listener:
                        self._accept(selector)
                    elif key.fileobj.fileno() >= 0:
                        self._pass_on(selector, key.fileobj, key.data)
                if self._cut.is_set() or self._stop.is_set():
                    self._break_all(selector)

    def _accept(self, selector) -> None:
        near, _ = self._listener.accept()
        if self._cut.is_set():
            self.refused += 1
            return near.close()
        try:
            far = socket.create_connection(self._target)
        except OSError:  # the API is being restarted
            return near.close()
        selector.register(near, selectors.EVENT_READ, far)
        selector.register(far, selectors.EVENT_READ, near)
        return None

    def _pass_on(self, selector, source: socket.socket, sink: socket.socket) -> None:
        try:
            data = source.recv(1 << 16)
            if data:
                return sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            selector.unregister(end)
            end.close()
        return None

    def _break_all(self, selector) -> None:
        for key in list(selector.get_map().values()):
            if key.fileobj is not self._listener:
                selector.unregister(key.fileobj)
                key.fileobj.close()


# -- an installation -------------------------------------------------------------------


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    running = Service(tmp_path_factory.mktemp("installation"))
    yield running
    running.kill()


@pytest.fixture(scope="module")
def installation(service, connect):
    """The running API as a client sees it, and its store."""
    settings = Settings(home=service.home, task_lease_seconds=LEASE_SECONDS)
    client = connect(settings, service.told["TAILOR_URL"], service.told["TAILOR_API_KEY"])
    yield client
    client.close()


@pytest.fixture
def proxy(installation):
    made = Proxy(int(installation.url.rsplit(":", 1)[1]))
    yield made
    made.close()


@pytest.fixture
def new_agent(installation, tmp_path):
    """`new_agent(url)`: an enrolled agent whose target has a short kit waiting.

    Each test has a batch of its own, so a target of its own.
    """

    def make(url: str, batch: int) -> RealAgent:
        agent = RealAgent(installation, url, tmp_path / "state", batch)
        shorten(installation, ask_for_kit(installation, agent.target_id))
        return agent

    return make


def ask_for_kit(installation, target_id: str) -> dict:
    answer = installation.http.post("/v1/kits", json={"target": target_id})
    assert answer.status_code == 201, answer.text
    return answer.json()


def shorten(installation, kit: dict) -> None:
    """Leave `N_TASKS` of what a kit needs, of every role some."""
    with installation.database.transaction() as session:
        found = session.scalars(select(KitItem.task_id).where(KitItem.kit_id == kit["id"])).all()
        step = len(found) / N_TASKS
        kept = {found[int(n * step)] for n in range(N_TASKS)}
        surplus = [task_id for task_id in found if task_id not in kept]
        session.execute(delete(KitItem).where(KitItem.task_id.in_(surplus)))
        session.execute(delete(MeasurementTask).where(MeasurementTask.id.in_(surplus)))


def ended(installation, target_id: str) -> int:
    """How many tasks of the target's kit have ended."""
    with installation.database.reading() as session:
        of_kit = (
            select(func.count())
            .select_from(MeasurementTask)
            .where(
                MeasurementTask.target_id == target_id,
                MeasurementTask.purpose == "kit",
                MeasurementTask.status.in_(("done", "failed")),
            )
        )
        return session.scalar(of_kit) or 0


def wait_until_measured(installation, agent: RealAgent, eventually) -> None:
    eventually(
        lambda: ended(installation, agent.target_id) == N_TASKS,
        f"the kit is not measured; {agent_log(installation)[-1500:]}",
        **PATIENCE,
    )


def agent_log(installation) -> str:
    path = installation.settings.home / "agent.log"
    return path.read_text() if path.exists() else ""


def assert_exactly_once(installation, target_id: str) -> None:
    """Every task has one measurement, and no result was taken in twice."""
    with installation.database.reading() as session:
        tasks = session.scalars(
            select(MeasurementTask).where(
                MeasurementTask.target_id == target_id, MeasurementTask.purpose == "kit"
            )
        ).all()
        rows = Counter(
            session.scalars(
                select(Measurement.task_id).where(Measurement.target_id == target_id)
            ).all()
        )
        accepted = Counter(
            item["task_id"]
            for report in session.scalars(select(UploadedBatch.report))
            for item in report["items"]
            if item["accepted"]
        )
        (kit_id,) = session.scalars(select(Kit.id).where(Kit.target_id == target_id))
    assert len(tasks) == N_TASKS
    # on a device that is never quiet a task may end without a number, and says so
    noisy = {task.id for task in tasks if task.status == "failed"}
    assert all(task.failure["code"] == "too_noisy" for task in tasks if task.id in noisy)
    assert {task.status for task in tasks if task.id not in noisy} == {"done"}
    assert all(rows[task.id] == (task.id not in noisy) for task in tasks)
    assert all(accepted[task.id] == task.tries for task in tasks)  # more than 1: it was noisy
    status = installation.http.get(f"/v1/kits/{kit_id}").json()["status"]
    assert status == ("incomplete" if noisy else "measured")


# -- agents that die, networks that are cut, an API that is restarted ------------------


def test_an_agent_killed_at_five_random_moments_measures_every_task_once(
    installation, new_agent, eventually
):
    agent = new_agent(installation.url, batch=1)
    for _ in range(5):  # while it starts, leases, downloads, measures, journals or uploads
        agent.start()
        time.sleep(random.uniform(1.0, 7.0))
        agent.kill()
    with agent.running():
        wait_until_measured(installation, agent, eventually)
    assert_exactly_once(installation, agent.target_id)
    assert agent.journalled() == 0


def test_a_network_cut_for_half_of_a_sweep_loses_nothing(
    installation, new_agent, proxy, eventually
):
    agent = new_agent(proxy.url, batch=2)
    with agent.running():
        eventually(lambda: agent.journalled() >= QUARTER, "nothing is measured", **PATIENCE)
        proxy.cut()
        said = agent_log(installation).count("out of reach")
        eventually(
            lambda: agent_log(installation).count("out of reach") > said,
            "the agent has not noticed",
            **PATIENCE,
        )
        assert proxy.refused > 1  # it tried again and again
        assert agent.journalled() >= QUARTER
        assert ended(installation, agent.target_id) == 0  # nothing has arrived
        proxy.restore()
        wait_until_measured(installation, agent, eventually)
    assert_exactly_once(installation, agent.target_id)
    assert agent.journalled() == 0


def test_an_api_that_is_killed_in_the_middle_loses_nothing(
    service, installation, new_agent, eventually
):
    agent = new_agent(installation.url, batch=3)
    with agent.running():
        eventually(lambda: agent.journalled() >= QUARTER, "nothing is measured", **PATIENCE)
        service.kill()
        time.sleep(1.0)  # the agent goes on, or finds that nobody is there
        service.start()
        wait_until_measured(installation, agent, eventually)
    assert_exactly_once(installation, agent.target_id)
    assert agent.journalled() == 0


# -- uploads that arrive twice, in another order, or in part ---------------------------


@pytest.fixture
def device(installation):
    """An agent that speaks HTTP itself, and whose target has a short kit."""
    made = installation.enrol_new_target()
    shorten(installation, ask_for_kit(installation, made.target_id))
    return made


def packed(batch_id: str, items: list[dict]) -> bytes:
    return gzip.compress(json.dumps({"batch_id": batch_id, "items": items}).encode(), mtime=0)


def send(device, body: bytes):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    return device.http.post("/v1/measurements", content=body, headers=headers)


def results(device) -> list[dict]:
    return [device.result(task) for task in device.lease()]


def test_an_upload_cut_short_stores_nothing_and_the_whole_one_everything(installation, device):
    items = results(device)
    body = packed("a" * 32, items)
    for kept in (0, 1, 10, len(body) // 2, len(body) - 8, len(body) - 1):
        answer = send(device, body[:kept])
        assert 400 <= answer.status_code < 500, answer.text
        assert answer.headers["Content-Type"] == "application/problem+json"
    assert ended(installation, device.target_id) == 0
    report = send(device, body).json()
    assert [item["accepted"] for item in report["items"]] == [True] * N_TASKS
    assert_exactly_once(installation, device.target_id)


def test_an_upload_whose_connection_breaks_stores_nothing(installation, device, eventually):
    items = results(device)
    body = packed("a" * 32, items)
    host, port = installation.url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/measurements HTTP/1.1\r\nHost: {host}\r\n"
        f"Authorization: Bearer {device.token}\r\n"
        "Content-Type: application/json\r\nContent-Encoding: gzip\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    for kept in (0, len(body) // 2, len(body) - 1):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head + body[:kept])
    assert ended(installation, device.target_id) == 0
    assert send(device, body).status_code == 200
    assert_exactly_once(installation, device.target_id)


def test_the_same_batch_many_times_at_once_is_stored_once(installation, device):
    body = packed("a" * 32, results(device))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: send(device, body), range(16)))
    assert {answer.status_code for answer in answers} == {200}
    (report,) = {answer.text for answer in answers}
    assert [item["accepted"] for item in json.loads(report)["items"]] == [True] * N_TASKS
    assert_exactly_once(installation, device.target_id)


def test_overlapping_batches_in_reverse_order_store_each_result_once(installation, device):
    """As a journal whose batches grew while they were sent, and arrive last first."""
    items = results(device)
    batches = [packed(f"batch-{n:04}", items[n : n + 4]) for n in range(0, N_TASKS - 2, 2)]
    reports = [send(device, body).json()["items"] for body in reversed(batches)]
    again = [send(device, body).json()["items"] for body in batches]
    assert again == reports[::-1]
    accepted = Counter(i["task_id"] for report in reports for i in report if i["accepted"])
    assert accepted == {item["task_id"]: 1 for item in items}
    refused = {i["reason"] for report in reports for i in report if not i["accepted"]}
    assert refused == {"stale_lease"}
    assert_exactly_once(installation, device.target_id)


# -- leases that have passed to another ------------------------------------------------


def test_a_stale_lease_is_refused_and_stores_nothing(installation, device, tmp_path):
    """The first agent comes back from days offline; its tasks are another's by then."""
    late = device.lease()
    with installation.database.transaction() as session:  # its lease runs out
        session.execute(
            update(MeasurementTask)
            .where(MeasurementTask.agent_id == device.agent_id)
            .values(lease_expires_at=utc_now() - timedelta(seconds=1))
        )
    other = installation.enrol(device_model=device_model(installation, device))
    assert other.target_id == device.target_id
    taken = other.lease()
    assert {task["id"] for task in taken} == {task["id"] for task in late}

    def come_back(batch_id: str) -> list[str]:
        """The real agent finds the batch in its journal and uploads it; what it says."""
        journal = Journal(tmp_path)
        journal.add(JournalEntry(batch_id, [device.result(task, 9.0) for task in late]))
        connection, said = Connection(installation.url, device.token), []
        Agent(connection, journal, {}, say=said.append).run(lambda: True)
        connection.close()
        assert journal.pending() == []
        return said

    refusals = [f"{task['id']}: not accepted: stale_lease" for task in late]
    assert come_back("a" * 32) == refusals  # while the other one measures
    assert ended(installation, device.target_id) == 0
    assert all(i["accepted"] for i in other.report(*(other.result(t, 1.0) for t in taken)))
    assert come_back("b" * 32) == refusals  # and after it
    assert_exactly_once(installation, device.target_id)
    assert latencies(installation, device) == {1.0}


def device_model(installation, device) -> str:
    return installation.http.get(f"/v1/targets/{device.target_id}").json()["profile"][
        "device_model"
    ]


def latencies(installation, device) -> set[float]:
    with installation.database.reading() as session:
        found = select(Measurement.latency_ms).where(Measurement.target_id == device.target_id)
        return set(session.scalars(found).all())


def test_what_a_killed_agent_held_is_free_when_its_lease_ends(installation, device, eventually):
    """Its next life beats, and must not keep alive what it knows nothing of."""
    held = device.lease()
    connection = Connection(installation.url, device.token)
    agent = Agent(connection, Journal(installation.settings.home / "new life"), {}, say=str)
    leased: list[str] = []

    def work() -> bool:
        leased.extend(task["id"] for task in device.lease())
        return bool(leased)

    with agent._heartbeats():
        eventually(work, "its own tasks never come back", 4 * LEASE_SECONDS, 0.2)
    connection.close()
    assert set(leased) == {task["id"] for task in held}
