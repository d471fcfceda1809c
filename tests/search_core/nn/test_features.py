"""Networks as backbones: the maps, their sizes, and where they come from."""

import random

import pytest
import torch

from search_core.nn.features import FeatureBackbone
from search_core.nn.network import Network
from search_core.randomness import stream
from search_core.space.nasbench201 import nasbench201
from search_core.space.presets import get_space
from search_core.space.published import published_network

CELLS = nasbench201(channels=4, cells_per_stage=1)
FAMILIES = {  # space, strides it offers, channels of their maps
    "micro": (get_space("micro"), (1, 2, 4), (24, 40, 80)),
    "proxyless_cifar_mb": (get_space("proxyless_cifar_mb"), (1, 2, 4), (40, 96, 320)),
    "spos_cifar": (get_space("spos_cifar"), (1, 2, 4), (64, 160, 640)),
    "nasbench201": (CELLS, (1, 2, 4), (4, 8, 16)),
}


def network_of(space, architecture):
    return Network.initialised(space.graph(architecture), stream(1, "weights")).eval()


def images_of(space, height, width):
    return torch.randn(2, space.in_channels, height, width, generator=stream(2, "images"))


@pytest.fixture(params=FAMILIES)
def family(request):
    """(space, network, strides, channels)."""
    space, strides, channels = FAMILIES[request.param]
    return space, network_of(space, space.sample(random.Random(1))), strides, channels


def rounded_up(pixels, stride):
    return -(-pixels // stride)


@pytest.mark.parametrize(("height", "width"), [(16, 24), (17, 23), (5, 31)])
def test_maps_have_the_said_channels_and_strides_at_any_size(family, height, width):
    space, network, strides, channels = family
    backbone = FeatureBackbone(network, strides).eval()
    assert (backbone.strides, backbone.channels) == (strides, channels)
    with torch.no_grad():
        maps = backbone(images_of(space, height, width))
    assert [tuple(m.shape) for m in maps] == [
        (2, c, rounded_up(height, s), rounded_up(width, s))
        for c, s in zip(channels, strides, strict=True)
    ]


def test_a_published_network_has_the_four_strides_of_detection():
    backbone = FeatureBackbone(Network(published_network("proxyless_mobile"))).eval()
    assert backbone.strides == (4, 8, 16, 32)
    assert backbone.channels == (32, 40, 96, 320)
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 65, 97, generator=stream(1, "images")))
    assert [m.shape[-2:] for m in maps] == [(17, 25), (9, 13), (5, 7), (3, 4)]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_left_out_turns_the_last_map_into_the_scores(name):
    """The 1x1 convolution and the classifier of a chain; of cells the classifier alone."""
    space, _, _ = FAMILIES[name]
    network = network_of(space, space.sample(random.Random(2)))
    images = images_of(space, space.resolution_px, space.resolution_px)
    with torch.no_grad():
        x = FeatureBackbone(network, (4,)).eval()(images)[0]
        for layer in network.layers[-1 if name == "nasbench201" else -2 :]:
            x = layer(x)
        assert torch.equal(x, network(images))


def test_each_map_is_the_last_of_its_stride():
    """What the block that halves the size reads is the map before it."""
    network = network_of(CELLS, CELLS.architecture((3, 1, 4, 2, 3, 1)))
    seen = {}
    for index, block in enumerate(network.blocks):
        if block.stride == 2:
            network.layers[index].register_forward_pre_hook(
                lambda _, inputs, at=index: seen.setdefault(at, inputs[0])
            )
    images = images_of(CELLS, 32, 32)
    with torch.no_grad():
        network(images)
        first, second, _ = FeatureBackbone(network, (1, 2, 4)).eval()(images)
    assert len(seen) == 2
    assert all(torch.equal(x, y) for x, y in zip(seen.values(), (first, second), strict=True))


def test_strides_that_a_network_lacks_are_refused_with_those_it_has(family):
    _, network, _, _ = family
    with pytest.raises(ValueError, match=r"at strides 1, 2, 4; asked for \[4, 8, 16, 32\]"):
        FeatureBackbone(network)
    with pytest.raises(ValueError, match="at strides 1, 2, 4"):
        FeatureBackbone(network, ())


def test_maps_come_fine_to_coarse_whatever_the_order_asked(family):
    _, network, _, _ = family
    assert FeatureBackbone(network, (4, 1)).strides == (1, 4)


def test_weights_are_copied_under_their_names_and_only_those_needed(family):
    _, network, _, _ = family
    backbone = FeatureBackbone(network, (1, 2))
    whole, part = network.state_dict(), backbone.state_dict()
    assert part.keys() < whole.keys()
    assert all(torch.equal(part[name], whole[name]) for name in part)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.fill_(7.0)
    assert not any((parameter == 7.0).all() for parameter in network.parameters())
    last = max(int(name.split(".")[1]) for name in part)
    assert network.blocks[last].out_resolution_px * 2 == network.blocks[0].resolution_px


def test_every_weight_of_a_chain_backbone_gets_a_gradient(micro):
    network = network_of(micro, micro.sample(random.Random(3)))
    backbone = FeatureBackbone(network, (1, 2, 4)).train()
    sum(m.square().mean() for m in backbone(images_of(micro, 8, 8))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.parameters())
