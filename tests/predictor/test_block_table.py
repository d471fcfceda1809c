"""Milliseconds of single blocks, read from chains."""

import pytest

from predictor.block_table import block_table, blocks_of
from predictor.errors import MissingMeasurementsError
from predictor.kits import CHAIN, block_subject, chains


def test_an_additive_device_is_recovered_exactly(micro, block_ms, synthetic_kit):
    table = block_table(micro, synthetic_kit(micro))
    assert set(table) == set(micro.distinct_blocks)
    for block, ms in table.items():
        assert ms == pytest.approx(block_ms(block), rel=1e-10)


def test_a_block_that_cannot_follow_itself_is_charged_less_the_median_overhead(
    micro, block_ms, synthetic_kit
):
    measured = synthetic_kit(micro)
    stem = micro.distinct_blocks[0]
    measured[block_subject(stem, 1)] += 1.0
    table = block_table(micro, measured)
    assert table[stem] == pytest.approx(block_ms(stem) + 1.0, rel=1e-10)


@pytest.mark.parametrize("spoilt_ms", [30.0, -0.003])
def test_one_outlier_among_the_chains_does_not_move_the_others(
    micro, block_ms, synthetic_kit, spoilt_ms
):
    measured = synthetic_kit(micro)
    spoilt = next(b for b in micro.distinct_blocks if CHAIN in chains(b))
    measured[block_subject(spoilt, CHAIN)] += spoilt_ms
    for block, ms in block_table(micro, measured).items():
        true_ms = block_ms(block) + (spoilt_ms / 3 if block == spoilt else 0.0)
        assert ms == pytest.approx(true_ms, rel=1e-10)


def test_no_block_takes_less_than_nothing(micro, synthetic_kit):
    measured = synthetic_kit(micro)
    stem = micro.distinct_blocks[0]
    chained = next(b for b in micro.distinct_blocks if CHAIN in chains(b))
    measured[block_subject(stem, 1)] = 1e-6
    measured[block_subject(chained, CHAIN)] = 1e-6
    table = block_table(micro, measured)
    assert (table[stem], table[chained]) == (0.0, 0.0)
    assert min(table.values()) == 0.0


def test_every_missing_subject_is_named(micro, synthetic_kit):
    measured = synthetic_kit(micro)
    gone = [subject for subject in measured if subject.startswith("block:")][::7]
    for subject in gone:
        del measured[subject]
    with pytest.raises(MissingMeasurementsError, match=f"{len(gone)} subjects") as caught:
        block_table(micro, measured)
    assert sorted(caught.value.subjects) == sorted(gone)


@pytest.mark.parametrize("copies", [1, CHAIN])
def test_a_block_is_refused_when_any_of_its_chains_is(micro, copies):
    block = next(b for b in micro.distinct_blocks if CHAIN in chains(b))
    assert blocks_of(micro, [block_subject(block, copies)]) == {block}
    assert blocks_of(micro, ["network:x", "block:nonsense:x1"]) == set()


def test_an_unsupported_block_is_left_out_and_moves_no_other(micro, block_ms, synthetic_kit):
    refused = micro.distinct_blocks[3]
    measured = synthetic_kit(micro)
    for copies in chains(refused):
        del measured[block_subject(refused, copies)]
    table = block_table(micro, measured, {refused})
    assert set(table) == set(micro.distinct_blocks) - {refused}
    for block, ms in table.items():
        assert ms == pytest.approx(block_ms(block), rel=1e-10)
