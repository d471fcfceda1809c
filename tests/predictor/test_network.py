"""The fitted model as a value."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from predictor.errors import ModelDocumentError
from predictor.fit import fit_latency_model
from predictor.network import FORMAT, NetworkLatencyModel, Pair, Similarity
from search_core.space.space import Architecture

DOCUMENTS = Path(__file__).parent / "documents"


@pytest.fixture(scope="module")
def model(micro, synthetic_kit):
    return fit_latency_model(micro, synthetic_kit(micro))[0]


def test_a_prediction_is_the_offset_and_one_entry_a_slot():
    model = NetworkLatencyModel("d", 0.5, ((1.0, 2.0), (0.25,)), 0.01)
    assert model.predict_ms(Architecture("d", (1, 0))) == 2.75


def test_an_architecture_of_another_space_is_refused(model, micro):
    foreign = replace(micro, version=2).architecture([0] * 6)
    with pytest.raises(ModelDocumentError, match="another space"):
        model.predict_ms(foreign)


def test_the_band_adds_the_least_and_the_most_of_every_slot():
    model = NetworkLatencyModel("d", 0.5, ((2.0, 1.0, 3.0), (0.25, 0.75, 0.5)), 0.01)
    assert model.band_ms == (1.75, 4.25)


def test_the_band_is_that_of_all_architectures(model, micro):
    choices = product(*(range(len(slot.candidates)) for slot in micro.slots))
    predictions = [model.predict_ms(Architecture(micro.digest, c)) for c in choices]
    assert len(predictions) == 46656
    assert model.band_ms == pytest.approx((min(predictions), max(predictions)), rel=1e-12)


def test_the_band_is_that_of_the_networks_the_target_runs():
    table_ms = ((2.0, 1.0, 9.0), (0.25, 9.0, 0.5))
    model = NetworkLatencyModel("d", 0.5, table_ms, 0.01, unsupported=((0, 2), (1, 1)))
    assert model.band_ms == (1.75, 3.0)
    assert model.predict_ms(Architecture("d", (2, 1))) == 18.5


@pytest.mark.parametrize("unsupported", [(), ((0, 1),), ((0, 0), (5, 3))])
def test_a_document_survives_json_to_the_last_bit(model, unsupported):
    model = replace(model, unsupported=unsupported)
    document = json.loads(json.dumps(model.to_document()))
    assert NetworkLatencyModel.from_document(document) == model
    assert (document["format"], document["unit"]) == (FORMAT, "ms")


def test_a_document_of_before_blocks_could_be_unsupported_is_read(model):
    document = model.to_document()
    del document["unsupported"]
    assert NetworkLatencyModel.from_document(document) == model


@pytest.mark.parametrize("format_", ["tailor-latency-model/3", "", None])
def test_an_unknown_format_is_refused(model, format_):
    with pytest.raises(ModelDocumentError, match="a latency model is tailor-latency-model/2 in ms"):
        NetworkLatencyModel.from_document({**model.to_document(), "format": format_})


@pytest.mark.parametrize("field", ["space_digest", "offset_ms", "table_ms", "margin"])
def test_a_document_without_a_field_is_damaged(model, field):
    document = model.to_document()
    del document[field]
    with pytest.raises(ModelDocumentError, match="damaged"):
        NetworkLatencyModel.from_document(document)


@pytest.mark.parametrize(
    "damage",
    [
        {"offset_ms": "fast"},
        {"margin": None},
        {"table_ms": [1.0, 2.0]},
        {"table_ms": [["x"]]},
        {"unsupported": [[0]]},
        {"unsupported": 3},
        {"unsupported": [[0, 99]]},
        {"pairs": [{"first": 0, "second": 1, "ms": [[1.0]]}]},
        {"pairs": [{"first": 0, "second": 0, "ms": [[0.0] * 6] * 6}]},
        {"pairs": [{"first": 0, "second": 1, "ms": [[float("inf")] * 6] * 6}]},
        {"similarity": {"factor": 0.5, "networks": [[0] * 6], "weights_ms": []}},
        {"similarity": {"factor": 0.5, "networks": [[0] * 5], "weights_ms": [1.0]}},
        {"similarity": {"factor": 0.5, "networks": [[9] * 6], "weights_ms": [1.0]}},
        {
            "intervals": {
                "level": 0.9,
                "edges_ms": [1.0],
                "half_width": [0.1],
                "upper": [0.1],
                "n": [9],
            }
        },
        {"measured_ms": [1.0]},
        {"extremes_ms": [1.0, float("nan")]},
        {"predicted": [[0, -1]]},
    ],
)
def test_a_document_with_a_field_that_is_no_number_is_damaged(model, damage):
    with pytest.raises(ModelDocumentError, match="damaged"):
        NetworkLatencyModel.from_document({**model.to_document(), **damage})


@pytest.mark.parametrize(("key", "value"), [("unit", "us"), ("offset_ms", float("nan"))])
def test_another_unit_or_a_number_that_is_none_is_refused(key, value):
    document = NetworkLatencyModel("d", 0.1, ((1.0, 2.0),), 0.02).to_document()
    with pytest.raises(ModelDocumentError):
        NetworkLatencyModel.from_document({**document, key: value})


# -- models of every released version --------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_a_model_of_every_released_version_predicts_what_it_did(micro, version):
    stored = json.loads((DOCUMENTS / f"latency_model_{version}.json").read_text())
    model = NetworkLatencyModel.from_document(stored["document"])
    assert stored["document"]["format"] == f"tailor-latency-model/{version}"
    for text, predicted_ms in stored["predictions"].items():
        assert model.predict_ms(micro.parse(text)) == pytest.approx(predicted_ms, rel=1e-12)
    again = NetworkLatencyModel.from_document(json.loads(json.dumps(model.to_document())))
    assert again == model


# -- what blocks do to each other ------------------------------------------------------

TABLE = ((1.0, 2.0), (3.0, 5.0), (0.5, 0.25))
PAIRED = NetworkLatencyModel(
    "d",
    0.5,
    TABLE,
    0.01,
    pairs=(Pair(0, 1, ((0.1, 0.2), (0.3, -6.0))),),
    similarity=Similarity(0.5, ((0, 0, 0), (1, 1, 1)), (0.08, -0.04)),
    predicted=((1, 1), (2, 0)),
    outside=((2, 0),),
    measured_ms=(4.0, 6.0),
)


def test_a_prediction_is_offset_table_and_what_slots_share():
    architecture = Architecture("d", (0, 1, 0))
    shared_ms = 0.2 + 0.08 * 0.5 - 0.04 * 0.25
    assert PAIRED.predict_ms(architecture) == pytest.approx(0.5 + 1.0 + 5.0 + 0.5 + shared_ms)
    assert PAIRED.shared_ms(architecture) == pytest.approx(shared_ms)


def test_the_band_heeds_what_blocks_do_to_each_other():
    every = [PAIRED.predict_ms(Architecture("d", c)) for c in product((0, 1), repeat=3)]
    extremes_ms = PAIRED.find_extremes()
    assert extremes_ms == (min(every), max(every))
    assert min(every) < PAIRED.predict_ms(Architecture("d", (0, 0, 1)))  # of the smallest entries
    assert replace(PAIRED, extremes_ms=extremes_ms).band_ms == extremes_ms


def test_a_request_is_told_how_far_the_measurements_reach():
    measured = PAIRED.coverage(Architecture("d", (0, 0, 1)))
    assert (measured.predicted_share, measured.outside) == (0.0, ())
    assert measured.is_full
    guessed = PAIRED.coverage(Architecture("d", (0, 1, 0)))
    assert guessed.predicted_share == pytest.approx(
        (5.0 + 0.5) / PAIRED.predict_ms(Architecture("d", (0, 1, 0)))
    )
    whole = replace(PAIRED, offset_ms=-3.0).coverage(Architecture("d", (0, 1, 0)))
    assert whole.predicted_share == 1.0  # the offset takes back what the blocks have too much
    assert guessed.outside == ("slot 2",)
    assert guessed.extrapolates  # 7.2 ms, and the slowest measured one takes 6
    assert not guessed.is_full
    assert (
        not replace(PAIRED, measured_ms=(4.0, 7.0))
        .coverage(Architecture("d", (0, 1, 0)))
        .extrapolates
    )


def test_without_intervals_the_margin_bounds_a_search():
    assert PAIRED.interval_ms(3.0) is None
    assert PAIRED.largest_within(5.0) == pytest.approx(5.0 / 1.01)
