"""A phone over adb: a stand-in adb whose phone is a folder, and a runner that really runs.

The stand-in is an executable of its own that answers as adb does. Its shell is this host's,
with the phone's paths led into the folder; `onnxruntime_perf_test` is played by a script that
times an ONNX Runtime session and writes the real tool's result file.
"""

import json
import stat
import sys
from pathlib import Path

import pytest

from predictor.agent.runtimes.adb import FOLDER, Adb
from predictor.agent.runtimes.base import RuntimeSpec
from predictor.errors import RuntimeFailedError
from search_core.onnx_graph import build_model, random_weights
from search_core.space.blocks import BlockSpec

ADB = """#!{python} -IS
import json, os, pathlib, shutil, subprocess, sys

phone = pathlib.Path({phone!r})
arguments = sys.argv[1:]
with open(phone / "calls.jsonl", "a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
if arguments[0] == "-s":
    if arguments[1] != "emulator-5554":
        sys.exit(f"error: device '{{arguments[1]}}' not found")
    arguments = arguments[2:]
state = (phone / "state").read_text()
if arguments[0] == "wait-for-device":
    if (phone / "comes back").exists():
        (phone / "state").write_text("device")
        sys.exit(0)
    sys.exit("error: device offline")
if state != "device":
    sys.exit(f"error: device {{state}}")

def here(text):
    text = text.replace("/data/local/tmp", str(phone / "tmp"))
    return text.replace("/sys/", str(phone / "sys") + "/")

if arguments[0] == "get-state":
    print(state)
elif arguments[0] == "push":
    if (phone / "full").exists():
        sys.exit("adb: error: failed to copy: remote write failed: No space left on device")
    if (phone / "loses bytes").exists():
        pathlib.Path(here(arguments[2])).write_bytes(b"half")
    else:
        shutil.copyfile(arguments[1], here(arguments[2]))
    print("1 file pushed")
elif arguments[0] == "shell":
    if (phone / "goes away").exists() and "./runner" in arguments[1]:
        (phone / "goes away").unlink()
        (phone / "state").write_text("offline")
        sys.exit("error: closed")
    path = str(phone / "bin") + os.pathsep + os.environ["PATH"]
    script = here(" ".join(arguments[1:]))
    subprocess.run(["sh", "-c", script], env={{**os.environ, "PATH": path}})
else:
    sys.exit("adb: unknown command " + arguments[0])
"""

RUNNER = """#!{python}
import argparse, os, pathlib, signal, sys, time

parser = argparse.ArgumentParser(allow_abbrev=False)
for flag in "I", "D":
    parser.add_argument("-" + flag, action="store_true")
for flag in "m", "r", "o", "y", "x", "e", "S", "C":
    parser.add_argument("-" + flag)
parser.add_argument("model")
parser.add_argument("result")
args = parser.parse_args()
assert (args.m, args.o) == ("times", "99"), args
phone = pathlib.Path({phone!r})
how = (phone / "runner does").read_text()
if how == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
if how == "hang":
    time.sleep(600)
if how == "run out of memory":
    print("std::bad_alloc", file=sys.stderr)
    sys.exit(255)
if args.e == "xnnpack":
    print("XNNPACK is not supported in this build", file=sys.stderr)
    sys.exit(255)
(phone / "cores").write_text(str(sorted(os.sched_getaffinity(0))))
model = pathlib.Path(args.model)
if how == "write nonsense":
    pathlib.Path(args.result).write_text("no,numbers,in,this,0\\n" * int(args.r))
    sys.exit(0)
import numpy, onnxruntime
try:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
except Exception as error:
    print(error, file=sys.stderr)
    sys.exit(255)
rng = numpy.random.default_rng(int(args.S))
feeds = {{i.name: rng.random(i.shape, numpy.float32) for i in session.get_inputs()}}
session.run(None, feeds)
times = []
for _ in range(int(args.r)):
    start = time.perf_counter()
    session.run(None, feeds)
    times.append(time.perf_counter() - start)
if how == "lose half":
    times = times[: len(times) // 2]
with open(args.result, "a") as out:
    for number, seconds in enumerate(times):
        out.write(f"{{model.parent.name}},{{seconds:.6g}},123456,98,{{number}}\\n")
"""

PROPERTIES = {
    "ro.product.manufacturer": "Google",
    "ro.product.model": "Pixel 8",
    "ro.soc.model": "Tensor G3",
    "ro.build.version.release": "16",
}

BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  status: 2
  level: 87
  scale: 100
  temperature: 312
