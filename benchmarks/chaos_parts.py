"""What chaos breaks: processes, the network between them, the disk below them, their clocks.

Everything here is real where the machine allows it: SIGKILL and SIGSTOP, TCP connections that
are reset or fall silent, an ext4 file system of its own that is filled and frozen, and a wall
clock that processes follow while it is stepped. `Disk.kind` tells what stands in for the file
system where none may be mounted.
"""

import asyncio
import json
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import psutil

_CHUNK = 1 << 16


class Log:
    """What was done and when, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._lock = threading.Lock()
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the log began."""
        return round(time.monotonic() - self._began, 3)

    def write(self, what: str, **facts: Any) -> None:
        """Append one line; it is on the way to the disk when this returns."""
        line = json.dumps({"at_seconds": self.seconds, "what": what, **facts})
        with self._lock:
            if not self._file.closed:
                self._file.write(line + "\n")
                self._file.flush()

    def close(self) -> None:
        """Write no more."""
        with self._lock:
            self._file.close()


# -- processes -------------------------------------------------------------------------


class Part:
    """A process that is started again when it dies, as a service manager does.

    Args:
        user: runs it as this user; None: as we are.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        logs: Path,
        *,
        user: str | None = None,
    ) -> None:
        self.name = name
        self._command = list(command)
        self._environment = dict(environment)
        self._log = logs / f"{name}.log"
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None
        self._not_before = 0.0
        self._lock = threading.RLock()
        self.starts = 0
        self.deaths_of_its_own = 0
        self.down = True

    @property
    def pid(self) -> int | None:
        """Of the running process, else None."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start it, and have it kept running."""
        with self._lock:
            self.down = False
            self._spawn()

    def kill(self, down_seconds: float = 0.0) -> int | None:
        """SIGKILL it; it comes back after that time. The pid it had, if it ran."""
        with self._lock:
            pid = self.pid
            if pid is not None and self._process is not None:
                self._process.kill()
                self._process.wait()
            self._not_before = time.monotonic() + down_seconds
            return pid

    def look_after(self) -> None:
        """Start it again if it has died and its time has come."""
        with self._lock:
            if self.down or self.pid is not None or time.monotonic() < self._not_before:
                return
            self._spawn()

    def note_death(self) -> int | None:
        """Its exit status if it has left by itself since it was last asked, else None."""
        with self._lock:
            process = self._process
            if process is None or process.poll() is None:
                return None
            self._process = None
            self._not_before = max(self._not_before, time.monotonic() + 0.3)
            if process.returncode == -signal.SIGKILL:
                return None
            self.deaths_of_its_own += 1
            return int(process.returncode)

    def stop(self, seconds: float = 20.0) -> None:
        """Ask it to leave for good; kill it when it does not in time."""
        with self._lock:
            self.down = True
            process = self._process
        if process is None or process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
            process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _spawn(self) -> None:
        self.starts += 1
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                user=self._user,
                start_new_session=True,  # a signal to the benchmark's terminal is not for it
            )


class Supervisor:
    """Looks after parts, as a service manager does."""

    def __init__(self, log: Log) -> None:
        self.parts: dict[str, Part] = {}
        self._log = log
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def add(self, part: Part) -> Part:
        """Look after this one, too."""
        self.parts = {**self.parts, part.name: part}
        return part

    def close(self) -> None:
        """Stop every part, the last one first."""
        self._stop.set()
        self._thread.join()
        for part in reversed(self.parts.values()):
            part.stop()

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            for part in self.parts.values():
                if (status := part.note_death()) is not None:
                    self._log.write("left by itself", part=part.name, status=status)
                part.look_after()


