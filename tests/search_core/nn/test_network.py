"""The decided network."""

import torch

from search_core.nn.network import Network
from search_core.nn.ops import BN_EPS_SEARCH, BN_EPS_TRAIN
from search_core.randomness import stream
from search_core.space.blocks import BlockSpec


def test_a_block_that_keeps_its_shape_adds_its_input():
    block = BlockSpec.parse("mbconv_k3_e2_s1_i4_o4_r5")
    network = Network([block]).eval()
    features = torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        assert torch.equal(network(features), features + network.layers[0](features))


def test_a_block_that_changes_its_shape_does_not():
    block = BlockSpec.parse("mbconv_k3_e2_s2_i4_o4_r5")
    network = Network([block]).eval()
    features = torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        assert torch.equal(network(features), network.layers[0](features))


def test_scores_have_one_column_a_class(tiny):
    network = Network(tiny.blocks(tiny.architecture((0, 0, 0))))
    assert network(torch.randn(3, 1, 8, 8)).shape == (3, 10)


def test_weights_are_a_function_of_the_generator(tiny, identical):
    blocks = tiny.blocks(tiny.architecture((1, 0, 2)))
    first, second, other = (Network.initialised(blocks, stream(s, "weights")) for s in (0, 0, 1))
    assert identical(first.state_dict(), second.state_dict())
    assert not identical(first.state_dict(), other.state_dict())


def test_a_network_trained_from_scratch_has_the_small_epsilon(tiny):
    blocks = tiny.blocks(tiny.architecture((0, 0, 0)))
    assert Network(blocks).layers[0].bn.eps == BN_EPS_TRAIN
    assert Network(blocks, bn_eps=BN_EPS_SEARCH).layers[0].bn.eps == BN_EPS_SEARCH
