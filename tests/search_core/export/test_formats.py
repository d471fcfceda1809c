"""A trained network as files."""

import random
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from search_core.export import onnx_bytes, onnx_parity, safetensors_bytes
from search_core.nn.network import Network
from search_core.nn.ops import BN_EPS_SEARCH
from search_core.randomness import stream
from search_core.train import recalibrate_batch_norm


@pytest.fixture(scope="module")
def data(data):
    return replace(data, train_images=data.train_images[:256])


@pytest.fixture(scope="module")
def images(data):
    return data.normalise(data.test_images[:8])


def network_of(space, architecture, data, bn_eps=1e-5):
    network = Network.initialised(space.blocks(architecture), stream(1, "weights"), bn_eps)
    recalibrate_batch_norm(network, data)
    return network


@pytest.mark.parametrize("seed", range(5))
def test_the_onnx_file_gives_the_scores_of_the_network(micro, data, images, seed):
    network = network_of(micro, micro.sample(random.Random(seed)), data)
    assert onnx_parity(network, onnx_bytes(network), images) < 1e-4


def test_the_epsilon_of_the_search_is_folded_in(tiny, data, images):
    network = network_of(tiny, tiny.architecture((0, 0, 0)), data, BN_EPS_SEARCH)
    assert onnx_parity(network, onnx_bytes(network), images) < 1e-4


def test_parity_sees_a_difference(tiny, data, images):
    network = network_of(tiny, tiny.architecture((0, 0, 0)), data)
    model = onnx_bytes(network)
    with torch.no_grad():
        network.layers[-1].linear.bias[3] += 0.5
    assert onnx_parity(network, model, images) == pytest.approx(0.5, abs=1e-4)


def test_the_bytes_are_a_function_of_the_network(tiny, data):
    networks = [network_of(tiny, tiny.architecture((0, 0, 0)), data) for _ in range(2)]
    assert onnx_bytes(networks[0]) == onnx_bytes(networks[1])
    assert safetensors_bytes(networks[0]) == safetensors_bytes(networks[1])


def test_safetensors_restore_the_network_to_the_bit(tiny, data, images, identical):
    architecture = tiny.architecture((2, 0, 3))
    network = network_of(tiny, architecture, data)
    restored = Network(tiny.blocks(architecture)).eval()
    restored.load_state_dict(safetensors.torch.load(safetensors_bytes(network)))
    assert identical(dict(restored.state_dict()), dict(network.state_dict()))
    with torch.no_grad():
        assert torch.equal(restored(images), network(images))