def attempts_of(home: Path) -> list[psutil.Process]:
    """The processes of attempts over this home."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "service.attempt" not in process.cmdline():
                continue
            if process.environ().get("TAILOR_HOME") == str(home):
                found.append(process)
    return sorted(found, key=lambda process: process.pid)


def freeze(process: psutil.Process) -> None:
    """Stop the world for a process: what a hung disk, a debugger or a busy host does to it."""
    with suppress(psutil.Error):
        process.suspend()


def thaw(process: psutil.Process) -> None:
    """Let a frozen process go on."""
    with suppress(psutil.Error):
        process.resume()


# -- the network -----------------------------------------------------------------------

Mode = Literal["pass", "cut", "stall", "half_open", "lose_answers"]


class Link:
    """A TCP proxy before one port, whose mode may change at any time.

    ``cut`` resets every connection and refuses new ones; ``stall`` holds what is sent in both
    directions and delivers it later; ``half_open`` passes what is asked and swallows what is
    answered, in silence, and resets the connections when it is over; ``lose_answers`` passes
    what is asked, and resets the connection when the answer comes.
    """

    def __init__(self, name: str, target_port: int, loop: asyncio.AbstractEventLoop) -> None:
        self.name = name
        self._target_port = target_port
        self._loop = loop
        self._mode: Mode = "pass"
        self._passing = asyncio.Event()
        self._open: dict[asyncio.StreamWriter, bool] = {}  # whether an answer was swallowed
        self.port = asyncio.run_coroutine_threadsafe(self._listen(), loop).result()

    @property
    def mode(self) -> Mode:
        """What it does at the moment."""
        return self._mode

    def set(self, mode: Mode) -> None:
        """Do this from now on."""
        done = threading.Event()
        self._loop.call_soon_threadsafe(self._change, mode, done)
        done.wait()

    def stop_listening(self) -> None:
        """Refuse everybody for good; to be called in the loop."""
        self._server.close()

    def _change(self, mode: Mode, done: threading.Event) -> None:
        self._mode = mode
        if mode == "cut":
            self._reset(self._open)
        else:
            self._reset([writer for writer, spoilt in self._open.items() if spoilt])
        if mode == "stall":
            self._passing.clear()
        else:
            self._passing.set()
        done.set()

    def _reset(self, writers: Any) -> None:
        for writer in list(writers):
            _abort(writer)

    async def _listen(self) -> int:
        self._passing.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _accept(self, near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
        if self._mode == "cut":
            return _abort(to_near)
        try:
            far, to_far = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:  # nobody listens there just now
            return _abort(to_near)
        for writer in (to_near, to_far):
            _at_once(writer)
            self._open[writer] = False
        try:
            await asyncio.gather(self._pump(near, to_far), self._pump(far, to_near, answers=True))
        finally:
            for writer in (to_near, to_far):
                self._open.pop(writer, None)
                _abort(writer)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool = False
    ) -> None:
        try:
            while data := await source.read(_CHUNK):
                await self._passing.wait()
                if answers and self._mode == "half_open":
                    self._open[sink] = True
                if answers and (self._open.get(sink) or self._mode == "lose_answers"):
                    if self._mode == "lose_answers":
                        break
                    continue
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        _abort(sink)


class Network:
    """The links of an installation, in a thread of their own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.links: dict[str, Link] = {}

    def link(self, name: str, target_port: int) -> Link:
        """A new link to a port of this machine."""
        made = Link(name, target_port, self._loop)
        self.links[name] = made
        return made

    def close(self) -> None:
        """Break everything for good."""

        async def end_all() -> None:
            for link in self.links.values():
                link.stop_listening()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        for link in self.links.values():
            link.set("cut")
        asyncio.run_coroutine_threadsafe(end_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def _abort(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError, AttributeError):
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
    writer.transport.abort()


def _at_once(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


# -- clocks ----------------------------------------------------------------------------


class Clock:
    """The wall clock of one host, which may be stepped while its processes run.

    Monotonic time is left alone, as on a host whose clock is set. It takes a C compiler; where
    there is none, `library` is None and nothing follows the clock.
    """

    def __init__(self, folder: Path, host: str) -> None:
        self.host = host
        self.path = folder / f"clock-{host}"
        self.path.write_bytes(b"\0" * 8)
        self._library = self.library(folder)

    @staticmethod
    def library(folder: Path) -> Path | None:
        """What processes preload, built in `folder` if it is not there yet."""
        built = folder / "chaos_clock.so"
        source = Path(__file__).with_suffix("").with_name("chaos_clock.c")
        if not built.exists():
            if shutil.which("cc") is None:
                return None
            command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(built), str(source), "-ldl"]
            subprocess.run(command, check=True)
        return built

    @property
    def environment(self) -> dict[str, str]:
        """What a process must be started with to follow this clock."""
        if self._library is None:
            return {}
        return {"LD_PRELOAD": str(self._library), "CHAOS_CLOCK": str(self.path)}

    def step(self, seconds: float) -> None:
        """Let it be wrong by so much from now on."""
        with self.path.open("r+b", buffering=0) as file:
            file.write(struct.pack("=q", round(seconds * 1e9)))


# -- the disk --------------------------------------------------------------------------


class Disk:
    """An ext4 file system of its own in a file, where we may mount one; it can be full or hang.

    Where we may not, a full disk is a limit on the size of the files that processes write
    (RLIMIT_FSIZE: EFBIG instead of ENOSPC), and a slow one is processes that are frozen again
    and again.

    Args:
        folder: where it is to appear.
        writers: the processes whose disk it is.
    """

    def __init__(
        self, folder: Path, n_bytes: int, writers: Callable[[], Sequence[psutil.Process]]
    ) -> None:
        self.folder = folder
        self._writers = writers
        self._image = folder.with_suffix(".ext4")
        self._ballast = folder / "ballast"
        self._limited: list[psutil.Process] = []
        self._frozen: list[psutil.Process] = []
        folder.mkdir(parents=True)
        self._mounted = os.geteuid() == 0 and self._mount(n_bytes)

    @property
    def kind(self) -> str:
        """What stands for the disk."""
        if self._mounted:
            return "ext4 on a loop device: ENOSPC, fsfreeze"
        return "a folder: RLIMIT_FSIZE, SIGSTOP"

    def fill(self) -> None:
        """From now on no byte more can be written."""
        if not self._mounted:
            self._limited = list(self._writers())
            for process in self._limited:
                with suppress(psutil.Error):
                    process.rlimit(psutil.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
            return
        usage = os.statvfs(self.folder)
        with suppress(OSError), self._ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, usage.f_bavail * usage.f_frsize))
        with suppress(OSError), self._ballast.open("ab") as file:  # what was freed meanwhile
            while True:
                file.write(b"\0" * 4096)
                file.flush()

    def free(self) -> None:
        """There is room again."""
        for process in self._limited:
            with suppress(psutil.Error):
                process.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        self._limited = []
        self._ballast.unlink(missing_ok=True)

    def hang(self) -> None:
        """Whoever writes or syncs waits, until `go_on`."""
        if self._mounted:
            subprocess.run(["fsfreeze", "--freeze", str(self.folder)], check=False)
            return
        self._frozen = list(self._writers())
        for process in self._frozen:
            freeze(process)

    def go_on(self) -> None:
        """The disk answers again."""
        if self._mounted:
            subprocess.run(
                ["fsfreeze", "--unfreeze", str(self.folder)], check=False, capture_output=True
            )
        for process in self._frozen:
            thaw(process)
        self._frozen = []

    def close(self) -> None:
        """Give it back; its files are gone."""
        self.go_on()
        self.free()
        if self._mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=False)
            self._image.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _mount(self, n_bytes: int) -> bool:
        with self._image.open("wb") as file:
            file.truncate(n_bytes)
        make = ["mkfs.ext4", "-q", "-m", "0", str(self._image)]
        mount = ["mount", "-o", "loop", str(self._image), str(self.folder)]
        for command in (make, mount):
            if shutil.which(command[0]) is None or subprocess.run(command, check=False).returncode:
                self._image.unlink(missing_ok=True)
                return False
        self.folder.chmod(0o755)
        return True
