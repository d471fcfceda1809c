"""The ProxylessNAS space and the published networks have their published counts."""

import pytest

from search_core.errors import ArchitectureSyntaxError
from search_core.space.proxyless import (
    make_divisible,
    mbconv_network,
    proxyless_cifar_mb,
    proxyless_imagenet,
)
from search_core.space.published import published_network

COUNTS = {
    "proxyless_mobile": (4_080_512, 320_427_584),
    "proxyless_cpu": (4_361_648, 439_243_864),
    "mobilenet_v2": (3_504_872, 300_774_272),
}
ROUNDED_COUNTS = {"proxyless_gpu": (7.12, 465.3), "proxyless_mobile_14": (6.86, 580.9)}

# block, parameters, MACs: the published table of proxyless_mobile
MOBILE_LAYERS = [
    ("conv_k3_e1_s2_i3_o32_r224", 928, 10_838_016),
    ("mbconv_k3_e1_s1_i32_o16_r112", 896, 10_035_200),
    ("mbconv_k5_e3_s2_i16_o32_r112", 3_760, 18_213_888),
    ("mbconv_k3_e3_s1_i32_o32_r56", 7_456, 21_977_088),
    ("mbconv_k7_e3_s2_i32_o40_r56", 12_080, 16_332_288),
    ("mbconv_k3_e3_s1_i40_o40_r28", 11_240, 8_373_120),
    ("mbconv_k5_e3_s1_i40_o40_r28", 13_160, 9_878_400),
    ("mbconv_k5_e3_s1_i40_o40_r28", 13_160, 9_878_400),
    ("mbconv_k7_e6_s2_i40_o80_r28", 41_680, 13_594_560),
    ("mbconv_k5_e3_s1_i80_o80_r14", 45_520, 8_702_400),
    ("mbconv_k5_e3_s1_i80_o80_r14", 45_520, 8_702_400),
    ("mbconv_k5_e3_s1_i80_o80_r14", 45_520, 8_702_400),
    ("mbconv_k5_e6_s1_i80_o96_r14", 98_592, 18_910_080),
    ("mbconv_k5_e3_s1_i96_o96_r14", 63_840, 12_249_216),
    ("mbconv_k5_e3_s1_i96_o96_r14", 63_840, 12_249_216),
    ("mbconv_k5_e3_s1_i96_o96_r14", 63_840, 12_249_216),
    ("mbconv_k7_e6_s2_i96_o192_r14", 196_800, 17_640_000),
    ("mbconv_k7_e6_s1_i192_o192_r7", 503_808, 24_441_984),
    ("mbconv_k7_e3_s1_i192_o192_r7", 252_096, 12_220_992),
    ("mbconv_k7_e3_s1_i192_o192_r7", 252_096, 12_220_992),
    ("mbconv_k7_e6_s1_i192_o320_r7", 651_520, 31_667_328),
    ("conv_k1_e1_s1_i320_o1280_r7", 412_160, 20_070_400),
    ("classifier_k1_e1_s1_i1280_o1000_r7", 1_281_000, 1_280_000),
]


@pytest.mark.parametrize("name", COUNTS)
def test_published_networks_have_their_exact_counts(name):
    blocks = published_network(name)
    counted = sum(b.parameters for b in blocks), sum(b.macs for b in blocks)
    assert counted == COUNTS[name]


@pytest.mark.parametrize("name", ROUNDED_COUNTS)
def test_published_networks_have_their_rounded_counts(name):
    blocks = published_network(name)
    parameters_m = round(sum(b.parameters for b in blocks) / 1e6, 2)
    macs_m = round(sum(b.macs for b in blocks) / 1e6, 1)
    assert (parameters_m, macs_m) == ROUNDED_COUNTS[name]


def test_proxyless_mobile_agrees_with_the_published_table_layer_by_layer():
    blocks = published_network("proxyless_mobile")
    assert [(str(b), b.parameters, b.macs) for b in blocks] == MOBILE_LAYERS


def test_the_space_has_the_published_size_and_weights():
    space = proxyless_imagenet()
    assert space.size == 221_502_229_807_900_608
    assert sum(len(slot.candidates) for slot in space.slots) == 141
    assert sum(b.parameters for layer in space.layers for b in layer.blocks) == 16_034_168


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
