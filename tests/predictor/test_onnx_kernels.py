"""What is read off optimised graphs, and which files are refused."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from predictor import onnx_kernels
from predictor.errors import BadModelFileError
from predictor.onnx_kernels import read_kernels
from predictor.quantize import quantize
from search_core.onnx_graph import build_model, random_weights
from search_core.space.blocks import BlockSpec

# whole vectors on every processor: nothing is padded
BLOCK = BlockSpec.parse("mbconv_k5_e2_s1_i32_o32_r8")
CONV = BlockSpec.parse("conv_k1_e1_s1_i32_o64_r8")
HEAD = BlockSpec.parse("classifier_k1_e1_s1_i32_o10_r8")


def model_of(*blocks, seed=0):
    return build_model(blocks, random_weights(blocks, seed))


def graph_of(*nodes, shape=(1, 4), constants=(), output="out"):
    """An ONNX file of `nodes` from ``in`` to ``out``, of the same rank."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * len(shape))],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def kernels_of(model):
    return read_kernels(model.SerializeToString()).kernels


def ones(*shape):
    return np.ones(shape, np.float32)


def test_a_block_is_its_convolutions_with_everything_fused():
    graph = read_kernels(model_of(BLOCK))
    convolutions = [k for k in graph.kernels if k.macs]
    assert [k.kind for k in convolutions] == ["pointwise", "depthwise", "pointwise"]
    assert [k.window for k in convolutions] == [1, 25, 1]
    assert sum(k.macs for k in convolutions) == graph.macs == BLOCK.macs
    assert sum(k.kind == "elementwise" for k in graph.kernels) <= 1  # the residual, if anything
    assert graph.uncounted == ()


def test_a_classifier_pools_and_multiplies():
    graph = read_kernels(model_of(HEAD))
    by_kind = {k.kind: k for k in graph.kernels}
    assert by_kind["matmul"].macs == 32 * 10
    assert by_kind["pool"].macs == 32 * 8 * 8
    assert by_kind["pool"].window == 8 * 8


def test_bytes_are_of_activations_in_and_out_and_of_constants():
    (kernel,) = (k for k in read_kernels(model_of(CONV)).kernels if k.macs)
    assert kernel.bytes_read == 4 * 32 * 64
    assert kernel.bytes_written == 4 * 64 * 64
    assert kernel.weight_bytes == 4 * (32 * 64 + 64)


def test_a_scalar_is_one_element():
    (kernel,) = kernels_of(graph_of(helper.make_node("Relu", ["in"], ["out"]), shape=()))
    assert kernel.outputs == ((),)
    assert kernel.bytes_read == kernel.bytes_written == 4


def test_a_convolution_of_few_channels_is_a_stem():
    (kernel,) = kernels_of(
        graph_of(
            helper.make_node("Conv", ["in", "w"], ["out"], strides=[2, 2]),
            shape=(1, 3, 9, 9),
            constants=[("w", ones(16, 3, 3, 3))],
        )
    )[:1]
    assert kernel.kind == "stem"
    assert kernel.stride == 4
    assert kernel.macs == 16 * 4 * 4 * 27


@pytest.mark.parametrize(
    ("node", "shape", "constants", "macs"),
    [
        (("MatMul", {}), (2, 5, 8), [("w", ones(8, 3))], 2 * 5 * 8 * 3),
        (("Gemm", {"transA": 1}), (8, 5), [("w", ones(8, 3))], 5 * 8 * 3),
        (("ConvTranspose", {}), (1, 8, 4, 4), [("w", ones(8, 2, 3, 3))], 4 * 4 * 8 * 2 * 9),
    ],
)
def test_multiply_accumulates_by_operator(node, shape, constants, macs):
    operator, attributes = node
    model = graph_of(
        helper.make_node(operator, ["in", "w"], ["out"], **attributes),
        shape=shape,
        constants=constants,
    )
    assert sum(k.macs for k in kernels_of(model)) == macs


def test_an_int8_file_does_the_same_work_on_fewer_bytes():
    exact, rounded = read_kernels(model_of(BLOCK)), read_kernels(quantize(model_of(BLOCK)))
    assert rounded.macs == exact.macs
    assert rounded.uncounted == ()
    of = [sum(k.weight_bytes for k in graph.kernels) for graph in (exact, rounded)]
    assert of[1] < 0.5 * of[0]


def test_files_that_run_alike_have_the_same_digest():
    digest = read_kernels(model_of(BLOCK)).digest
    assert read_kernels(model_of(BLOCK, seed=1)).digest == digest
    assert read_kernels(model_of(BLOCK, BLOCK)).digest != digest
    other = BlockSpec.parse("mbconv_k3_e2_s1_i32_o32_r8")
    assert read_kernels(model_of(other)).digest != digest


