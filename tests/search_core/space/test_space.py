"""Spaces and architectures: grammar, identity, sampling and slot sums."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_core.errors import ArchitectureSyntaxError
from search_core.space.blocks import BlockKind, BlockSpec
from search_core.space.presets import get_space
from search_core.space.space import Layer, SearchSpace, Slot

MICRO = get_space("micro")
choices_of_micro = st.tuples(*(st.integers(0, len(s.candidates) - 1) for s in MICRO.slots))


@given(choices_of_micro)
def test_parse_inverts_format(choices):
    architecture = MICRO.architecture(choices)
    assert MICRO.parse(MICRO.format(architecture)) == architecture


def test_an_unknown_token_is_refused_naming_slot_and_candidates(tiny):
    with pytest.raises(ArchitectureSyntaxError, match=r"slot body knows k3e2, zero; got 'k7e9'"):
        tiny.parse("k3e1 k7e9 k5e1")


@pytest.mark.parametrize("text", ["", "k3e1 zero", "k3e1 zero k5e1 k5e1"])
def test_a_wrong_number_of_tokens_is_refused(tiny, text):
    with pytest.raises(ArchitectureSyntaxError, match="tiny needs 3 tokens"):
        tiny.parse(text)


@pytest.mark.parametrize("choices", [(0, 0), (0, 0, 0, 0)])
def test_a_wrong_number_of_choices_is_refused(tiny, choices):
    with pytest.raises(ArchitectureSyntaxError, match="tiny decides 3 slots"):
        tiny.architecture(choices)


@pytest.mark.parametrize("choice", [-1, 2])
def test_a_choice_outside_its_slot_is_refused_naming_the_slot(tiny, choice):
    with pytest.raises(ArchitectureSyntaxError, match="slot body has 2 candidates"):
        tiny.architecture((0, choice, 0))


@pytest.mark.parametrize("method", ["format", "blocks", "macs", "parameters"])
def test_an_architecture_of_another_space_is_refused(tiny, micro, method):
    foreign = micro.architecture([0] * 6)
    with pytest.raises(ArchitectureSyntaxError, match=r"not to tiny@1"):
        getattr(tiny, method)(foreign)


def changed(space):
    """`space` with one thing changed, in every way that leaves its layers fitting together."""
    entry, body, exit_ = space.slots
    layers = list(space.layers)

    def with_block(at, **changes):
        block = replace(layers[at].blocks[0], **changes)
        return (*layers[:at], replace(layers[at], blocks=(block,)), *layers[at + 1 :])

    last = len(layers) - 1
    swapped = replace(layers[1], blocks=tuple(reversed(layers[1].blocks)))
    beside = replace(layers[3], source=2, target=3)  # the twins side by side, no longer in a row
    yield "name", replace(space, name="other")
    yield "version", replace(space, version=2)
    yield "in_channels", replace(space, in_channels=3, layers=with_block(0, in_channels=3))
    yield "resolution_px", replace(space, resolution_px=7, layers=with_block(0, resolution_px=7))
    yield "n_classes", replace(space, n_classes=9, layers=with_block(last, out_channels=9))
    yield "slot name", replace(space, slots=(replace(entry, name="x"), body, exit_))
    yield "token", replace(space, slots=(entry, replace(body, candidates=("k3e2", "skip")), exit_))
    yield "kernel of a fixed block", replace(space, layers=with_block(0, kernel=5))
    yield "block order", replace(space, layers=(layers[0], swapped, *layers[2:]))
    yield (
        "slots of two layers",
        replace(
            space,
            layers=(
                *layers[:3],
                replace(layers[3], blocks=layers[3].blocks[:1], slot=None),
                *layers[4:],
            ),
        ),
    )
    yield "edges", replace(space, layers=(*layers[:3], beside, *layers[4:]))
    yield "one layer less", replace(space, layers=(*layers[:3], *layers[4:]))
    yield "notation", replace(space, notation="{}/{}/{}")


def test_the_digest_changes_with_every_field(tiny):
    digests = {what: space.digest for what, space in changed(tiny)}
    assert len({tiny.digest, *digests.values()}) == 1 + len(digests)


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"in_channels": 3}, r"conv_k3_e1_s2_i1_o8_r8 reads node 0, which is \(3, 8\)"),
        ({"resolution_px": 16}, r"reads node 0, which is \(1, 16\)"),
        ({"n_classes": 9}, "has 9 classes, its last block gives 10"),
    ],
)
def test_layers_that_do_not_fit_the_task_are_refused(tiny, changes, refusal):
    with pytest.raises(ValueError, match=refusal):
        replace(tiny, **changes)


def test_a_block_that_reads_what_another_does_not_give_is_refused(tiny):
    with pytest.raises(ValueError, match="mbconv_k3_e1_s2_i12_o16_r4 reads node 1, which is"):
        replace(tiny, layers=(tiny.layers[0], *tiny.layers[4:]))


def test_a_node_takes_values_of_one_shape_only(tiny):
    odd = Layer((BlockSpec.parse("conv_k1_e1_s1_i8_o9_r4"),), source=1, target=2)
    with pytest.raises(ValueError, match="conv_k1_e1_s1_i8_o9_r4 cannot be added to node 2"):
        replace(tiny, layers=(*tiny.layers[:2], odd, *tiny.layers[2:]))


def test_a_node_that_was_read_takes_nothing_more(tiny):
    late = Layer((BlockSpec.parse("conv_k1_e1_s1_i8_o12_r4"),), source=1, target=2)
    with pytest.raises(ValueError, match="cannot be added to node 2"):
        replace(tiny, layers=(*tiny.layers[:3], late, *tiny.layers[3:]))


def test_equal_spaces_have_equal_digests(tiny):
    assert replace(tiny).digest == tiny.digest


def test_the_digest_of_micro_is_the_released_one():
    """Measurements and latency models are stored under it; another meaning is another version."""
    assert MICRO.version == 1
    assert MICRO.digest == "171b8628af6548d906a90577ba4d847a5627514b08a57541a345beea87804988"


def test_size_counts_the_architectures(tiny):
    seen = {tiny.sample(random.Random(seed)) for seed in range(500)}
    assert len(seen) == tiny.size == 3 * 2 * 4


def test_samples_are_valid_and_reach_every_candidate(tiny):
    rng = random.Random(0)
    samples = [tiny.sample(rng) for _ in range(200)]
    assert all(tiny.architecture(a.choices) == a for a in samples)
    for slot, decision in enumerate(tiny.slots):
        assert {a.choices[slot] for a in samples} == set(range(len(decision.candidates)))


def test_sampling_is_a_function_of_the_generator(tiny):
    draws = [[tiny.sample(rng) for _ in range(20)] for rng in (random.Random(3), random.Random(3))]
    assert draws[0] == draws[1]


@pytest.mark.parametrize("name", ["tiny", "micro"])
@pytest.mark.parametrize("count", ["macs", "parameters"])
def test_slot_costs_sum_to_the_blocks(request, name, count):
    space = request.getfixturevalue(name)
    fixed, rows = space.slot_costs(lambda block: getattr(block, count))
    rng = random.Random(0)
    for architecture in (space.sample(rng) for _ in range(50)):
        direct = sum(getattr(block, count) for block in space.blocks(architecture))
        table = fixed + sum(row[k] for row, k in zip(rows, architecture.choices, strict=True))
        assert table == direct == getattr(space, count)(architecture)


def test_a_slot_that_two_layers_share_is_counted_twice(tiny):
    _, rows = tiny.slot_costs(lambda block: block.macs)
    block = tiny.layers[2].blocks[0]
    assert rows[1] == [2 * block.macs, 0]


def test_the_blocks_follow_the_choices(tiny):
    blocks = tiny.blocks(tiny.parse("k5e2 zero k3e2"))
    assert [str(block) for block in blocks] == [
        "conv_k3_e1_s2_i1_o8_r8",
        "mbconv_k5_e2_s1_i8_o12_r4",
        "zero_k1_e1_s1_i12_o12_r4",
        "zero_k1_e1_s1_i12_o12_r4",
        "mbconv_k3_e2_s2_i12_o16_r4",
        "conv_k1_e1_s1_i16_o24_r2",
        "classifier_k1_e1_s1_i24_o10_r2",
    ]


def test_distinct_blocks_are_unique_and_leave_out_zero(tiny):
    distinct = tiny.distinct_blocks
    everything = {block for layer in tiny.layers for block in layer.blocks}
    assert len(set(distinct)) == len(distinct)
    assert set(distinct) == {b for b in everything if b.kind is not BlockKind.ZERO}


def test_n_candidates_is_that_of_the_widest_slot(tiny):
    assert tiny.n_candidates == 4


def test_a_layer_that_does_not_match_its_slot_is_refused():
    block = BlockSpec(BlockKind.CONV, 3, 1, 1, 1, 4, 8)
    with pytest.raises(ValueError, match="its slot has 2 candidates"):
        SearchSpace("bad", 1, 1, 8, 10, (Slot("a", ("x", "y")),), (Layer((block,), slot=0),))
