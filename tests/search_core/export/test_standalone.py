"""A network as a Python file of its own."""

import ast
import random
import subprocess
import sys

import pytest
import torch
from torch import nn

from search_core.errors import ExportError
from search_core.export import (
    check_parity,
    onnx_bytes,
    parity_report,
    python_source,
    safetensors_bytes,
)
from search_core.nn.network import Network
from search_core.nn.ops import BN_EPS_SEARCH
from search_core.space.blocks import BlockKind, BlockSpec
from search_core.space.graph import Graph
from search_core.space.nasbench201 import nasbench201


def module_of(source):
    module = {"__name__": "network"}
    exec(compile(source, "network.py", "exec"), module)
    return module


def assert_same(network, images):
    """The module has the network's tensors by name, and gives its scores to the bit."""
    standalone = module_of(python_source(network))["Network"]()
    standalone.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(standalone.eval()(images), network.eval()(images))


def block(kind, kernel=1, channels=4, *, expansion=1):
    return BlockSpec(kind, kernel, expansion, 1, channels, channels, 8)


def knotted():
    """Shortcuts beside other blocks at one node, and a sum that fills more than a line."""
    stem = BlockSpec(BlockKind.CONV, 3, 1, 1, 1, 4, 8)
    shortcut = block(BlockKind.MBCONV, 3, expansion=2)
    many = [block(BlockKind.RELU_CONV, 3) for _ in range(7)]
    classifier = BlockSpec(BlockKind.CLASSIFIER, 1, 1, 1, 4, 10, 8)
    return Graph(
        (stem, block(BlockKind.SKIP), shortcut, block(BlockKind.ZERO), *many, classifier),
        ((0, 1), (1, 2), (1, 2), (1, 2), *((2, 3) for _ in many), (3, 4)),
    )


def test_the_state_dictionary_has_the_same_names_and_shapes(exported):
    standalone = module_of(exported.files["network.py"])["Network"]()
    shapes = {name: tensor.shape for name, tensor in exported.network.state_dict().items()}
    assert {name: tensor.shape for name, tensor in standalone.state_dict().items()} == shapes


def test_it_defines_what_it_uses_and_nothing_else(exported):
    tree = ast.parse(exported.files["network.py"])
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert defined <= used
    built = {type(part).__name__ for layer in exported.network.layers for part in layer.modules()}
    assert defined - {"Network"} == {name for name in built if not hasattr(nn, name)} - {"Zero"}


def test_it_is_formatted_and_free_of_lint(every_family, tmp_path):
    sources = {"knotted": python_source(Network(knotted()))}
    for family, exported in every_family.items():
        facts = {"architecture": exported.space.format(exported.architecture)}
        sources[family] = python_source(exported.network, facts)
    for family, source in sources.items():
        assert max(map(len, source.splitlines())) <= 100
        (tmp_path / f"{family}.py").write_text(source)
    ruff = [sys.executable, "-m", "ruff"]
    for command in (
        [*ruff, "format", "--check", "--isolated", "--line-length=100", "."],
        [*ruff, "check", "--isolated", "--line-length=100", "--select=E,F,I,W,B,SIM,RET,PIE", "."],
    ):
        checked = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_each_layer_is_one_line_in_its_order(micro):
    architecture = micro.parse("k3e1c24 k5e3c24 k3e6c40 k5e1c40 k3e3c80 k3e6c80")
    source = python_source(Network(micro.graph(architecture), bn_eps=BN_EPS_SEARCH))
    line = '"3": MBConv(24, 40, kernel=3, expansion=6, stride=2, bn_eps=0.01),'
    lines = [text.strip() for text in source.splitlines()]
    assert line in lines
    layers = [text.split(":")[0] for text in lines if text.startswith('"') and text[1].isdigit()]
    assert layers == [f'"{index}"' for index in range(9)]
    assert 'x = x + layers["2"](x)' in lines


def test_the_head_says_what_is_known(micro):
    architecture = micro.sample(random.Random(1))
    graph = micro.graph(architecture)
    facts = {"architecture": micro.format(architecture), "test accuracy": 0.9861}
    head = python_source(Network(graph), facts).split("\n\n")[0]
    assert f"# architecture: {micro.format(architecture)}" in head
    assert "# test accuracy: 0.9861" in head
    assert f"# parameters: {graph.parameters:,}" in head
    assert f"# MACs: {graph.macs:,}" in head


def test_a_fact_cannot_leave_its_comment(tiny):
    network = Network(tiny.graph(tiny.architecture((0, 0, 0))))
    facts = {"space": "mine\nraise SystemExit\r\n\x0craise SystemExit", "long": "word " * 100}
    source = python_source(network, facts)
    plain = python_source(network)
    assert ast.dump(ast.parse(source)) == ast.dump(ast.parse(plain))
    assert max(map(len, source.splitlines())) <= 100


OUT_CHANNELS = {BlockKind.FIRST_HALF: 2, BlockKind.LAST_HALF: 2, BlockKind.PADDED: 6}


@pytest.mark.parametrize(
    "kind", [kind for kind in BlockKind if kind not in (BlockKind.CLASSIFIER, BlockKind.FC)]
)
def test_every_kind_of_block_can_be_written_in_every_format(kind):
    out_channels = OUT_CHANNELS.get(kind, 4)
    stem = BlockSpec(BlockKind.CONV_LINEAR, 3, 1, 1, 1, 4, 8)
    stride = 2 if kind is BlockKind.REDUCTION else 1
    middle = BlockSpec(kind, 3, 1, stride, 4, out_channels, 8)
    last = BlockSpec(BlockKind.FC, 1, 1, 1, out_channels, 10, middle.out_resolution_px)
    network = Network.initialised((stem, middle, last), torch.Generator().manual_seed(1)).eval()
    files = {
        "model.onnx": onnx_bytes(network),
        "network.py": python_source(network),
        "weights.safetensors": safetensors_bytes(network),
    }
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    if kind is BlockKind.NONE:  # scores are exactly zero
        assert set(parity_report(network, files, images).values()) == {0.0}
    else:
        assert check_parity(network, files, images)["network.py"] == 0.0


@pytest.mark.parametrize("choices", [(0, 0, 0), (2, 1, 3)])
def test_the_epsilon_is_that_of_the_layers(tiny, network_of, images_of, choices):
    assert_same(network_of(tiny, choices, BN_EPS_SEARCH), images_of(tiny))


@pytest.mark.parametrize("seed", range(6))
def test_random_cells_are_written_as_they_run(network_of, images_of, seed):
    space = nasbench201(channels=4, cells_per_stage=2)
    choices = space.sample(random.Random(seed)).choices
    assert_same(network_of(space, choices), images_of(space))


@pytest.mark.parametrize("operation", range(5))
def test_a_cell_of_one_operation_is_written_as_it_runs(network_of, images_of, operation):
    space = nasbench201(channels=4, cells_per_stage=1)
    assert_same(network_of(space, (operation,) * 6), images_of(space))


def test_shortcuts_and_long_sums_inside_a_graph():
    network = Network.initialised(knotted(), torch.Generator().manual_seed(1)).eval()
    assert_same(network, torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2)))


def test_a_layer_of_unknown_making_is_refused(tiny):
    network = Network(tiny.graph(tiny.architecture((0, 0, 0))))
    network.layers[0] = nn.Conv2d(1, 8, 3, 2, 1)
    with pytest.raises(ExportError, match="is computed by Conv2d"):
        python_source(network)
