"""Split conformal intervals: what they promise, and that they keep it."""

import math
import random

import pytest

from predictor.intervals import ConformalIntervals, conformal_intervals, realised_coverage


def test_the_quantile_is_the_one_split_conformal_prescribes():
    # ceil(20 * 0.9) = 18: the 18th of 19 scores, whatever their order
    errors = [i / 100 for i in range(1, 20)]
    random.Random(0).shuffle(errors)
    found = conformal_intervals([10.0] * 19, [10.0 * (1 + e) for e in errors])
    assert found.n == (19,)
    assert found.half_width == pytest.approx((0.18,))
    assert found.upper == pytest.approx((0.18,))
    assert found.of(5.0) == pytest.approx((5.0 * 0.82, 5.0 * 1.18))


def test_each_third_of_the_predictions_has_a_width_of_its_own():
    predicted = [1.0 + i for i in range(30)]
    error = [0.01 if p < 11 else 0.05 if p < 21 else 0.1 for p in predicted]
    measured = [
        p * (1 + e * (-1) ** i) for i, (p, e) in enumerate(zip(predicted, error, strict=True))
    ]
    found = conformal_intervals(predicted, measured)
    assert found.n == (10, 10, 10)
    assert found.edges_ms == (10.5, 20.5)
    assert found.half_width == pytest.approx((0.01, 0.05, 0.1))
    assert found.of(3.0)[1] == pytest.approx(3.03)
    assert found.of(30.0)[1] == pytest.approx(33.0)


def test_few_scores_are_not_taken_apart_and_the_largest_counts():
    found = conformal_intervals([1.0, 2.0, 3.0], [1.1, 1.9, 3.0])
    assert found.edges_ms == ()
    assert found.half_width == pytest.approx((0.1,))


def test_predictions_that_are_always_too_high_need_no_allowance_upwards():
    found = conformal_intervals([2.0] * 10, [1.8] * 10)
    assert found.upper == (0.0,)
    assert found.upper_ms(2.0) == 2.0
    assert found.of(2.0)[0] == pytest.approx(1.8)


def test_none_unseen_is_an_error():
    with pytest.raises(ValueError, match="at least one network"):
        conformal_intervals([], [])


@pytest.mark.parametrize("spread", [0.01, 0.1])
def test_new_networks_fall_inside_as_often_as_promised(spread):
    rng, inside, n_new = random.Random(7), 0, 40
    rounds = 200
    for _ in range(rounds):
        predicted = [rng.uniform(1, 10) for _ in range(30 + n_new)]
        measured = [p * (1 + rng.gauss(0, spread * (2 if p < 4 else 1))) for p in predicted]
        found = conformal_intervals(predicted[:30], measured[:30])
        for p, m in zip(predicted[30:], measured[30:], strict=True):
            low, high = found.of(p)
            inside += low <= m <= high
    assert 0.89 <= inside / (rounds * n_new) <= 0.93  # 10 / 11 for thirds of ten


def test_realised_coverage_holds_each_network_against_the_others():
    predicted = [1.0] * 12
    measured = [1.01] * 11 + [1.2]
    assert realised_coverage(predicted, measured) == pytest.approx(11 / 12)


@pytest.mark.parametrize("budget_ms", [0.5, 1.0, 3.0, 4.5, 5.2, 8.0, 30.0])
def test_the_limit_is_the_largest_prediction_whose_upper_bound_is_within_the_budget(budget_ms):
    found = ConformalIntervals(0.9, (2.0, 5.0), (0.3, 0.2, 0.05), (0.25, 0.1, 0.02), (10, 10, 10))
    limit = found.largest_within(budget_ms)
    assert found.upper_ms(limit) <= budget_ms * (1 + 1e-12)
    grid = [i / 1000 for i in range(1, 40_000)]
    best = max(p for p in grid if found.upper_ms(p) <= budget_ms)
    assert limit == pytest.approx(best, abs=1.1e-3)
    assert math.isfinite(limit)
