"""Milliseconds of single blocks, read from chains."""

import pytest

from predictor.block_table import block_table, blocks_of
from predictor.errors import MissingMeasurementsError
from predictor.kits import CHAIN, block_subject, chains


def test_an_additive_device_is_recovered_exactly(micro, block_ms, synthetic_kit):
    table = block_table(micro, synthetic_kit(micro)).ms
    assert set(table) == set(micro.distinct_blocks)
    for block, ms in table.items():
        assert ms == pytest.approx(block_ms(block), rel=1e-10)


def test_a_block_that_cannot_follow_itself_is_charged_less_the_median_overhead(
    micro, block_ms, synthetic_kit
):
    measured = synthetic_kit(micro)
    stem = micro.distinct_blocks[0]
    measured[block_subject(stem, 1)] += 1.0
    table = block_table(micro, measured).ms
    assert table[stem] == pytest.approx(block_ms(stem) + 1.0, rel=1e-10)


@pytest.mark.parametrize("spoilt_ms", [30.0, -0.003])
def test_one_outlier_among_the_chains_does_not_move_the_others(
    micro, block_ms, synthetic_kit, spoilt_ms
):
    measured = synthetic_kit(micro)
    spoilt = next(b for b in micro.distinct_blocks if CHAIN in chains(b))
    measured[block_subject(spoilt, CHAIN)] += spoilt_ms
    for block, ms in block_table(micro, measured).ms.items():
        true_ms = block_ms(block) + (spoilt_ms / 3 if block == spoilt else 0.0)
        assert ms == pytest.approx(true_ms, rel=1e-10)


def test_no_block_takes_less_than_nothing(micro, synthetic_kit):
    measured = synthetic_kit(micro)
    stem = micro.distinct_blocks[0]
    chained = next(b for b in micro.distinct_blocks if CHAIN in chains(b))
    measured[block_subject(stem, 1)] = 1e-6
    measured[block_subject(chained, CHAIN)] = 1e-6
    table = block_table(micro, measured).ms
    assert (table[stem], table[chained]) == (0.0, 0.0)
    assert min(table.values()) == 0.0


def test_where_hardly_anything_is_measured_every_missing_subject_is_named(micro, synthetic_kit):
    measured = synthetic_kit(micro)
    kept = [s for b in micro.distinct_blocks[:7] for s in (block_subject(b, n) for n in chains(b))]
    gone = [s for s in measured if s.startswith("block:") and s not in kept]
    for subject in gone:
        del measured[subject]
    with pytest.raises(MissingMeasurementsError, match=f"{len(gone)} subjects") as caught:
        block_table(micro, measured)
    assert sorted(caught.value.subjects) == sorted(gone)


def without(measured, blocks):
    gone = {block_subject(b, copies) for b in blocks for copies in chains(b)}
    return {s: ms for s, ms in measured.items() if s not in gone}


def test_missing_blocks_are_predicted_from_the_others(micro, block_ms, synthetic_kit):
    gone = [b for b in micro.distinct_blocks if b.expansion == 3][::3]
    table = block_table(micro, without(synthetic_kit(micro), gone))
    assert set(table.sigma_ms) == set(gone)
    assert table.outside == set()
    assert set(table.ms) == set(micro.distinct_blocks)
    for block, ms in table.ms.items():
        assert ms == pytest.approx(block_ms(block), rel=0.1 if block in gone else 1e-9)


def test_a_predicted_block_unlike_all_that_were_measured_is_said_to_be_outside(
    micro, synthetic_kit
):
    largest = max(micro.distinct_blocks, key=lambda b: b.in_channels * b.expansion)
    alike = [b for b in micro.distinct_blocks if b.in_channels >= largest.in_channels]
    table = block_table(micro, without(synthetic_kit(micro), alike))
    assert largest in table.outside
    assert table.sigma_ms[largest] > 0.0


def test_no_prediction_is_far_below_a_smaller_block_that_was_measured(micro, synthetic_kit):
    """Where larger blocks of a device are faster, the small one that was measured holds."""
    last = [layer for layer in micro.layers if layer.slot is not None][-1].blocks
    small, large = last[0], last[-1]  # kernel 3 and expansion 1; kernel 5 and expansion 6
    measured = without(synthetic_kit(micro), [large])
    measured[block_subject(small, CHAIN)] += 30.0  # ten ms each, more than anything else
    table = block_table(micro, measured)
    assert table.ms[large] >= table.ms[small] - 2.0 * table.sigma_ms[large] > 0.0


def test_another_target_teaches_what_this_one_has_not_measured(micro, synthetic_kit):
    def odd(block):  # a device to which kernels of five are dear, whatever their size
        return (0.002 + 2e-7 * block.macs) * (3.0 if block.kernel == 5 else 1.0)

    def kit(scale):
        return {
            block_subject(b, n): 0.013 + n * scale * odd(b)
            for b in micro.distinct_blocks
            for n in chains(b)
        }

    gone = [b for b in micro.distinct_blocks if b.kernel == 5]
    alone = block_table(micro, without(kit(2.0), gone))
    taught = block_table(micro, without(kit(2.0), gone), elsewhere={"other": kit(1.0)})

    def error(table):
        return max(abs(table.ms[b] / (2.0 * odd(b)) - 1.0) for b in gone)

    assert error(taught) < 0.25 < error(alone)


def test_blocks_of_other_spaces_and_odd_subjects_are_no_trouble(micro, synthetic_kit):
    measured = synthetic_kit(micro) | {
        "block:mbconv_k3_e3_s1_i24_o24_r16:x2": 1.0,
        "block:of_a_later_grammar:x1": 1.0,
        "network:micro@1:whatever": 1.0,
    }
    assert block_table(micro, measured).ms == block_table(micro, synthetic_kit(micro)).ms


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
    table = block_table(micro, measured, {refused}).ms
    assert set(table) == set(micro.distinct_blocks) - {refused}
    for block, ms in table.items():
        assert ms == pytest.approx(block_ms(block), rel=1e-10)
