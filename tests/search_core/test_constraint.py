"""Constraints: what each rule adds to the objective, and several of them at once."""

import itertools
import math
import random

import pytest
import torch

from search_core.constraint import (
    AbsoluteReward,
    AddLinear,
    AugmentedLagrangian,
    Constraint,
    Constraints,
    DualAscent,
    MulLog,
    Observed,
    PowerReward,
)
from search_core.costs import BottleneckCost, SeparableCost, macs_cost
from search_core.decode import Cap, Limit
from search_core.errors import BudgetUnreachableError

RULES = [AugmentedLagrangian(), AugmentedLagrangian(equality=True), DualAscent(), AddLinear()]


def cost_of(value):
    """A cost that one slot decides, of an architecture that takes its first candidate."""
    return SeparableCost(0.0, [[value, 1.5, 20.0]], "ms")


def terms(rule, cost, budget, multiplier=0.0):
    """(factor, addend, their derivatives in the cost)."""
    expected = torch.tensor(cost, dtype=torch.float64, requires_grad=True)
    values = [torch.as_tensor(term) for term in rule.terms(expected, budget, multiplier)]
    slopes = [
        torch.autograd.grad(v, expected, retain_graph=True)[0].item() if v.requires_grad else 0.0
        for v in values
    ]
    return (*(value.item() for value in values), *slopes)


def price(rule, cost, budget, multiplier=0.0):
    return terms(rule, cost, budget, multiplier)[3]


# augmented Lagrangian


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
    rule, current = AugmentedLagrangian(rho=budget**2, equality=equality), 0.0
    x = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for _ in range(45):
        for _ in range(8):
            _, penalty = rule.terms(x, budget, current)
            (gradient,) = torch.autograd.grad((x - 3.0) ** 2 + penalty, x)
            x.data -= 0.3 * gradient
        current = rule.updated(current, x.item() / budget - 1.0)
    assert x.item() == pytest.approx(optimum, abs=1e-6)
    assert current == pytest.approx(multiplier, abs=1e-5)


def test_the_weight_of_the_violation_is_multiplier_plus_rho_times_it():
    rule = AugmentedLagrangian(rho=0.5)
    assert price(rule, 3.0, 2.0, multiplier=0.7) == pytest.approx((0.7 + 0.5 * 0.5) / 2.0)


def test_the_price_fades_to_nothing_well_under_the_budget():
    rule = AugmentedLagrangian(rho=1.0)
    prices = [price(rule, cost, 2.0, multiplier=0.3) for cost in (2.0, 1.8, 1.6, 1.4, 1.2)]
    assert prices[0] > prices[1] > prices[2] > 0.0
    assert prices[3:] == [0.0, 0.0]


def test_with_no_multiplier_nothing_is_paid_under_the_budget():
    assert terms(AugmentedLagrangian(), 1.5, 2.0)[1] == 0.0
    assert terms(AugmentedLagrangian(), 2.5, 2.0)[1] > 0.0


def test_the_multiplier_of_an_inequality_rises_over_the_budget_and_falls_to_0_under_it():
    rule = AugmentedLagrangian(rho=0.5)
    assert rule.updated(0.25, 0.5) == pytest.approx(0.5)
    assert rule.updated(0.5, -0.5) == pytest.approx(0.25)
    assert rule.updated(0.1, -1.0) == 0.0


def test_an_equality_pays_for_an_architecture_under_the_budget():
    rule = AugmentedLagrangian(rho=0.5, equality=True)
    multiplier = rule.updated(0.0, -0.5)
    assert multiplier == pytest.approx(-0.25)
    assert price(rule, 1.0, 2.0, multiplier) == pytest.approx((-0.25 - 0.25) / 2.0)


# the other rules


