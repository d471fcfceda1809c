"""Candidate operations."""

import pytest
import torch
from torch import nn

from search_core.nn.ops import BN_EPS_SEARCH, BN_EPS_TRAIN, build_operation, initialise
from search_core.nn.supernet import Supernet
from search_core.randomness import stream
from search_core.space.blocks import BlockSpec

MBCONV = BlockSpec.parse("mbconv_k5_e3_s2_i8_o12_r9")


def built(text, bn_eps=BN_EPS_TRAIN):
    return build_operation(BlockSpec.parse(text), bn_eps)


def kinds(module):
    leaves = (part for part in module.modules() if not list(part.children()))
    return [type(part).__name__ for part in leaves]


def test_mbconv_expands_convolves_in_depth_and_projects_linearly():
    unit = ["Conv2d", "BatchNorm2d", "ReLU6"]
    assert kinds(built("mbconv_k5_e3_s2_i8_o12_r9")) == [*unit, *unit, *unit[:2]]
    assert kinds(built("mbconv_k5_e1_s2_i8_o12_r9")) == [*unit, *unit[:2]]


def test_the_depthwise_convolution_has_one_channel_a_group():
    depthwise = built("mbconv_k5_e3_s2_i8_o12_r9").depthwise.conv
    assert (depthwise.groups, depthwise.kernel_size, depthwise.stride) == (24, (5, 5), (2, 2))


def test_zero_answers_zeros():
    features = torch.randn(2, 4, 3, 3)
    assert torch.equal(built("zero_k1_e1_s1_i4_o4_r3")(features), torch.zeros(2, 4, 3, 3))


def test_the_classifier_pools_and_is_linear():
    classifier = built("classifier_k1_e1_s1_i4_o10_r3")
    features = torch.randn(2, 4, 3, 3)
    expected = classifier.linear(features.mean(dim=(2, 3)))
    torch.testing.assert_close(classifier(features), expected)


@pytest.mark.parametrize("bn_eps", [BN_EPS_TRAIN, BN_EPS_SEARCH])
def test_every_batch_norm_has_the_epsilon_asked_for(bn_eps):
    norms = [m for m in build_operation(MBCONV, bn_eps).modules() if isinstance(m, nn.BatchNorm2d)]
    assert [norm.eps for norm in norms] == [bn_eps] * 3


def test_a_search_runs_on_the_larger_epsilon(tiny):
    norms = [m for m in Supernet(tiny, stream(0, "w")).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {1e-2}


def test_initialise_is_a_function_of_the_generator_alone():
    first, second, other = (build_operation(MBCONV, BN_EPS_TRAIN) for _ in range(3))
    initialise(first, stream(0, "weights"))
    initialise(second, stream(0, "weights"))
    initialise(other, stream(1, "weights"))
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.expand.conv.weight, other.expand.conv.weight)


def test_initialise_leaves_nothing_of_what_was_there():
    classifier = built("classifier_k1_e1_s1_i64_o10_r3")
    operation = build_operation(MBCONV, BN_EPS_TRAIN)
    for module in (classifier, operation):
        for tensor in module.state_dict().values():
            tensor.fill_(77)
        initialise(module, stream(0, "weights"))
        assert all((tensor != 77).all() for tensor in module.state_dict().values())
    assert (classifier.linear.bias == 0.0).all()
    assert classifier.linear.weight.abs().max() <= 64**-0.5


def test_convolutions_are_drawn_with_he_fan_out():
    operation = built("conv_k3_e1_s1_i64_o128_r8")
    initialise(operation, stream(0, "weights"))
    expected = (2.0 / (9 * 128)) ** 0.5
    assert operation.conv.weight.std().item() == pytest.approx(expected, rel=0.02)
