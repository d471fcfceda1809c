"""The SPOS space has its published counts, layer by layer."""

import json
from pathlib import Path

import pytest

from search_core.errors import ArchitectureSyntaxError
from search_core.space.blocks import BlockKind
from search_core.space.published import published_network
from search_core.space.spos import spos_cifar, spos_imagenet

IMAGENET = spos_imagenet()

PUBLISHED = json.loads(Path(__file__).with_name("published_counts.json").read_text())
BY_SLOT = [
    (slot, rows["macs"], rows["parameters"])
    for rows in PUBLISHED["spos_choices"]
    for slot in range(rows["slots"][0], rows["slots"][1] + 1)
]

DSNAS = "0-0-3-0-3-2-0-0-3-3-2-3-3-3-2-0-0-3-3-0"
SPOS = "0-1-2-2-1-1-2-1-3-3-0-3-0-3-0-0-2-2-2-1"


@pytest.mark.parametrize(("slot", "macs", "parameters"), BY_SLOT)
def test_the_choices_of_every_layer_have_their_published_counts(slot, macs, parameters):
    (layer,) = [layer for layer in IMAGENET.layers if layer.slot == slot]
    assert [block.macs for block in layer.blocks] == macs
    assert [block.parameters for block in layer.blocks] == parameters


def test_the_published_table_covers_every_slot():
    assert [slot for slot, _, _ in BY_SLOT] == list(range(20))


@pytest.mark.parametrize(("layer", "name"), [(0, "stem"), (-2, "last"), (-1, "fc")])
def test_the_fixed_layers_have_their_published_counts(layer, name):
    (block,) = IMAGENET.layers[layer].blocks
    assert [block.parameters, block.macs] == PUBLISHED["spos_fixed"][name]


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
    assert published_network(name) == IMAGENET.graph(IMAGENET.parse(text))


def test_the_space_holds_four_to_the_twenty():
    assert IMAGENET.size == spos_cifar().size == 1_099_511_627_776


def test_the_small_image_form_keeps_eight_pixels_and_adapts_its_width():
    space = spos_cifar()
    assert space.layers[-1].blocks[0].resolution_px == 8
    adapted = [x.blocks[0] for x in space.layers[1:-2] if x.slot is None]
    assert [(b.kind, b.in_channels, b.out_channels) for b in adapted] == [
        (BlockKind.CONV_RELU, 16, 64),
        (BlockKind.CONV_RELU, 320, 640),
    ]


@pytest.mark.parametrize("text", ["0-1", "-".join("4" * 20), " ".join("0" * 20), "0" * 20, ""])
def test_other_strings_are_refused(text):
    with pytest.raises(ArchitectureSyntaxError):
        IMAGENET.parse(text)
