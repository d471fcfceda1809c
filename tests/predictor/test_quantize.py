"""Int8 files: what they compute, what runs them, and that they are always the same."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest

from predictor.quantize import quantize
from search_core.onnx_graph import build_model, random_weights
from search_core.space.blocks import BlockSpec
from search_core.space.presets import get_space

SPACES = ("micro", "nasbench201", "spos_cifar", "proxyless_cifar_mb")
BLOCK = BlockSpec.parse("mbconv_k5_e6_s1_i96_o96_r8")
BLOCK_OF_4 = BlockSpec.parse("reluconv_k3_e1_s1_i4_o4_r4")


def model_of(*blocks):
    return build_model(blocks, random_weights(blocks))


def output(model, values):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"input": values})
    return result


def draw(block, seed):
    shape = (1, block.in_channels, block.resolution_px, block.resolution_px)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def optimised_operators(model, folder):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]


@pytest.mark.parametrize("name", SPACES)
def test_one_block_of_each_kind_computes_nearly_the_same_in_int8(name):
    for block in {block.kind: block for block in get_space(name).distinct_blocks}.values():
        model, values = model_of(block), draw(block, seed=99)
        calibration = [draw(block, seed) for seed in range(8)]
        exact, rounded = output(model, values), output(quantize(model, calibration), values)
        error = np.sqrt(np.mean((exact - rounded) ** 2) / np.mean(exact**2))
        assert error < 0.05, (block, error)


def test_ranges_from_the_users_own_inputs_fit_them_better():
    model = model_of(BLOCK)
    values = 20 * draw(BLOCK, seed=1)
    exact = output(model, values)
    errors = [
        np.abs(output(quantize(model, calibration), values) - exact).mean()
        for calibration in (None, [20 * draw(BLOCK, seed) for seed in (2, 3)])
    ]
    assert errors[1] < errors[0] / 5


def test_onnx_runtime_runs_a_block_in_int8_throughout(tmp_path):
    operators = optimised_operators(quantize(model_of(BLOCK)), tmp_path)
    assert operators.count("QLinearConv") == 3
    assert operators.count("QLinearAdd") == 1
    assert not {"Conv", "Add"} & set(operators)


@pytest.mark.parametrize("text", ["avgpool_k3_e1_s1_i64_o64_r8", "maxpool_k3_e1_s1_i64_o64_r8"])
def test_pooling_alone_runs_in_int8_as_it_does_in_a_network(text, tmp_path):
    operators = optimised_operators(quantize(model_of(BlockSpec.parse(text))), tmp_path)
    between = operators[operators.index("QuantizeLinear") + 1 : operators.index("DequantizeLinear")]
    assert any("Pool" in operator for operator in between)


def test_onnx_runtime_runs_a_whole_network_in_int8(micro, tmp_path):
    blocks = micro.blocks(micro.architecture([0, 1, 2, 3, 4, 5]))
    operators = optimised_operators(quantize(model_of(*blocks)), tmp_path)
    assert operators.count("QLinearConv") > len(blocks)
    assert not {"Conv", "Gemm", "Add"} & set(operators)


def test_the_same_file_gives_the_same_bytes_in_another_process():
    """With other hashes of strings: sets must not decide an order."""
    program = """
import hashlib, sys
from predictor.quantize import quantize
print(hashlib.sha256(quantize(sys.stdin.buffer.read())).hexdigest())
"""
    model = model_of(BLOCK)
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            input=model,
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {hashlib.sha256(quantize(model)).hexdigest().encode() + b"\n"}


def test_another_seed_gives_other_ranges():
    model = model_of(BLOCK)
    assert quantize(model, seed=0) != quantize(model, seed=1)


def test_the_file_is_whole_and_of_the_same_form():
    model = model_of(BLOCK)
    before, after = (onnx.load_from_string(m) for m in (model, quantize(model)))
    assert [(o.domain, o.version) for o in after.opset_import] == [
        (o.domain, o.version) for o in before.opset_import
    ]
    assert after.graph.input == before.graph.input
    assert after.graph.output == before.graph.output
    assert not any(tensor.external_data for tensor in after.graph.initializer)
    weights = {t.name: t for t in after.graph.initializer}
    scales = [t.dims for name, t in weights.items() if "weight" in name and "scale" in name]
    assert [96 * 6] in [list(dims) for dims in scales]  # one scale a channel
    onnx.checker.check_model(after, full_check=True)


def test_nothing_is_logged(caplog):
    quantize(model_of(BLOCK))
    assert not caplog.records


def overflowing():
    """A chain whose random weights are so large that its output is beyond float32."""
    weights = {name: 1e15 * value for name, value in random_weights([BLOCK_OF_4] * 4).items()}
    return build_model([BLOCK_OF_4] * 4, weights)


def test_a_network_that_overflows_is_quantised_with_made_up_ranges(tmp_path):
    """Its latency is the same; a latency kit has random weights."""
    model = overflowing()
    assert not np.abs(output(model, draw(BLOCK_OF_4, 0))).max() < 1e38
    quantized = quantize(model)
    assert np.isfinite(output(quantized, draw(BLOCK_OF_4, 0))).all()
    assert optimised_operators(quantized, tmp_path).count("QLinearConv") == 4
    with pytest.raises(ValueError, match="overflow"):
        quantize(model, [draw(BLOCK_OF_4, 0)])


def test_a_calibration_input_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 8\), the model takes \(1, 96, 8, 8\)"):
        quantize(model_of(BLOCK), [np.zeros((1, 3, 8, 8), np.float32)])
