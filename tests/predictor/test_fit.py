"""From measurements to a latency model and its report."""

import random
from dataclasses import replace

import numpy as np
import pytest

from predictor.errors import MissingMeasurementsError, UnusableMeasurementsError
from predictor.fit import _adjacent, fit_latency_model
from predictor.intervals import conformal_intervals
from predictor.kits import (
    N_CALIBRATION_NETWORKS,
    N_HELD_OUT_NETWORKS,
    block_subject,
    calibration_architectures,
    chains,
    held_out_architectures,
    network_subject,
)
from predictor.latency_term import LatencyTerm
from predictor.network import NetworkLatencyModel
from search_core.space.presets import get_space


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
    assert report["leave_one_out"]["n"] == len(report["networks"]) == N_CALIBRATION_NETWORKS
    assert report["unsupported_blocks"] == []
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


def test_a_missing_block_is_predicted_and_the_model_says_so(micro, whole_kit, block_ms):
    measured = whole_kit()
    gone = some_block(micro)
    for copies in chains(gone):
        measured.pop(block_subject(gone, copies), None)
    model, report = fit_latency_model(micro, measured)
    assert list(report["predicted_blocks"]) == [str(gone)]
    assert model.predicted == ((0, 0),)
    rng = random.Random(3)
    for architecture in (micro.sample(rng) for _ in range(20)):
        has = gone in micro.blocks(architecture)
        assert (model.coverage(architecture).predicted_share > 0.0) == has
        true_ms = 0.02 + 1.1 * sum(map(block_ms, micro.blocks(architecture)))
        assert model.predict_ms(architecture) == pytest.approx(true_ms, rel=0.02)


@pytest.mark.parametrize("ms", [0.003, 0.07, 1.0, 3.0, 17.0])
def test_networks_that_all_measure_the_same_fit_no_model(micro, synthetic_kit, ms):
    measured = synthetic_kit(micro)
    flat = {s: ms if s.startswith("network:") else t for s, t in measured.items()}
    with pytest.raises(UnusableMeasurementsError):
        fit_latency_model(micro, flat)


# -- networks that the model has not seen ----------------------------------------------


@pytest.fixture
def whole_kit(micro, block_ms, synthetic_kit):
    """Measures the held-out networks as well, `spread` off the line either way."""

    def measure(spread=0.0, network_ms=lambda block_sum: 0.02 + 1.1 * block_sum):
        measured = synthetic_kit(micro, network_ms)
        for i, a in enumerate(held_out_architectures(micro)):
            factor = 1.0 + (spread if i % 2 else -spread)
            measured[network_subject(micro, a)] = factor * network_ms(
                sum(map(block_ms, micro.blocks(a)))
            )
        return measured

    return measure


def test_an_additive_device_is_foretold_on_networks_it_was_not_fitted_to(micro, whole_kit):
    _, report = fit_latency_model(micro, whole_kit())
    found = report["held_out"]
    assert found["n"] == len(report["held_out_networks"]) == N_HELD_OUT_NETWORKS
    assert found["mape"] < 1e-5
    assert (found["within_10"], found["spearman"]) == (1.0, pytest.approx(1.0))
    for told, a in zip(report["held_out_networks"], held_out_architectures(micro), strict=True):
        assert micro.parse(told["architecture"]) == a
        assert told["predicted_ms"] == pytest.approx(told["measured_ms"], rel=1e-4)


def test_held_out_errors_are_those_of_the_held_out_networks(micro, whole_kit):
    _, report = fit_latency_model(micro, whole_kit(spread=0.2))
    assert report["held_out"]["mape"] == pytest.approx(0.5 * (0.2 / 0.8 + 0.2 / 1.2), rel=1e-3)
    assert report["held_out"]["within_10"] == 0.0
    assert report["leave_one_out"]["mape"] < 1e-5


def test_held_out_networks_change_nothing_but_the_intervals(micro, synthetic_kit, whole_kit):
    without, report = fit_latency_model(micro, synthetic_kit(micro))
    assert (report["held_out"], report["block_sum"], report["block_sum_bias"]) == (None,) * 3
    assert (without.intervals, report["intervals"]) == (None, None)
    for spread in (0.0, 0.3, 0.9):
        model, report = fit_latency_model(micro, whole_kit(spread))
        assert replace(model, intervals=None) == without
        assert model.intervals.n == (10, 10, 10)
        # networks measure 1 - spread or 1 + spread of what blocks say, in turn
        assert max(model.intervals.half_width) == pytest.approx(spread, abs=1e-4)
        assert report["intervals"]["mean_half_width"] == pytest.approx(spread, abs=1e-4)


def test_the_coverage_is_told_by_leaving_each_held_out_network_out(micro, whole_kit):
    model, report = fit_latency_model(micro, whole_kit(spread=0.2))
    told = report["held_out_networks"]
    intervals = conformal_intervals(
        [n["predicted_ms"] for n in told[1:]], [n["measured_ms"] for n in told[1:]]
    )
    low, high = intervals.of(told[0]["predicted_ms"])
    assert low - 1e-6 <= told[0]["measured_ms"] <= high + 1e-6
    assert 0.0 <= report["intervals"]["coverage"] <= 1.0
    assert model.intervals.of(1.0) == pytest.approx((0.8, 1.2), rel=1e-3)


