"""Errors of predictions, computed by hand."""

import numpy as np
import pytest

from predictor.evaluation import prediction_quality


def test_the_numbers_are_those_computed_by_hand():
    quality = prediction_quality(
        np.array([1.1, 1.9, 3.0, 5.0]), np.array([1.0, 2.0, 4.0, 5.0])
    )  # relative errors +0.10, -0.05, -0.25, 0
    assert quality.n == 4
    assert quality.mape == pytest.approx(0.10)
    assert quality.bias == pytest.approx(-0.05)
    assert quality.worst_under == pytest.approx(1 / 3)
    assert quality.spearman == pytest.approx(1.0)


def test_within_10_counts_errors_up_to_a_tenth():
    quality = prediction_quality(
        np.array([1.09, 0.91, 1.2, 0.5]), np.array([1.0, 1.0, 1.0, 1.0]) * [1, 1, 1, 1.0001]
    )
    assert quality.within_10 == 0.5


def test_predictions_that_are_all_too_high_have_no_worst_under():
    quality = prediction_quality(np.array([1.2, 2.4]), np.array([1.0, 2.0]))
    assert (quality.worst_under, quality.bias) == (0.0, pytest.approx(0.2))


def test_a_reversed_order_has_rank_correlation_minus_one():
    assert prediction_quality(np.array([3.0, 2.0, 1.0]), np.array([1.0, 2.0, 3.0])).spearman == (
        pytest.approx(-1.0)
    )
