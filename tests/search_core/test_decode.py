"""The knapsack decode: held against brute force and against ProxylessNAS's published table."""

import math
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_core.decode import decode
from search_core.errors import BudgetUnreachableError
from search_core.space.blocks import BlockKind
from search_core.space.proxyless import proxyless_imagenet


def tables(costs, utilities):
    """Strategy: (utilities, costs) of up to 5 slots with up to 4 candidates each."""
    row = st.lists(st.tuples(utilities, costs), min_size=1, max_size=4)
    split = lambda rows: ([[u for u, _ in r] for r in rows], [[c for _, c in r] for r in rows])  # noqa: E731
    return st.lists(row, min_size=1, max_size=5).map(split)


floats = tables(st.floats(0.0, 100.0), st.one_of(st.just(-math.inf), st.floats(-100.0, 100.0)))
integers = tables(st.integers(0, 6), st.one_of(st.just(-math.inf), st.integers(-4, 4)))


def total(table, choices):
    """Added from left to right, as decode adds."""
    result = 0.0
    for row, choice in zip(table, choices, strict=True):
        result += row[choice]
    return result


def permitted(utilities, costs, limit):
    """(utility, cost) of every choice within `limit`, by brute force."""
    for choices in product(*(range(len(row)) for row in costs)):
        utility, cost = total(utilities, choices), total(costs, choices)
        if utility > -math.inf and cost <= limit:
            yield utility, cost


def cheapest(utilities, costs):
    return min((cost for _, cost in permitted(utilities, costs, math.inf)), default=math.inf)


@settings(deadline=None, max_examples=150)
@given(floats, st.floats(0.0, 500.0))
def test_decode_equals_brute_force(table, budget):
    utilities, costs = table
    rounding = 1e-11 * max(1.0, budget)
    try:
        choices = decode(utilities, costs, budget)
    except BudgetUnreachableError:
        assert cheapest(utilities, costs) > budget
        return
    utility = total(utilities, choices)
    within = [u for u, _ in permitted(utilities, costs, budget)]
    nearly = [u for u, _ in permitted(utilities, costs, budget + rounding)]
    assert max(within, default=-math.inf) <= utility <= max(nearly)


@settings(deadline=None, max_examples=150)
@given(integers, st.integers(0, 30))
def test_among_equals_the_cheaper_wins(table, budget):
    utilities, costs = table
    options = list(permitted(utilities, costs, budget))
    if not options:
        with pytest.raises(BudgetUnreachableError):
            decode(utilities, costs, budget)
        return
    choices = decode(utilities, costs, budget)
    best = max(options, key=lambda option: (option[0], -option[1]))
    assert (total(utilities, choices), total(costs, choices)) == best


@settings(deadline=None, max_examples=150)
@given(floats, st.floats(0.0, 1.0))
def test_decode_never_exceeds_the_budget_nor_takes_a_forbidden_candidate(table, share):
    utilities, costs = table
    least = cheapest(utilities, costs)
    if least == math.inf:
        return
    budget = least + share * (sum(max(row) for row in costs) - least)
    choices = decode(utilities, costs, budget)
    assert total(costs, choices) <= budget + 1e-11 * max(1.0, budget)
    assert all(row[choice] > -math.inf for row, choice in zip(utilities, choices, strict=True))


def test_without_a_budget_every_slot_takes_its_best():
    assert decode([[1.0, 3.0, 2.0], [5.0, -1.0]], [[9.0, 8.0, 7.0], [6.0, 1.0]], math.inf) == (1, 0)


def test_the_cheapest_is_within_a_budget_of_exactly_its_cost():
    costs = [[0.1, 0.7], [0.2, 0.9], [0.3, 0.8]]
    assert decode([[0.0, 1.0]] * 3, costs, 0.1 + 0.2 + 0.3) == (0, 0, 0)
    assert decode([[0.0, 1.0]] * 3, costs, 0.3 + 0.2 + 0.1) == (0, 0, 0)


def test_an_unreachable_budget_is_reported_with_the_true_minimum():
    utilities = [[0.0, 1.0], [-math.inf, 1.0, 2.0]]
    costs = [[2.0, 3.0], [1.0, 5.0, 4.0]]  # the candidate of cost 1 is forbidden
    with pytest.raises(BudgetUnreachableError, match="ask for at least 6") as caught:
        decode(utilities, costs, 5.5)
    assert (caught.value.budget, caught.value.minimum) == (5.5, 6.0)


# ProxylessNAS's latency table, Google Pixel 1: mean ms of each MBConv, and of the fixed parts

