"""The knapsack decode: held against brute force and against ProxylessNAS's published table."""

import json
import math
import random
from itertools import product
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from search_core.costs import SeparableCost, lookup, macs_cost, parameter_cost, peak_activation_cost
from search_core.decode import Cap, Limit, decode, k_best
from search_core.errors import BudgetUnreachableError
from search_core.space.proxyless import proxyless_imagenet

ROUNDING = 1e-9


@st.composite
def problems(draw, numbers, n_limits, n_caps=0, max_slots=4):
    """(utilities, limits, caps): slots of up to 4 candidates, budgets of any tightness."""
    widths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=max_slots))

    def table(values):
        return [[draw(values) for _ in range(width)] for width in widths]

    def spread(low, high):
        return low + draw(st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0, 1.2])) * (high - low)

    limits, caps = [], []
    for i in range(draw(st.integers(*n_limits))):
        costs = table(numbers)
        budget = spread(sum(map(min, costs)), sum(map(max, costs)))
        limits.append(Limit(costs, budget + 7.0, 7.0, f"limit {i}"))
    for i in range(draw(st.integers(0, n_caps))):
        values = table(numbers)
        budget = spread(max(map(min, values)), max(map(max, values)))
        caps.append(Cap(values, budget, name=f"cap {i}"))
    return table(numbers), limits, caps


floats = st.floats(0.0, 100.0)
integers = st.integers(0, 4)  # many ties

WIDTHS = st.sampled_from([(64, None), (1, None), (1, 2, None)])

ALIKE = [[0], [0, 0, 0, 1], [3, 0], [1, 0]]
"""Utilities of which two choices are the best, and of one cost where these are the costs, too."""
"""What approximate passes keep; problems as small as these never fill the real ones."""


def total(table, choices):
    """Added from left to right, as decode adds."""
    result = 0.0
    for row, choice in zip(table, choices, strict=True):
        result += row[choice]
    return result


def keeps(choices, limits, caps, rounding=0.0):
    return all(
        b.offset + total(b.costs, choices) <= b.budget + rounding * max(1.0, abs(b.budget))
        for b in limits
    ) and all(
        row[choice] <= cap.budget
        for cap in caps
        for row, choice in zip(cap.values, choices, strict=True)
    )


def brute_force(utilities, limits, caps, rounding=0.0):
    """The choices that keep every budget."""
    every = product(*(range(len(row)) for row in utilities))
    return [c for c in every if keeps(c, limits, caps, rounding)]


def ranked(utilities, choices):
    return sorted((total(utilities, c) for c in choices), reverse=True)


@settings(deadline=None, max_examples=300)
@given(
    problems(st.one_of(floats, integers), (0, 3), n_caps=2),
    st.integers(1, 7),
    WIDTHS,
)
def test_the_k_best_are_those_of_brute_force(problem, k, widths):
    utilities, limits, caps = problem
    try:
        with patch("search_core.decode._WIDTHS", widths):
            found = k_best(utilities, limits, caps, k=k)
    except BudgetUnreachableError:
        assert brute_force(utilities, limits, caps) == []
        return
    assert len(set(found)) == len(found)
    assert all(keeps(choices, limits, caps, ROUNDING) for choices in found)
    got = [total(utilities, choices) for choices in found]
    assert got == ranked(utilities, found)
    # a budget met to the last bit may count either way
    strict = ranked(utilities, brute_force(utilities, limits, caps))[:k]
    loose = ranked(utilities, brute_force(utilities, limits, caps, ROUNDING))[:k]
    assert len(strict) <= len(got) <= len(loose)
    assert all(a <= b + ROUNDING * max(1.0, abs(b)) for a, b in zip(strict, got, strict=False))
    assert all(a <= b for a, b in zip(got, loose, strict=False))


@settings(deadline=None, max_examples=150)
@example((ALIKE, [Limit([[0], [0, 0, 0, 1], [0, 0], [1, 0]], 8.0, 7.0)], []), (1, None))
@given(problems(integers, (1, 1)), WIDTHS)
def test_under_one_limit_equals_come_by_rising_cost(problem, widths):
    utilities, limits, _ = problem
    (limit,) = limits
    try:
        with patch("search_core.decode._WIDTHS", widths):
            found = k_best(utilities, limits, k=4)
    except BudgetUnreachableError:
        return
    key = lambda c: (-total(utilities, c), total(limit.costs, c))  # noqa: E731
    expected = sorted(map(key, brute_force(utilities, limits, [], ROUNDING)))
    assert list(map(key, found)) == expected[:4]
    assert key(decode(utilities, limits)) == key(found[0])  # which of two alike is not promised