"""

BLOCK = BlockSpec.parse("mbconv_k3_e6_s1_i24_o24_r8")


class PhoneFolder:
    """The phone: what it does is said by files in its folder."""

    def __init__(self, root: Path) -> None:
        self.root = root / "phone"
        for folder in ("tmp", "bin", "sys"):
            (self.root / folder).mkdir(parents=True)
        names = {"python": sys.executable, "phone": str(self.root)}
        self.adb = self._program(root / "adb", ADB.format(**names))
        self.runner = self._program(root / "onnxruntime_perf_test", RUNNER.format(**names))
        rules = "\n".join(f"{name}) echo '{value}';;" for name, value in PROPERTIES.items())
        getprop = f'#!/bin/sh\ncase "$1" in\n{rules}\n*) echo;;\nesac\n'
        self._program(self.root / "bin" / "getprop", getprop)
        self._program(self.root / "bin" / "dumpsys", f"#!/bin/sh\ncat <<'E'\n{BATTERY}E\n")
        self.does("state", "device")
        self.does("runner does", "run")

    def does(self, name: str, content: str = "") -> None:
        (self.root / name).write_text(content)

    def says(self, path: str, content: str) -> None:
        """A file under the phone's /sys."""
        file = self.root / "sys" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)

    @property
    def files(self) -> set[str]:
        """What lies in the runtime's folder on the phone."""
        folder = self.root / "tmp" / FOLDER.rpartition("/")[2]
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.root / "calls.jsonl").read_text().splitlines()]

    def spec(self, **options):
        options = {"adb": self.adb, "runner": self.runner, "wait_seconds": 5.0, **options}
        return RuntimeSpec(name="adb", options=options)

    def _program(self, path: Path, text: str) -> str:
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)


@pytest.fixture
def phone(tmp_path):
    return PhoneFolder(tmp_path)


@pytest.fixture(scope="module")
def model():
    return build_model([BLOCK], random_weights([BLOCK]))


def other_model(seed):
    return build_model([BLOCK], random_weights([BLOCK], seed))


def test_the_calls_of_a_model_on_the_phone_are_timed(phone, model):
    loaded = Adb(phone.spec()).load(model)
    calls = loaded.time_calls(200)
    assert len(calls.wall_ns) == 200
    assert all(1_000 < wall < 1e9 for wall in calls.wall_ns)  # nanoseconds: microseconds to 1 s
    assert calls.thread_cpu_ns is None
    assert loaded.provider == "CPUExecutionProvider"


def test_the_runner_is_pinned_to_the_cores_of_the_mask(phone, model):
    Adb(phone.spec(cpu_mask="2")).load(model)
    assert (phone.root / "cores").read_text() == "[1]"


def test_the_profile_tells_the_phone_and_not_this_host(phone):
    for core, fastest in ((4, "2367000"), (5, "2367000"), (6, "2914000")):
        rules = f"devices/system/cpu/cpu{core}/cpufreq"
        phone.says(f"{rules}/scaling_governor", "sched_pixel\n")
        phone.says(f"{rules}/scaling_min_freq", "402000\n")
        phone.says(f"{rules}/scaling_max_freq", f"{fastest}\n")
    profile = Adb(phone.spec(cpu_mask="70", provider="nnapi")).profile()
    assert profile.device_model == "Google Pixel 8 (Tensor G3), cores 70"
    assert profile.system.startswith("Android 16, Linux ")
    assert profile.clock_state == (
        "governor sched_pixel, 402 to 2367 MHz; governor sched_pixel, 402 to 2914 MHz"
    )
    assert profile.execution_provider == "NnapiExecutionProvider"
    assert profile.runtime_version.startswith("sha256:")


def test_a_phone_that_hides_its_clocks_is_unmanaged(phone):
    assert Adb(phone.spec()).profile().clock_state == "unmanaged"


def test_other_cores_are_another_target(phone):
    little, big = (Adb(phone.spec(cpu_mask=mask)).profile() for mask in ("1", "2"))
    assert little.digest != big.digest


def test_a_provider_with_the_cpu_beside_it_is_another_target_than_alone(phone):
    alone, mixed = (
        Adb(phone.spec(provider="xnnpack", cpu_fallback=fallback)).profile().execution_provider
        for fallback in (False, True)
    )
    assert (alone, mixed) == (
        "XnnpackExecutionProvider",
        "XnnpackExecutionProvider+CPUExecutionProvider",
    )


def test_options_may_be_texts_as_the_command_line_gives_them(phone):
    texts = {"provider": "xnnpack", "cpu_fallback": "True", "run_seconds": "30"}
    assert Adb(phone.spec(**texts)).profile().execution_provider.endswith("+CPUExecutionProvider")


def test_the_version_is_read_from_the_library_that_was_given(phone, tmp_path):
    made = tmp_path / "libonnxruntime.so"
    made.write_bytes(b"\x7fELF...OrtGetApiBase\0VERS_1.22.0\0libc.so")
    assert Adb(phone.spec(library=str(made))).profile().runtime_version == "1.22.0"
    assert "libonnxruntime.so" in phone.files


