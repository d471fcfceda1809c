"""Intervals of accuracies and of their differences, against SciPy and by enumeration."""

from math import comb

import pytest
from scipy.stats import binomtest, norm

from service.searches.statistics import Z95, accuracy_gap, accuracy_interval


def test_z_is_the_quantile_of_the_normal_distribution():
    assert pytest.approx(norm.ppf(0.975), rel=1e-12) == Z95


@pytest.mark.parametrize(("right", "n"), [(0, 7), (7, 7), (1, 2), (350, 360), (3, 10_000)])
def test_the_interval_of_an_accuracy_is_wilsons(right, n):
    expected = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert accuracy_interval(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_gap_is_the_difference_of_the_accuracies():
    # 70 and 65 of 100 images: 60 labelled rightly by both
    gap, (low, high) = accuracy_gap(only_first=10, only_second=5, n=100)
    assert gap == pytest.approx(0.05)
    assert low < 0.0 < gap < high


def test_networks_that_always_agree_have_no_gap_but_an_interval():
    gap, (low, high) = accuracy_gap(0, 0, 50)
    assert gap == 0.0
    assert low == -high
    assert 0.0 < high < 0.05


def test_the_gap_turns_its_sign_with_the_order():
    gap, (low, high) = accuracy_gap(9, 2, 40)
    assert accuracy_gap(2, 9, 40) == (-gap, (-high, -low))


def test_more_images_narrow_the_interval():
    widths = [
        high - low
        for _, (low, high) in (accuracy_gap(n // 10, n // 20, n) for n in (40, 400, 4000))
    ]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("extreme", [(1, 0), (0, 1)])
def test_the_interval_stays_within_what_a_difference_can_be(extreme):
    _, (low, high) = accuracy_gap(*(30 * share for share in extreme), n=30)
    assert -1.0 <= low < high <= 1.0


@pytest.mark.parametrize(("p_first", "p_second"), [(0.1, 0.1), (0.2, 0.05), (0.02, 0.01)])
def test_the_interval_of_a_gap_holds_what_it_promises(p_first, p_second):
    """Summed over every table that 60 images can give."""
    n, covered = 60, 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            ways = comb(n, b) * comb(n - b, c)
            chance = ways * p_first**b * p_second**c * (1 - p_first - p_second) ** (n - b - c)
            _, (low, high) = accuracy_gap(b, c, n)
            covered += chance * (low <= p_first - p_second <= high)
    assert covered > 0.94
