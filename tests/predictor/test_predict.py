"""Waterfalls, warnings and exchanges of a latency model, on numbers made up for it."""

import random
from dataclasses import replace

import pytest

from predictor.errors import ModelDocumentError
from predictor.intervals import ConformalIntervals
from predictor.network import NetworkLatencyModel, Pair, Similarity
from predictor.predict import predict, what_if
from search_core.space.presets import get_space

CELLS = get_space("nasbench201_n1")


def made_up(space, **changes) -> NetworkLatencyModel:
    """A model with pairs and similarities, every number another."""
    rng = random.Random(0)
    widths = [len(slot.candidates) for slot in space.slots]
    nets = [space.sample(rng).choices for _ in range(5)]

    def row(n):
        return tuple(rng.uniform(0.1, 1.0) for _ in range(n))

    model = NetworkLatencyModel(
        space_digest=space.digest,
        offset_ms=0.5,
        table_ms=tuple(map(row, widths)),
        margin=0.05,
        pairs=(Pair(0, 1, tuple(row(widths[1]) for _ in range(widths[0]))),),
        similarity=Similarity(0.5, tuple(nets), row(len(nets))),
        intervals=ConformalIntervals(0.9, (), (0.1,), (0.08,), (30,)),
    )
    return replace(model, **changes)


@pytest.fixture(params=["micro", "nasbench201_n1"])
def space(request):
    return get_space(request.param)


def parts_ms(found) -> float:
    falls = found.waterfall
    return falls.call_ms + sum(share.ms for share in falls.slots) + falls.interactions_ms


def test_the_parts_add_up_to_the_prediction(space):
    model, rng = made_up(space), random.Random(1)
    for _ in range(20):
        architecture = space.sample(rng)
        found = predict(space, model, architecture)
        assert found.predicted_ms == model.predict_ms(architecture)
        assert parts_ms(found) == pytest.approx(found.predicted_ms, rel=1e-14)
        assert found.waterfall.interactions_ms != 0.0


def test_every_layer_stands_in_one_part_with_its_block(space):
    architecture = space.sample(random.Random(2))
    falls = predict(space, made_up(space), architecture).waterfall
    placed = {layer.layer: layer.block for layer in falls.fixed}
    for share in falls.slots:
        assert [space.layers[layer.layer].slot for layer in share.layers] == (
            [share.slot] * len(share.layers)
        )
        placed |= {layer.layer: layer.block for layer in share.layers}
    assert placed == dict(enumerate(map(str, space.blocks(architecture))))
    assert [share.slot for share in falls.slots] == list(range(len(space.slots)))
    assert space.parse(space.format(architecture)).choices == tuple(
        space.slots[share.slot].candidates.index(share.candidate) for share in falls.slots
    )


def test_a_slot_of_a_cell_is_told_with_all_its_layers():
    falls = predict(CELLS, made_up(CELLS), CELLS.architecture([3] * 6)).waterfall
    assert [len(share.layers) for share in falls.slots] == [3] * 6  # one cell a stage


def test_the_interval_and_the_bound_are_those_of_the_model(micro):
    model = made_up(micro)
    found = predict(micro, model, micro.architecture([1] * 6))
    assert (found.low_ms, found.high_ms) == model.interval_ms(found.predicted_ms)
    assert found.upper_ms == pytest.approx(1.08 * found.predicted_ms)
    assert found.level == 0.9


def test_a_model_without_intervals_bounds_by_its_margin(micro):
    found = predict(micro, made_up(micro, intervals=None), micro.architecture([1] * 6))
    assert (found.low_ms, found.high_ms, found.level) == (None, None, None)
    assert found.upper_ms == pytest.approx(1.05 * found.predicted_ms)


def test_what_was_all_measured_gives_no_warning(micro):
    found = predict(micro, made_up(micro), micro.architecture([1] * 6))
    assert found.warnings == ()
    assert found.coverage.is_full


def test_blocks_that_were_predicted_are_flagged_and_weighed(micro):
    model = made_up(micro, predicted=((0, 1), (2, 1), (3, 0)), outside=((2, 1),))
    found = predict(micro, model, micro.architecture([1] * 6))
    assert [share.measured for share in found.waterfall.slots] == [
        *(False, True, False),
        *(True, True, True),
    ]
    assert [share.in_range for share in found.waterfall.slots].count(False) == 1
    guessed_ms = model.table_ms[0][1] + model.table_ms[2][1]
    assert found.coverage.predicted_share == pytest.approx(guessed_ms / found.predicted_ms)
    share, extrapolated = found.warnings
    assert share.startswith(f"{guessed_ms / found.predicted_ms:.0%} of the latency")
    assert f"{micro.slots[2].name} {micro.slots[2].candidates[1]}" in extrapolated
    assert micro.slots[0].name not in extrapolated