PIXEL_1_MS = {  # (input px, in, out, stride): (k3e3, k3e6, k5e3, k5e6, k7e3, k7e6)
    (112, 16, 24, 2): (6.2406, 16.7662, 7.5191, 18.9413, 9.1438, 22.1047),
    (56, 24, 40, 2): (3.9412, 7.1387, 4.3828, 7.8806, 5.0262, 9.1910),
    (56, 24, 24, 1): (6.2731, 11.0949, 7.9019, 14.1313, 10.2148, 18.5406),
    (28, 40, 80, 2): (1.8103, 3.4540, 1.9846, 3.7976, 2.2292, 4.2522),
    (28, 40, 40, 1): (2.8568, 5.3627, 3.4837, 6.6215, 4.3674, 8.3770),
    (14, 80, 80, 1): (1.8414, 3.4695, 2.1265, 4.0798, 2.5003, 4.8805),
    (14, 80, 96, 1): (1.9608, 3.6715, 2.2529, 4.2889, 2.6299, 5.0895),
    (14, 96, 96, 1): (2.4547, 4.9233, 2.7916, 5.6446, 3.2347, 6.6467),
    (14, 96, 192, 2): (1.6477, 3.2435, 1.7546, 3.4905, 1.9018, 3.7877),
    (7, 192, 192, 1): (2.0538, 3.8000, 2.2407, 4.1644, 2.4566, 4.6927),
    (7, 192, 320, 1): (2.6441, 4.8769, 2.8289, 5.2648, 3.0498, 5.8281),
}
FIXED_MS = {
    "conv_k3_e1_s2_i3_o32_r224": 4.08376,
    "mbconv_k3_e1_s1_i32_o16_r112": 3.88214,
    "conv_k1_e1_s1_i320_o1280_r7": 3.08862,
    "classifier_k1_e1_s1_i1280_o1000_r7": 0.30964,
}
CANDIDATES = ((3, 3), (3, 6), (5, 3), (5, 6), (7, 3), (7, 6))  # kernel, expansion
ROUNDING_MS = 2e-3  # the table has four decimals, the published sums all of them


@pytest.fixture(scope="module")
def proxyless():
    return proxyless_imagenet()


@pytest.fixture(scope="module")
def pixel_1(proxyless):
    """(fixed ms, rows of ms) of the space on that phone."""

    def latency_ms(block):
        if str(block) in FIXED_MS:
            return FIXED_MS[str(block)]
        if block.kind is BlockKind.ZERO:
            return 0.0
        row = PIXEL_1_MS[block.resolution_px, block.in_channels, block.out_channels, block.stride]
        return row[CANDIDATES.index((block.kernel, block.expansion))]

    return proxyless.slot_costs(latency_ms)


@pytest.mark.parametrize(
    ("pick", "published_ms"),
    [
        (min, 29.608775604781385),
        (max, 191.0298712699614),
        (lambda row: row[0], 76.04809868594556),  # all 3x3, expansion 3
        (lambda row: row[1], 136.46626631591798),  # all 3x3, expansion 6
        (lambda row: sum(row) / len(row), 113.98812882557642),  # uniform
    ],
)
def test_sums_of_the_pixel_1_table_are_the_published_ones(pixel_1, pick, published_ms):
    fixed_ms, rows_ms = pixel_1
    assert fixed_ms + sum(map(pick, rows_ms)) == pytest.approx(published_ms, abs=ROUNDING_MS)


@pytest.mark.parametrize(
    ("budget_ms", "macs", "latency_ms"), [(40.0, 162918848, 39.98789), (80.0, 342282368, 79.98993)]
)
def test_most_macs_within_a_latency_are_the_published_optimum(
    proxyless, pixel_1, budget_ms, macs, latency_ms
):
    fixed_ms, rows_ms = pixel_1
    fixed_macs, rows_macs = proxyless.slot_costs(lambda block: block.macs)
    choices = decode(rows_macs, rows_ms, budget_ms - fixed_ms)
    assert fixed_macs + total(rows_macs, choices) == macs
    assert fixed_ms + total(rows_ms, choices) == pytest.approx(latency_ms, abs=ROUNDING_MS)


def test_no_network_of_the_proxyless_space_is_faster_than_its_minimum(proxyless, pixel_1):
    fixed_ms, rows_ms = pixel_1
    utilities = [[0.0] * len(row) for row in rows_ms]
    with pytest.raises(BudgetUnreachableError) as caught:
        decode(utilities, rows_ms, 29.6 - fixed_ms)
    assert fixed_ms + caught.value.minimum == pytest.approx(29.60878, abs=ROUNDING_MS)


def test_a_slot_without_a_permitted_candidate_is_unreachable_at_any_budget():
    with pytest.raises(BudgetUnreachableError):
        decode([[0.0], [-math.inf]], [[1.0], [1.0]], math.inf)