@settings(deadline=None, max_examples=150)
@given(problems(st.integers(0, 20), (1, 3), n_caps=1))
def test_what_cannot_be_kept_is_named_with_the_least_it_can_be_brought_to(problem):
    utilities, limits, caps = problem
    if brute_force(utilities, limits, caps, ROUNDING):
        assert keeps(decode(utilities, limits, caps), limits, caps, ROUNDING)
        return
    with pytest.raises(BudgetUnreachableError) as caught:
        decode(utilities, limits, caps)
    error = caught.value
    at_fault = next(part for part in (*caps, *limits) if part.name == error.name)
    assert error.budget == at_fault.budget < error.minimum
    assert error.name in str(error)
    if at_fault in caps:
        assert error.minimum == max(map(min, at_fault.values))
    else:
        before = limits[: limits.index(at_fault)]
        others = brute_force(utilities, before, caps, ROUNDING)
        least = at_fault.offset + min(total(at_fault.costs, c) for c in others)
        assert error.minimum == pytest.approx(least)


@settings(deadline=None, max_examples=100)
@given(problems(floats, (1, 3)), st.data())
def test_a_forbidden_candidate_is_never_taken(problem, data):
    utilities, limits, _ = problem
    unlimited = [Limit(b.costs, math.inf, b.offset) for b in limits]
    slot = data.draw(st.integers(0, len(utilities) - 1))
    forbidden = data.draw(st.integers(0, len(utilities[slot]) - 1))
    if len(utilities[slot]) == 1:
        return
    utilities[slot][forbidden] = -math.inf
    found = k_best(utilities, unlimited, k=1000)
    assert all(choices[slot] != forbidden for choices in found)
    assert len(found) == math.prod(map(len, utilities)) // len(utilities[slot]) * (
        len(utilities[slot]) - 1
    )


def test_without_limits_every_slot_takes_its_best():
    utilities = [[1.0, 3.0, 2.0], [5.0, -1.0]]
    assert decode(utilities) == (1, 0)
    assert k_best(utilities, k=3) == [(1, 0), (2, 0), (0, 0)]


def test_fewer_are_returned_where_there_are_no_more():
    limit = Limit([[1.0, 2.0], [1.0, 2.0]], 3.0)
    assert k_best([[0.0, 3.0], [0.0, 1.0]], [limit], k=10) == [(1, 0), (0, 1), (0, 0)]


def test_the_cheapest_is_within_a_budget_of_exactly_its_cost():
    costs = [[0.1, 0.7], [0.2, 0.9], [0.3, 0.8]]
    for budget in (0.1 + 0.2 + 0.3, 0.3 + 0.2 + 0.1):
        assert decode([[0.0, 1.0]] * 3, [Limit(costs, budget)]) == (0, 0, 0)


def test_a_limit_is_unreachable_below_its_least_sum_and_offset():
    utilities = [[0.0, 1.0], [-math.inf, 1.0, 2.0]]
    costs = [[2.0, 3.0], [1.0, 5.0, 4.0]]  # the candidate of cost 1 is forbidden
    with pytest.raises(BudgetUnreachableError, match="at least 16") as error:
        decode(utilities, [Limit(costs, 15.5, 10.0, "latency")])
    assert (error.value.budget, error.value.minimum) == (15.5, 16.0)


def test_limits_that_can_be_kept_alone_but_not_together_are_unreachable():
    limits = [Limit([[1.0, 9.0]] * 3, 3.0, name="a"), Limit([[9.0, 1.0]] * 3, 20.0, name="b")]
    with pytest.raises(BudgetUnreachableError) as error:
        decode([[0.0, 0.0]] * 3, limits)
    assert (error.value.name, error.value.budget, error.value.minimum) == ("b", 20.0, 27.0)


def test_a_cap_below_its_floor_is_unreachable():
    with pytest.raises(BudgetUnreachableError, match="memory budget 4"):
        decode([[0.0, 0.0]], caps=[Cap([[1.0, 2.0]], 4.0, floor=5.0, name="memory")])


