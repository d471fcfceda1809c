"""What chaos breaks really breaks, and is whole again afterwards."""

import shutil
import socket
import socketserver
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import psutil
import pytest

from benchmarks.chaos_faults import draw_plan, faults_of
from benchmarks.chaos_parts import Clock, Disk, Log, Network, Part, Supervisor

SECONDS = 10.0
SILENCE = 0.2


# -- the network -----------------------------------------------------------------------


class Echo(socketserver.BaseRequestHandler):
    """Answers every message with itself."""

    def handle(self) -> None:
        while data := self.request.recv(100):
            self.server.heard.append(data)
            self.request.sendall(data)


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:  # resets are what is tested
        pass


@pytest.fixture
def server():
    with EchoServer(("127.0.0.1", 0), Echo) as made:
        made.heard = []
        thread = threading.Thread(target=made.serve_forever, args=(0.02,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def link(server):
    network = Network()
    yield network.link("client>server", server.server_address[1])
    network.close()


@pytest.fixture
def connection(link):
    with socket.create_connection(("127.0.0.1", link.port), timeout=SECONDS) as made:
        made.sendall(b"before")
        assert made.recv(100) == b"before"
        yield made


def silent(connection) -> bool:
    connection.settimeout(SILENCE)
    try:
        connection.recv(100)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(SECONDS)
    return False


def is_reset(connection) -> bool:
    try:
        return connection.recv(100) == b""
    except ConnectionResetError:
        return True


def test_a_link_that_is_cut_resets_and_refuses(link, connection):
    link.set("cut")
    assert is_reset(connection)
    with (
        suppress(ConnectionResetError),
        socket.create_connection(("127.0.0.1", link.port), timeout=SECONDS) as late,
    ):
        assert is_reset(late)
    link.set("pass")
    with socket.create_connection(("127.0.0.1", link.port), timeout=SECONDS) as again:
        again.sendall(b"again")
        assert again.recv(100) == b"again"


def test_a_link_that_stalls_delivers_later(link, connection, server):
    link.set("stall")
    connection.sendall(b"held")
    assert silent(connection)
    assert server.heard == [b"before"]
    link.set("pass")
    assert connection.recv(100) == b"held"


def test_a_half_open_link_passes_what_is_asked_and_stays_silent(
    link, connection, server, eventually
):
    link.set("half_open")
    connection.sendall(b"asked")
    eventually(lambda: b"asked" in server.heard, "nothing arrived")
    assert silent(connection)
    link.set("pass")
    assert is_reset(connection)


def test_a_link_that_loses_answers_resets_after_the_server_has_acted(link, connection, server):
    link.set("lose_answers")
    connection.sendall(b"asked")
    assert is_reset(connection)
    assert b"asked" in server.heard


# -- processes -------------------------------------------------------------------------


@pytest.fixture
def supervisor(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    made = Supervisor(log)
    yield made
    made.close()
    log.close()


def test_a_part_that_is_killed_comes_back(supervisor, tmp_path, eventually):
    part = supervisor.add(Part("sleeper", ["sleep", "60"], {}, tmp_path))
    part.start()
    pid = part.kill()
    assert not psutil.pid_exists(pid)
    eventually(lambda: part.pid not in (None, pid), "it does not come back")
    assert (part.starts, part.deaths_of_its_own) == (2, 0)


def test_a_part_that_leaves_by_itself_comes_back_and_is_counted(supervisor, tmp_path, eventually):
    part = supervisor.add(Part("quitter", ["false"], {}, tmp_path))
    part.start()
    eventually(lambda: part.starts > 1, "it does not come back")
    assert part.deaths_of_its_own >= 1
    assert (
        '"left by itself", "part": "quitter", "status": 1' in (tmp_path / "log.jsonl").read_text()
    )


# -- clocks and disks ------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("cc") is None, reason="the clock is preloaded, and built with cc")
def test_a_process_follows_its_clock_and_sleeps_on_undisturbed(tmp_path):
    clock = Clock(tmp_path, "host")
    script = (
        "import sys, time, datetime\n"
        "for line in sys.stdin:\n"
        "    began = time.monotonic(); time.sleep(0.01); slept = time.monotonic() - began\n"
        "    print(datetime.datetime.now(datetime.UTC).isoformat(), slept, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=clock.environment,
    ) as process:
        for step_seconds in (0.0, 3600.0, -300.0):
            clock.step(step_seconds)
            process.stdin.write("now\n")
            process.stdin.flush()
            told, slept = process.stdout.readline().split()
            off = datetime.fromisoformat(told) - datetime.now(UTC)
            assert abs(off - timedelta(seconds=step_seconds)) < timedelta(seconds=SECONDS)
            assert 0.0 < float(slept) < SECONDS
        process.stdin.close()


@pytest.fixture
def writer(tmp_path):
    """A process that writes a file on the disk when told to, and says how that went."""
    script = (
        "import os, sys\n"
        "for line in sys.stdin:\n"
        "    try:\n"
        "        with open(line.strip(), 'wb') as file:\n"
        "            file.write(b'x' * 100_000); file.flush(); os.fsync(file.fileno())\n"
        "        print('written', flush=True)\n"
        "    except OSError as error: print(error.strerror, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def disk(tmp_path, writer):
    made = Disk(tmp_path / "disk", 16 * 2**20, lambda: [psutil.Process(writer.pid)])
    yield made
    made.close()


def ask(writer, path) -> None:
    writer.stdin.write(f"{path}\n")
    writer.stdin.flush()


def test_a_full_disk_refuses_and_takes_again_when_it_has_room(disk, writer):
    disk.fill()
    ask(writer, disk.folder / "refused")
    assert writer.stdout.readline().strip() in ("No space left on device", "File too large")
    disk.free()
    ask(writer, disk.folder / "taken")
    assert writer.stdout.readline().strip() == "written"


def test_a_disk_that_hangs_makes_writers_wait(disk, writer):
    disk.hang()
    ask(writer, disk.folder / "waiting")
    answered = threading.Event()
    lines: list[str] = []

    def listen() -> None:
        lines.append(writer.stdout.readline())
        answered.set()

    thread = threading.Thread(target=listen)
    thread.start()
    assert not answered.wait(SILENCE)
    disk.go_on()
    thread.join(SECONDS)
    assert lines == ["written\n"]


def test_a_disk_leaves_nothing_behind(tmp_path):
    made = Disk(tmp_path / "disk", 16 * 2**20, list)
    (made.folder / "file").write_text("text")
    made.close()
    assert list(tmp_path.iterdir()) == []


# -- plans -----------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_a_plan_follows_from_its_seed_and_has_every_kind(store):
    weights = {kind: weight for kind, (weight, _) in faults_of(store).items()}
    plan = draw_plan(5, 200, store, weights)
    assert plan == draw_plan(5, 200, store, weights)
    assert plan != draw_plan(6, 200, store, weights)
    assert len(plan) == 200
    assert {fault.kind for fault in plan} == set(weights)
    moments = [fault.at_seconds for fault in plan]
    assert moments == sorted(moments)
