"""Networks that nobody searched for: at the budget, and the same ones each time."""

import pytest

from search_core.baselines import hand_made_architecture, random_architecture
from search_core.space.presets import get_space
from search_core.space.space import Architecture

SPACE = get_space("micro")


def share_of(budget: float):
    """The share of `budget` MACs that an architecture spends."""
    return lambda architecture: SPACE.macs(architecture) / budget


@pytest.fixture(scope="module")
def band() -> tuple[float, float]:
    """The fewest and the most MACs of the uniform networks, roughly the space's own."""
    macs = [SPACE.macs(uniform(k)) for k in range(SPACE.n_candidates)]
    return min(macs), max(macs)


def uniform(k: int) -> Architecture:
    return SPACE.architecture([min(k, len(slot.candidates) - 1) for slot in SPACE.slots])


@pytest.mark.parametrize("position", [0.3, 0.5, 0.8])
def test_a_random_network_spends_its_budget_and_no_more(band, position):
    within = share_of(band[0] + position * (band[1] - band[0]))
    drawn = {random_architecture(SPACE, within, seed) for seed in range(8)}
    assert all(0.9 <= within(architecture) <= 1.0 for architecture in drawn)
    assert len(drawn) > 4  # it depends on the seed
    assert random_architecture(SPACE, within, 3) == random_architecture(SPACE, within, 3)


def test_where_no_draw_comes_near_the_budget_the_largest_is_taken(band):
    within = share_of(3.0 * band[1])
    drawn = random_architecture(SPACE, within, seed=0)
    others = [random_architecture(SPACE, within, seed) for seed in range(1, 4)]
    assert within(drawn) < 0.9
    assert max(map(within, others)) == pytest.approx(within(drawn), rel=0.05)


def test_where_everything_is_over_the_budget_there_is_no_network():
    assert random_architecture(SPACE, share_of(1.0), seed=0) is None
    assert hand_made_architecture(SPACE, share_of(1.0)) is None


def test_a_hand_made_network_has_one_operation_everywhere(band):
    within = share_of(0.5 * sum(band))
    made = hand_made_architecture(SPACE, within)
    assert made in {uniform(k) for k in range(SPACE.n_candidates)}
    fitting = [uniform(k) for k in range(SPACE.n_candidates) if within(uniform(k)) <= 1.0]
    assert within(made) == max(map(within, fitting))


def test_a_budget_below_every_uniform_network_makes_it_smaller_at_its_end():
    """A price list by which candidate 0 is the cheapest everywhere but in the last slots."""
    last = len(SPACE.slots) - 1
    cheaper = {last: 3, last - 1: 2}

    def price(architecture: Architecture) -> float:
        return sum(
            1.0 if cheaper.get(slot) == k else 10.0 + k
            for slot, k in enumerate(architecture.choices)
        )

    def made_within(budget: float) -> list[int] | None:
        made = hand_made_architecture(SPACE, lambda architecture: price(architecture) / budget)
        return made and list(made.choices)

    assert made_within(60.0) == [0, 0, 0, 0, 0, 0]
    assert made_within(59.0) == [0, 0, 0, 0, 0, 3]
    assert made_within(50.0) == [0, 0, 0, 0, 2, 3]
    assert made_within(41.0) is None


@pytest.mark.parametrize("position", [0.0, 0.05, 0.3, 0.9])
def test_no_baseline_pays_for_what_changes_nothing(position):
    cell = get_space("nasbench201")
    least = cell.macs(cell.parse(cell.notation.format(*["skip_connect"] * 6)))
    most = cell.macs(cell.parse(cell.notation.format(*["nor_conv_3x3"] * 6)))
    budget = least + position * (most - least)

    def within(architecture: Architecture) -> float:
        return cell.macs(architecture) / budget

    for seed in range(20):
        drawn = random_architecture(cell, within, seed)
        assert drawn is not None
        assert not cell.graph(drawn).wastes
    hand_made = hand_made_architecture(cell, within)
    assert hand_made is not None
    assert not cell.graph(hand_made).wastes
