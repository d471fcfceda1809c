"""Chains of blocks as ONNX graphs: held against torch, block by block and as networks."""

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from search_core.export import onnx_bytes, onnx_parity
from search_core.nn.network import Network
from search_core.onnx_graph import build_model, convolutions, random_weights
from search_core.randomness import stream
from search_core.space.blocks import BlockSpec
from search_core.space.presets import get_space

DISTINCT = {str(block): block for block in get_space("micro").distinct_blocks}


def lived_in(blocks, seed=0):
    """A network whose BatchNorms hold scales, shifts and statistics worth folding."""
    generator = stream(seed, "weights")
    network = Network.initialised(blocks, generator)
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
        nn.init.normal_(norm.bias, 0.0, 0.5, generator=generator)
        nn.init.normal_(norm.running_mean, 0.0, 0.5, generator=generator)
        nn.init.uniform_(norm.running_var, 0.5, 2.0, generator=generator)
    return network.eval()


def inputs(block, n=3):
    side = block.resolution_px
    return torch.randn(n, block.in_channels, side, side, generator=stream(0, "inputs"))


@pytest.mark.parametrize("text", DISTINCT)
def test_each_block_computes_in_onnx_what_it_computes_in_torch(text):
    network = lived_in([DISTINCT[text]])
    assert onnx_parity(network, onnx_bytes(network), inputs(DISTINCT[text])) < 1e-4


@pytest.mark.parametrize(
    "text", ["mbconv_k5_e3_s2_i6_o8_r7", "conv_k3_e1_s2_i3_o4_r9", "mbconv_k7_e2_s1_i4_o4_r5"]
)
def test_odd_sizes_large_kernels_and_strided_stems_agree_too(text):
    network = lived_in([BlockSpec.parse(text)])
    assert onnx_parity(network, onnx_bytes(network), inputs(network.blocks[0])) < 1e-4


def test_a_chain_of_one_block_adds_its_shortcut_each_time():
    network = lived_in([BlockSpec.parse("mbconv_k3_e6_s1_i24_o24_r8")] * 4)
    model = onnx_bytes(network)
    assert onnx_parity(network, model, inputs(network.blocks[0])) < 1e-4
    assert [node.op_type for node in onnx.load_from_string(model).graph.node].count("Add") == 4


def test_a_zero_leaves_no_trace_in_the_graph(tiny):
    network = lived_in(tiny.blocks(tiny.parse("k3e2 zero k5e1")))
    model = onnx_bytes(network)
    assert onnx_parity(network, model, inputs(network.blocks[0])) < 1e-4
    without = [block for block in network.blocks if block.kind != "zero"]
    assert len(onnx.load_from_string(model).graph.node) == len(
        onnx.load_from_string(build_model(without, random_weights(without))).graph.node
    )


def test_the_same_weights_give_the_same_bytes(micro):
    blocks = micro.blocks(micro.architecture([0, 1, 2, 3, 4, 5]))
    assert build_model(blocks, random_weights(blocks)) == build_model(
        blocks, random_weights(blocks)
    )


def test_other_weights_give_other_bytes(micro):
    blocks = micro.blocks(micro.architecture([0] * 6))
    models = [build_model(blocks, random_weights(blocks, seed)) for seed in (0, 1)]
    assert models[0] != models[1]


@pytest.mark.parametrize("batch", [1, 4])
def test_a_network_model_is_valid_and_takes_and_gives_fixed_shapes(micro, batch):
    blocks = micro.blocks(micro.architecture([5] * 6))
    model = build_model(blocks, random_weights(blocks), batch=batch)
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (source,), (target,) = session.get_inputs(), session.get_outputs()
    assert (source.name, source.shape) == ("input", [batch, 1, 8, 8])
    assert (target.name, target.shape) == ("output", [batch, 10])


def test_a_block_model_gives_a_feature_map():
    block = BlockSpec.parse("mbconv_k5_e3_s2_i24_o40_r7")
    session = onnxruntime.InferenceSession(
        build_model([block], random_weights([block])), providers=["CPUExecutionProvider"]
    )
    assert session.get_outputs()[0].shape == [1, 40, 4, 4]


def test_a_missing_weight_is_an_error(micro):
    blocks = micro.blocks(micro.architecture([0] * 6))
    weights = random_weights(blocks)
    del weights["3.project.bias"]
    with pytest.raises(KeyError, match=r"3\.project\.bias"):
        build_model(blocks, weights)


@pytest.mark.parametrize("text", DISTINCT)
def test_the_convolutions_of_a_block_hold_its_weights(text):
    block = DISTINCT[text]
    assert sum(array.size for array in random_weights([block]).values()) == (
        # BatchNorm's scale is folded away: one scalar a channel less
        block.parameters - sum(conv.step.out_channels for conv in convolutions(block))
    )
