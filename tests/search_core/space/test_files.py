"""Spaces read from files, and what is said of files that describe none."""

import json
import random
import re
from pathlib import Path

import pytest
import torch

from search_core.errors import SpaceFileError
from search_core.export import onnx_bytes, onnx_parity
from search_core.nn.supernet import Supernet
from search_core.randomness import stream
from search_core.space.files import load_space
from search_core.space.nasbench201 import nasbench201

GUIDE = (Path(__file__).parents[3] / "docs" / "howto" / "own-space.md").read_text(encoding="utf-8")
MY_SPACE, MY_CELLS = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)

SMALL = """\
name: small
input: {channels: 1, resolution: 8, classes: 4}
stem: {block: conv, kernel: 3, channels: 8}
stages:
  - channels: 12
    choices: [conv]
  - {choices: [conv, {block: mbconv, kernels: 3, expansions: 2}, zero]}
"""


@pytest.fixture
def load(tmp_path):
    """The space of a text."""

    def written(text, name="space.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return load_space(path)

    return written


def test_the_guides_first_example_is_a_space(load):
    space = load(MY_SPACE)
    assert (space.name, space.version) == ("my_space", 1)
    assert (space.in_channels, space.resolution_px, space.n_classes) == (3, 32, 10)
    assert [slot.name for slot in space.slots] == [
        "stage1.0",
        "stage1.1",
        "stage2.0",
        "stage2.1",
        "stage2.2",
    ]
    assert sum("zero" in slot.candidates for slot in space.slots) == 3
    command = re.search(r'--arch "(.*?)"', GUIDE)
    blocks = space.blocks(space.parse(command[1]))
    assert [str(block) for block in blocks] == [
        "conv_k3_e1_s1_i3_o16_r32",
        "mbconv_k3_e6_s1_i16_o24_r32",
        "zero_k1_e1_s1_i24_o24_r32",
        "mbconv_k7_e4_s2_i24_o48_r32",
        "sepconv_k5_e1_s1_i48_o48_r16",
        "zero_k1_e1_s1_i48_o48_r16",
        "conv_k1_e1_s1_i48_o128_r16",
        "classifier_k1_e1_s1_i128_o10_r16",
    ]


def test_the_guides_message_is_the_one_that_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_space.yaml").write_text(MY_SPACE.replace("[3, 5],", "[3, 4],"), encoding="utf-8")
    with pytest.raises(SpaceFileError) as error:
        load_space("my_space.yaml")
    assert str(error.value) in GUIDE
    assert (error.value.path, error.value.line, error.value.column) == ("my_space.yaml", 8, 38)


def test_the_guides_cells_share_their_decisions(load):
    space = load(MY_CELLS)
    assert len(space.slots) == 6
    assert len(space.layers) == 1 + 2 * 6 + 1 + 2 * 6 + 1 + 1
    assert space.slots[0].candidates == ("none", "skip", "reluconv_k1", "reluconv_k3", "pool")


def test_a_file_can_describe_nasbench201(load):
    """The same layers between the same nodes, decided by the same slots."""
    text = MY_CELLS.replace("repeat: 2", "repeat: 5").replace(
        "tail:",
        "  - {block: reduction, kernel: 3, stride: 2, channels: 64}\n"
        "  - {cell: normal, repeat: 5}\ntail:",
    )
    space, original = load(text), nasbench201()
    assert space.edges == original.edges
    assert [(x.blocks, x.slot) for x in space.layers] == [
        (x.blocks, x.slot) for x in original.layers
    ]


def test_json_is_read_as_well(load):
    document = {
        "name": "small",
        "input": {"channels": 1, "resolution": 8, "classes": 4},
        "stem": {"block": "conv", "kernel": 3, "channels": 8},
        "stages": [
            {"channels": 12, "choices": ["conv"]},
            {"choices": ["conv", {"block": "mbconv", "kernels": 3, "expansions": 2}, "zero"]},
        ],
    }
    spaces = [load(json.dumps(document, indent=i), "space.json") for i in (None, 2, "\t")]
    assert {space.digest for space in spaces} == {load(SMALL).digest}


def test_the_digest_follows_the_meaning(load):
    assert load(SMALL).digest == load(SMALL + "# a remark\n").digest
    assert load(SMALL).digest != load(SMALL.replace("kernels: 3", "kernels: 5")).digest
    assert load(SMALL).digest != load("version: 2\n" + SMALL).digest


@pytest.mark.parametrize("text", [MY_SPACE, MY_CELLS])
def test_a_space_from_a_file_is_searched_and_exported_like_any_other(load, text):
    space = load(text.replace("resolution: 32", "resolution: 8"))
    images = torch.randn(4, 3, 8, 8, generator=stream(0, "images"))
    supernet = Supernet(space, stream(0, "weights"))
    architecture = space.sample(random.Random(0))
    supernet(images, architecture.choices)
    supernet.eval()
    network = supernet.derive(architecture).eval()
    with torch.no_grad():
        assert torch.equal(supernet(images, architecture.choices), network(images))
    assert onnx_parity(network, onnx_bytes(network), images) < 1e-4


@pytest.mark.parametrize(
    ("old", "new", "where", "message"),
    [
        ("name: small", "name: Small", "1:7", "name is 'Small'; expected small letters"),
        ("name: small", "name: micro", "1:7", "name is 'micro'"),
        ("name: small\n", "", "1:1", "the file lacks name"),
        ("name: small", "nmae: small", "1:1", "nmae is not known; the file takes name,"),
        ("name: small", "name: small\nname: b", "2:1", "name stands there twice"),
        ("name: small", "name: [small]", "1:7", "name is a list; expected one word"),
        ("channels: 1,", "channels: 0,", "2:19", "input.channels is '0'; expected a whole number"),
        ("channels: 1,", "channels: 1.5,", "2:19", "is '1.5'; expected a whole number from 1"),
        ("channels: 1,", "channels: 99999,", "2:19", "from 1 to 65536"),
        ("classes: 4", "classes: many", "2:46", "input.classes is 'many'"),
        (", classes: 4", "", "2:8", "input lacks classes"),
        ("block: conv, k", "block: cnov, k", "3:15", "stem.block is 'cnov'; expected one of conv"),
        ("block: conv, k", "block: zero, k", "3:15", "stem.block is 'zero'"),
        ("kernel: 3,", "kernel: 4,", "3:29", "stem.kernel is '4'; expected an odd number"),
        ("kernel: 3,", "kernel: [3, 5],", "3:29", "stem.kernel is a list; expected one odd number"),
        ("block: conv, k", "block: bnrelu, k", "3:7", "it keeps the channels and takes no stride"),
        ("block: conv, k", "block: shuffle, k", "3:7", "it keeps an even width at stride 1"),
        ("choices: [conv]", "choices: []", "6:14", "stages[0].choices is a list; expected a list"),
        ("choices: [conv]", "choices: [zero]", "6:14", "nothing that goes from 8 to 12 channels"),
        ("choices: [conv]", "choices: [conv, conv]", "6:21", "choices[1] gives conv a second time"),
        ("choices: [conv]", "choices: [none]", "6:15", "stages[0].choices[0] is 'none'; expected"),
        ("choices: [conv]", "repeat: 2", "5:5", "a mapping with choices, cell or block"),
        ("choices: [conv]", "choices: [conv]\n    repeat: -1", "7:13", "from 1 to 1000"),
        ("choices: [conv]", "choices: [conv]\n    strides: 2", "7:5", "stages[0].strides is not"),
        (
            "{choices: [conv,",
            "{choices: [[conv],",
            "7:16",
            "is a list; expected a mapping of block",
        ),
        ("kernels: 3", "kernels: [3, 3]", "7:47", "kernels names a number twice"),
        ("mbconv, kernels: 3", "sepconv, kernels: 3", "7:63", "for sepconv; only mbconv expands"),
        ("kernels: 3", "name: a b, kernels: 3", "7:44", "name is 'a b'; expected letters"),
        (
            "  - channels: 12",
            "  - {cell: x}\n  - channels: 12",
            "5:12",
            "expected one of the cells: none",
        ),
    ],
)
def test_a_mistake_is_answered_with_its_place(load, tmp_path, old, new, where, message):
    assert old in SMALL
    with pytest.raises(SpaceFileError) as error:
        load(SMALL.replace(old, new, 1))
    assert str(error.value).startswith(f"{tmp_path / 'space.yaml'}:{where}: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "where", "message"),
    [
        (
            "nodes: 4",
            "nodes: 1",
            "5:12",
            "cells.normal.nodes is '1'; expected a whole number from 2",
        ),
        ("nodes: 4", "nodes: 17", "5:12", "from 1 to 16"),
        ("cell: normal", "cell: norm", "13:12", "is 'norm'; expected one of the cells: normal"),
        ("- none", "- zero", "7:9", "choices[0] is 'zero'; expected one of conv"),
        ("- none", "- {block: shuffle, kernels: 3}", "13:12", ""),
    ],
)
def test_mistakes_in_cells_too(load, tmp_path, old, new, where, message):
    text = MY_CELLS.replace("channels: 16", "channels: 15") if "shuffle" in new else MY_CELLS
    assert old in text
    with pytest.raises(SpaceFileError) as error:
        load(text.replace(old, new, 1))
    assert str(error.value).startswith(f"{tmp_path / 'space.yaml'}:{where}: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("", "1:1", "is empty"),
        ("just words", "1:1", "the file is 'just words'; expected a mapping of name"),
        ("name: [small", "1:13", "is no YAML"),
        ("name: small\n\tx: 1", "2:1", "is no YAML"),
        ("[" * 1500, "1:1", "is no YAML"),
        ("name: \x00", "1:1", "is no YAML"),
    ],
)
def test_what_is_no_space_at_all_is_refused(load, text, where, message):
    with pytest.raises(SpaceFileError, match=re.escape(f":{where}: {message}")):
        load(text)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(SpaceFileError, match="cannot be read"):
        load_space(tmp_path / "none.yaml")
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(SpaceFileError, match="cannot be read"):
        load_space(path)


def test_a_file_decides_something(load):
    fixed = SMALL[: SMALL.index("  - channels")] + "  - {block: conv, channels: 12}\n"
    with pytest.raises(SpaceFileError, match=r"5:3: stages decide nothing"):
        load(fixed)
