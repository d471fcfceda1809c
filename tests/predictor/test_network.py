"""The fitted model as a value."""

import json
from dataclasses import replace
from itertools import product

import pytest

from predictor.errors import ModelDocumentError
from predictor.fit import fit_latency_model
from predictor.network import FORMAT, NetworkLatencyModel
from search_core.space.space import Architecture


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


@pytest.mark.parametrize("format_", ["tailor-latency-model/2", "", None])
def test_an_unknown_format_is_refused(model, format_):
    with pytest.raises(ModelDocumentError, match="a latency model is tailor-latency-model/1 in ms"):
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