def test_battery_temperature_and_clocks_are_told(phone):
    phone.says("class/thermal/thermal_zone0/temp", "41500\n")
    phone.says("class/thermal/thermal_zone1/temp", "-274000\n")
    phone.says("devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "1803000\n")
    assert Adb(phone.spec()).facts() == {
        "battery_percent": 87,
        "battery": "Charging",
        "temperature_c": 31.2,
        "hottest_zone_c": 41.5,
        "clock_mhz": 1803,
    }


def test_the_runner_is_brought_once_and_only_two_models_stay(phone, model):
    runtime = Adb(phone.spec())
    for seed in (1, 2, 3):
        runtime.load(model)  # the anchor, before each task
        runtime.load(other_model(seed))
    pushed = [call[-1] for call in phone.calls if call[0] == "push"]
    assert len([path for path in pushed if path.endswith("/runner")]) == 1
    assert len([path for path in pushed if path.endswith("/model.onnx")]) == 4
    assert len([path for path in phone.files if path.endswith("/model.onnx")]) == 2
    runtime.close()
    assert phone.files == set()


def test_what_an_earlier_agent_left_is_cleared(phone, model):
    Adb(phone.spec()).load(model)
    Adb(phone.spec())
    assert phone.files == {"runner"}


def test_the_phone_with_the_serial_is_asked(phone, model):
    Adb(phone.spec(serial="emulator-5554")).load(model)
    assert all(call[:2] == ["-s", "emulator-5554"] for call in phone.calls)
    with pytest.raises(RuntimeFailedError, match="device 'R5CT' not found"):
        Adb(phone.spec(serial="R5CT"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"serial": "x; reboot"}, "serial"),
        ({"serial": "-a"}, "serial"),
        ({"cpu_mask": "f0; rm -rf /"}, "cpu_mask"),
        ({"cpu_mask": "0"}, "cpu_mask"),
        ({"provider": "$(reboot)"}, "provider"),
        ({"runner": "/nowhere/onnxruntime_perf_test"}, "no file /nowhere"),
        ({"colour": "red"}, "colour"),
        ({"run_seconds": "long"}, "long"),
        ({"run_seconds": "nan"}, "run_seconds"),
        ({"wait_seconds": 0}, "wait_seconds"),
        ({"cpu_fallback": "perhaps"}, "cpu_fallback"),
    ],
)
def test_options_that_make_no_sense_never_reach_the_phone(phone, options, told):
    with pytest.raises(RuntimeFailedError, match=told):
        Adb(phone.spec(**options))
    assert not (phone.root / "calls.jsonl").exists()


@pytest.mark.parametrize("state", ["offline", "unauthorized"])
def test_a_phone_that_does_not_let_us_in_is_reported(phone, state):
    phone.does("state", state)
    with pytest.raises(RuntimeFailedError, match=f"device {state}"):
        Adb(phone.spec())


def test_a_phone_that_comes_back_is_waited_for(phone, model):
    loaded = Adb(phone.spec()).load(model)
    phone.does("goes away")
    phone.does("comes back")
    assert len(loaded.time_calls(20).wall_ns) == 20
    assert ["wait-for-device"] in phone.calls


def test_a_phone_that_stays_away_is_reported(phone, model):
    loaded = Adb(phone.spec()).load(model)
    phone.does("goes away")
    with pytest.raises(RuntimeFailedError, match="the phone is not there") as caught:
        loaded.time_calls(20)
    assert caught.value.reason == "device_lost"


def test_an_adb_that_is_not_installed_is_reported(phone):
    with pytest.raises(RuntimeFailedError, match="platform tools"):
        Adb(phone.spec(adb="/nowhere/adb"))


def test_a_full_phone_is_reported(phone, model):
    runtime = Adb(phone.spec())
    phone.does("full")
    with pytest.raises(RuntimeFailedError, match="storage is full") as caught:
        runtime.load(model)
    assert caught.value.reason == "out_of_memory"


def test_a_file_that_arrives_cut_short_is_reported(phone, model):
    runtime = Adb(phone.spec())
    phone.does("loses bytes")
    with pytest.raises(RuntimeFailedError, match=f"has 4 of {len(model)} bytes"):
        runtime.load(model)


@pytest.mark.parametrize(
    ("behaviour", "reason", "told"),
    [
        ("crash", "crashed", "SIGSEGV"),
        ("run out of memory", "out_of_memory", "bad_alloc"),
        ("write nonsense", "crashed", "cannot be read"),
        ("lose half", "crashed", "times in"),
        ("hang", "hung", "did not end in time"),
    ],
)
def test_a_runner_that_fails_is_reported_with_the_reason(phone, model, behaviour, reason, told):
    runtime = Adb(phone.spec(run_seconds=1.0 if behaviour == "hang" else 60.0))
    phone.does("runner does", behaviour)
    with pytest.raises(RuntimeFailedError, match=told) as caught:
        runtime.load(model)
    assert caught.value.reason == reason


def test_a_file_that_the_runner_refuses_is_reported(phone):
    with pytest.raises(RuntimeFailedError, match=r"status 255.*(?i:protobuf|invalid)") as caught:
        Adb(phone.spec()).load(b"no model")
    assert caught.value.reason == "refused"


def test_a_runner_without_the_provider_is_reported(phone, model):
    with pytest.raises(RuntimeFailedError, match="XNNPACK") as caught:
        Adb(phone.spec(provider="xnnpack")).load(model)
    assert caught.value.reason == "wrong_provider"
