"""ONNX Runtime on the CPU."""

import subprocess
import sys

import onnxruntime
import pytest

from predictor.agent.runtimes.base import RuntimeSpec
from predictor.agent.runtimes.onnxruntime_cpu import PROVIDER, OnnxRuntimeCpu
from predictor.errors import RuntimeFailedError
from predictor.kits import KitItem, anchor_item
from search_core.space.blocks import BlockSpec
from search_core.space.graph import Graph

BLOCK = KitItem("x", Graph.chain([BlockSpec.parse("mbconv_k3_e6_s1_i24_o24_r8")]))


def test_a_loaded_model_times_as_many_calls_as_it_is_asked_for():
    model = OnnxRuntimeCpu().load(anchor_item().build())
    calls = model.time_calls(7)
    assert len(calls.wall_ns) == len(calls.thread_cpu_ns) == 7
    assert min(calls.wall_ns) > 0
    assert model.provider == PROVIDER


def test_several_threads_have_no_processor_time_to_tell():
    model = OnnxRuntimeCpu(RuntimeSpec(threads=2)).load(anchor_item().build())
    assert model.time_calls(3).thread_cpu_ns is None


def test_every_block_of_the_space_loads_and_runs(micro):
    runtime = OnnxRuntimeCpu()
    for block in micro.distinct_blocks:
        model = runtime.load(KitItem("x", Graph.chain([block])).build())
        assert len(model.time_calls(1).wall_ns) == 1


def test_a_batch_of_images_is_one_call():
    model = OnnxRuntimeCpu(RuntimeSpec(batch=4)).load(BLOCK.build(batch=4))
    (images,) = model._feeds.values()
    assert images.shape[0] == 4
    assert len(model.time_calls(2).wall_ns) == 2


@pytest.mark.parametrize("content", [b"", b"garbage", bytes(range(256)) * 40])
def test_bytes_that_are_no_model_are_refused(content):
    with pytest.raises(RuntimeFailedError, match="ONNX Runtime refused the model") as caught:
        OnnxRuntimeCpu().load(content)
    assert caught.value.reason == "refused"


def test_a_truncated_model_is_refused():
    model = BLOCK.build()
    with pytest.raises(RuntimeFailedError):
        OnnxRuntimeCpu().load(model[: len(model) // 2])


LOAD_WITHOUT_MEMORY = """
import resource, sys
from predictor.agent.runtimes.onnxruntime_cpu import OnnxRuntimeCpu
from predictor.errors import RuntimeFailedError
runtime, model = OnnxRuntimeCpu(), sys.stdin.buffer.read()
kib = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1])
resource.setrlimit(resource.RLIMIT_AS, (kib * 1024 + 2**26,) * 2)
try:
    runtime.load(model)
except RuntimeFailedError as error:
    print(error.reason)
except MemoryError:
    print("MemoryError")
"""


def test_a_model_that_does_not_fit_into_memory_says_so():
    """The limit is 64 MiB over what the process holds; this block's activations take more."""
    wide = KitItem("x", Graph.chain([BlockSpec.parse("mbconv_k3_e6_s1_i24_o24_r512")]))
    ended = subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT_MEMORY],
        input=wide.build(),
        capture_output=True,
        check=True,
    )
    assert ended.stdout.decode().strip() in ("out_of_memory", "MemoryError")


# -- the target that a host is ---------------------------------------------------------


def test_the_profile_of_a_host_is_always_the_same():
    assert OnnxRuntimeCpu().profile() == OnnxRuntimeCpu().profile()
    assert OnnxRuntimeCpu().profile().digest == OnnxRuntimeCpu().profile().digest


@pytest.mark.parametrize(
    "spec", [RuntimeSpec(threads=2), RuntimeSpec(precision="int8"), RuntimeSpec(batch=8)]
)
def test_another_way_of_measuring_is_another_target(spec):
    profile = OnnxRuntimeCpu(spec).profile()
    assert (profile.threads, profile.precision, profile.batch) == (
        spec.threads,
        spec.precision,
        spec.batch,
    )
    assert profile.digest != OnnxRuntimeCpu().profile().digest


def test_the_profile_names_the_runtime_that_is_installed():
    profile = OnnxRuntimeCpu().profile()
    assert (profile.runtime, profile.runtime_version) == ("onnxruntime", onnxruntime.__version__)
    assert profile.execution_provider == PROVIDER
    assert profile.clock_state
