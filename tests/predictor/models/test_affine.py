"""The robust line."""

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from predictor.models.affine import AffineCalibration

SUMS = np.linspace(0.2, 1.4, 10)[:, None]


@pytest.mark.parametrize("unit", [1.0, 1e-3, 1e3])
def test_a_line_is_recovered_in_any_unit(unit):
    line = AffineCalibration().fit(unit * SUMS, unit * (0.05 + 1.2 * SUMS[:, 0]))
    assert line.scale_ == pytest.approx(1.2, rel=1e-4)
    assert line.offset_ == pytest.approx(unit * 0.05, rel=1e-3)
    assert line.predict(unit * SUMS) == pytest.approx(unit * (0.05 + 1.2 * SUMS[:, 0]), rel=1e-4)


def test_one_outlier_does_not_bend_it():
    measured = 0.05 + 1.2 * SUMS[:, 0]
    measured[4] *= 3.0
    assert AffineCalibration().fit(SUMS, measured).scale_ == pytest.approx(1.2, rel=0.05)


def test_fit_returns_the_estimator():
    line = AffineCalibration()
    assert line.fit(SUMS, SUMS[:, 0]) is line


def test_predicting_before_fitting_is_an_error():
    with pytest.raises(NotFittedError):
        AffineCalibration().predict(SUMS)