@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_the_report_tells_by_how_much_plain_sums_of_blocks_are_off(micro, whole_kit, scale):
    _, report = fit_latency_model(micro, whole_kit(network_ms=lambda ms: scale * ms))
    assert report["block_sum_bias"] == pytest.approx(1.0 / scale - 1.0, rel=1e-6)
    assert report["block_sum"]["mape"] == pytest.approx(abs(1.0 / scale - 1.0), rel=1e-6)
    assert report["held_out"]["mape"] < 1e-5


# -- blocks that the target cannot run -------------------------------------------------


def without_blocks(space, measured, blocks):
    """What a target that refuses `blocks` measures, and the subjects it refuses."""
    refused = {block_subject(b, copies) for b in blocks for copies in chains(b)}
    for a in (*calibration_architectures(space), *held_out_architectures(space)):
        if not blocks.isdisjoint(space.blocks(a)):
            refused.add(network_subject(space, a))
    return {s: ms for s, ms in measured.items() if s not in refused}, refused


def some_block(space):
    """A candidate that networks can do without."""
    layer = next(layer for layer in space.layers if layer.slot is not None)
    return layer.blocks[0]


def test_no_budget_that_the_other_networks_meet_has_room_for_an_unsupported_block(
    micro, block_ms, whole_kit
):
    refused_block = some_block(micro)
    measured, refused = without_blocks(micro, whole_kit(), {refused_block})
    model, report = fit_latency_model(micro, measured, refused)
    rng = random.Random(2)
    with_it, without_it = [], []
    for architecture in (micro.sample(rng) for _ in range(500)):
        has = refused_block in micro.blocks(architecture)
        (with_it if has else without_it).append(model.predict_ms(architecture))
    assert min(with_it) > max(without_it)
    assert model.band_ms[1] < min(with_it)
    term = LatencyTerm(model, budget_ms=3 * model.band_ms[1])  # a budget that binds nothing
    for architecture in (micro.sample(rng) for _ in range(200)):
        has = refused_block in micro.blocks(architecture)
        assert (term.exact(architecture) > 3 * model.band_ms[1]) == has
    assert NetworkLatencyModel.from_document(model.to_document()) == model
    assert report["unsupported_blocks"] == [str(refused_block)]
    for architecture in (micro.sample(rng) for _ in range(50)):
        if refused_block not in micro.blocks(architecture):
            true_ms = 0.02 + 1.1 * sum(map(block_ms, micro.blocks(architecture)))
            assert model.predict_ms(architecture) == pytest.approx(true_ms, rel=1e-4)


def test_networks_with_an_unsupported_block_are_in_no_figure_of_the_report(micro, whole_kit):
    refused_block = some_block(micro)
    measured, refused = without_blocks(micro, whole_kit(), {refused_block})
    _, report = fit_latency_model(micro, measured, refused)
    told = [n["architecture"] for n in (*report["networks"], *report["held_out_networks"])]
    assert 5 <= report["leave_one_out"]["n"] < N_CALIBRATION_NETWORKS
    assert report["held_out"]["n"] < N_HELD_OUT_NETWORKS
    for text in told:
        assert refused_block not in micro.blocks(micro.parse(text))
    assert report["leave_one_out"]["mape"] < 1e-4


def test_a_block_refused_only_as_a_chain_is_not_offered_either(micro, synthetic_kit):
    block = next(b for b in micro.distinct_blocks if len(chains(b)) == 2)
    subject = block_subject(block, chains(block)[-1])
    measured = synthetic_kit(micro)
    del measured[subject]
    _, report = fit_latency_model(micro, measured, {subject})
    assert report["unsupported_blocks"] == [str(block)]


def test_a_target_that_runs_hardly_a_network_gets_no_model(micro, synthetic_kit):
    stem = micro.distinct_blocks[0]
    measured, refused = without_blocks(micro, synthetic_kit(micro), {stem})
    with pytest.raises(UnusableMeasurementsError, match="the target runs no network of micro"):
        fit_latency_model(micro, measured, refused)


# -- which blocks lie beside each other ------------------------------------------------


def test_in_a_chain_slots_are_adjacent_to_the_next_and_in_a_cell_to_what_reads_them():
    assert _adjacent(get_space("micro")).tolist() == [[i, i + 1] for i in range(5)]
    cell = {("0->1", "1->2"), ("0->1", "1->3"), ("0->2", "2->3"), ("1->2", "2->3")}
    space = get_space("nasbench201")
    names = [slot.name for slot in space.slots]
    assert {(names[i], names[j]) for i, j in _adjacent(space)} >= cell


# -- what to measure next --------------------------------------------------------------


def test_where_blocks_lean_on_each_other_the_report_says_which_networks_would_tell_most(
    micro, block_ms, synthetic_kit
):
    def leaning(architecture):
        blocks = micro.blocks(architecture)
        return 0.02 + sum(block_ms(b) * (1.4 if b.kernel == 5 else 1.0) for b in blocks)

    measured = synthetic_kit(micro)
    rng = np.random.default_rng(1)
    for a in calibration_architectures(micro):
        measured[network_subject(micro, a)] = leaning(a) * (1.0 + 0.002 * rng.normal())
    _, report = fit_latency_model(micro, measured)
    assert report["interactions"]["kept"]
    told = report["next_networks"]
    values = [network["variance_ms2_per_second"] for network in told]
    assert len(told) == 5
    assert values == sorted(values, reverse=True)
    assert min(values) > 0.0
    known = {micro.format(a) for a in calibration_architectures(micro)}
    assert known.isdisjoint(network["architecture"] for network in told)
    assert fit_latency_model(micro, synthetic_kit(micro))[1]["next_networks"] == []
