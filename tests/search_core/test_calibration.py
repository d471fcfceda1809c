"""A calibration, rehearsed: everything is done once, and only what no clock tells is asserted."""

import json
import mmap
import random
from collections import Counter

import pytest
import torch

from search_core import calibration
from search_core.calibration import BLOCKS, NETWORKS, calibrate, resident_bytes
from search_core.effort import (
    BLOCK_UNITS,
    UNITS,
    MachineProfile,
    SearchPlan,
    block_work,
    predict,
)
from search_core.nn.network import Network
from search_core.randomness import stream
from search_core.space.blocks import BlockSpec
from search_core.space.presets import get_space


@pytest.fixture(scope="module")
def profile() -> MachineProfile:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return calibrate(name="here", seconds=0.01, modules=("search_core.train",))
    finally:
        torch.set_num_threads(before)


def test_a_profile_prices_all_there_is(profile):
    assert {a: tuple(units) for a, units in profile.coefficients.items()} == UNITS
    assert all(c >= 0.0 for units in profile.coefficients.values() for c in units.values())
    assert profile.price("forward", block_work(BlockSpec.parse(BLOCKS[0][0]), 32)) > 0.0


def test_a_profile_says_what_it_is_of(profile):
    assert (profile.device, profile.name, profile.threads) == ("cpu", "here", 1)
    assert profile.torch == torch.__version__
    assert profile.start_up_seconds > 0.0
    assert profile.base_bytes > 50 * 2**20  # torch alone is larger
    document = json.loads(json.dumps(profile.to_document()))
    assert MachineProfile.from_document(document) == profile


def test_a_profile_prices_a_search(profile):
    found = predict(SearchPlan(get_space("micro"), 1437, 360, 32, 352, 88, 704), profile)
    assert found.seconds_by_phase["searching"] > 0.0
    assert found.memory_bytes > profile.base_bytes


def test_what_is_timed_covers_every_unit_of_a_block():
    work = Counter()
    for text, images in BLOCKS:
        work.update(block_work(BlockSpec.parse(text), images))
    assert {unit for unit, amount in work.items() if amount > 0} == set(BLOCK_UNITS)
    assert len({text for text, _ in BLOCKS}) == len(BLOCKS)
    assert all(images > 0 for _, images in (*BLOCKS, *NETWORKS))


@pytest.mark.parametrize("name", ["micro", "nasbench201_n1", "spos_cifar", "proxyless_cifar_mb"])
def test_what_a_network_keeps_for_backward_is_told(profile, name):
    space = get_space(name)
    for seed in range(3):
        drawn = space.sample(random.Random(100 + seed))
        graph = space.graph(drawn)
        network = Network.initialised(graph, stream(0, "weights"))
        shape = (2, space.in_channels, space.resolution_px, space.resolution_px)
        images = torch.zeros(shape).to(memory_format=torch.channels_last)
        kept = calibration._kept_bytes(network, images)
        work = Counter()
        for _, block in graph.live:
            work.update(block_work(block, 2))
        assert profile.price("kept bytes", work) == pytest.approx(kept, rel=0.15)


def test_the_fit_finds_coefficients_that_are_not_negative():
    rows = [[1.0, 0.0, 2.0], [1.0, 3.0, 0.0], [0.0, 1.0, 1.0], [2.0, 1.0, 1.0]]
    amounts = [sum(c * x for c, x in zip((0.5, 2.0, 0.0), row, strict=True)) for row in rows]
    found = calibration._solved(rows, amounts, [1.0] * 4, ("a", "b", "c"))
    assert found == pytest.approx({"a": 0.5, "b": 2.0, "c": 0.0}, abs=1e-9)


def test_memory_in_use_is_seen():
    before = resident_bytes()
    held = mmap.mmap(-1, 64 * 2**20)  # from the system, whatever the heap has to spare
    held.write(b"1" * len(held))
    assert resident_bytes() - before > 32 * 2**20
    del held
