"""Decisions that spend their budget: exact budgets, the lowest price, held against enumeration."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from search_core.constraint import Constraint, Observed
from search_core.costs import macs_cost
from search_core.errors import BudgetUnreachableError
from search_core.search import SearchResult
from search_core.space.presets import get_space

SPACE = get_space("micro")
COST = macs_cost(SPACE)
LOWEST = COST.minimum
HIGHEST = COST.offset + sum(max(row) for row in COST.table)


def found(seed: int, frozen: dict[int, int] | None = None) -> SearchResult:
    """A search that ended with these probabilities."""
    shape = (len(SPACE.slots), SPACE.n_candidates)
    generator = torch.Generator().manual_seed(seed)
    log_p = (2.0 * torch.randn(shape, generator=generator, dtype=torch.float64)).log_softmax(1)
    supernet = SimpleNamespace(space=SPACE)
    return SearchResult(supernet, log_p.exp(), log_p, frozen or {}, 0)  # type: ignore[arg-type]


def utility(result: SearchResult, architecture) -> float:
    rows = result.log_probabilities.tolist()
    return sum(row[k] for row, k in zip(rows, architecture.choices, strict=True))


def limit(share: float) -> Constraint:
    return Constraint("macs", COST, LOWEST + share * (HIGHEST - LOWEST), Observed())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
def test_what_is_decided_spends_the_budget_and_keeps_it(seed, share):
    budget = limit(share)
    decided = found(seed).decide([budget], at_least=0.99 * budget.budget)
    assert 0.99 * budget.budget <= COST.exact(decided) <= budget.budget * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_a_decision_that_spends_enough_already_is_left_alone(seed):
    budget = limit(0.6)
    result = found(seed)
    plain = result.decide([budget])
    assert result.decide([budget], at_least=COST.exact(plain)) == plain


@pytest.mark.parametrize("seed", range(4))
def test_no_network_is_both_better_and_dearer(seed):
    """What a price finds lies on the convex hull: nobody beats it at its own cost or above."""
    budget, result = limit(0.5), found(seed)
    decided = result.decide([budget], at_least=0.98 * budget.budget)
    spent, reached = COST.exact(decided), utility(result, decided)
    candidates = (range(len(slot.candidates)) for slot in SPACE.slots)
    for choices in itertools.product(*candidates):
        architecture = SPACE.architecture(choices)
        if spent <= COST.exact(architecture) <= budget.budget:
            assert utility(result, architecture) <= reached + 1e-9


def test_where_nothing_spends_that_much_the_most_is_spent():
    above_all = Constraint("macs", COST, 2.0 * HIGHEST, Observed())
    decided = found(0).decide([above_all], at_least=1.5 * HIGHEST)
    assert COST.exact(decided) == pytest.approx(HIGHEST)


def test_frozen_slots_stay_where_the_budget_can_be_spent_with_them():
    budget = limit(0.6)
    plain = found(1)
    frozen = {0: 5, 3: 2}
    decided = found(1, frozen).decide([budget], at_least=0.97 * budget.budget)
    assert {slot: decided.choices[slot] for slot in frozen} == frozen
    assert plain.decide([budget], at_least=0.97 * budget.budget) != decided


def test_frozen_slots_give_way_where_they_leave_the_budget_unspent():
    costs = [min(range(len(row)), key=row.__getitem__) for row in COST.table]
    frozen = dict(enumerate(costs))  # the cheapest network of all
    budget = limit(0.9)
    decided = found(1, frozen).decide([budget], at_least=0.99 * budget.budget)
    assert COST.exact(decided) >= 0.99 * budget.budget


def test_a_budget_below_the_cheapest_is_unreachable_as_ever():
    with pytest.raises(BudgetUnreachableError):
        found(0).decide([Constraint("macs", COST, 0.5 * LOWEST, Observed())], at_least=1.0)


CELL = get_space("nasbench201")
CELL_COST = macs_cost(CELL)
SKIPS_ONLY = CELL.macs(CELL.parse(CELL.notation.format(*["skip_connect"] * 6)))
CONVOLUTIONS = CELL_COST.offset + sum(max(row) for row in CELL_COST.table)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("spends", [False, True])
def test_no_network_is_decided_that_pays_for_what_changes_nothing(seed, share, spends):
    """Logits that want nothing between most nodes, and two convolutions that lead nowhere."""
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.rand((6, 5), generator=generator, dtype=torch.float64)
    wanted[[0, 3, 4, 5], 0] += 4.0
    wanted[[1, 2], 3] += 3.0
    log_p = wanted.log_softmax(1)
    result = SearchResult(SimpleNamespace(space=CELL), log_p.exp(), log_p, {}, 0)  # type: ignore[arg-type]
    budget = SKIPS_ONLY + share * (CONVOLUTIONS - SKIPS_ONLY)
    constraint = Constraint("macs", CELL_COST, budget, Observed())
    decided = result.decide([constraint], at_least=0.99 * budget if spends else None)
    assert CELL_COST.exact(decided) <= budget
    assert not CELL.graph(decided).wastes

    whole = [a for a in CELL if CELL_COST.exact(a) <= budget and CELL.is_whole(a)]
    if not spends:
        assert utility(result, decided) == pytest.approx(max(utility(result, a) for a in whole))


def test_slots_frozen_to_nothing_are_thawed_when_nothing_would_be_left():
    log_p = torch.zeros((6, 5), dtype=torch.float64).log_softmax(1)
    frozen = dict.fromkeys(range(6), 0)
    result = SearchResult(SimpleNamespace(space=CELL), log_p.exp(), log_p, frozen, 0)  # type: ignore[arg-type]
    assert not CELL.graph(result.decide()).wastes
