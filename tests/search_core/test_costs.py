"""Costs: exact, in expectation, and their gradient."""

import json
from itertools import product
from math import prod
from pathlib import Path

import onnx
import pytest
import torch

from search_core.costs import (
    BottleneckCost,
    SeparableCost,
    lookup,
    macs_cost,
    parameter_cost,
    peak_activation_cost,
)
from search_core.errors import UnpricedBlockError
from search_core.nn.network import Network
from search_core.onnx_graph import build_model, random_weights
from search_core.space.blocks import BlockKind, BlockSpec
from search_core.space.nasbench201 import nasbench201
from search_core.space.presets import get_space
from search_core.space.proxyless import proxyless_imagenet
from search_core.space.space import Layer, SearchSpace, Slot

PIXEL_1_MS = json.loads(Path(__file__).with_name("pixel_1_ms.json").read_text())
"""ProxylessNAS's published latency table, Google Pixel 1."""

ROUNDING_MS = 2e-3  # the table has four decimals, the published sums all of them


@pytest.fixture(scope="module")
def separable(tiny):
    return SeparableCost.of_blocks(tiny, lambda block: 0.3 + 1e-4 * block.macs, "ms")


@pytest.fixture(scope="module")
def bottleneck():
    """Ties within and across slots, and a floor that is above some candidates."""
    return BottleneckCost(1.5, [[1.0, 2.5, 2.0], [2.0, 0.5], [1.0, 3.0, 2.0, 1.25]], "byte")


@pytest.fixture(params=["separable", "bottleneck"])
def cost(request):
    return request.getfixturevalue(request.param)


def one_hot(space, architecture):
    rows = torch.zeros(len(space.slots), space.n_candidates, dtype=torch.float64)
    rows[torch.arange(len(space.slots)), torch.tensor(architecture.choices)] = 1.0
    return rows


def everything(space):
    choices = product(*(range(len(slot.candidates)) for slot in space.slots))
    return [space.architecture(c) for c in choices]