def test_dual_ascent_climbs_by_its_rate_and_may_pull_the_cost_up():
    rule = DualAscent(rate=5e-4)
    assert rule.updated(0.0, 0.2) == pytest.approx(1e-4)
    assert rule.updated(1e-4, 0.2) == pytest.approx(2e-4)
    assert rule.updated(0.0, -0.2) == pytest.approx(-1e-4)
    assert price(rule, 19.0, 20.0, multiplier=-3e-4) == pytest.approx(-3e-4 / 20.0)


@pytest.mark.parametrize(("multiplier", "violation"), [(5.0, -0.1), (-5.0, 0.1)])
def test_dual_ascent_does_not_wind_up(multiplier, violation):
    """A multiplier whose sign opposes the violation starts again from 0."""
    assert DualAscent(rate=0.5).updated(multiplier, violation) == pytest.approx(0.5 * violation)


def test_mul_log_has_the_published_value_and_slope():
    """CE 2 at 80 ms of 80 ms: a loss of 0.4 and 3.42307e-4 a ms."""
    factor, added, slope, _ = terms(MulLog(), 80.0, 80.0)
    assert (2.0 * factor, added) == (pytest.approx(0.4), 0.0)
    assert 2.0 * slope == pytest.approx(3.42307e-4, rel=1e-5)
    factor, _, slope, _ = terms(MulLog(a=1.0, b=0.6), 120.0, 80.0)
    ratio = math.log(120.0) / math.log(80.0)
    assert factor == pytest.approx(ratio**0.6)
    assert slope == pytest.approx(0.6 * ratio**-0.4 / (120.0 * math.log(80.0)))


def test_add_linear_has_a_constant_slope():
    assert [price(AddLinear(), cost, 80.0) for cost in (40.0, 80.0, 160.0)] == [0.1 / 80.0] * 3
    assert terms(AddLinear(weight=0.2), 120.0, 80.0)[1] == pytest.approx(0.1)


@pytest.mark.parametrize("rule", [MulLog(), AddLinear()])
def test_a_fixed_price_has_no_multiplier(rule):
    assert rule.updated(0.0, 3.0) == 0.0


def test_rewards_are_the_published_ones(tiny):
    architecture = tiny.architecture([0, 0, 0])
    cost = SeparableCost(0.0, [[100.0] * 3, [0.0] * 2, [0.0] * 4], "ms")
    absolute = Constraints([Constraint("latency", cost, 80.0, AbsoluteReward())])
    assert absolute.reward(0.75, architecture) == pytest.approx(0.75 - 0.10 * 0.25)
    assert absolute.objective_of(tiny)((0, 0, 0), 9.9, 0.75) == pytest.approx(-0.725)
    under = Constraints([Constraint("latency", cost, 125.0, AbsoluteReward())])
    assert under.reward(0.75, architecture) == pytest.approx(0.75 - 0.10 * 0.2)
    power = Constraints([Constraint("latency", cost, 80.0, PowerReward())])
    assert power.reward(0.75, architecture) == pytest.approx(0.75 * 0.8**0.1)
    both = Constraints(
        [
            Constraint("latency", cost, 80.0, AbsoluteReward()),
            Constraint("phone", cost, 50.0, PowerReward(w=1.0)),
        ]
    )
    assert both.reward(0.75, architecture) == pytest.approx(0.75 * 0.5 - 0.025)
    assert both.needs_reward


# constraints of a search


