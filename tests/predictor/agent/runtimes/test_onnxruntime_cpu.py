"""ONNX Runtime on the CPU."""

import numpy as np
import onnxruntime
import pytest

from predictor.agent.runtimes.onnxruntime_cpu import OnnxRuntimeCpu
from predictor.errors import RuntimeFailedError
from predictor.kits import anchor_item
from search_core.onnx_graph import build_model, random_weights
from search_core.space.blocks import BlockSpec


def test_a_loaded_model_runs_and_gives_its_output_each_time(micro):
    run = OnnxRuntimeCpu().load(anchor_item(micro).build())
    (first,), (second,) = run(), run()
    assert first.shape == (1, 10)
    assert np.isfinite(first).all()
    assert np.array_equal(first, second)


def test_every_block_of_the_space_loads(micro):
    runtime = OnnxRuntimeCpu()
    for block in micro.distinct_blocks:
        (output,) = runtime.load(build_model([block], random_weights([block])))()
        assert output.shape[:2] == (1, block.out_channels)


@pytest.mark.parametrize("content", [b"", b"garbage", bytes(range(256)) * 40])
def test_bytes_that_are_no_model_are_refused(content):
    with pytest.raises(RuntimeFailedError, match="ONNX Runtime refused the model"):
        OnnxRuntimeCpu().load(content)


def test_a_truncated_model_is_refused():
    block = BlockSpec.parse("mbconv_k3_e6_s1_i24_o24_r8")
    model = build_model([block], random_weights([block]))
    with pytest.raises(RuntimeFailedError):
        OnnxRuntimeCpu().load(model[: len(model) // 2])


def test_the_profile_of_a_host_is_always_the_same():
    assert OnnxRuntimeCpu().profile() == OnnxRuntimeCpu().profile()
    assert OnnxRuntimeCpu().profile().digest == OnnxRuntimeCpu().profile().digest


def test_another_number_of_threads_is_another_target():
    one, two = OnnxRuntimeCpu(1).profile(), OnnxRuntimeCpu(2).profile()
    assert (one.threads, two.threads) == (1, 2)
    assert one.digest != two.digest


def test_the_profile_names_the_runtime_that_is_installed():
    profile = OnnxRuntimeCpu().profile()
    assert (profile.runtime, profile.runtime_version) == ("onnxruntime", onnxruntime.__version__)
    assert profile.execution_provider == "CPUExecutionProvider"
