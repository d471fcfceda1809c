"""Kits: what is measured before a space can be searched on a target."""

import hashlib
import random
import subprocess
import sys
from itertools import pairwise

import onnx
import pytest

from predictor.kits import (
    CHAIN,
    N_CALIBRATION_NETWORKS,
    N_HELD_OUT_NETWORKS,
    KitItem,
    anchor_item,
    block_items,
    block_subject,
    calibration_architectures,
    canary_items,
    held_out_architectures,
    network_item,
    network_subject,
    plan_kit,
    subject_weights,
)
from search_core.space.blocks import BlockKind, BlockSpec
from search_core.space.graph import Graph
from search_core.space.presets import get_space, space_names
from search_core.space.space import Layer, SearchSpace, Slot

REPEATABLE = BlockSpec.parse("mbconv_k3_e6_s1_i24_o24_r8")


@pytest.fixture(scope="module")
def kit(micro):
    return plan_kit(micro)


def test_no_subject_is_measured_twice(kit):
    subjects = [item.subject for item in kit]
    assert len(set(subjects)) == len(subjects)


def test_every_distinct_block_is_in_the_kit_once_and_chained_where_it_can_follow_itself(micro, kit):
    chains = {}
    for item in kit:
        if item.subject.startswith("block:"):
            blocks = item.graph.blocks
            assert set(blocks) == {blocks[0]}
            assert item.graph.is_chain
            chains.setdefault(blocks[0], []).append(len(blocks))
    assert set(chains) == set(micro.distinct_blocks)
    for block, lengths in chains.items():
        repeats = block.stride == 1 and block.in_channels == block.out_channels
        assert lengths == ([1, CHAIN] if repeats else [1])


def test_every_item_is_a_chain_whose_shapes_fit(kit):
    for item in kit:
        for before, after in pairwise(item.graph.blocks):
            assert before.out_channels == after.in_channels
            assert before.out_resolution_px == after.resolution_px


def test_subjects_name_what_they_measure(micro):
    assert block_subject(REPEATABLE, 4) == "block:mbconv_k3_e6_s1_i24_o24_r8:x4"
    architecture = micro.architecture([0] * 6)
    subject = network_subject(micro, architecture)
    assert subject == f"network:micro@1:{micro.format(architecture)}"
    graph = micro.graph(architecture)
    assert network_item(micro, architecture) == KitItem(subject, graph, "calibration")
    assert network_item(micro, architecture, "held_out") == KitItem(subject, graph, "held_out")


def test_the_networks_that_fit_a_model_come_first_and_those_that_test_it_last(kit):
    roles = [item.role for item in kit]
    n_blocks = len(kit) - N_CALIBRATION_NETWORKS - N_HELD_OUT_NETWORKS
    assert roles == [
        *["calibration"] * N_CALIBRATION_NETWORKS,
        *["block"] * n_blocks,
        *["held_out"] * N_HELD_OUT_NETWORKS,
    ]
    assert all(item.subject.startswith("block:") == (item.role == "block") for item in kit)


@pytest.mark.parametrize("name", ["micro", "nasbench201", "proxyless_cifar_mb"])
def test_no_network_both_fits_and_tests_a_model(name):
    space = get_space(name)
    held_out = held_out_architectures(space)
    assert len(set(held_out)) == len(held_out) == N_HELD_OUT_NETWORKS
    assert set(held_out).isdisjoint(calibration_architectures(space))


def test_calibration_networks_are_distinct_and_hold_both_extremes(micro):
    networks = calibration_architectures(micro)
    macs = [micro.macs(a) for a in networks]
    _, rows = micro.slot_costs(lambda block: block.macs)
    fixed = micro.macs(micro.architecture([0] * 6)) - sum(row[0] for row in rows)
    assert len(set(networks)) == len(networks) == N_CALIBRATION_NETWORKS
    assert macs[0] == min(macs) == fixed + sum(map(min, rows))
    assert macs[1] == max(macs) == fixed + sum(map(max, rows))


def test_calibration_networks_are_always_the_same_for_a_seed(micro):
    assert calibration_architectures(micro) == calibration_architectures(micro)
    assert calibration_architectures(micro, 1) != calibration_architectures(micro)
    assert held_out_architectures(micro) == held_out_architectures(micro)
    assert held_out_architectures(micro, 1) != held_out_architectures(micro)


def test_a_space_smaller_than_the_calibration_set_is_measured_whole():
    def mbconv(kernel):
        return BlockSpec(BlockKind.MBCONV, kernel, 1, 1, 4, 4, 8)

    space = SearchSpace(
        "pair",
        1,
        4,
        8,
        4,
        (Slot("only", ("k3", "k5")),),
        (
            Layer((mbconv(3), mbconv(5)), slot=0),
            Layer((BlockSpec(BlockKind.CLASSIFIER, 1, 1, 1, 4, 4, 8),)),
        ),
    )
    assert {a.choices for a in calibration_architectures(space)} == {(0,), (1,)}
    assert held_out_architectures(space) == []