def test_a_network_beyond_the_measured_ones_is_told_so(micro):
    architecture = micro.architecture([1] * 6)
    total_ms = made_up(micro).predict_ms(architecture)
    near = made_up(micro, measured_ms=(0.5 * total_ms, 0.95 * total_ms))
    far = made_up(micro, measured_ms=(0.5 * total_ms, 0.8 * total_ms))
    assert predict(micro, near, architecture).warnings == ()
    assert "than every measured network" in predict(micro, far, architecture).warnings[0]


def test_no_latency_is_predicted_of_what_the_target_cannot_run(micro):
    model = made_up(micro, unsupported=((4, 2),))
    found = predict(micro, model, micro.architecture([0, 0, 0, 0, 2, 0]))
    told = (found.predicted_ms, found.low_ms, found.high_ms, found.upper_ms, found.coverage)
    assert told == (None,) * 5
    assert [share.supported for share in found.waterfall.slots].index(False) == 4
    slot = micro.slots[4]
    assert f"cannot run {slot.name} {slot.candidates[2]}" in found.warnings[0]


def test_blocks_that_nothing_depends_on_are_listed():
    architecture = CELLS.parse(
        "|nor_conv_3x3~0|+|nor_conv_1x1~0|none~1|+|skip_connect~0|none~1|none~2|"
    )
    found = predict(CELLS, made_up(CELLS), architecture)
    assert not found.degenerate
    assert {layer.block.split("_k")[0] for layer in found.dead} == {"reluconv"}
    assert {CELLS.layers[layer.layer].slot for layer in found.dead} == {0, 1}
    assert "and 3 more" in found.warnings[0]


def test_a_network_whose_output_depends_on_nothing_is_degenerate():
    architecture = CELLS.parse("|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|nor_conv_3x3~2|")
    found = predict(CELLS, made_up(CELLS), architecture)
    assert found.degenerate
    assert "does not depend on its input" in found.warnings[0]


def test_an_exchange_is_the_prediction_of_the_changed_network(space):
    model, rng = made_up(space), random.Random(3)
    architecture = space.sample(rng)
    changes = what_if(space, model, architecture)
    assert [len(slot.candidates) for slot in changes] == [len(s.candidates) for s in space.slots]
    now_ms = model.predict_ms(architecture)
    for slot in changes:
        chosen = architecture.choices[slot.slot]
        for choice, other in enumerate(slot.candidates):
            choices = list(architecture.choices)
            choices[slot.slot] = choice
            assert other.predicted_ms == model.predict_ms(space.architecture(choices))
            assert other.delta_ms == other.predicted_ms - now_ms
            assert other.chosen == (choice == chosen)
        assert slot.candidates[chosen].delta_ms == 0.0


def test_one_slot_may_be_asked_for_alone(micro):
    model, architecture = made_up(micro), micro.architecture([1] * 6)
    assert what_if(micro, model, architecture, 4) == what_if(micro, model, architecture)[4:5]


def test_an_exchange_that_the_target_cannot_run_has_no_latency(micro):
    model = made_up(micro, unsupported=((0, 1), (3, 2)))
    fine = what_if(micro, model, micro.architecture([0] * 6))
    assert fine[0].candidates[1].predicted_ms is None
    assert not fine[0].candidates[1].supported
    assert fine[0].candidates[2].predicted_ms is not None
    # of a network that does not run, only the exchange of what it cannot run helps
    stuck = what_if(micro, model, micro.architecture([1, 0, 0, 0, 0, 0]))
    runs = [[other.predicted_ms is not None for other in slot.candidates] for slot in stuck]
    assert runs[0] == [True, False, *[True] * 4]
    assert not any(any(row) for row in runs[1:])
    assert {other.delta_ms for slot in stuck for other in slot.candidates} == {None}


def test_a_model_of_another_space_is_refused(micro):
    with pytest.raises(ModelDocumentError, match="another space"):
        predict(micro, made_up(CELLS), micro.architecture([0] * 6))
    with pytest.raises(ModelDocumentError, match="another space"):
        what_if(micro, made_up(CELLS), micro.architecture([0] * 6))
