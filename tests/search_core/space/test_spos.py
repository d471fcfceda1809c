"""The SPOS space has its published counts, layer by layer."""

import pytest

from search_core.errors import ArchitectureSyntaxError
from search_core.space.blocks import BlockKind
from search_core.space.published import published_network
from search_core.space.spos import spos_cifar, spos_imagenet

IMAGENET = spos_imagenet()

# first slot, last slot, MACs and parameters of the choices 3x3, 5x5, 7x7, Xception
PUBLISHED = [
    (
        (0, 0),
        (13_396_992, 15_805_440, 19_418_112, 13_146_112),
        (3_024, 3_792, 4_944, 4_640),
    ),
    (
        (1, 3),
        (7_325_696, 8_931_328, 11_339_776, 12_343_296),
        (2_528, 3_040, 3_808, 4_320),
    ),
    (
        (4, 4),
        (26_304_768, 28_111_104, 30_820_608, 20_296_192),
        (18_960, 21_264, 24_720, 27_104),
    ),
    (
        (5, 7),
        (10_599_680, 11_603_200, 13_108_480, 16_746_240),
        (14_000, 15_280, 17_200, 22_320),
    ),
    (
        (8, 8),
        (30_670_080, 31_673_600, 33_178_880, 21_199_360),
        (81_280, 86_400, 94_080, 110_720),
    ),
    (
        (9, 15),
        (10_317_440, 10_819_200, 11_571_840, 15_899_520),
        (53_600, 56_160, 60_000, 83_040),
    ),
    (
        (16, 16),
        (30_387_840, 30_889_600, 31_642_240, 20_634_880),
        (316_160, 326_400, 341_760, 426_240),
    ),
    (
        (17, 19),
        (10_176_320, 10_427_200, 10_803_520, 15_476_160),
        (209_600, 214_720, 222_400, 319_680),
    ),
]
BY_SLOT = [
    (slot, macs, parameters)
    for (first, last), macs, parameters in PUBLISHED
    for slot in range(first, last + 1)
]

DSNAS = "0-0-3-0-3-2-0-0-3-3-2-3-3-3-2-0-0-3-3-0"
SPOS = "0-1-2-2-1-1-2-1-3-3-0-3-0-3-0-0-2-2-2-1"


@pytest.mark.parametrize(("slot", "macs", "parameters"), BY_SLOT)
def test_the_choices_of_every_layer_have_their_published_counts(slot, macs, parameters):
    (layer,) = [layer for layer in IMAGENET.layers if layer.slot == slot]
    assert tuple(block.macs for block in layer.blocks) == macs
    assert tuple(block.parameters for block in layer.blocks) == parameters


def test_the_published_table_covers_every_slot():
    assert [slot for slot, _, _ in BY_SLOT] == list(range(20))


@pytest.mark.parametrize(
    ("layer", "parameters", "macs"),
    [(0, 464, 5_419_008), (-2, 657_408, 32_112_640), (-1, 1_024_000, 1_024_000)],
    ids=["stem", "last convolution", "fully connected"],
)
def test_the_fixed_layers_have_their_published_counts(layer, parameters, macs):
    (block,) = IMAGENET.layers[layer].blocks
    assert (block.parameters, block.macs) == (parameters, macs)


@pytest.mark.parametrize(
    ("text", "parameters", "macs"),
    [
        (SPOS, 3_340_096, 321_833_664),
        ("-".join("0" * 20), 3_154_880, 295_842_496),
        ("-".join("3" * 20), 3_870_816, 358_825_920),
    ],
    ids=["spos", "all 3x3", "all xception"],
)
def test_networks_have_their_published_counts(text, parameters, macs):
    architecture = IMAGENET.parse(text)
    assert IMAGENET.format(architecture) == text
    assert (IMAGENET.parameters(architecture), IMAGENET.macs(architecture)) == (parameters, macs)


def test_the_dsnas_child_is_the_sum_of_its_published_rows():
    """Published as 324 M with a convention that counts the classifier twice."""
    choices = list(map(int, DSNAS.split("-")))
    macs = sum(row[choice] for choice, (_, row, _) in zip(choices, BY_SLOT, strict=True))
    parameters = sum(row[choice] for choice, (_, _, row) in zip(choices, BY_SLOT, strict=True))
    architecture = IMAGENET.parse(DSNAS)
    assert IMAGENET.macs(architecture) == macs + 5_419_008 + 32_112_640 + 1_024_000
    assert IMAGENET.parameters(architecture) == parameters + 464 + 657_408 + 1_024_000
    repository_convention = IMAGENET.macs(architecture) + (1024 - 1) * 1000
    assert round(repository_convention / 1e6) == 324


@pytest.mark.parametrize(("name", "text"), [("dsnas", DSNAS), ("spos", SPOS)])
def test_the_published_children_are_known_by_name(name, text):
    assert published_network(name) == IMAGENET.blocks(IMAGENET.parse(text))


def test_the_space_holds_four_to_the_twenty():
    assert IMAGENET.size == spos_cifar().size == 1_099_511_627_776


def test_the_small_image_form_keeps_eight_pixels_and_adapts_its_width():
    space = spos_cifar()
    assert space.layers[-1].blocks[0].resolution_px == 8
    adapted = [l.blocks[0] for l in space.layers[1:-2] if l.slot is None]
    assert [(b.kind, b.in_channels, b.out_channels) for b in adapted] == [
        (BlockKind.CONV_RELU, 16, 64),
        (BlockKind.CONV_RELU, 320, 640),
    ]


@pytest.mark.parametrize("text", ["0-1", "-".join("4" * 20), " ".join("0" * 20), "0" * 20, ""])
def test_other_strings_are_refused(text):
    with pytest.raises(ArchitectureSyntaxError):
        IMAGENET.parse(text)
