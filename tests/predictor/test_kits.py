"""Kits: what is measured before a space can be searched on a target."""

import hashlib
import subprocess
import sys
from itertools import pairwise

import onnx
import pytest

from predictor.kits import (
    CHAIN,
    N_CALIBRATION_NETWORKS,
    KitItem,
    anchor_item,
    block_items,
    block_subject,
    calibration_architectures,
    network_item,
    network_subject,
    plan_kit,
)
from search_core.space.blocks import BlockKind, BlockSpec
from search_core.space.graph import Graph
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
    assert network_item(micro, architecture) == KitItem(subject, micro.graph(architecture))


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


def test_zero_is_not_measured():
    zero = BlockSpec(BlockKind.ZERO, 1, 1, 1, 24, 24, 8)
    space = SearchSpace(
        "skip", 1, 24, 8, 24, (Slot("a", ("k3", "zero")),), (Layer((REPEATABLE, zero), slot=0),)
    )
    assert [item.subject for item in block_items(space)] == [
        block_subject(REPEATABLE, 1),
        block_subject(REPEATABLE, CHAIN),
    ]


def test_the_anchor_is_the_smallest_network(micro):
    smallest = calibration_architectures(micro)[0]
    assert anchor_item(micro) == network_item(micro, smallest)


@pytest.mark.parametrize("copies", [1, 4])
def test_a_model_holds_its_blocks_and_nothing_else(copies):
    graph = onnx.load_from_string(KitItem("x", Graph.chain((REPEATABLE,) * copies)).build()).graph
    operators = ["Conv", "Clip", "Conv", "Clip", "Conv", "Add"]
    assert [node.op_type for node in graph.node] == operators * copies


def test_building_an_item_gives_the_same_bytes_in_every_process(micro):
    item = anchor_item(micro)
    build = (
        "import hashlib; from predictor.kits import anchor_item; "
        "from search_core.space.presets import get_space; "
        "print(hashlib.sha256(anchor_item(get_space('micro')).build()).hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-c", build], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert item.build() == item.build()
    assert hashlib.sha256(item.build()).hexdigest() == other
