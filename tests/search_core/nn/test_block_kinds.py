"""Every kind of block: one description, held against torch and against ONNX Runtime."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from search_core.export import onnx_bytes, onnx_parity
from search_core.nn.network import Network
from search_core.nn.ops import BN_EPS_SEARCH, BN_EPS_TRAIN, build_operation
from search_core.onnx_graph import convolutions, random_weights
from search_core.randomness import stream
from search_core.space.blocks import FREE, WEIGHTLESS, BlockKind, BlockSpec
from search_core.space.primitives import Primitive

BLOCKS = [
    "conv_k3_e1_s2_i3_o32_r24",
    "conv_k3_e1_s1_i1_o16_r8",
    "conv_k5_e1_s2_i4_o6_r7",
    "conv_k1_e1_s1_i32_o128_r7",
    "convrelu_k3_e1_s2_i3_o16_r9",
    "convlinear_k3_e1_s1_i3_o16_r8",
    "reluconv_k1_e1_s1_i16_o16_r8",
    "reluconv_k3_e1_s1_i16_o16_r7",
    "reluconv_k3_e1_s2_i8_o16_r7",
    "mbconv_k3_e1_s1_i32_o16_r12",
    "mbconv_k5_e3_s2_i16_o32_r12",
    "mbconv_k3_e6_s1_i24_o24_r8",
    "mbconv_k5_e6_s2_i24_o40_r7",
    "mbconv_k7_e2_s1_i4_o4_r5",
    "shuffle_k3_e1_s1_i16_o16_r8",
    "shuffle_k7_e1_s1_i16_o16_r5",
    "shuffle_k5_e1_s2_i16_o40_r7",
    "xception_k3_e1_s1_i16_o16_r8",
    "xception_k3_e1_s2_i16_o40_r7",
    "reduction_k3_e1_s2_i8_o16_r8",
    "reduction_k3_e1_s2_i8_o16_r7",
    "bnconv_k1_e1_s1_i24_o6_r8",
    "bnconv_k3_e1_s2_i6_o4_r7",
    "preactconv_k1_e1_s1_i6_o24_r8",
    "preactconv_k3_e1_s2_i6_o8_r7",
    "groupconv_k3_e1_s1_i6_o12_r8",
    "groupconv_k3_e1_s2_i6_o12_r7",
    "sepconv_k3_e1_s1_i6_o6_r8",
    "sepconv_k7_e1_s2_i6_o8_r9",
    "dilconv_k3_e1_s1_i6_o6_r8",
    "dilconv_k5_e1_s2_i6_o8_r9",
    "avgpool_k3_e1_s1_i6_o6_r7",
    "avgpool_k3_e1_s2_i6_o6_r7",
    "maxpool_k3_e1_s1_i6_o6_r7",
    "maxpool_k3_e1_s2_i6_o6_r8",
    "firsthalf_k1_e1_s1_i12_o6_r7",
    "lasthalf_k1_e1_s1_i12_o6_r7",
    "padded_k1_e1_s1_i6_o8_r7",
    "padded_k1_e1_s2_i6_o8_r8",
    "padded_k1_e1_s2_i6_o6_r8",
    "padded_k1_e1_s2_i6_o8_r7",
    "padded_k1_e1_s3_i6_o8_r7",
    "bn_k1_e1_s1_i6_o6_r7",
    "bnrelu_k1_e1_s1_i6_o6_r7",
    "skip_k1_e1_s1_i6_o6_r7",
    "none_k1_e1_s1_i6_o6_r7",
    "zero_k1_e1_s1_i6_o6_r7",
    "classifier_k1_e1_s1_i16_o10_r7",
    "fc_k1_e1_s1_i16_o10_r7",
]
COMPUTING = [text for text in BLOCKS if not text.startswith(("skip", "none", "zero"))]
CLASSIFIERS = (BlockKind.CLASSIFIER, BlockKind.FC)


def lived_in(block, bn_eps=BN_EPS_TRAIN):
    """A network of `block` whose BatchNorms hold scales, shifts and statistics worth folding."""
    generator = stream(0, "weights")
    network = Network.initialised([block], generator, bn_eps)
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
        nn.init.normal_(norm.bias, 0.0, 0.5, generator=generator)
        nn.init.normal_(norm.running_mean, 0.0, 0.5, generator=generator)
        nn.init.uniform_(norm.running_var, 0.5, 2.0, generator=generator)
    return network.eval()


def inputs(block, device="cpu", n=3):
    shape = (n, block.in_channels, block.resolution_px, block.resolution_px)
    if device == "meta":
        return torch.empty(shape, device="meta")
    return torch.randn(shape, generator=stream(0, "inputs"))


def test_every_kind_is_tested():
    assert {BlockSpec.parse(text).kind for text in BLOCKS} == set(BlockKind)


@pytest.mark.parametrize("text", BLOCKS)
def test_macs_equal_the_flops_torch_counts(text):
    spec = BlockSpec.parse(text)
    operation = build_operation(spec, 1e-5).to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        operation(inputs(spec, "meta", n=1))
    assert spec.macs == counter.get_total_flops() / 2


@pytest.mark.parametrize("text", BLOCKS)
def test_parameters_equal_those_of_the_module(text):
    spec = BlockSpec.parse(text)
    counted = sum(p.numel() for p in build_operation(spec, 1e-5).parameters())
    assert spec.parameters == counted
    assert (counted == 0) is (spec.kind in WEIGHTLESS)


@pytest.mark.parametrize("text", BLOCKS)
def test_the_output_has_the_shape_that_the_block_says(text):
    spec = BlockSpec.parse(text)
    output = build_operation(spec, 1e-5).to("meta").eval()(inputs(spec, "meta", n=1))
    side = spec.out_resolution_px
    image = () if spec.kind in CLASSIFIERS else (side, side)
    assert output.shape == (1, spec.out_channels, *image)


@pytest.mark.parametrize("text", BLOCKS)
def test_the_steps_end_in_the_shape_that_the_block_says(text):
    spec = BlockSpec.parse(text)
    if spec.kind in FREE:
        assert spec.steps == ()
    else:
        last = spec.steps[-1]
        assert (last.out_channels, last.out_resolution_px) == (
            spec.out_channels,
            spec.out_resolution_px,
        )


@pytest.mark.parametrize("text", COMPUTING)
@pytest.mark.parametrize("bn_eps", [BN_EPS_TRAIN, BN_EPS_SEARCH])
def test_a_block_computes_in_onnx_what_it_computes_in_torch(text, bn_eps):
    network = lived_in(BlockSpec.parse(text), bn_eps)
    assert onnx_parity(network, onnx_bytes(network), inputs(network.blocks[0])) < 1e-4


@pytest.mark.parametrize("text", COMPUTING)
def test_random_weights_are_those_that_the_graph_needs(text):
    block = BlockSpec.parse(text)
    weights = random_weights([block])
    folded = [conv for conv in convolutions(block) if conv.folds]
    bare = [conv for conv in convolutions(block) if not conv.folds]
    # of a folded BatchNorm only the shift is left; every convolution and classifier has a bias
    assert sum(array.size for array in weights.values()) == (
        block.parameters
        - sum(conv.step.out_channels for conv in folded)
        + sum(conv.step.out_channels for conv in bare)
        + (block.out_channels if block.kind is BlockKind.FC else 0)
    )


def test_a_channel_shuffle_interleaves_the_halves():
    operation = build_operation(BlockSpec.parse("groupconv_k3_e1_s1_i2_o6_r3"), 1e-5)
    features = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert operation.shuffle(features).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_a_shuffle_unit_passes_its_even_channels_on():
    network = lived_in(BlockSpec.parse("shuffle_k3_e1_s1_i8_o8_r5"))
    features = inputs(network.blocks[0])
    with torch.no_grad():
        assert torch.equal(network(features)[:, :4], features[:, 0::2])


def test_the_mean_leaves_out_the_padding():
    pool = build_operation(BlockSpec.parse("avgpool_k3_e1_s1_i1_o1_r4"), 1e-5)
    ones = torch.ones(1, 1, 4, 4)
    assert torch.equal(pool(ones), ones)


def test_the_dilated_convolution_sees_five_pixels_with_three_weights():
    block = BlockSpec.parse("dilconv_k3_e1_s1_i1_o1_r7")
    (depthwise,) = [s for s in block.steps if s.primitive is Primitive.CONV and s.dilation == 2]
    operation = build_operation(block, 1e-5).eval()
    nn.init.ones_(operation.depthwise.weight)
    point = torch.zeros(1, 1, 7, 7)
    point[0, 0, 3, 3] = 1.0
    with torch.no_grad():
        reached = operation.depthwise(point)[0, 0].nonzero()
    assert reached.min(0).values.tolist() == [1, 1]
    assert reached.max(0).values.tolist() == [5, 5]
    assert len(reached) == 9 == depthwise.weights


def test_the_padded_shortcut_pools_and_appends_zeros():
    padded = build_operation(BlockSpec.parse("padded_k1_e1_s2_i1_o3_r2"), 1e-5)
    features = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    assert padded(features).flatten().tolist() == [3.0, 0.0, 0.0]


def test_a_search_runs_with_gradients_through_every_kind():
    for text in COMPUTING:
        operation = build_operation(BlockSpec.parse(text), 1e-5)
        features = inputs(BlockSpec.parse(text)).requires_grad_()
        operation(features * 1.0).square().sum().backward()
        assert all(p.grad is not None for p in operation.parameters()), text
        assert features.grad.isfinite().all(), text
