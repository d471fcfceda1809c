"""PyTorch executing ONNX files: its arithmetic on the CPU, its timing where there is a GPU."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from predictor.agent.runtimes.base import RuntimeSpec
from predictor.agent.runtimes.onnx_reader import read_onnx
from predictor.agent.runtimes.torch_cuda import TorchCudaEager, TorchCudaGraph, TorchGraph
from predictor.errors import RuntimeFailedError
from predictor.quantize import quantize
from search_core.onnx_graph import build_model, random_weights
from search_core.space.blocks import BlockSpec
from search_core.space.graph import Graph
from search_core.space.presets import get_space

SPACES = ("micro", "nasbench201", "spos_cifar", "proxyless_cifar_mb", "proxyless_cifar_tree")
BLOCK = BlockSpec.parse("mbconv_k3_e6_s1_i24_o24_r8")

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def model_of(network):
    return build_model(network, random_weights(network))


def varied_blocks(space, n=25):
    """At most `n` of the space's blocks, every kind of block among them."""
    blocks = list(space.distinct_blocks)
    kinds = list({block.kind: block for block in blocks}.values())
    return [*kinds, *blocks[:: max(1, len(blocks) // (n - len(kinds)))]][:n]


def assert_computes_as_onnx_runtime(model, device="cpu"):
    graph = TorchGraph(read_onnx(model), device)
    with torch.inference_mode():
        ours = graph(graph.input).cpu().numpy()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"input": graph.input.cpu().numpy()})
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * max(1, np.abs(theirs).max()))


def eager_on_cpu():
    return TorchCudaEager(RuntimeSpec(name="torch-cuda", options={"device": "cpu"}))


def one_node(operator, constants=(), **attributes):
    node = helper.make_node(operator, ["input", *constants], ["output"], "n", **attributes)
    declared = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 4, 4])
        for name in ("input", "output")
    ]
    tensors = [onnx.numpy_helper.from_array(v, k) for k, v in dict(constants).items()]
    graph = helper.make_graph([node], "g", declared[:1], declared[1:], tensors)
    return helper.make_model(graph).SerializeToString()


@pytest.mark.parametrize("name", SPACES)
def test_the_blocks_of_a_space_compute_what_onnx_runtime_computes(name):
    for block in varied_blocks(get_space(name)):
        assert_computes_as_onnx_runtime(model_of(Graph.chain((block,))))


@pytest.mark.parametrize("name", ["micro", "nasbench201", "spos_cifar", "proxyless_cifar_tree"])
def test_a_network_of_a_space_computes_what_onnx_runtime_computes(name):
    space = get_space(name)
    slots = space.slot_costs(lambda block: block.macs)[1]
    architecture = space.architecture([len(row) - 1 for row in slots])
    assert_computes_as_onnx_runtime(model_of(space.graph(architecture)))


def test_calls_are_timed_one_by_one():
    loaded = eager_on_cpu().load(model_of([BLOCK]))
    calls = loaded.time_calls(7)
    assert len(calls.wall_ns) == 7
    assert min(calls.wall_ns) > 1_000
    assert calls.thread_cpu_ns is None
    assert loaded.provider == "cpu-eager"


def test_the_profile_names_torch_and_the_way():
    profile = eager_on_cpu().profile()
    assert (profile.runtime, profile.runtime_version) == ("torch", torch.__version__)
    assert profile.execution_provider == "cpu-eager"


def test_an_operator_that_is_not_known_is_named():
    with pytest.raises(RuntimeFailedError, match="operator Erf of node 'n'") as caught:
        eager_on_cpu().load(one_node("Erf"))
    assert caught.value.reason == "refused"


def test_an_int8_file_is_refused_rather_than_run_in_float32():
    with pytest.raises(RuntimeFailedError, match="operator DequantizeLinear"):
        eager_on_cpu().load(quantize(model_of([BLOCK])))
    with pytest.raises(RuntimeFailedError, match="float32 only"):
        TorchCudaEager(RuntimeSpec(precision="int8", options={"device": "cpu"}))


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("MaxPool", {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1]}),
        ("MaxPool", {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"}),
        ("MaxPool", {"kernel_shape": [3]}),
        ("AveragePool", {"kernel_shape": [3, 3], "dilations": [2, 2]}),
        ("Flatten", {"axis": 2}),
        ("Gemm", {"transB": 0}),
        ("Gemm", {"transB": 1, "alpha": 0.5}),
        ("Transpose", {}),
        ("Concat", {}),
    ],
)
def test_an_operator_used_in_a_way_that_is_not_known_is_refused(operator, attributes):
    """Rather than computing, and timing, something else."""
    with pytest.raises(RuntimeFailedError, match=f"node 'n', {operator}, is not as expected"):
        eager_on_cpu().load(one_node(operator, **attributes))


def test_a_shape_that_is_computed_at_run_time_is_refused():
    with pytest.raises(RuntimeFailedError, match="Reshape"):
        eager_on_cpu().load(one_node("Reshape", {"elsewhere": np.array([0, -1], np.int64)}))


@pytest.mark.parametrize("content", [b"", b"garbage", bytes(range(256)) * 40])
def test_bytes_that_are_no_model_are_refused(content):
    with pytest.raises(RuntimeFailedError, match="no ONNX file"):
        eager_on_cpu().load(content)


def test_a_graph_is_not_replayed_on_a_cpu():
    with pytest.raises(RuntimeFailedError, match="only on cuda") as caught:
        TorchCudaGraph(RuntimeSpec(name="torch-cuda-graph", options={"device": "cpu"}))
    assert caught.value.reason == "wrong_provider"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
@pytest.mark.parametrize("runtime", [TorchCudaEager, TorchCudaGraph])
def test_a_host_without_a_gpu_is_told_what_is_missing(runtime):
    with pytest.raises(RuntimeFailedError, match="no CUDA device") as caught:
        runtime(RuntimeSpec())
    assert caught.value.reason == "wrong_provider"


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", SPACES)
def test_blocks_compute_on_the_gpu_what_onnx_runtime_computes(name):
    """Checks the arithmetic of each kind of block in float32 on the GPU, TF32 off."""
    TorchCudaEager(RuntimeSpec())  # sets the precision
    for block in varied_blocks(get_space(name)):
        assert_computes_as_onnx_runtime(model_of([block]), "cuda")


@pytest.mark.gpu
@needs_gpu
def test_a_replayed_graph_gives_what_the_eager_calls_give():
    """Checks that the recording holds the whole network: same output, again and again."""
    model = model_of([BLOCK] * 4)
    eager, replayed = (way(RuntimeSpec()).load(model) for way in (TorchCudaEager, TorchCudaGraph))
    with torch.inference_mode():
        expected = eager.run().cpu()
        for _ in range(3):
            torch.testing.assert_close(replayed.run().cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@needs_gpu
def test_replaying_a_small_network_takes_less_than_launching_it_eagerly(micro):
    """Checks that events time the calls: a small network is launches, and replay saves them."""
    model = model_of(micro.graph(micro.architecture([0] * 6)))
    eager, replayed = (
        np.median(way(RuntimeSpec()).load(model).time_calls(200).wall_ns)
        for way in (TorchCudaEager, TorchCudaGraph)
    )
    assert 1_000 < replayed < eager


@pytest.mark.gpu
@needs_gpu
def test_the_profile_tells_the_gpu_and_its_driver():
    """Checks that the target names the GPU, not the host's processor."""
    profile = TorchCudaGraph(RuntimeSpec()).profile()
    assert profile.device_model == torch.cuda.get_device_name()
    assert "NVIDIA driver" in profile.system
    assert profile.execution_provider == "cuda-graph"
