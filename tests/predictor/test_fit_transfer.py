"""A model of a target from its whole networks and the models of others."""

import random
from dataclasses import replace

import pytest

from predictor.errors import UnusableMeasurementsError
from predictor.fit_transfer import fit_by_transfer
from predictor.kits import calibration_architectures, held_out_architectures, network_subject
from predictor.network import NetworkLatencyModel


def device(space, per_mac, per_weight, call, fives=1.0):
    """An additive device as a model, and what it takes for a network."""

    def block_ms(block):
        dear = fives if block.kernel == 5 else 1.0
        return dear * (call + per_mac * block.macs + per_weight * block.parameters)

    fixed, rows = space.slot_costs(block_ms)
    model = NetworkLatencyModel(space.digest, 0.01 + fixed, tuple(map(tuple, rows)), 0.02)
    return model, model.predict_ms


@pytest.fixture(scope="module")
def known(micro):
    """Two targets: one for which computing is dear, one for which every block is."""
    return {
        "phone": device(micro, 4e-7, 1e-8, 0.001)[0],
        "gpu": device(micro, 1e-8, 1e-9, 0.01, fives=1.2)[0],
    }


def networks_ms(space, latency_ms, seed=0, noise=0.01):
    rng = random.Random(seed)
    return {
        network_subject(space, a): latency_ms(a) * rng.gauss(1.0, noise)
        for a in (*calibration_architectures(space), *held_out_architectures(space))
    }


@pytest.fixture(scope="module")
def transferred(micro, known):
    truth = device(micro, 5e-7, 2e-8, 0.0015)[1]  # a phone, a little slower
    return truth, *fit_by_transfer(micro, networks_ms(micro, truth), known)


def test_a_device_like_a_known_one_is_predicted_from_its_networks_alone(micro, transferred):
    truth, model, report = transferred
    rng = random.Random(3)
    errors = [
        abs(model.predict_ms(a) / truth(a) - 1.0) for a in (micro.sample(rng) for _ in range(99))
    ]
    assert sum(errors) / len(errors) < 0.02
    assert report["by_transfer"]["nearest"] == "phone"
    assert report["by_transfer"]["warning"] == ""
    assert report["held_out"]["n"] == 30
    assert report["held_out"]["mape"] < 0.03
    assert 0.75 < report["intervals"]["coverage"] <= 1.0


def test_every_answer_says_that_nothing_of_it_was_measured(micro, transferred):
    _, model, _ = transferred
    coverage = model.coverage(micro.sample(random.Random(0)))
    assert coverage.predicted_share > 0.5
    assert not coverage.is_full
    assert NetworkLatencyModel.from_document(model.to_document()) == model


def test_a_device_unlike_all_that_are_known_gets_a_warning(micro, known):
    rng = random.Random(1)
    odd = {a: rng.uniform(1.0, 2.0) for a in calibration_architectures(micro)}
    measured = {network_subject(micro, a): ms for a, ms in odd.items()}
    model, report = fit_by_transfer(micro, measured, known)
    assert "measure twice as many networks" in report["by_transfer"]["warning"]
    assert model.outside == model.predicted != ()
    assert (report["held_out"], model.intervals) == (None, None)


def test_without_references_or_with_too_few_networks_there_is_no_model(micro, known):
    measured = networks_ms(micro, known["phone"].predict_ms)
    with pytest.raises(UnusableMeasurementsError, match="30 measured networks and 0 other targets"):
        fit_by_transfer(micro, measured, {})
    other = {"other": replace(known["phone"], space_digest="x")}
    with pytest.raises(UnusableMeasurementsError, match="0 other targets"):
        fit_by_transfer(micro, measured, other)
    few = dict(list(measured.items())[:9])
    with pytest.raises(UnusableMeasurementsError, match="9 measured networks and 2 other targets"):
        fit_by_transfer(micro, few, known)
