"""From measurements to a latency model and its report."""

import random

import numpy as np
import pytest

from predictor.errors import MissingMeasurementsError, UnusableMeasurementsError
from predictor.fit import fit_latency_model
from predictor.kits import calibration_architectures, network_subject


def noisy_kit(space, synthetic_kit, spread):
    rng = np.random.default_rng(0)
    return synthetic_kit(space, lambda ms: (0.02 + 1.1 * ms) * (1.0 + spread * rng.normal()))


def test_an_additive_device_is_recovered(micro, block_ms, synthetic_kit):
    model, _ = fit_latency_model(micro, synthetic_kit(micro))
    rng = random.Random(1)
    for architecture in (micro.sample(rng) for _ in range(50)):
        true_ms = 0.02 + 1.1 * sum(map(block_ms, micro.blocks(architecture)))
        assert model.predict_ms(architecture) == pytest.approx(true_ms, rel=1e-5)


def test_the_report_says_what_was_fitted(micro, synthetic_kit):
    measured = synthetic_kit(micro)
    model, report = fit_latency_model(micro, measured)
    assert report["calibration"]["offset_ms"] == pytest.approx(0.02, rel=1e-4)
    assert report["calibration"]["scale"] == pytest.approx(1.1, rel=1e-4)
    assert report["n_blocks"] == len(micro.distinct_blocks)
    assert report["leave_one_out"]["n"] == len(report["networks"]) == 10
    for network, architecture in zip(
        report["networks"], calibration_architectures(micro), strict=True
    ):
        assert micro.parse(network["architecture"]) == architecture
        assert network["measured_ms"] == measured[network_subject(micro, architecture)]
    assert model.space_digest == micro.digest


def test_a_perfect_fit_still_keeps_a_margin_of_one_percent(micro, synthetic_kit):
    model, report = fit_latency_model(micro, synthetic_kit(micro))
    assert report["leave_one_out"]["mape"] < 0.001
    assert model.margin == 0.01


def test_the_margin_is_twice_the_leave_one_out_error(micro, synthetic_kit):
    model, report = fit_latency_model(micro, noisy_kit(micro, synthetic_kit, 0.03))
    assert 0.01 < model.margin == 2.0 * report["leave_one_out"]["mape"] < 0.25


def test_the_margin_is_never_over_a_quarter(micro, synthetic_kit):
    model, report = fit_latency_model(micro, noisy_kit(micro, synthetic_kit, 0.5))
    assert report["leave_one_out"]["mape"] > 0.125
    assert model.margin == 0.25


@pytest.mark.parametrize("i", [0, 1, 5])
def test_a_network_is_predicted_without_its_own_measurement(micro, synthetic_kit, i):
    subject = network_subject(micro, calibration_architectures(micro)[i])
    predictions = []
    for factor in (0.9, 1.2):
        measured = noisy_kit(micro, synthetic_kit, 0.05)
        measured[subject] *= factor
        network = fit_latency_model(micro, measured)[1]["networks"][i]
        assert network["measured_ms"] == measured[subject]
        predictions.append(network["left_out_prediction_ms"])
    assert predictions[0] == predictions[1]


def test_the_fit_shrugs_off_one_spoiled_network(micro, synthetic_kit, block_ms):
    measured = synthetic_kit(micro)
    measured[network_subject(micro, calibration_architectures(micro)[5])] *= 1.5
    model, _ = fit_latency_model(micro, measured)
    for architecture in calibration_architectures(micro):
        true_ms = 0.02 + 1.1 * sum(map(block_ms, micro.blocks(architecture)))
        assert model.predict_ms(architecture) == pytest.approx(true_ms, rel=0.02)


def test_networks_that_measure_faster_the_longer_they_are_fit_no_model(micro, synthetic_kit):
    with pytest.raises(UnusableMeasurementsError, match="measure the target again"):
        fit_latency_model(micro, synthetic_kit(micro, lambda ms: 5.0 - ms))


def test_measurements_that_are_all_the_same_fit_no_model(micro, synthetic_kit):
    constant = dict.fromkeys(synthetic_kit(micro), 1.0)
    with pytest.raises(UnusableMeasurementsError):
        fit_latency_model(micro, constant)


def test_a_missing_network_is_named(micro, synthetic_kit):
    measured = synthetic_kit(micro)
    gone = [network_subject(micro, a) for a in calibration_architectures(micro)[3:5]]
    for subject in gone:
        del measured[subject]
    with pytest.raises(MissingMeasurementsError) as caught:
        fit_latency_model(micro, measured)
    assert caught.value.subjects == gone


def test_a_missing_block_is_named(micro, synthetic_kit):
    measured = synthetic_kit(micro)
    gone = next(subject for subject in measured if subject.startswith("block:"))
    del measured[gone]
    with pytest.raises(MissingMeasurementsError) as caught:
        fit_latency_model(micro, measured)
    assert caught.value.subjects == [gone]


@pytest.mark.parametrize("ms", [0.003, 0.07, 1.0, 3.0, 17.0])
def test_networks_that_all_measure_the_same_fit_no_model(micro, synthetic_kit, ms):
    measured = synthetic_kit(micro)
    flat = {s: ms if s.startswith("network:") else t for s, t in measured.items()}
    with pytest.raises(UnusableMeasurementsError):
        fit_latency_model(micro, flat)
