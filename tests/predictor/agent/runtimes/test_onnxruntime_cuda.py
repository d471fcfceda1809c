"""ONNX Runtime on a GPU: the paths around it here, the GPU itself where there is one."""

import os
import stat

import onnxruntime
import pytest

from predictor.agent.runtimes import nvidia
from predictor.agent.runtimes.base import RuntimeSpec
from predictor.agent.runtimes.onnxruntime_cuda import (
    BoundModel,
    OnnxRuntimeCuda,
    OnnxRuntimeTensorrt,
    gpu_facts,
    open_session,
)
from predictor.errors import RuntimeFailedError
from search_core.onnx_graph import build_model, random_weights
from search_core.space.blocks import BlockSpec

BLOCK = BlockSpec.parse("mbconv_k3_e6_s1_i24_o24_r8")
RUNTIMES = (OnnxRuntimeCuda, OnnxRuntimeTensorrt)

NVIDIA_SMI = """#!/bin/sh
echo "$@" >> {calls}
case "$1" in --id={gpu}) ;; *) echo "No devices were found"; exit 6;; esac
case "$2" in
*=name) echo "NVIDIA H100 80GB HBM3";;
*=driver_version) echo "570.86.15";;
*=clocks.applications.graphics,*) echo "{clocks}";;
*=temperature.gpu,*) echo "47, 1980, 2619, 312.45, 98, P0";;
*={reasons}) echo "{mask}";;
*) echo "Field is not a valid field to query."; exit 2;;
esac
"""


