"""The reader of ONNX files, held against the onnx package."""

import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from predictor.agent.runtimes.onnx_reader import read_onnx
from predictor.errors import RuntimeFailedError
from predictor.quantize import quantize
from search_core.onnx_graph import build_model, random_weights
from search_core.space.blocks import BlockSpec
from search_core.space.presets import get_space

SPACES = ("micro", "nasbench201", "spos_cifar", "proxyless_cifar_mb", "proxyless_cifar_tree")
KINDS = {
    block.kind: block for name in SPACES for block in get_space(name).distinct_blocks
}  # one block of each kind
BLOCK = BlockSpec.parse("mbconv_k3_e6_s1_i24_o24_r8")


def model_of(*blocks):
    return build_model(blocks, random_weights(blocks))


def assert_read_as_onnx_does(model):
    ours, theirs = read_onnx(model), onnx.load_from_string(model).graph
    assert [
        (node.operator, node.name, node.inputs, node.outputs, node.attributes)
        for node in ours.nodes
    ] == [
        (
            node.op_type,
            node.name,
            list(node.input),
            list(node.output),
            {
                a.name: value.decode() if isinstance(value, bytes) else value
                for a in node.attribute
                for value in [helper.get_attribute_value(a)]
            },
        )
        for node in theirs.node
    ]
    assert list(ours.initializers) == [tensor.name for tensor in theirs.initializer]
    for tensor in theirs.initializer:
        expected = numpy_helper.to_array(tensor)
        found = ours.initializers[tensor.name]
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert np.array_equal(found, expected)
    assert ours.inputs == {
        tensor.name: tuple(d.dim_value for d in tensor.type.tensor_type.shape.dim)
        for tensor in theirs.input
        if tensor.name not in ours.initializers
    }
    assert ours.outputs == [tensor.name for tensor in theirs.output]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_block_is_read_as_the_onnx_package_reads_it(kind):
    assert_read_as_onnx_does(model_of(KINDS[kind]))


def test_a_whole_network_is_read_as_the_onnx_package_reads_it(micro):
    assert_read_as_onnx_does(model_of(*micro.blocks(micro.architecture([0, 1, 2, 3, 4, 5]))))


def test_a_quantised_file_is_read_as_the_onnx_package_reads_it():
    assert_read_as_onnx_does(quantize(model_of(BLOCK)))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (TensorProto.FLOAT, [1.5, -2.0, 0.0]),
        (TensorProto.DOUBLE, [1.5, -2.0, 0.0]),
        (TensorProto.INT64, [-1, 2**40, 0]),
        (TensorProto.INT32, [-1, 2**30, 0]),
        (TensorProto.INT8, [-128, 127, 0]),
        (TensorProto.UINT8, [255, 1, 0]),
    ],
)
def test_numbers_that_are_not_stored_raw_are_read_too(kind, values):
    tensor = helper.make_tensor("t", kind, [3, 1], values)
    node = helper.make_node("Op", ["x", "", "t"], ["y"], text="s", list=[1, -1], real=[0.5], n=-3)
    declared = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "n"]),
        helper.make_tensor_value_info("t", kind, [3, 1]),  # as old files list their weights
    ]
    graph = helper.make_graph([node], "g", declared, declared[:1], [tensor])
    assert_read_as_onnx_does(helper.make_model(graph).SerializeToString())


def test_data_outside_of_the_file_are_refused():
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    tensor.external_data.add(key="location", value="/etc/passwd")
    tensor.data_location = TensorProto.EXTERNAL
    graph = helper.make_graph([], "g", [], [], [tensor])
    with pytest.raises(RuntimeFailedError, match="outside of the file"):
        read_onnx(helper.make_model(graph).SerializeToString())


@given(st.binary(max_size=200))
def test_bytes_that_are_no_model_are_refused(content):
    with pytest.raises(RuntimeFailedError):
        read_onnx(b"\x08\x0a" + content if b":" not in content else b"")


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_file_is_read_or_refused_but_never_breaks_the_reader(data):
    model = bytearray(MICRO_BLOCK)
    for _ in range(data.draw(st.integers(1, 4))):
        model[data.draw(st.integers(0, len(model) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(model)))
    with contextlib.suppress(RuntimeFailedError):
        read_onnx(bytes(model[:cut]))


MICRO_BLOCK = model_of(BlockSpec.parse("mbconv_k3_e1_s1_i2_o2_r4"))
