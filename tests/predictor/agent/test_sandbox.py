"""One model file in a process of its own: real processes, really killed, stopped and starved."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import onnx
import psutil
import pytest
from onnx import TensorProto, helper

from predictor.agent.protocol import longest_seconds
from predictor.agent.runtimes.base import RuntimeSpec
from predictor.agent.runtimes.onnxruntime_cpu import PROVIDER
from predictor.agent.sandbox import Sandbox
from predictor.errors import TaskFailedError
from predictor.kits import anchor_item
from predictor.measurements import Measurement

ANCHOR = anchor_item().build()
SHA256 = hashlib.sha256(ANCHOR).hexdigest()
NEVER_BUSY = [1e6] * 5  # readings beside which the anchor is always fast
HALF_A_GIB = 2**29


@pytest.fixture
def sandbox(eventually):
    """One whose process runs, and whose anchor finds the device quiet whatever happens."""
    with Sandbox(RuntimeSpec()) as made:
        made._readings[SHA256] = list(NEVER_BUSY)
        with pytest.raises(TaskFailedError):
            made.measure(b"", SHA256, ANCHOR, "table")
        eventually(lambda: not descendants(pid_of(made)), "its fork lives on")
        yield made


def expanding(n: int) -> bytes:
    """A small file whose output has `n` numbers."""
    number = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    many = helper.make_tensor_value_info("y", TensorProto.FLOAT, [n])
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [n])
    node = helper.make_node("Expand", ["x", "shape"], ["y"])
    graph = helper.make_graph([node], "expanding", [number], [many], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def measured(sandbox, model=ANCHOR) -> Measurement:
    return sandbox.measure(model, SHA256, ANCHOR, "table")


def failed(sandbox, model, effort="table") -> TaskFailedError:
    with pytest.raises(TaskFailedError) as caught:
        sandbox.measure(model, SHA256, ANCHOR, effort)
    return caught.value


def pid_of(sandbox) -> int:
    return sandbox._process.pid


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@contextmanager
def while_it_measures(sandbox, eventually, number: signal.Signals):
    """Sends `number` to the fork that measures, as soon as there is one."""
    signalled = []

    def send():
        (fork,) = eventually(lambda: descendants(pid_of(sandbox)), "nothing measures")
        fork.send_signal(number)
        signalled.append(fork)

    thread = threading.Thread(target=send)
    thread.start()
    yield
    thread.join()
    assert signalled, "nothing was signalled"


# -- what is measured ------------------------------------------------------------------


def test_a_real_model_is_measured_outside_this_process(sandbox, eventually):
    found = measured(sandbox)
    assert 0.0 < found.p10_ms <= found.latency_ms <= found.p90_ms
    assert found.sigma_ms >= 0.0
    assert found.provider == PROVIDER
    assert found.quarantined == ()
    assert datetime.fromisoformat(found.measured_at).tzinfo is not None
    assert pid_of(sandbox) != os.getpid()
    eventually(lambda: not descendants(pid_of(sandbox)), "its fork lives on")


def test_the_readings_of_an_anchor_are_carried_on(sandbox, monkeypatch):
    """An anchor that is given readings spends no time on an opening; see test_protocol.py."""
    given, ask = [], sandbox._ask

    def listening(order, limit_seconds):
        given.append(order["readings"])
        return ask(order, limit_seconds)

    monkeypatch.setattr(sandbox, "_ask", listening)
    measured(sandbox)
    kept = list(sandbox._readings[SHA256])
    measured(sandbox)
    assert given == [NEVER_BUSY, kept]
    assert len(NEVER_BUSY) < len(kept) <= 2000


def test_another_anchor_has_readings_of_its_own(sandbox):
    sandbox.measure(ANCHOR, "f" * 64, ANCHOR, "table")
    assert len(sandbox._readings["f" * 64]) > 20  # it had its opening
    assert sandbox._readings[SHA256] == NEVER_BUSY


def test_a_device_that_is_never_quiet_is_told_and_its_readings_are_kept(sandbox):
    sandbox._readings[SHA256] = [1e-9] * 2000  # the anchor was never so fast again
    error = failed(sandbox, expanding(2**22))  # slow, so that it looks at the anchor seldom
    assert (error.code, error.reason) == ("too_noisy", "noise")
    assert "slices were quiet" in error.detail
    assert len(sandbox._readings[SHA256]) <= 2000
    assert sandbox._readings[SHA256][-1] > 1e-9


# -- what cannot be measured -----------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"garbage", ANCHOR[: len(ANCHOR) // 2]])
def test_what_is_no_model_is_refused_and_the_next_one_measured(sandbox, content):
    error = failed(sandbox, content)
    assert (error.code, error.reason) == ("unsupported", "refused")
    assert "refused the model" in error.detail
    assert measured(sandbox).n > 0


@pytest.mark.parametrize(
    ("number", "hint"),
    [(signal.SIGSEGV, ""), (signal.SIGKILL, "; the system may have run out of memory")],
)
def test_a_crash_costs_that_task_alone(sandbox, eventually, number, hint):
    before = pid_of(sandbox)
    with while_it_measures(sandbox, eventually, number):
        error = failed(sandbox, ANCHOR, "certificate")
    assert (error.code, error.reason) == ("unsupported", "crashed")
    assert error.detail == f"the runtime died by {number.name}{hint}"
    assert measured(sandbox).n > 0
    assert pid_of(sandbox) == before  # only the fork had died


def test_a_process_that_dies_between_two_tasks_is_replaced(sandbox):
    before = pid_of(sandbox)
    os.kill(before, signal.SIGKILL)
    os.waitid(os.P_PID, before, os.WEXITED | os.WNOWAIT)
    assert measured(sandbox).n > 0
    assert pid_of(sandbox) != before


def test_a_hang_is_ended_by_force_and_a_fresh_process_goes_on(sandbox, eventually, monkeypatch):
    measuring = psutil.Process(pid_of(sandbox))
    monkeypatch.setattr(sandbox, "_grace_seconds", 1.0 - longest_seconds("certificate"))
    with while_it_measures(sandbox, eventually, signal.SIGSTOP):
        error = failed(sandbox, ANCHOR, "certificate")
    assert (error.code, error.reason) == ("unsupported", "hung")
    assert error.detail == "no answer within 1 s; ended by force"
    assert not measuring.is_running()
    monkeypatch.undo()
    assert measured(sandbox).n > 0
    assert pid_of(sandbox) != measuring.pid


def test_a_model_that_needs_more_memory_than_there_is_costs_that_task_alone(sandbox):
    limit = psutil.Process(pid_of(sandbox)).memory_info().vms + HALF_A_GIB
    resource.prlimit(pid_of(sandbox), resource.RLIMIT_AS, (limit, limit))
    error = failed(sandbox, expanding(HALF_A_GIB))  # 2 GiB of them
    assert (error.code, error.reason) == ("unsupported", "out_of_memory")
    assert measured(sandbox, expanding(2**10)).n > 0


def test_a_runtime_that_cannot_run_here_fails_every_task_in_words():
    with Sandbox(RuntimeSpec("no such runtime")) as sandbox:
        for _ in range(2):
            error = failed(sandbox, ANCHOR)
            assert (error.code, error.reason) == ("unsupported", "refused")
            assert "no runtime is called 'no such runtime'" in error.detail


# -- the end ---------------------------------------------------------------------------


def test_closing_leaves_no_process_and_no_folder(sandbox):
    process, folder = psutil.Process(pid_of(sandbox)), Path(sandbox._folder.name)
    assert folder.is_dir()
    sandbox.close()
    assert not process.is_running()
    assert not folder.exists()


def test_a_sandbox_that_never_measured_can_be_closed():
    Sandbox(RuntimeSpec()).close()


AGENT = """
import sys
from predictor.agent.runtimes.base import RuntimeSpec
from predictor.agent.sandbox import Sandbox
model = sys.stdin.buffer.read()
with Sandbox(RuntimeSpec()) as sandbox:
    while True:
        print("measuring", flush=True)
        try:
            sandbox.measure(model, "a" * 64, model, "certificate")
        except Exception as error:
            print(error, flush=True)
"""


def test_when_the_agent_is_killed_its_processes_end(eventually, tmp_path):
    """Also the fork in the middle of a model, which would spoil what the next agent measures."""
    slow = expanding(2**23)  # tens of milliseconds a call, and a certificate takes a thousand
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", AGENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as agent:
        agent.stdin.write(slow)
        agent.stdin.close()
        agent.stdout.readline()
        family = eventually(lambda: _pair(descendants(agent.pid)), "nothing measures")
        agent.kill()
        eventually(lambda: not any(map(_lives, family)), "processes outlive their agent", 8.0)


def _pair(processes):
    return processes if len(processes) == 2 else None


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
