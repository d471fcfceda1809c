"""Networks that are no chains: torch, the supernet's path and ONNX agree."""

import random

import onnx
import pytest
import torch
from torch import nn

from search_core.export import onnx_bytes, onnx_parity
from search_core.nn.network import Network
from search_core.nn.supernet import Supernet
from search_core.onnx_graph import build_model, random_weights
from search_core.randomness import stream
from search_core.space.blocks import BlockSpec
from search_core.space.graph import Graph
from search_core.space.nasbench201 import nasbench201

SPACE = nasbench201(4, 1, stem_stride=2, resolution_px=16)
CELLS = {
    "all none": "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
    "one edge": "|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|",
    "a node nothing arrives at": "|none~0|+|skip_connect~0|none~1|"
    "+|none~0|nor_conv_3x3~1|skip_connect~2|",
    "a node nothing leaves": "|nor_conv_1x1~0|+|none~0|none~1|"
    "+|skip_connect~0|none~1|avg_pool_3x3~2|",
    "zeros all the way": "|none~0|+|none~0|nor_conv_3x3~1|+|none~0|none~1|nor_conv_1x1~2|",
    "all skips": "|skip_connect~0|+|skip_connect~0|skip_connect~1|"
    "+|skip_connect~0|skip_connect~1|skip_connect~2|",
    "all convolutions": "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|"
    "+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|",
    "a bit of everything": "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|"
    "+|skip_connect~0|nor_conv_1x1~1|skip_connect~2|",
}


@pytest.fixture(scope="module")
def images():
    return torch.randn(5, 3, 16, 16, generator=stream(0, "images"))


@pytest.fixture(scope="module")
def supernet(images):
    """Every candidate has seen images, so that its statistics say something."""
    supernet = Supernet(SPACE, stream(0, "weights"))
    generator = stream(0, "norms")
    for norm in (m for m in supernet.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.bias, 0.0, 0.5, generator=generator)  # else zeros stay zeros
    for choice in range(5):
        supernet(images, [choice] * 6)
    return supernet.eval()


@pytest.mark.parametrize("name", CELLS)
def test_path_derived_network_and_onnx_give_the_same_scores(supernet, images, name):
    cell = SPACE.parse(CELLS[name])
    network = supernet.derive(cell).eval()
    with torch.no_grad():
        assert torch.equal(supernet(images, cell.choices), network(images))
    assert onnx_parity(network, onnx_bytes(network), images) < 1e-4


def test_any_cell_gives_the_same_scores_in_onnx(supernet, images):
    rng = random.Random(0)
    for cell in (SPACE.sample(rng) for _ in range(12)):
        network = supernet.derive(cell).eval()
        with torch.no_grad():
            assert torch.equal(supernet(images, cell.choices), network(images))
        parity = onnx_parity(network, onnx_bytes(network), images)
        assert parity < 1e-4, SPACE.format(cell)


def test_a_node_is_the_sum_of_what_arrives():
    blocks = [BlockSpec.parse("skip_k1_e1_s1_i2_o2_r3")] * 3
    network = Network(Graph(tuple(blocks), ((0, 1), (0, 2), (1, 2))))
    features = torch.randn(1, 2, 3, 3)
    assert torch.equal(network(features), 2 * features)


def test_the_cell_of_none_answers_the_same_whatever_it_sees(supernet, images):
    with torch.no_grad():
        scores = supernet(images, SPACE.parse(CELLS["all none"]).choices)
    assert (scores - scores[0]).abs().max() < 1e-6


def test_in_training_too_path_and_derived_network_agree(supernet, images):
    cell = SPACE.parse(CELLS["a bit of everything"])
    network = supernet.derive(cell).train()
    supernet.train()
    with torch.no_grad():
        assert torch.equal(supernet(images, cell.choices), network(images))
    supernet.eval()


def test_none_edges_leave_no_trace_in_the_file():
    def operators(name):
        graph = SPACE.graph(SPACE.parse(CELLS[name]))
        model = onnx.load_from_string(build_model(graph, random_weights(graph)))
        return [node.op_type for node in model.graph.node]

    # three cells of one 3x3 convolution; stem; two reductions of three; nothing to sum
    assert operators("one edge").count("Conv") == 3 + 1 + 2 * 3
    assert "Sum" not in operators("one edge")
    assert operators("all convolutions").count("Conv") == 3 * 6 + 1 + 2 * 3
    assert operators("all convolutions").count("Sum") == 3 * 2


def test_the_chain_of_a_sequence_is_a_graph():
    blocks = (
        BlockSpec.parse("conv_k3_e1_s1_i1_o4_r5"),
        BlockSpec.parse("classifier_k1_e1_s1_i4_o3_r5"),
    )
    graph = Graph.chain(blocks)
    assert graph.is_chain
    assert graph.edges == ((0, 1), (1, 2))
    assert Graph.of(graph) is graph
    assert Graph.of(blocks) == graph
    assert not SPACE.graph(SPACE.architecture([0] * 6)).is_chain
