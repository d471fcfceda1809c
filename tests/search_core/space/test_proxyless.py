"""The ProxylessNAS space and the published networks have their published counts."""

import json
from pathlib import Path

import pytest

from search_core.errors import ArchitectureSyntaxError
from search_core.space.blocks import BlockKind
from search_core.space.primitives import Primitive
from search_core.space.proxyless import (
    make_divisible,
    mbconv_network,
    proxyless_cifar_mb,
    proxyless_imagenet,
)
from search_core.space.published import published_network

PUBLISHED = json.loads(Path(__file__).with_name("published_counts.json").read_text())
ROUNDED_COUNTS = {"proxyless_gpu": (7.12, 465.3), "proxyless_mobile_14": (6.86, 580.9)}


@pytest.mark.parametrize("name", PUBLISHED["networks"])
def test_published_networks_have_their_exact_counts(name):
    graph = published_network(name)
    assert [graph.parameters, graph.macs] == PUBLISHED["networks"][name]


@pytest.mark.parametrize("name", ROUNDED_COUNTS)
def test_published_networks_have_their_rounded_counts(name):
    graph = published_network(name)
    assert (round(graph.parameters / 1e6, 2), round(graph.macs / 1e6, 1)) == ROUNDED_COUNTS[name]


@pytest.mark.parametrize("name", PUBLISHED["layers"])
def test_networks_agree_with_the_published_table_layer_by_layer(name):
    blocks = published_network(name).blocks
    assert [[str(b), b.parameters, b.macs] for b in blocks] == PUBLISHED["layers"][name]


def test_mobilenet_v2_is_its_published_configuration():
    """Expansion, channels, repeats, first stride (Sandler et al. 2018, table 2)."""
    published = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    expected = [
        (expansion, channels, stride if position == 0 else 1)
        for expansion, channels, repeats, stride in published
        for position in range(repeats)
    ]
    blocks = published_network("mobilenet_v2").blocks
    mbconvs = [b for b in blocks if b.kind is BlockKind.MBCONV]
    assert [(b.expansion, b.out_channels, b.stride) for b in mbconvs] == expected
    assert {b.kernel for b in mbconvs} == {3}


def test_the_space_has_the_published_size_and_weights():
    space = proxyless_imagenet()
    assert space.size == 221_502_229_807_900_608
    assert sum(len(slot.candidates) for slot in space.slots) == 141
    assert sum(b.parameters for layer in space.layers for b in layer.blocks) == 16_034_168


def test_all_paths_keep_4_6_times_the_activations_of_the_largest_one():
    """Outputs of convolutions for one image: what a search that runs all paths would hold."""
    space = proxyless_imagenet()

    def activations(block):
        return sum(s.out_elements for s in block.steps if s.primitive is Primitive.CONV)

    searched = [layer.blocks for layer in space.layers if layer.slot is not None]
    held = [[activations(block) for block in blocks] for blocks in searched]
    all_paths, one_path = sum(map(sum, held)), sum(map(max, held))
    assert (all_paths, one_path) == (40_454_400, 8_783_936)
    assert round(all_paths / one_path, 3) == 4.605


def test_the_small_image_form_keeps_its_resolution_longer():
    space = proxyless_cifar_mb()
    assert len(space.slots) == len(proxyless_imagenet().slots) == 21
    assert space.layers[-1].blocks[0].resolution_px == 8
    assert space.n_classes == 10


def test_a_width_multiplier_keeps_channels_divisible_and_the_head_at_least_1280():
    narrow, wide = proxyless_imagenet(0.35), proxyless_imagenet(1.4)
    for space in (narrow, wide):
        assert all(b.out_channels % 8 == 0 for b in space.distinct_blocks if b.stride == 2)
    assert narrow.layers[-1].blocks[0].in_channels == 1280
    assert wide.layers[-1].blocks[0].in_channels == 1792


@pytest.mark.parametrize(("value", "rounded"), [(32, 32), (11.2, 16), (33.6, 32), (8.4, 8), (1, 8)])
def test_channels_are_rounded_to_multiples_of_eight_never_far_down(value, rounded):
    assert make_divisible(value) == rounded


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("k3e1c16", "22 tokens"),
        (" ".join(["k3e1c16"] * 21 + ["x"]), "token 21"),
        (" ".join(["Z"] * 22), "token 0"),
    ],
)
def test_a_bad_string_names_the_token_at_fault(text, named):
    with pytest.raises(ArchitectureSyntaxError, match=named):
        mbconv_network(text)


def test_an_unknown_network_lists_the_known_ones():
    with pytest.raises(ArchitectureSyntaxError, match="proxyless_mobile_14"):
        published_network("nasnet")


@pytest.mark.parametrize("position", [0, 1, 5, 9, 13, 17, 21])
def test_zero_is_refused_where_the_shape_changes(position):
    tokens = ["k3e3c16"] * 22
    tokens[position] = "Z"
    with pytest.raises(ArchitectureSyntaxError, match=f"token {position} is 'Z'"):
        mbconv_network(" ".join(tokens))
