from itertools import product

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from predictor.errors import BadTableError, UnusableMeasurementsError
from predictor.features import Convolutions
from predictor.models import kernel_regressor
from predictor.models.kernel_regressor import AXES, KernelRegressor

SMALL = {"iterations": 20, "leaves": 15, "learning_rate": 0.2}


def grid(**values):
    """Every combination of values; what is not named has one."""
    usual = {
        "precision": ["fp32"],
        "depthwise": [False],
        "batch": [1],
        "in_channels": [16],
        "resolution_px": [16],
        "out_channels": [16],
        "kernel": [3],
        "stride": [1],
        "fused": [0],
    }
    rows = product(*(usual | values).values())
    return Convolutions(*(np.array(column) for column in zip(*rows, strict=True)))


@pytest.fixture
def table():
    return grid(
        precision=["fp32", "int8"],
        batch=[1, 8, 32],
        in_channels=[16, 32, 64, 128],
        resolution_px=[7, 14, 28],
        out_channels=[16, 32, 64, 128],
        kernel=[1, 3, 5],
    )


def latencies_ms(convolutions):
    """A roofline, and per kernel size and batch a factor that no shape explains."""
    quirk = np.random.default_rng(5).uniform(0.5, 2.0, (8, 64))
    times = 0.01 + convolutions.work()[:, 2] / 1e9
    return times * quirk[convolutions.kernel, convolutions.batch]


def mape(predicted_ms, measured_ms):
    return np.abs(predicted_ms / measured_ms - 1.0).mean()


def nearest(convolutions, known, row, axis):
    found = kernel_regressor._nearest(convolutions, np.asarray(known))
    place = 2 * AXES.index(axis)
    return found[row, place : place + 2].tolist()


def test_neighbours_are_the_next_known_ones_along_one_axis():
    line = grid(out_channels=[8, 16, 32, 64, 128])
    known = [True, True, False, False, True]
    assert nearest(line, known, 2, "out_channels") == [1, 4]
    assert nearest(line, known, 1, "out_channels") == [0, 4]  # never itself
    assert nearest(line, known, 0, "out_channels") == [-1, 1]
    assert nearest(line, known, 2, "batch") == [-1, -1]


def test_a_neighbour_differs_in_one_property_only():
    square = grid(in_channels=[16, 32], out_channels=[16, 32])
    known = [True, True, True, True]
    assert nearest(square, known, 0, "in_channels") == [-1, 2]
    assert nearest(square, known, 0, "out_channels") == [-1, 1]
    assert nearest(square, known, 0, "width") == [-1, 3]  # both, in proportion


def test_a_corner_estimate_is_exact_where_effects_multiply():
    square = grid(batch=[1, 8], kernel=[3, 5])
    logs = np.log([1.0, 3.0, 2.0, np.nan])  # of the last, only its neighbours are known
    known = np.array([True, True, True, False])
    found = kernel_regressor._corner_medians(
        np.append(logs, np.nan), kernel_regressor._nearest(square, known), np.array([3])
    )
    assert np.exp(found) == pytest.approx([6.0])


def test_left_out_convolutions_are_predicted(table):
    held_out = np.random.default_rng(0).random(len(table)) < 0.2
    model = KernelRegressor(**SMALL).fit(table[~held_out], latencies_ms(table)[~held_out])
    found = model.predict(table[held_out])
    assert mape(found, latencies_ms(table)[held_out]) < 0.1
    assert (found > 0.0).all()


def test_what_else_is_asked_changes_no_prediction(table):
    known = np.random.default_rng(0).random(len(table)) < 0.8
    model = KernelRegressor(**SMALL).fit(table[known], latencies_ms(table)[known])
    asked = np.flatnonzero(~known)
    int8 = table.precision[asked] == "int8"
    assert model.predict(table[asked[int8]]) == pytest.approx(model.predict(table[asked])[int8])


@pytest.mark.parametrize("part", ["neighbours", "corners"])
def test_a_part_can_be_left_out(table, part):
    held_out = np.random.default_rng(0).random(len(table)) < 0.2
    model = KernelRegressor(**SMALL, **{part: False})
    found = model.fit(table[~held_out], latencies_ms(table)[~held_out]).predict(table[held_out])
    assert mape(found, latencies_ms(table)[held_out]) < 0.3


def test_having_practised_helps_with_channels_that_were_never_measured(table):
    """Latency grows faster than work with channels, which only shows where corners are missing."""
    latency_ms = table.work()[:, 2] * np.sqrt(table.in_channels) / 1e9
    unseen = table.in_channels == 128
    practised, not_practised = (
        KernelRegressor(**SMALL, unseen=share).fit(table[~unseen], latency_ms[~unseen])
        for share in (1.0, 0.0)
    )
    errors = [
        mape(model.predict(table[unseen]), latency_ms[unseen])
        for model in (practised, not_practised)
    ]
    assert errors[0] < 0.5 * errors[1]


def test_what_was_never_measured_is_not_covered(table):
    unseen = table.in_channels == 64
    model = KernelRegressor(**SMALL).fit(table[~unseen], latencies_ms(table)[~unseen])
    assert not model.covered(table[unseen]).any()
    assert model.covered(table[~unseen]).all()
    assert not model.covered(grid(depthwise=[True])).any()


def test_a_precision_without_measurements_is_refused(table):
    model = KernelRegressor(**SMALL).fit(table, latencies_ms(table))
    with pytest.raises(UnusableMeasurementsError, match="no measurements of fp16"):
        model.predict(grid(precision=["fp16"]))


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_bad_latencies_are_refused(table, value):
    latency_ms = latencies_ms(table)
    latency_ms[9] = value
    with pytest.raises(BadTableError, match="row 9, column latency_ms"):
        KernelRegressor().fit(table, latency_ms)


def test_too_few_or_too_many_latencies_are_refused(table):
    with pytest.raises(BadTableError, match="at least 200 are needed"):
        KernelRegressor().fit(table[np.arange(50)], latencies_ms(table)[:50])
    with pytest.raises(BadTableError, match="864 convolutions, 863 latencies"):
        KernelRegressor().fit(table, latencies_ms(table)[1:])


def test_predicting_before_fitting_is_refused(table):
    with pytest.raises(NotFittedError):
        KernelRegressor().predict(table)
