"""The process that measures, order by order, with runtimes that do what they should not."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from predictor.agent.child import _carry_out
from predictor.agent.runtimes.base import RuntimeSpec
from predictor.agent.runtimes.onnxruntime_cpu import OnnxRuntimeCpu
from predictor.errors import RuntimeFailedError
from predictor.measurements import Measurement

MODEL = b"any bytes"

PROGRAM = """
import os, sys, time
from predictor.agent import child
from predictor.agent.runtimes import registry
from predictor.agent.runtimes.base import Calls
from predictor.errors import DeviceLostError, RuntimeFailedError
from predictor.measurements import TargetProfile

class Model:
    def __init__(self, provider):
        self.provider = provider

    def time_calls(self, n):
        return Calls([1_000_000] * n, [1_000_000] * n)

class Scripted:
    slice_seconds = 0.002

    def __init__(self, spec):
        self.one_child_per_task = spec.options["forks"]
        self._loads = 0

    def profile(self):
        return TargetProfile("d", "m", "s", "r", "1", "none", 1, "float32", 1)

    def load(self, model):
        self._loads += 1
        what = model.decode()
        if what == "chatter":
            print("a library says something")
            os.write(1, b"and so does what it is made of\\\\n")
        if what == "exit":
            os._exit(7)
        if what == "memory":
            raise MemoryError
        if what == "bug":
            raise ZeroDivisionError
        if what == "crash":
            raise RuntimeFailedError("an illegal memory access", "crashed")
        if what == "unplugged":
            raise DeviceLostError("no device is attached")
        return Model("another" if what == "elsewhere" else "none")

registry.RUNTIMES["scripted"] = "__main__:Scripted"
child.main()
"""


class Child:
    """The process, and what it answers to one order after the other."""

    def __init__(self, process, folder) -> None:
        self.process, self._folder = process, folder

    def ask(self, what: str, effort: str = "table"):
        (self._folder / "anchor").write_text("anchor")
        (self._folder / "model").write_text(what)
        order = {
            "model": str(self._folder / "model"),
            "anchor": str(self._folder / "anchor"),
            "effort": effort,
            "threads": 1,
            "readings": [1.0] * 3,
            "remembered_ms": None,
            "number": 7,
        }
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline() or "null")


@pytest.fixture
def start(tmp_path):
    """Starts the process: ``start(forks=True)``."""
    started = []

    def begin(*, forks: bool) -> Child:
        spec = {"name": "scripted", "options": {"forks": forks}}
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return Child(process, tmp_path)

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(params=[True, False], ids=["a fork a task", "one process"])
def child(request, start):
    return start(forks=request.param)


def test_an_order_is_answered_with_a_measurement_and_readings(child):
    answer = child.ask("good")
    found = Measurement(**answer["measurement"])
    assert found.latency_ms == 1.0
    assert found.provider == "none"
    assert answer["readings"][:3] == [1.0] * 3
    assert len(answer["readings"]) > 3


def test_what_libraries_print_is_not_taken_for_an_answer(child):
    assert "measurement" in child.ask("chatter")
    assert "measurement" in child.ask("good")


def test_a_model_that_another_provider_ran_is_not_measured(child):
    failure = child.ask("elsewhere")["failure"]
    assert (failure["code"], failure["reason"]) == ("unsupported", "wrong_provider")
    assert failure["detail"] == "another ran the model, not none"


def test_a_model_that_does_not_fit_into_memory_is_told(child):
    failure = child.ask("memory")["failure"]
    assert (failure["code"], failure["reason"]) == ("unsupported", "out_of_memory")
    assert "measurement" in child.ask("good")


@pytest.mark.parametrize(("what", "status"), [("exit", 7), ("bug", 1)])
def test_a_fork_that_ends_early_is_told_and_the_process_goes_on(start, what, status):
    child = start(forks=True)
    failure = child.ask(what)["failure"]
    assert (failure["code"], failure["reason"]) == ("unsupported", "crashed")
    assert failure["detail"] == f"the process ended with status {status}"
    assert "measurement" in child.ask("good")


def test_without_forks_the_process_ends_with_its_model(start):
    child = start(forks=False)
    assert child.ask("exit") is None
    assert child.process.wait(60) == 7


def test_without_forks_the_process_ends_after_a_crash_it_could_tell(start):
    """A device's context may be lost with it; the agent starts another process."""
    child = start(forks=False)
    assert child.ask("crash")["failure"]["reason"] == "crashed"
    assert child.process.wait(60) == 0


def test_a_device_that_is_gone_for_now_is_not_held_against_the_model(child):
    failure = child.ask("unplugged")["failure"]
    assert (failure["code"], failure["reason"]) == ("too_noisy", "device_lost")
    assert "measurement" in child.ask("good")


def test_it_ends_when_there_are_no_more_orders(child):
    child.ask("good")
    child.process.stdin.close()
    assert child.process.wait(60) in (0, 1)
    child.process.stdin = None  # closed already


# -- one order, in this process --------------------------------------------------------


class Refusing(OnnxRuntimeCpu):
    """Takes no model, for the reason it is made with."""

    def __init__(self, reason) -> None:
        super().__init__()
        self._reason = reason

    def load(self, _):
        raise RuntimeFailedError("as the test wants it " * 100, self._reason)


class FailsLater:
    """A model that loads and then loses its device."""

    provider = "CPUExecutionProvider"

    def time_calls(self, _):
        raise RuntimeFailedError("the device is gone", "crashed")


@pytest.fixture
def order(tmp_path):
    (tmp_path / hashlib.sha256(MODEL).hexdigest()).write_bytes(MODEL)
    path = str(next(tmp_path.iterdir()))
    threads = os.cpu_count()  # all of them, so that nothing is pinned
    return {
        "model": path,
        "anchor": path,
        "effort": "table",
        "threads": threads,
        "readings": [1.0],
        "remembered_ms": None,
        "number": 7,
    }


@pytest.mark.parametrize("reason", ["refused", "out_of_memory", "hung"])
def test_the_reason_of_the_runtime_is_passed_on(order, reason):
    failure = _carry_out(Refusing(reason), order)["failure"]
    assert (failure["code"], failure["reason"]) == ("unsupported", reason)
    assert len(failure["detail"]) == 500  # what an upload may hold


def test_a_device_that_is_lost_on_the_way_is_told(order, monkeypatch):
    runtime = OnnxRuntimeCpu(RuntimeSpec())
    monkeypatch.setattr(runtime, "load", lambda _: FailsLater())
    failure = _carry_out(runtime, order)["failure"]
    assert failure == {"code": "unsupported", "reason": "crashed", "detail": "the device is gone"}


def test_it_needs_no_network_library():
    """It is shipped in bundles for devices that have no more than ONNX Runtime and numpy."""
    modules = "child, host, protocol, results, sandbox, signing"
    program = f"import sys; from predictor.agent import {modules}; print('httpx' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "False"
