"""The augmented Lagrangian."""

import pytest
import torch

from search_core.constraint import AugmentedLagrangian


def price(constraint, cost):
    """The derivative of the penalty in the cost."""
    expected = torch.tensor(cost, dtype=torch.float64, requires_grad=True)
    constraint.penalty(expected).backward()
    return expected.grad.item()


@pytest.mark.parametrize(
    ("budget", "equality", "optimum", "multiplier"),
    [
        (1.0, False, 1.0, 4.0),
        (5.0, False, 3.0, 0.0),  # the free optimum is within the budget
        (1.0, True, 1.0, 4.0),
        (5.0, True, 5.0, -20.0),  # of a relative violation, so five times the slope
    ],
)
def test_a_convex_toy_converges_to_its_constrained_optimum(budget, equality, optimum, multiplier):
    """min (x - 3)^2 subject to x <= budget, or x = budget."""
    constraint = AugmentedLagrangian(budget, rho=budget**2, equality=equality)
    x = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for _ in range(45):
        for _ in range(8):
            (gradient,) = torch.autograd.grad((x - 3.0) ** 2 + constraint.penalty(x), x)
            x.data -= 0.3 * gradient
        constraint.update(x.item())
    assert x.item() == pytest.approx(optimum, abs=1e-6)
    assert constraint.multiplier == pytest.approx(multiplier, abs=1e-5)


def test_the_weight_of_the_violation_is_multiplier_plus_rho_times_it():
    constraint = AugmentedLagrangian(budget=2.0, rho=0.5, multiplier=0.7)
    assert price(constraint, 3.0) == pytest.approx((0.7 + 0.5 * 0.5) / 2.0)


def test_the_price_fades_to_nothing_well_under_the_budget():
    constraint = AugmentedLagrangian(budget=2.0, rho=1.0, multiplier=0.3)
    prices = [price(constraint, cost) for cost in (2.0, 1.8, 1.6, 1.4, 1.2)]
    assert prices[0] > prices[1] > prices[2] > 0.0
    assert prices[3:] == [0.0, 0.0]


def test_with_no_multiplier_nothing_is_paid_under_the_budget():
    constraint = AugmentedLagrangian(budget=2.0)
    assert constraint.penalty(torch.tensor(1.5)).item() == 0.0
    assert constraint.penalty(torch.tensor(2.5)).item() > 0.0


def test_the_multiplier_rises_over_the_budget_and_falls_under_it():
    constraint = AugmentedLagrangian(budget=2.0, rho=0.5)
    constraint.update(3.0)
    assert constraint.multiplier == pytest.approx(0.25)
    constraint.update(3.0)
    assert constraint.multiplier == pytest.approx(0.5)
    constraint.update(1.0)
    assert constraint.multiplier == pytest.approx(0.25)


def test_the_multiplier_of_an_inequality_is_never_negative():
    constraint = AugmentedLagrangian(budget=2.0, rho=5.0, multiplier=0.1)
    for _ in range(3):
        constraint.update(0.0)
        assert constraint.multiplier == 0.0


def test_an_equality_pays_for_an_architecture_under_the_budget():
    constraint = AugmentedLagrangian(budget=2.0, rho=0.5, equality=True)
    constraint.update(1.0)
    assert constraint.multiplier == pytest.approx(-0.25)
    assert price(constraint, 1.0) == pytest.approx((-0.25 - 0.25) / 2.0)


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan")])
def test_a_budget_that_is_not_positive_is_refused(budget):
    with pytest.raises(ValueError, match="greater than 0"):
        AugmentedLagrangian(budget)
