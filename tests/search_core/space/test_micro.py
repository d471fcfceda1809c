"""The space `micro`."""

import random
from itertools import pairwise

import pytest

from search_core.errors import UnknownSpaceError
from search_core.space.micro import micro as build_micro
from search_core.space.presets import get_space, space_names


def test_micro_holds_46656_architectures(micro):
    assert (len(micro.slots), micro.n_candidates, micro.size) == (6, 6, 46656)


def test_every_block_takes_what_the_one_before_it_gives(micro):
    rng = random.Random(0)
    for architecture in (micro.sample(rng) for _ in range(20)):
        for before, after in pairwise(micro.blocks(architecture)):
            assert before.out_channels == after.in_channels
            assert before.out_resolution_px == after.resolution_px


def test_tokens_name_the_blocks_they_stand_for(micro):
    for layer in micro.layers:
        if layer.slot is not None:
            tokens = micro.slots[layer.slot].candidates
            spelled = tuple(f"k{b.kernel}e{b.expansion}c{b.out_channels}" for b in layer.blocks)
            assert tokens == spelled


def test_the_task_shapes_the_first_and_the_last_block():
    space = build_micro(in_channels=3, resolution_px=12, n_classes=7)
    blocks = space.blocks(space.architecture([0] * 6))
    assert (blocks[0].in_channels, blocks[0].resolution_px) == (3, 12)
    assert blocks[-1].out_channels == 7
    assert blocks[-1].resolution_px == 3
    assert space.digest != get_space("micro").digest


def test_get_space_gives_every_name_listed():
    assert [get_space(name).name for name in space_names()] == list(space_names())


def test_an_unknown_space_is_refused_listing_the_known_ones():
    with pytest.raises(UnknownSpaceError, match=r"'marco'; known: .*micro"):
        get_space("marco")