@pytest.fixture
def logits():
    """Of `tiny`, with -inf where a slot has no such candidate."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    logits[0, 3:] = -torch.inf
    logits[1, 2:] = -torch.inf
    return logits.requires_grad_()


@pytest.fixture
def latency():
    return SeparableCost(2.0, [[1.0, 2.0, 3.0], [1.0, 5.0], [1.0, 2.0, 4.0, 8.0]], "ms")


@pytest.mark.parametrize("rule", [*RULES, MulLog()])
def test_the_gradient_reaches_the_logits(rule, tiny, latency, logits):
    """Probabilities that become plain numbers on the way make a penalty without effect."""
    constraints = Constraints([Constraint("latency", latency, 6.0, rule)])
    constraints.update(tiny.architecture([2, 1, 3]))
    _, penalty = constraints.objective(2.3, logits.softmax(dim=1))
    penalty.backward()
    assert (logits.grad[~torch.isinf(logits)] != 0.0).all()
    torch.testing.assert_close(logits.grad.sum(dim=1), torch.zeros(3).double())
    dearer = (logits.grad[1, 1] - logits.grad[1, 0]).item()
    assert dearer > 0.0  # descent makes the dear candidate less likely


def test_the_objective_of_several_rules_is_their_product_and_sum(tiny, latency, logits):
    """``CE f1 f2 + g``: the scaled task gradient and the penalty's make up its gradient."""
    macs = macs_cost(tiny)
    constraints = Constraints(
        [
            Constraint("latency", latency, 6.0, MulLog(a=0.5, b=0.6)),
            Constraint("macs", macs, 9000.0, MulLog(a=1.5, b=0.3)),
            Constraint("phone", latency, 5.0, AddLinear(0.7)),
            Constraint("watched", latency, 4.0, Observed()),
        ]
    )

    def task_loss(p):
        return (p * torch.arange(12, dtype=torch.float64).view(3, 4)).square().sum()

    p = logits.softmax(dim=1)
    loss = task_loss(p)
    ratios = [
        latency.expected(p).log() / math.log(6.0),
        macs.expected(p).log() / math.log(9000.0),
    ]
    whole = loss * 0.5 * ratios[0] ** 0.6 * 1.5 * ratios[1] ** 0.3
    whole = whole + 0.7 * (latency.expected(p) / 5.0 - 1.0)
    (expected,) = torch.autograd.grad(whole, logits, retain_graph=True)

    scale, penalty = constraints.objective(loss.item(), p)
    (task,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (added,) = torch.autograd.grad(penalty, logits)
    torch.testing.assert_close(scale * task + added, expected)
    assert scale * loss.item() + penalty.item() == pytest.approx(whole.item())


def test_without_constraints_the_task_is_all_there_is(logits):
    constraints = Constraints([])
    scale, penalty = constraints.objective(2.3, logits.softmax(dim=1))
    assert (scale, penalty.item(), constraints.needs_reward) == (1.0, 0.0, False)
    assert constraints.knapsack() == ([], [])


def test_each_multiplier_moves_by_its_own_violation(tiny, latency):
    constraints = Constraints(
        [
            Constraint("latency", latency, 4.0, AugmentedLagrangian(rho=0.5)),
            Constraint("phone", latency, 40.0, AugmentedLagrangian(rho=0.5, equality=True)),
            Constraint("reward", latency, 4.0, AbsoluteReward()),
            Constraint("watched", latency, 4.0, Observed()),
        ]
    )
    architecture = tiny.architecture([1, 0, 0])  # 2 + 2 + 1 + 1 = 6 ms
    constraints.update(architecture)
    p = torch.zeros(3, 4, dtype=torch.float64)
    p[torch.arange(3), torch.tensor([1, 0, 0])] = 1.0
    metrics = constraints.metrics(p, architecture)
    assert metrics["latency_multiplier"] == pytest.approx(0.5 * 0.5)
    assert metrics["phone_multiplier"] == pytest.approx(0.5 * (6.0 / 40.0 - 1.0))
    assert metrics["reward_multiplier"] == metrics["watched_multiplier"] == 0.0
    assert metrics["latency_expected"] == metrics["latency_current"] == 6.0


def test_a_constraint_goes_on_from_its_state(tiny, latency, logits):
    def build():
        return Constraints([Constraint("latency", latency, 4.0), Constraint("b", latency, 5.0)])

    first, second = build(), build()
    for choices in ([1, 0, 0], [2, 1, 3]):
        first.update(tiny.architecture(choices))
    state = first.state_dict()
    second.load_state_dict(state)
    first.update(tiny.architecture([0, 0, 0]))  # the state is a copy
    second.update(tiny.architecture([0, 0, 0]))
    p = logits.softmax(dim=1)
    assert first.state_dict() == second.state_dict() != state
    assert torch.equal(first.objective(2.0, p)[1], second.objective(2.0, p)[1])


def test_what_the_decision_needs_is_a_limit_for_sums_and_a_cap_for_maxima(latency):
    memory = BottleneckCost(3.0, [[1.0, 2.0, 3.0], [1.0, 5.0], [1.0, 2.0, 4.0, 8.0]], "byte")
    constraints = Constraints(
        [
            Constraint("latency", latency, 6.0, Observed()),
            Constraint("memory", memory, 4.0, AbsoluteReward()),
        ]
    )
    assert constraints.knapsack() == (
        [Limit(latency.table, 6.0, 2.0, "latency")],
        [Cap(memory.table, 4.0, 3.0, "memory")],
    )


def test_an_unreachable_budget_is_known_before_training(tiny, latency):
    memory = BottleneckCost(3.0, latency.table, "byte")
    turned = SeparableCost(0.0, [[3.0, 2.0, 1.0], [5.0, 1.0], [8.0, 4.0, 2.0, 1.0]], "ms")
    Constraints([Constraint("latency", latency, 5.0)]).check_reachable(tiny)
    for constraints, name, minimum in (
        ([Constraint("latency", latency, 4.9)], "latency", 5.0),
        ([Constraint("memory", memory, 2.9)], "memory", 3.0),
        # each alone can be kept
        ([Constraint("a", latency, 5.0), Constraint("b", turned, 15.0)], "b", 16.0),
    ):
        with pytest.raises(BudgetUnreachableError, match=f"{name} budget") as caught:
            Constraints(constraints).check_reachable(tiny)
        assert caught.value.minimum == minimum


def test_a_cost_of_another_space_is_refused(micro, latency):
    with pytest.raises(ValueError, match="the table of latency has"):
        Constraints([Constraint("latency", latency, 5.0)]).check_reachable(micro)


def test_a_cost_that_cannot_be_decoded_is_refused(tiny):
    class Anything:
        unit = "ms"

    with pytest.raises(TypeError, match="latency cannot be decoded"):
        Constraints([Constraint("latency", Anything(), 5.0)]).check_reachable(tiny)


def test_different_constraints_are_described_differently(latency):
    described = [
        Constraints([constraint]).describe()
        for constraint in (
            Constraint("latency", latency, 5.0),
            Constraint("latency", latency, 6.0),
            Constraint("latency", SeparableCost(latency.offset, latency.table, "s"), 5.0),
            Constraint("latency", SeparableCost(latency.offset + 1.0, latency.table, "ms"), 5.0),
            Constraint("latency", BottleneckCost(latency.offset, latency.table, "ms"), 5.0),
            Constraint("latency", latency, 5.0, AugmentedLagrangian(rho=0.2)),
            Constraint("latency", latency, 5.0, AddLinear()),
        )
    ]
    assert all(described.count(one) == 1 for one in described)


# what is refused


@pytest.mark.parametrize("budget", [0.0, -1.0, math.nan])
def test_a_budget_that_is_not_positive_is_refused(budget):
    with pytest.raises(ValueError, match="budget of latency is greater than 0"):
        Constraint("latency", cost_of(3.0), budget)


@pytest.mark.parametrize("rule", [*RULES, MulLog(), AbsoluteReward(), PowerReward()])
def test_only_an_observed_cost_has_an_infinite_budget(rule):
    Constraint("latency", cost_of(3.0), math.inf, Observed())
    with pytest.raises(ValueError, match="no finite budget"):
        Constraint("latency", cost_of(3.0), math.inf, rule)


@pytest.mark.parametrize(("value", "budget"), [(3.0, 1.0), (3.0, 0.5), (1.0, 2.0), (0.2, 2.0)])
def test_mul_log_needs_a_unit_in_which_every_cost_is_above_1(value, budget):
    with pytest.raises(ValueError, match="above 1 ms"):
        Constraint("latency", cost_of(value), budget, MulLog())


@pytest.mark.parametrize(
    "build",
    [
        lambda: AugmentedLagrangian(rho=0.0),
        lambda: DualAscent(rate=-1.0),
        lambda: MulLog(a=0.0),
        lambda: MulLog(b=math.inf),
        lambda: AddLinear(weight=math.nan),
        lambda: PowerReward(w=0.0),
    ],
)
def test_a_rule_without_effect_or_of_the_wrong_sign_is_refused(build):
    with pytest.raises(ValueError, match="is greater than 0"):
        build()


@pytest.mark.parametrize("beta", [0.0, 0.1, math.nan])
def test_a_reward_for_breaking_the_budget_is_refused(beta):
    with pytest.raises(ValueError, match="beta is less than 0"):
        AbsoluteReward(beta)


def test_two_constraints_have_two_names():
    constraint = Constraint("latency", cost_of(3.0), 5.0)
    with pytest.raises(ValueError, match="one name"):
        Constraints([constraint, constraint])


# -- a cost that is only nearly a sum --------------------------------------------------


class Crowded:
    """The latency of a sum, and something for every pair of equal neighbours."""

    unit = "ms"

    def __init__(self, separable, penalty, slack):
        self.separable, self.penalty, self.slack = separable, penalty, slack

    def expected(self, probabilities):
        raise NotImplementedError

    def exact(self, architecture):
        equal = sum(map(int.__eq__, architecture.choices, architecture.choices[1:]))
        return self.separable.exact(architecture) + self.penalty * equal

    def describe(self):
        return [self.separable.table, self.penalty]


def every(space):
    ranges = [range(len(slot.candidates)) for slot in space.slots]
    return [space.architecture(choices) for choices in itertools.product(*ranges)]


@pytest.mark.parametrize("penalty", [-1.5, -0.5, 0.5, 1.5])
@pytest.mark.parametrize("budget", [5.0, 6.0, 8.0, 11.0, 20.0])
def test_a_nearly_separable_budget_is_kept_and_spent_as_well_as_can_be(
    tiny, latency, penalty, budget
):
    cost = Crowded(latency, penalty, slack=max(0.0, -2 * penalty))
    rng = random.Random(budget)
    utilities = [[rng.random() for _ in slot.candidates] for slot in tiny.slots]
    constraints = Constraints([Constraint("latency", cost, budget)])

    def utility(a):
        return sum(row[choice] for row, choice in zip(utilities, a.choices, strict=True))

    within = sorted((a for a in every(tiny) if cost.exact(a) <= budget), key=utility, reverse=True)
    if not within:
        with pytest.raises(BudgetUnreachableError) as caught:
            constraints.best(tiny, utilities)
        assert caught.value.minimum == min(map(cost.exact, every(tiny)))
        return
    assert constraints.best(tiny, utilities, k=3) == within[:3]
    constraints.check_reachable(tiny)


def test_a_slack_that_is_too_small_still_finds_a_network_within_the_budget(tiny, latency):
    cost = Crowded(latency, penalty=3.0, slack=0.0)  # the sum says 5 ms, and it takes 11
    utilities = [[-float(k) for k, _ in enumerate(slot.candidates)] for slot in tiny.slots]
    found = Constraints([Constraint("latency", cost, 8.0)]).best(tiny, utilities)[0]
    assert cost.exact(found) <= 8.0


def test_constraints_tell_nearly_separable_costs_apart(latency):
    described = [
        Constraints([Constraint("latency", Crowded(latency, p, 0.0), 5.0)]).describe()
        for p in (0.5, 0.6)
    ]
    assert described[0] != described[1]


def test_a_logarithm_needs_the_least_of_a_nearly_separable_cost_to_be_above_one(latency):
    with pytest.raises(ValueError, match="must be above"):
        Constraint("latency", Crowded(latency, -1.0, slack=4.5), 9.0, MulLog())
