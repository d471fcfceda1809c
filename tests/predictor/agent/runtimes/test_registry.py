"""Runtimes by name."""

import subprocess
import sys

import pytest

from predictor.agent.runtimes.base import RuntimeSpec
from predictor.agent.runtimes.onnxruntime_cpu import OnnxRuntimeCpu
from predictor.agent.runtimes.registry import RUNTIMES, make_runtime
from predictor.errors import RuntimeFailedError


def test_the_default_is_onnx_runtime_on_the_cpu():
    assert isinstance(make_runtime(RuntimeSpec()), OnnxRuntimeCpu)


def test_a_name_that_nobody_has_is_answered_with_those_that_there_are():
    with pytest.raises(RuntimeFailedError, match="'tflite'; there are onnxruntime-cpu, "):
        make_runtime(RuntimeSpec(name="tflite"))


@pytest.mark.parametrize("name", [name for name in RUNTIMES if name != "onnxruntime-cpu"])
def test_a_runtime_that_cannot_run_here_says_what_it_needs(name):
    """No runtime but the CPU's takes a host without a GPU, or options that name no runner."""
    with pytest.raises(RuntimeFailedError) as caught:
        make_runtime(RuntimeSpec(name=name, options={"device_id": 99, "device": "none"}))
    assert len(str(caught.value)) > 20


def test_a_runtime_whose_library_is_not_installed_says_so():
    """In a process that has no torch: the agent of a phone or a CPU does without."""
    program = """
import sys
sys.modules["torch"] = None
from predictor.agent.runtimes.base import RuntimeSpec
from predictor.agent.runtimes.registry import make_runtime
from predictor.errors import RuntimeFailedError
try:
    make_runtime(RuntimeSpec(name="torch-cuda"))
except RuntimeFailedError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert "torch-cuda cannot be used here" in done.stdout


def test_importing_every_runtime_loads_neither_torch_nor_onnx():
    program = """
import sys
from importlib import import_module
from predictor.agent.runtimes.registry import RUNTIMES
for place in RUNTIMES.values():
    import_module(place.partition(":")[0])
print(sorted({"torch", "onnx", "sklearn"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