@pytest.mark.parametrize(
    ("utilities", "costs", "message"),
    [
        ([[0.0], [-math.inf, -math.inf]], [[1.0], [1.0, 1.0]], "every candidate of slot 1"),
        ([[0.0, math.nan]], [[1.0, 1.0]], "slot 0 has"),
        ([[0.0, 0.0]], [[1.0, math.inf]], "slot 0 has"),
        ([[0.0, 0.0]], [[1.0]], r"table of ms has \[1\] candidates"),
    ],
)
def test_tables_that_mean_nothing_are_refused(utilities, costs, message):
    with pytest.raises(ValueError, match=message):
        decode(utilities, [Limit(costs, math.inf, name="ms")])


def test_k_is_at_least_1():
    with pytest.raises(ValueError, match="at least 1"):
        k_best([[0.0]], k=0)


# ProxylessNAS's space under its published latency table, Google Pixel 1

PIXEL_1_MS = json.loads(Path(__file__).with_name("pixel_1_ms.json").read_text())
ROUNDING_MS = 2e-3  # the table has four decimals, the published sums all of them


@pytest.fixture(scope="module")
def proxyless():
    return proxyless_imagenet()


@pytest.fixture(scope="module")
def pixel_1(proxyless):
    return SeparableCost.of_blocks(proxyless, lookup(PIXEL_1_MS), "ms")


def limit(cost, budget):
    return Limit(cost.table, budget, cost.offset, cost.unit)


@pytest.mark.parametrize(
    ("budget_ms", "macs", "latency_ms"), [(40.0, 162918848, 39.98789), (80.0, 342282368, 79.98993)]
)
def test_most_macs_within_a_latency_are_the_published_optimum(
    proxyless, pixel_1, budget_ms, macs, latency_ms
):
    choices = decode(macs_cost(proxyless).table, [limit(pixel_1, budget_ms)])
    architecture = proxyless.architecture(choices)
    assert proxyless.macs(architecture) == macs
    assert pixel_1.exact(architecture) == pytest.approx(latency_ms, abs=ROUNDING_MS)


def test_no_network_of_the_proxyless_space_is_faster_than_its_minimum(proxyless, pixel_1):
    with pytest.raises(BudgetUnreachableError) as error:
        decode(macs_cost(proxyless).table, [limit(pixel_1, 29.6)])
    assert error.value.minimum == pytest.approx(29.60878, abs=ROUNDING_MS)
    assert error.value.minimum == pytest.approx(pixel_1.minimum)


def test_four_kinds_of_budget_are_kept_together_on_the_proxyless_space(proxyless, pixel_1):
    """Each is set just below what the optimum so far costs."""
    rng = random.Random(1)
    utilities = [[rng.gauss(0.0, 1.0) for _ in row] for row in pixel_1.table]
    utilities[0][1] += 3.0  # the candidate that takes most memory
    peak = peak_activation_cost(proxyless)
    limits, caps, values = [], [], []
    for cost in (pixel_1, macs_cost(proxyless), parameter_cost(proxyless), peak):
        best = k_best(utilities, limits, caps, k=5)
        values.append(total(utilities, best[0]))
        budget = 0.95 * cost.exact(proxyless.architecture(best[0]))
        if cost is peak:
            caps.append(Cap(peak.table, budget, peak.floor))
        else:
            limits.append(limit(cost, budget))
    best = k_best(utilities, limits, caps, k=5)
    assert values == sorted(values, reverse=True)
    assert total(utilities, best[0]) < values[-1] < values[0]
    assert all(keeps(choices, limits, caps, ROUNDING) for choices in best)
    # nothing within two changes of the optimum is better than the k best
    optimum = proxyless.architecture(best[0])
    near = {b.choices for a in proxyless.neighbours(optimum) for b in proxyless.neighbours(a)}
    permitted = [c for c in near if keeps(c, limits, caps) and c not in best]
    assert len(permitted) > 100
    assert all(total(utilities, c) <= total(utilities, best[-1]) for c in permitted)


@pytest.mark.parametrize("k", [1, 20])
def test_equal_utilities_under_three_limits_cost_no_search(proxyless, pixel_1, k):
    """Before a search every architecture is as good as any other: nothing to prune by."""
    utilities = [[0.0] * len(row) for row in pixel_1.table]
    limits = [
        limit(pixel_1, 60.0),
        limit(macs_cost(proxyless), 250e6),
        limit(parameter_cost(proxyless), 3.2e6),
    ]
    found = k_best(utilities, limits, k=k)
    assert len(set(found)) == k
    assert all(keeps(choices, limits, [], ROUNDING) for choices in found)