def test_operators_that_cannot_be_counted_are_listed():
    model = graph_of(
        helper.make_node("Relu", ["in"], ["a"]),
        helper.make_node("Einsum", ["a"], ["out"], equation="ij->ji"),
    )
    graph = read_kernels(model.SerializeToString())
    assert graph.uncounted == ("Einsum",)
    assert [k.counted for k in graph.kernels if k.operator == "Einsum"] == [False]


def test_shapes_that_depend_on_data_are_not_counted():
    model = graph_of(
        helper.make_node("NonZero", ["in"], ["a"]),
        helper.make_node("Cast", ["a"], ["out"], to=TensorProto.FLOAT),
    )
    graph = read_kernels(model.SerializeToString())
    assert set(graph.uncounted) == {"NonZero", "Cast"}


def test_an_open_batch_is_one():
    node = helper.make_node("Relu", ["in"], ["out"])
    (kernel,) = kernels_of(graph_of(node, shape=("batch", 4)))
    assert kernel.outputs == ((1, 4),)


def test_another_open_dimension_is_refused_and_named():
    node = helper.make_node("Relu", ["in"], ["out"])
    with pytest.raises(BadModelFileError, match="dimension 1 of input 'in' is open"):
        kernels_of(graph_of(node, shape=(1, "width")))


def test_what_is_no_onnx_file_is_refused():
    with pytest.raises(BadModelFileError, match="no ONNX file"):
        read_kernels(b"nonsense")


def test_what_onnx_finds_invalid_is_refused():
    with pytest.raises(BadModelFileError, match="no valid ONNX file"):
        kernels_of(graph_of(helper.make_node("Relu", ["nowhere"], ["out"])))


def test_a_graph_without_nodes_is_refused():
    with pytest.raises(BadModelFileError, match="0 nodes"):
        kernels_of(graph_of(output="in"))


def test_a_large_file_is_refused_before_it_is_parsed(monkeypatch):
    monkeypatch.setattr(onnx_kernels, "MAX_BYTES", 8)
    with pytest.raises(BadModelFileError, match="10 bytes"):
        read_kernels(b"0123456789")


def of_domain(domain: str):
    model = graph_of(helper.make_node("Nothing", ["in"], ["out"], domain=domain))
    model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def test_what_the_runtime_cannot_run_is_refused():
    with pytest.raises(BadModelFileError, match="ONNX Runtime refused"):
        kernels_of(of_domain("com.microsoft"))


def test_an_operator_of_others_is_refused_before_the_runtime_sees_it(monkeypatch):
    monkeypatch.setattr(onnx_kernels, "_optimised", lambda _: pytest.fail("the runtime saw it"))
    with pytest.raises(BadModelFileError, match=r"operator org\.pytorch\.aten\.Nothing is none"):
        kernels_of(of_domain("org.pytorch.aten"))


def external(name):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="elsewhere.bin")
    return tensor


def in_initializer():
    model = graph_of(helper.make_node("Add", ["in", "w"], ["out"]))
    model.graph.initializer.append(external("w"))
    return model


def in_branch():
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=external("c"))],
        "branch",
        [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [4])],
    )
    return graph_of(
        helper.make_node("If", ["yes"], ["out"], then_branch=branch, else_branch=branch),
        constants=[("yes", np.array(True))],
    )


@pytest.mark.parametrize("make", [in_initializer, in_branch])
def test_data_outside_of_the_file_is_refused(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere.bin").write_bytes(bytes(16))  # it is there, and still not read
    with pytest.raises(BadModelFileError, match="lies in another file"):
        kernels_of(make())


def test_no_operator_has_two_kinds():
    sets = [
        onnx_kernels._CONVOLUTIONS,
        onnx_kernels._TRANSPOSED,
        onnx_kernels._MATMULS,
        onnx_kernels._POOLS,
        onnx_kernels._ELEMENTWISE,
        onnx_kernels._MOVES,
    ]
    assert sum(map(len, sets)) == len(set.union(*sets))


def test_operators_of_onnx_are_spelt_as_onnx_does():
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    plain = onnx_kernels._ELEMENTWISE | onnx_kernels._MOVES
    contributed = {"BiasGelu", "FastGelu", "QuickGelu", "SkipLayerNormalization"}
    contributed |= {"ReorderInput", "ReorderOutput"} | {n for n in plain if n.startswith("QLinear")}
    assert plain - contributed <= known