def test_zero_is_not_measured():
    zero = BlockSpec(BlockKind.ZERO, 1, 1, 1, 24, 24, 8)
    space = SearchSpace(
        "skip", 1, 24, 8, 24, (Slot("a", ("k3", "zero")),), (Layer((REPEATABLE, zero), slot=0),)
    )
    assert [item.subject for item in block_items(space)] == [
        block_subject(REPEATABLE, 1),
        block_subject(REPEATABLE, CHAIN),
    ]


def test_the_anchor_is_quick_and_still_larger_than_a_first_cache():
    blocks = anchor_item().graph.blocks
    assert sum(block.macs for block in blocks) < 3e6
    (block,) = set(blocks)
    widest = block.in_channels * block.expansion * block.resolution_px**2
    assert 4 * widest > 32 * 2**10  # bytes of float32


def test_canaries_are_different_kinds_of_work_chained_where_they_can_be():
    items = canary_items()
    assert len({item.subject for item in items}) == len(items) == 3
    assert anchor_item().subject not in {item.subject for item in items}
    chained = {item.graph.blocks[0]: len(item.graph.blocks) for item in items}
    assert {(block.kind, block.kernel) for block in chained} == {
        (BlockKind.MBCONV, 3),
        (BlockKind.MBCONV, 7),
        (BlockKind.CONV, 1),
    }
    assert sorted(chained.values()) == [1, CHAIN, CHAIN]


# -- weights ---------------------------------------------------------------------------


def one_hot(space, architecture):
    return [
        [float(i == choice) for i in range(len(slot.candidates))]
        for slot, choice in zip(space.slots, architecture.choices, strict=True)
    ]


@pytest.mark.parametrize("name", space_names())
def test_every_block_of_a_kit_has_a_weight_and_nothing_else_has(name):
    space = get_space(name)
    weights = subject_weights(space)
    assert set(weights) == {item.subject for item in block_items(space)}
    assert min(weights.values()) > 0.0


@pytest.mark.parametrize("name", ["micro", "nasbench201", "spos_cifar"])
def test_a_block_weighs_as_much_as_networks_hold_of_it(name):
    space = get_space(name)
    networks = [space.sample(random.Random(seed)) for seed in range(5)]
    for network in networks:
        blocks = list(space.blocks(network))
        weights = subject_weights(space, one_hot(space, network))
        for block in space.distinct_blocks:
            assert weights[block_subject(block, 1)] == blocks.count(block)


def test_chances_and_copies_add_up(micro):
    weights = subject_weights(micro)
    once = sum(weights[block_subject(block, 1)] for block in micro.distinct_blocks)
    assert once == pytest.approx(len(micro.layers))
    stem = micro.distinct_blocks[0]
    assert weights[block_subject(stem, 1)] == 1.0
    two_of_three = [[0.25, 0.75, *[0.0] * (len(s.candidates) - 2)] for s in micro.slots]
    shares = subject_weights(micro, two_of_three)
    first = next(layer for layer in micro.layers if layer.slot is not None)
    assert shares[block_subject(first.blocks[1], 1)] >= 0.75


# -- files -----------------------------------------------------------------------------


@pytest.mark.parametrize("copies", [1, 4])
def test_a_model_holds_its_blocks_and_nothing_else(copies):
    graph = onnx.load_from_string(KitItem("x", Graph.chain((REPEATABLE,) * copies)).build()).graph
    operators = ["Conv", "Clip", "Conv", "Clip", "Conv", "Add"]
    assert [node.op_type for node in graph.node] == operators * copies


def test_building_an_item_gives_the_same_bytes_in_every_process(micro):
    item = plan_kit(micro)[0]
    build = (
        "import hashlib; from predictor.kits import plan_kit; "
        "from search_core.space.presets import get_space; "
        "print(hashlib.sha256(plan_kit(get_space('micro'))[0].build()).hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-c", build], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert item.build() == item.build()
    assert hashlib.sha256(item.build()).hexdigest() == other


def test_a_file_holds_as_many_images_as_the_batch():
    def shapes(batch):
        graph = onnx.load_from_string(anchor_item().build(batch)).graph
        (tensor,) = graph.input
        return [d.dim_value for d in tensor.type.tensor_type.shape.dim]

    assert shapes(1)[0] == 1
    assert shapes(7) == [7, *shapes(1)[1:]]
