"""Path-integrated DSNAS: one slot a step, at heights that cover (0, 1) evenly."""

from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

from search_core.estimators.dsnas import PathIntegratedDSNAS
from search_core.randomness import stream


@pytest.fixture
def gates_of(network, judged, random_probabilities):
    """The gates (n_slots,) of each of many steps of one estimator."""

    def gates_of(steps, p, estimator=None):
        supernet, batch, seen = network(3), judged("quadratic"), []

        def look(_, args):
            heights = [1.0 if gate is None else gate.item() for gate in args[2]]
            seen.append(torch.tensor(heights, dtype=torch.float64))

        supernet.register_forward_pre_hook(look)
        estimator = estimator or PathIntegratedDSNAS()
        for step in range(steps):
            estimator.estimate(supernet, p, batch, 0.0, stream(0, "path", step))
        return torch.stack(seen)

    return gates_of


def test_one_undecided_slot_a_step_is_at_another_height(gates_of, random_probabilities):
    p = random_probabilities(3)
    p[1] = torch.tensor([0.0, 1.0, 0.0])
    gates = gates_of(60, p)
    assert ((gates != 1.0).sum(dim=1) == 1).all()
    assert (gates[:, 1] == 1.0).all()
    assert (gates >= 0.0).all()


def test_slots_are_drawn_evenly(gates_of, random_probabilities):
    gates = gates_of(300, random_probabilities(3))
    drawn = Counter((gates != 1.0).nonzero()[:, 1].tolist())
    assert chisquare([drawn[slot] for slot in range(3)]).pvalue > 1e-3


def test_eight_visits_of_a_slot_fall_once_into_each_eighth(gates_of, random_probabilities):
    gates = gates_of(200, random_probabilities(3))
    for slot in range(3):
        heights = gates[:, slot][gates[:, slot] != 1.0]
        rounds = heights[: len(heights) // 8 * 8].view(-1, 8)
        assert len(rounds) >= 6
        assert ((8 * rounds).floor().sort(dim=1).values == torch.arange(8)).all()


def test_the_strata_go_on_from_the_state(gates_of, random_probabilities):
    p = random_probabilities(3)
    whole = gates_of(20, p)
    first, second = PathIntegratedDSNAS(), PathIntegratedDSNAS()
    gates_of(10, p, first)
    second.load_state_dict(first.state_dict())
    assert second.state_dict()["visits"].sum() == 10
    heights = gates_of(10, p, second)  # the same draws again, in later strata
    assert torch.equal((heights != 1.0), (whole[:10] != 1.0))
    assert not torch.equal(heights, whole[:10])


def test_only_the_drawn_slot_learns(network, judged, random_probabilities):
    supernet, batch, p = network(3), judged("quadratic"), random_probabilities(3)
    for step in range(10):
        estimate = PathIntegratedDSNAS().estimate(supernet, p, batch, 0.0, stream(0, "p", step))
        assert int((estimate.gradient != 0.0).any(dim=1).sum()) == 1


def test_the_estimate_is_n_times_the_slope_at_that_height_times_the_score(
    network, judged, random_probabilities
):
    supernet, batch, p = network(3), judged("quadratic"), random_probabilities(3)
    gates = []
    supernet.register_forward_pre_hook(lambda _, args: gates.append(args[2]))
    estimate = PathIntegratedDSNAS().estimate(supernet, p, batch, 0.0, stream(0, "path"))
    ((slot, t),) = [(s, gate.item()) for s, gate in enumerate(gates[0]) if gate is not None]
    at_one = batch.loss(supernet(batch.images, estimate.choices, torch.ones(3))).item()
    cost = 2.0 * t * at_one  # L(t o) = t^2 L(o)
    score = -p[slot]
    score[estimate.choices[slot]] += 1.0
    torch.testing.assert_close(estimate.gradient[slot], 3 * cost * score, rtol=1e-9, atol=1e-12)
    assert estimate.signal == pytest.approx(abs(cost), rel=1e-9)
    assert estimate.loss == pytest.approx(t * t * at_one, rel=1e-9)


def test_no_baseline_changes_the_mean(network, judged, random_probabilities, expectation, prepared):
    supernet, p, batch = network(), random_probabilities(), judged("cross_entropy")
    visits = torch.tensor([3, 5])
    means = [
        expectation(
            prepared(
                PathIntegratedDSNAS,
                baseline=torch.tensor(baseline, dtype=torch.float64),
                visits=visits,
            ),
            supernet,
            p,
            batch,
        )
        for baseline in ([0.0, 0.0], [2.0, -50.0])
    ]
    torch.testing.assert_close(*means, rtol=1e-9, atol=1e-11)


def test_the_baseline_follows_the_mean_cost_which_is_the_difference_from_nothing(network, judged):
    supernet, batch = network(1, 2), judged("quadratic")
    p = torch.tensor([[1.0, 1e-300]], dtype=torch.float64)  # undecided, and always the first
    estimator = PathIntegratedDSNAS()
    for step in range(400):
        estimator.estimate(supernet, p, batch, 0.0, stream(0, "path", step))
    worth = batch.loss(supernet(batch.images, (0,))).item()  # L(o) - L(0), and L(0) = 0
    assert float(estimator.state_dict()["baseline"]) == pytest.approx(worth, rel=0.1)