def random_logits(space, seed=0):
    """(n_slots, n_candidates) float64, -inf where a slot has no such candidate."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(
        len(space.slots), space.n_candidates, dtype=torch.float64, generator=generator
    )
    for slot, decision in enumerate(space.slots):
        logits[slot, len(decision.candidates) :] = -torch.inf
    return logits


def test_the_expectation_at_one_hot_is_the_exact_cost(tiny, cost):
    for architecture in everything(tiny):
        expected = cost.expected(one_hot(tiny, architecture)).item()
        assert expected == pytest.approx(cost.exact(architecture), rel=1e-14)


def test_the_expectation_is_the_mean_over_all_architectures(tiny, cost):
    p = random_logits(tiny).softmax(dim=1)
    mean = sum(
        prod(p[slot, k].item() for slot, k in enumerate(a.choices)) * cost.exact(a)
        for a in everything(tiny)
    )
    assert cost.expected(p).dtype == torch.float64
    assert cost.expected(p).item() == pytest.approx(mean, rel=1e-13)


def test_the_gradient_in_the_logits_is_the_softmax_jacobian_times_the_table(tiny, separable):
    logits = random_logits(tiny).requires_grad_()
    separable.expected(logits.softmax(dim=1)).backward()
    for slot, row in enumerate(separable.table):
        p = logits[slot, : len(row)].detach().softmax(dim=0)
        jacobian = torch.diag(p) - torch.outer(p, p)
        expected = jacobian @ torch.tensor(row, dtype=torch.float64)
        torch.testing.assert_close(logits.grad[slot, : len(row)], expected, rtol=1e-11, atol=1e-14)


def test_at_equal_logits_the_gradient_is_the_distance_to_the_mean():
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    SeparableCost(5.0, [[1.0, 2.0, 6.0]], "ms").expected(logits.softmax(dim=1)).backward()
    torch.testing.assert_close(
        logits.grad, torch.tensor([[-2.0, -1.0, 3.0]], dtype=torch.float64) / 3
    )


def test_absent_candidates_get_no_gradient(tiny, cost):
    logits = random_logits(tiny).requires_grad_()
    cost.expected(logits.softmax(dim=1)).backward()
    assert (logits.grad[torch.isinf(logits)] == 0.0).all()


def test_macs_and_parameters_are_those_of_the_network(tiny):
    for architecture in everything(tiny):
        network = Network(tiny.blocks(architecture))
        assert macs_cost(tiny).exact(architecture) == tiny.macs(architecture)
        parameters = sum(p.numel() for p in network.parameters())
        assert parameter_cost(tiny).exact(architecture) == parameters


def test_costs_say_their_unit(tiny, separable):
    costs = [separable, macs_cost(tiny), parameter_cost(tiny), peak_activation_cost(tiny)]
    assert [cost.unit for cost in costs] == ["ms", "MAC", "parameter", "byte"]


def test_the_minimum_is_the_cost_of_the_cheapest_architecture(tiny, cost):
    assert cost.minimum == pytest.approx(min(map(cost.exact, everything(tiny))))


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_is_the_mean_cost_given_each_choice(tiny, cost, seed):
    p = random_logits(tiny, seed).softmax(dim=1).requires_grad_()
    cost.expected(p).backward()
    for slot, decision in enumerate(tiny.slots):
        given = []
        for k in range(len(decision.candidates)):
            fixed = p.detach().clone()
            fixed[slot] = 0.0
            fixed[slot, k] = 1.0
            given.append(cost.expected(fixed).item())
        n = len(decision.candidates)
        mean = (p[slot, :n] * p.grad[slot, :n]).sum()
        expected = torch.tensor(given, dtype=torch.float64) - cost.expected(p)
        torch.testing.assert_close(p.grad[slot, :n] - mean, expected.detach())


def test_a_maximum_is_charged_where_it_can_change(bottleneck, tiny):
    """Slot 2 at its largest value hides the others: only it can lower the cost."""
    p = one_hot(tiny, tiny.architecture([1, 0, 1])).requires_grad_()
    bottleneck.expected(p).backward()
    assert p.grad.tolist() == [
        [3.0, 3.0, 3.0, 0.0],
        [3.0, 3.0, 0.0, 0.0],
        [2.5, 3.0, 2.5, 2.5],
    ]


def test_a_maximum_over_many_slots_stays_exact():
    """n uniform variables on 1..m: the mean of their maximum is m - sum (v / m)^n."""
    n, m = 30, 9
    cost = BottleneckCost(0.0, [[float(v) for v in range(1, m + 1)]] * n, "ms")
    p = torch.full((n, m), 1.0 / m, dtype=torch.float64)
    expected = m - sum((v / m) ** n for v in range(1, m))
    assert cost.expected(p).item() == pytest.approx(expected, rel=1e-13)


# the published latency table of ProxylessNAS's space


@pytest.fixture(scope="module")
def pixel_1():
    return SeparableCost.of_blocks(proxyless_imagenet(), lookup(PIXEL_1_MS), "ms")


@pytest.mark.parametrize(
    ("pick", "published_ms"),
    [
        (min, 29.608775604781385),
        (max, 191.0298712699614),
        (lambda row: row[0], 76.04809868594556),  # all 3x3, expansion 3
        (lambda row: row[1], 136.46626631591798),  # all 3x3, expansion 6
    ],
)
def test_latencies_by_the_pixel_1_table_are_the_published_ones(pixel_1, pick, published_ms):
    space = proxyless_imagenet()
    architecture = space.architecture([row.index(pick(row)) for row in pixel_1.table])
    assert pixel_1.exact(architecture) == pytest.approx(published_ms, abs=ROUNDING_MS)


def test_the_mean_latency_of_the_proxyless_space_and_its_gradient_are_the_published_ones(pixel_1):
    rows = [len(row) for row in pixel_1.table]
    logits = torch.zeros(len(rows), max(rows), dtype=torch.float64)
    for slot, n in enumerate(rows):
        logits[slot, n:] = -torch.inf
    logits.requires_grad_()
    mean_ms = pixel_1.expected(logits.softmax(dim=1))
    assert mean_ms.item() == pytest.approx(113.98812882557642, abs=ROUNDING_MS)
    mean_ms.backward()
    for slot, row in enumerate(pixel_1.table):
        mean = sum(row) / len(row)
        expected = [(ms - mean) / len(row) for ms in row]
        assert logits.grad[slot, : len(row)].tolist() == pytest.approx(expected)


def test_a_block_that_the_table_does_not_hold_is_never_guessed():
    """The released network is 32 wide where the table, like the space, has 24."""
    wider = BlockSpec(BlockKind.MBCONV, 5, 3, 2, 16, 32, 112)
    with pytest.raises(UnpricedBlockError, match="mbconv_k5_e3_s2_i16_o32_r112"):
        lookup(PIXEL_1_MS)(wider)


def test_a_block_that_computes_nothing_is_free_unless_the_table_says_otherwise():
    zero = BlockSpec(BlockKind.ZERO, 1, 1, 1, 24, 24, 56)
    assert lookup({})(zero) == 0.0
    assert lookup({str(zero): 0.5})(zero) == 0.5


# peak activation memory


def peak_of_onnx(graph):
    """Bytes of the tensors alive at once in the exported file, at the most.

    A tensor lives from the node that makes it to the last that reads it; an element-wise node
    works in place where it reads a tensor for the last time.
    """
    model = onnx.shape_inference.infer_shapes(
        onnx.load_from_string(build_model(graph, random_weights(graph)))
    )
    shapes = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    size = {
        value.name: 4 * prod(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in shapes
    }
    nodes = model.graph.node
    last_read = {name: i for i, node in enumerate(nodes) for name in node.input}
    alive, peak = {"input"}, size["input"]
    for i, node in enumerate(nodes):
        dying = [name for name in node.input if name in alive and last_read[name] == i]
        if dying and node.op_type in {"Relu", "Clip", "Add", "Mul", "Sum", "Flatten"}:
            alive.remove(dying[0])
        alive.add(node.output[0])
        peak = max(peak, sum(size[name] for name in alive))
        alive -= set(dying)
    return peak


@pytest.mark.parametrize("name", ["micro", "proxyless_cifar_mb", "spos_cifar"])
def test_peak_memory_of_a_chain_is_that_of_its_exported_file(name):
    space = get_space(name)
    cost = peak_activation_cost(space)
    narrow = space.architecture([row.index(min(row)) for row in cost.table])
    wide = space.architecture([row.index(max(row)) for row in cost.table])
    mixed = space.architecture([i % len(row) for i, row in enumerate(cost.table)])
    peaks = [cost.exact(a) for a in (narrow, mixed, wide)]
    assert peaks == [peak_of_onnx(space.graph(a)) for a in (narrow, mixed, wide)]
    assert peaks[0] == cost.minimum < peaks[-1]


def test_peak_memory_of_a_cell_is_never_below_that_of_its_exported_file():
    """Nodes may be empty where operations are `none`; memory is counted as if they were not."""
    space = nasbench201(cells_per_stage=1)
    cost = peak_activation_cost(space)
    for text in (
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|none~1|nor_conv_1x1~2|",
        "|avg_pool_3x3~0|+|skip_connect~0|nor_conv_1x1~1|+|avg_pool_3x3~0|skip_connect~1|none~2|",
        "|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|",
    ):
        architecture = space.parse(text)
        assert cost.exact(architecture) >= peak_of_onnx(space.graph(architecture))


def test_peak_memory_of_blocks_is_what_one_counts_by_hand():
    """8 x 8 x 4 in, an MBConv of expansion 3, with and without a shortcut, a Zero."""

    def space(*blocks):
        head = BlockSpec(BlockKind.CLASSIFIER, 1, 1, 1, 4, 2, blocks[0].out_resolution_px)
        slot = Slot("slot", tuple(str(i) for i in range(len(blocks))))
        return SearchSpace("hand", 1, 4, 8, 2, (slot,), (Layer(blocks, slot=0), Layer((head,))))

    x, hidden = 8 * 8 * 4, 8 * 8 * 12
    kept = BlockSpec(BlockKind.MBCONV, 3, 3, 1, 4, 4, 8)
    zero = BlockSpec(BlockKind.ZERO, 1, 1, 1, 4, 4, 8)
    cost = peak_activation_cost(space(kept, zero))
    # the input waits for the shortcut while both hidden maps exist; Zero makes nothing
    assert cost.table == [[4.0 * (x + 2 * hidden), 4.0 * x]]
    assert cost.floor == 4.0 * (x + 4)  # the pooled channels beside the map they come from
    strided = BlockSpec(BlockKind.MBCONV, 3, 3, 2, 4, 4, 8)
    # no shortcut: the input is gone once it is expanded
    assert peak_activation_cost(space(strided)).table == [[4.0 * (x + hidden)]]


def test_a_node_that_a_later_layer_reads_stays_in_memory():
    """Three layers leave node 1; the one decided last no longer waits for another."""
    conv = BlockSpec(BlockKind.CONV, 3, 1, 1, 4, 4, 8)
    head = BlockSpec(BlockKind.CLASSIFIER, 1, 1, 1, 4, 2, 8)
    space = SearchSpace(
        "diamond",
        1,
        4,
        8,
        2,
        (Slot("a", ("conv",)), Slot("b", ("conv",)), Slot("c", ("conv",))),
        (
            Layer((conv,), source=0, target=1),
            Layer((conv,), slot=0, source=1, target=2),
            Layer((conv,), slot=1, source=1, target=3),
            Layer((conv,), slot=2, source=2, target=3),
            Layer((head,), source=3, target=4),
        ),
    )
    map_bytes = 4.0 * 8 * 8 * 4
    # a: in and out; b: those and what a made; c: what a made, the sum, and its own output
    assert peak_activation_cost(space).table == [[2 * map_bytes], [3 * map_bytes], [3 * map_bytes]]


def test_peak_memory_of_a_shared_slot_is_that_of_its_largest_layer(tiny):
    cost = peak_activation_cost(tiny)
    for architecture in everything(tiny):
        assert cost.exact(architecture) == peak_of_onnx(tiny.graph(architecture))