@pytest.fixture(scope="module")
def model():
    return build_model([BLOCK], random_weights([BLOCK]))


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Installs a stand-in nvidia-smi that answers as the real one does."""

    def install(**answers):
        defaults = {
            "calls": tmp_path / "calls",
            "gpu": "0",
            "clocks": "1410, 1593",
            "reasons": "clocks_event_reasons.active",
            "mask": "0x0000000000000000",
        }
        program = tmp_path / "nvidia-smi"
        program.write_text(NVIDIA_SMI.format(**{**defaults, **answers}))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return install


def available(runtime):
    return runtime.provider in onnxruntime.get_available_providers()


needs = {
    runtime: pytest.mark.skipif(not available(runtime), reason=f"no {runtime.provider}")
    for runtime in RUNTIMES
}


@pytest.mark.parametrize(
    "runtime",
    [
        pytest.param(r, marks=pytest.mark.skipif(available(r), reason="it is available"))
        for r in RUNTIMES
    ],
)
def test_an_onnx_runtime_without_the_provider_is_told_what_to_install(runtime):
    with pytest.raises(RuntimeFailedError, match="pip install onnxruntime-gpu") as caught:
        runtime(RuntimeSpec())
    assert caught.value.reason == "wrong_provider"
    assert runtime.provider in str(caught.value)
    assert "CPUExecutionProvider" in str(caught.value)  # which there are


def test_a_gpu_that_is_no_number_is_refused():
    with pytest.raises(RuntimeFailedError, match="device_id is a number"):
        OnnxRuntimeCuda(RuntimeSpec(options={"device_id": "first"}))


def test_a_file_whose_nodes_would_run_on_the_cpu_is_refused(model):
    """By a provider of this very build that takes none of these nodes."""
    with pytest.raises(RuntimeFailedError, match="explicitly disabled") as caught:
        open_session(model, "AzureExecutionProvider", {})
    assert caught.value.reason == "wrong_provider"


@pytest.mark.skipif(available(OnnxRuntimeCuda), reason="it is available")
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_session_that_falls_back_is_refused(model):
    with pytest.raises(RuntimeFailedError) as caught:
        open_session(model, "CUDAExecutionProvider", {})
    assert caught.value.reason == "wrong_provider"


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_bytes_that_are_no_model_are_refused(content):
    with pytest.raises(RuntimeFailedError, match="refused the model") as caught:
        open_session(content, "AzureExecutionProvider", {})
    assert caught.value.reason == "refused"


def test_calls_are_timed_with_input_and_output_bound(model):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    loaded = BoundModel(session, "cpu", 0)
    calls = loaded.time_calls(20)
    assert len(calls.wall_ns) == 20
    assert min(calls.wall_ns) > 1_000
    assert calls.thread_cpu_ns is None
    assert loaded.provider == "CPUExecutionProvider"


# what nvidia-smi tells


def test_a_gpu_tells_its_name_driver_and_clocks(smi):
    smi()
    assert nvidia.gpu_name() == "NVIDIA H100 80GB HBM3"
    assert nvidia.driver() == "NVIDIA driver 570.86.15"
    assert nvidia.clock_state() == "application clocks 1410 and 1593 MHz"


def test_a_gpu_without_application_clocks_is_unmanaged(smi):
    smi(clocks="[N/A], [N/A]")
    assert nvidia.clock_state() == "unmanaged"


@pytest.mark.parametrize("name", ["clocks_event_reasons.active", "clocks_throttle_reasons.active"])
@pytest.mark.parametrize(
    ("mask", "throttled", "capped"),
    [
        ("0x0000000000000000", 0, False),
        ("0x0000000000000001", 0, False),  # idle
        ("0x0000000000000004", 0, True),
        ("0x0000000000000040", 1, False),  # too hot
        ("0x000000000000002C", 1, True),
    ],
)
def test_temperature_clocks_power_and_throttling_are_told(smi, name, mask, throttled, capped):
    smi(reasons=name, mask=mask)
    assert gpu_facts() == {
        "temperature_c": 47,
        "clock_mhz": 1980,
        "memory_clock_mhz": 2619,
        "power_w": 312.45,
        "gpu_load_percent": 98,
        "performance_state": "P0",
        "throttled": throttled,
        "power_capped": capped,
    }


def test_the_gpu_that_cuda_sees_is_the_one_that_is_asked(smi, monkeypatch):
    smi(gpu="GPU-5a1c")
    assert gpu_facts() == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5a1c")
    assert gpu_facts(1)["temperature_c"] == 47


def test_a_host_without_nvidia_smi_tells_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_facts() == {}
    assert nvidia.clock_state() == "unmanaged"
    assert nvidia.gpu_name()


# on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("runtime", [pytest.param(r, marks=needs[r]) for r in RUNTIMES])
def test_a_block_runs_on_the_provider_and_is_timed(runtime, model):
    """Checks that a session is made on the GPU with no node elsewhere, and calls are finished."""
    made = runtime(RuntimeSpec())
    loaded = made.load(model)
    assert loaded.provider == made.profile().execution_provider == runtime.provider
    calls = loaded.time_calls(100)
    assert len(calls.wall_ns) == 100
    assert min(calls.wall_ns) > 5_000  # a launch and its synchronisation take longer


@pytest.mark.gpu
@needs[OnnxRuntimeCuda]
def test_a_longer_chain_takes_longer_on_the_gpu():
    """Checks that the wall clock waits for the GPU: launching alone would hardly differ."""
    block = BlockSpec.parse("mbconv_k7_e6_s1_i192_o192_r28")
    one, four = (
        sorted(
            OnnxRuntimeCuda(RuntimeSpec())
            .load(build_model([block] * copies, random_weights([block] * copies)))
            .time_calls(50)
            .wall_ns
        )[25]
        for copies in (1, 4)
    )
    assert four > 2.5 * one


@pytest.mark.gpu
@needs[OnnxRuntimeCuda]
def test_the_profile_tells_the_gpu_and_its_driver():
    """Checks that the target names the GPU, not the host's processor."""
    profile = OnnxRuntimeCuda(RuntimeSpec()).profile()
    assert "NVIDIA driver" in profile.system
    assert profile.runtime == "onnxruntime-gpu"
    assert gpu_facts()["temperature_c"] > 0
