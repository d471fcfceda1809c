"""An Android phone, driven over adb from the host that the agent runs on.

The user brings ONNX Runtime's own `onnxruntime_perf_test` for Android. It goes to the phone
once, each model under its sha256; a look at a model is one run of it, pinned to some cores,
that writes what each call took. Nothing has to be installed on the phone.
"""

import hashlib
import re
import shlex
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predictor.agent.runtimes.base import Calls, RuntimeSpec
from predictor.errors import DeviceLostError, RuntimeFailedError
from predictor.measurements import TargetProfile

FOLDER = "/data/local/tmp/tailor"
"""The one place of a phone where a shell may write and execute."""

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}

_KEPT_MODELS = 2  # the anchor and the model beside it
_WARM_UP = 10  # calls at the start of each process that do not count
_CALL_SECONDS = 60.0  # for a command that only asks or copies
_STATUS = "tailor-status:"
_BATTERY = {"2": "Charging", "3": "Discharging", "4": "Not charging", "5": "Full"}
_LOST = re.compile(
    r"device offline|no devices/emulators found|device '.*' not found|error: closed",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class AdbOptions:
    """`RuntimeSpec.options` of this runtime.

    Attributes:
        runner: `onnxruntime_perf_test` as built for the phone, on this host.
        library: `libonnxruntime.so` if the runner does not have it inside.
        adb: the program to call.
        serial: which phone; may be left out where only one is connected.
        cpu_mask: the cores to run on, as taskset takes them, hexadecimal.
        provider: a key of `PROVIDERS`.
        cpu_fallback: let operators that the provider does not take run on the CPU; another
            target than one that runs by the provider alone.
        run_seconds: longest that one run on the phone may take.
        wait_seconds: how long a phone that went away is waited for.
    """

    runner: str
    library: str | None = None
    adb: str = "adb"
    serial: str | None = None
    cpu_mask: str | None = None
    provider: str = "cpu"
    cpu_fallback: bool = False
    run_seconds: float = 60.0
    wait_seconds: float = 20.0

    def __post_init__(self) -> None:
        if self.serial is not None and not re.fullmatch(r"[\w.:\[\]%][\w.:\[\]%-]*", self.serial):
            raise ValueError(f"serial {self.serial!r} is none that adb lists")
        if self.cpu_mask is not None and (
            not re.fullmatch(r"[0-9a-fA-F]{1,16}", self.cpu_mask) or not int(self.cpu_mask, 16)
        ):
            raise ValueError(f"cpu_mask {self.cpu_mask!r} is no hexadecimal mask like f0")
        if self.provider not in PROVIDERS:
            raise ValueError(f"provider {self.provider!r} is none of {', '.join(PROVIDERS)}")
        if self.cpu_fallback not in (True, False):
            raise ValueError("cpu_fallback is neither true nor false")
        if not (0.0 < self.run_seconds < 3600.0 and 0.0 < self.wait_seconds < 3600.0):
            raise ValueError("run_seconds and wait_seconds are more than 0 and less than 3600")
        for name in filter(None, (self.runner, self.library)):
            if not Path(name).is_file():
                raise ValueError(f"there is no file {name}")

    @classmethod
    def read(cls, given: dict[str, Any]) -> "AdbOptions":
        """Options as the command line gives them, texts, or as their own types.

        Raises:
            ValueError, TypeError: an option is unknown, missing, or makes no sense.
        """
        read = dict(given)
        for name in {"run_seconds", "wait_seconds"} & set(given):
            read[name] = float(given[name])
        if "cpu_fallback" in given:
            words = {"true": True, "false": False}
            read["cpu_fallback"] = words.get(str(given["cpu_fallback"]).lower())
        return cls(**read)

    @property
    def execution_provider(self) -> str:
        """What a target is told to run by."""
        name = PROVIDERS[self.provider]
        mixed = self.cpu_fallback and self.provider != "cpu"
        return f"{name}+{PROVIDERS['cpu']}" if mixed else name


class Adb:
    """Measures on a phone; the models it leaves there are at most two."""

    slice_seconds = 0.5  # starting the runner takes a good part of a second
    one_child_per_task = False  # the phone has a process a look; this one only waits

    def __init__(self, spec: RuntimeSpec) -> None:
        self._spec = spec
        try:
            self._options = AdbOptions.read(spec.options)
        except (TypeError, ValueError) as error:
            raise RuntimeFailedError(f"options of the adb runtime: {error}") from error
        self._phone = Phone(self._options)
        self._phone.check()
        self._models: list[str] = []  # on the phone, latest use last
        self._profile: TargetProfile | None = None
        self._push_runner()

    def profile(self) -> TargetProfile:
        """The target that the phone is when it measures with this runner on these cores."""
        if self._profile is None:
            phone = self._phone
            soc = phone.prop("ro.soc.model") or phone.prop("ro.board.platform")
            model = f"{phone.prop('ro.product.manufacturer')} {phone.prop('ro.product.model')}"
            pinned = f", cores {self._options.cpu_mask}" if self._options.cpu_mask else ""
            release = phone.prop("ro.build.version.release")
            kernel = phone.shell("uname -r")
            self._profile = TargetProfile(
                device_model=f"{model.strip()} ({soc}){pinned}",
                machine=phone.shell("uname -m"),
                system=f"Android {release}, Linux {kernel}",
                runtime="onnxruntime_perf_test",
                runtime_version=self._runner_version(),
                execution_provider=self._options.execution_provider,
                threads=self._spec.threads,
                precision=self._spec.precision,
                batch=self._spec.batch,
                clock_state=self._clock_state(),
            )
        return self._profile

    def facts(self) -> dict[str, Any]:
        """Battery, temperatures and clocks of the phone now, as far as it tells them."""
        facts = _battery(self._phone.shell("dumpsys battery || true"))
        zones = self._phone.shell("cat /sys/class/thermal/thermal_zone*/temp 2>/dev/null || true")
        heats = [int(text) / 1000 for text in zones.split() if text.lstrip("-").isdigit()]
        believable = [heat for heat in heats if 0.0 < heat < 150.0]  # some zones are no sensors
        if believable:
            facts["hottest_zone_c"] = max(believable)
        clocks = self._cpufreq("scaling_cur_freq")
        if clocks and all(clock.isdigit() for clock in clocks):
            facts["clock_mhz"] = max(int(clock) for clock in clocks) // 1000
        return facts

    def load(self, model: bytes) -> "AdbModel":
        """Bring `model` to the phone and run it once.

        Raises:
            RuntimeFailedError: the phone cannot be reached or is full, or the runner refuses
                the file.
        """
        digest = hashlib.sha256(model).hexdigest()
        if digest in self._models:
            self._models.remove(digest)
        else:
            self._phone.push(model, _model_path(digest))
        self._models.append(digest)
        while len(self._models) > _KEPT_MODELS:
            self._phone.shell(f"rm -rf {FOLDER}/{self._models.pop(0)}")
        return AdbModel(self._phone, _model_path(digest), self._spec.threads)

    def close(self) -> None:
        """Leave nothing on the phone.

        Raises:
            RuntimeFailedError: the phone cannot be reached.
        """
        self._phone.shell(f"rm -rf {FOLDER}")
        self._models.clear()

    def _push_runner(self) -> None:
        self._phone.shell(f"rm -rf {FOLDER} && mkdir -p {FOLDER}")  # an earlier agent's as well
        self._phone.push(Path(self._options.runner).read_bytes(), f"{FOLDER}/runner")
        self._phone.shell(f"chmod 755 {FOLDER}/runner")
        if self._options.library:
            library = Path(self._options.library).read_bytes()
            self._phone.push(library, f"{FOLDER}/libonnxruntime.so")

    def _runner_version(self) -> str:
        """The version that the library's symbols bear, else the runner's hash."""
        runner = Path(self._options.runner).read_bytes()
        library = Path(self._options.library).read_bytes() if self._options.library else b""
        if found := re.search(rb"VERS_(\d+\.\d+\.\d+)", library + runner):
            return found[1].decode()
        return f"sha256:{hashlib.sha256(runner + library).hexdigest()[:16]}"

    def _clock_state(self) -> str:
        rules = [self._cpufreq(f"scaling_{what}") for what in ("governor", "min_freq", "max_freq")]
        if not all(rules) or len({len(rule) for rule in rules}) > 1:
            return "unmanaged"
        states = {
            f"governor {governor}, {int(low) // 1000} to {int(high) // 1000} MHz"
            for governor, low, high in zip(*rules, strict=True)
        }
        return "; ".join(sorted(states))

    def _cpufreq(self, name: str) -> list[str]:
        """One value for each core to run on; fewer where the phone does not tell."""
        cores = ["[0-9]*"]
        if self._options.cpu_mask:
            mask = int(self._options.cpu_mask, 16)
            cores = [str(core) for core in range(mask.bit_length()) if mask >> core & 1]
        paths = " ".join(f"/sys/devices/system/cpu/cpu{core}/cpufreq/{name}" for core in cores)
        return self._phone.shell(f"cat {paths} 2>/dev/null || true").split()


class AdbModel:
    """A model file on the phone."""

    def __init__(self, phone: "Phone", path: str, threads: int) -> None:
        self._phone, self._path, self._threads = phone, path, threads
        self.provider = phone.options.execution_provider  # or the runner refuses
        self.time_calls(1)

    def time_calls(self, n: int) -> Calls:
        """Run the model `n` times in a row, in one process on the phone, after a warm-up.

        Raises:
            RuntimeFailedError: the runner refused, crashed, or took too long, what it wrote
                cannot be read, or the phone went away.
        """
        options = self._phone.options
        # flags as in onnxruntime/test/perftest/command_args_parser.cc: -I draws the input, by the
        # seed -S, because memory left as it was may hold denormals; -D keeps threads from spinning
        flags = [
            "-I",
            "-S",
            "0",
            "-D",
            "-m",
            "times",
            "-r",
            str(n + _WARM_UP),
            "-o",
            "99",
            "-y",
            "1",
        ]
        flags += ["-x", str(self._threads), "-e", options.provider]
        if options.provider != "cpu" and not options.cpu_fallback:
            flags += ["-C", "session.disable_cpu_ep_fallback|1"]
        pin = ["taskset", options.cpu_mask] if options.cpu_mask else []
        command = shlex.join([*pin, "./runner", *flags, self._path, "result.csv"])
        limit = max(1, round(options.run_seconds))
        started = time.monotonic()
        output = self._phone.shell(
            f"cd {FOLDER} && rm -f result.csv; LD_LIBRARY_PATH=. timeout -s KILL {limit} {command} "
            f">log.txt 2>&1; echo {_STATUS}$?; tail -c 2000 log.txt; echo; echo {_STATUS}; "
            "cat result.csv 2>/dev/null || true",
            seconds=options.run_seconds + _CALL_SECONDS,
        )
        status, _, rest = output.removeprefix(_STATUS).partition("\n")
        log, _, rows = rest.rpartition(_STATUS)
        if status != "0":
            raise _runner_failure(status, _last(log), time.monotonic() - started >= limit)
        return Calls(_read_times(rows, n + _WARM_UP)[_WARM_UP:])


class Phone:
    """One phone behind adb."""

    def __init__(self, options: AdbOptions) -> None:
        self.options = options

    def check(self) -> None:
        """Make sure that the phone is there and lets this host in.

        Raises:
            RuntimeFailedError: it is not, or adb is not.
        """
        state = self._adb("get-state").strip()
        if state != "device":
            raise RuntimeFailedError(f"adb says that the phone is in state {state!r}, not 'device'")

    def prop(self, name: str) -> str:
        """A system property; empty where the phone has none of that name."""
        return self.shell(f"getprop {shlex.quote(name)}")

    def shell(self, script: str, seconds: float = _CALL_SECONDS) -> str:
        """What `script` prints on the phone, without white space around it.

        Raises:
            RuntimeFailedError: it failed, took more than `seconds`, or the phone is gone.
        """
        # the status of a script does not get through adb before Android 7
        output = self._adb("shell", f"({script}); echo {_STATUS}end:$?", seconds=seconds)
        text, mark, status = output.rpartition(f"{_STATUS}end:")
        if not mark or not status.strip().isdigit():
            raise RuntimeFailedError(f"the phone broke off: {_last(output)}", "crashed")
        if int(status):
            raise RuntimeFailedError(f"on the phone, {script!r} failed: {_last(text)}")
        return text.strip().replace("\r", "")

    def push(self, content: bytes, path: str) -> None:
        """Write `content` to `path` on the phone, its folder included.

        Raises:
            RuntimeFailedError: the phone is full or gone.
        """
        folder = path.rpartition("/")[0]
        self.shell(f"mkdir -p {shlex.quote(folder)}")
        with tempfile.TemporaryDirectory(prefix="tailor-adb-") as here:
            local = Path(here) / "file"
            local.write_bytes(content)
            try:
                self._adb("push", str(local), path)
            except RuntimeFailedError as error:
                if "No space left" in str(error):
                    raise RuntimeFailedError(
                        f"the phone's storage is full: {error}", "out_of_memory"
                    ) from error
                raise
        size = self.shell(f"wc -c < {shlex.quote(path)}")
        if size != str(len(content)):
            raise RuntimeFailedError(f"{path} has {size} of {len(content)} bytes on the phone")

    def _adb(self, *arguments: str, seconds: float = _CALL_SECONDS) -> str:
        """What adb prints; a phone that went away is waited for once."""
        try:
            return self._once(*arguments, seconds=seconds)
        except DeviceLostError as lost:
            try:
                self._once("wait-for-device", seconds=self.options.wait_seconds)
            except RuntimeFailedError:
                raise lost from None
            return self._once(*arguments, seconds=seconds)

    def _once(self, *arguments: str, seconds: float) -> str:
        serial = ["-s", self.options.serial] if self.options.serial else []
        command = [self.options.adb, *serial, *arguments]
        try:
            done = subprocess.run(
                command,
                check=False,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeFailedError(
                f"adb {arguments[0]} did not end within {seconds:g} s", "hung"
            ) from error
        except OSError as error:
            raise RuntimeFailedError(
                f"adb cannot be started: {error}; install Android's platform tools"
            ) from error
        if done.returncode:
            told = _last(f"{done.stdout}\n{done.stderr}")
            if _LOST.search(told):
                raise DeviceLostError(f"the phone is not there: {told}")
            raise RuntimeFailedError(f"adb {arguments[0]} failed: {told}")
        return done.stdout


def _model_path(digest: str) -> str:
    return f"{FOLDER}/{digest}/model.onnx"


def _last(text: str, size: int = 300) -> str:
    return " ".join(text.split())[-size:] or "without a word"


def _runner_failure(status: str, log: str, out_of_time: bool) -> RuntimeFailedError:
    """Why the runner ended with `status` of the phone's shell."""
    code = int(status) if status.isdigit() else -1
    if code == 124 or (code == 128 + signal.SIGKILL and out_of_time):
        return RuntimeFailedError("the runner did not end in time and was ended", "hung")
    if "fallback to CPU EP has been explicitly disabled" in log or "not supported in this" in log:
        return RuntimeFailedError(f"the runner did not use the provider: {log}", "wrong_provider")
    if "bad_alloc" in log:
        return RuntimeFailedError(f"the phone has not the memory: {log}", "out_of_memory")
    if code - 128 in {int(number) for number in signal.Signals}:
        name = signal.Signals(code - 128).name
        hint = "; the phone may have run out of memory" if name == "SIGKILL" else ""
        return RuntimeFailedError(f"the runner died by {name}{hint}: {log}", "crashed")
    return RuntimeFailedError(f"the runner ended with status {status}: {log}")


def _read_times(rows: str, n: int) -> list[int]:
    """Nanoseconds of `n` calls, from the file that the runner writes (performance_result.h).

    A line a call: name of the model's folder, seconds, memory, processor use, number.
    """
    times: list[int] = []
    for row in rows.split():
        cells = row.split(",")
        if len(cells) == 5 and cells[4] == str(len(times)):
            try:
                times.append(round(float(cells[1]) * 1e9))
            except (ValueError, OverflowError):
                break
    if len(times) != n or min(times) <= 0:
        raise RuntimeFailedError(
            f"the runner's result cannot be read: {len(times)} of {n} times in {rows[:200]!r}",
            "crashed",
        )
    return times


def _battery(dump: str) -> dict[str, Any]:
    """Charge, power and temperature from `dumpsys battery`."""
    told = {
        name.strip(): value.strip()
        for name, _, value in (line.partition(":") for line in dump.splitlines())
    }
    facts: dict[str, Any] = {}
    if told.get("level", "").isdigit():
        facts["battery_percent"] = int(told["level"])
    if told.get("status") in _BATTERY:
        facts["battery"] = _BATTERY[told["status"]]
    if told.get("temperature", "").isdigit():
        facts["temperature_c"] = int(told["temperature"]) / 10
    return facts
