"""The paired estimator: exact differences between two paths."""

from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

from search_core.estimators.paired import PairedDSNAS
from search_core.estimators.reinforce import Reinforce
from search_core.randomness import stream

CLOSE = {"rtol": 1e-9, "atol": 1e-12}


@pytest.mark.parametrize("pairs", [1, 2, 3, 5])
def test_it_is_exact_with_any_number_of_pairs(
    pairs, network, judged, random_probabilities, expectation, exact_of_loss
):
    """More pairs than slots are as many as slots."""
    supernet, batch, p = network(3, 2), judged("cross_entropy"), random_probabilities(3, 2)
    mean = expectation(lambda: PairedDSNAS(pairs=pairs), supernet, p, batch)
    torch.testing.assert_close(mean, exact_of_loss(supernet, p, batch), **CLOSE)


def test_a_difference_is_weighted_by_the_chance_of_another_choice(
    network, judged, random_probabilities, outcomes
):
    """n (1 - p_s) (L(s) - L(k)) / 2 on s, the opposite on k drawn as p_k / (1 - p_s)."""
    supernet, batch, p = network(), judged("cross_entropy"), random_probabilities()
    for probability, estimate in outcomes(PairedDSNAS, supernet, p, batch):
        (slot,) = estimate.gradient.any(dim=1).nonzero()[:, 0].tolist()
        s = estimate.choices[slot]
        (k,) = {*estimate.gradient[slot].nonzero()[:, 0].tolist()} - {s}
        other = [*estimate.choices]
        other[slot] = k
        with torch.no_grad():
            losses = [
                batch.loss(supernet(batch.images, path)).item()
                for path in (estimate.choices, other)
            ]
        difference = losses[0] - losses[1]
        expected = torch.zeros_like(p)
        expected[slot, s] = 2 * (1.0 - p[slot, s]) * difference / 2.0
        expected[slot, k] = -expected[slot, s]
        torch.testing.assert_close(estimate.gradient, expected, **CLOSE)
        assert estimate.signal == pytest.approx(abs(difference), rel=1e-9)
        drawn = p[0, estimate.choices[0]] * p[1, estimate.choices[1]]
        drawn = drawn * p[slot, k] / (1.0 - p[slot, s]) / 2.0
        assert probability == pytest.approx(float(drawn))


def test_real_draws_have_these_probabilities(network, judged):
    supernet, batch = network(1, 3), judged("affine")
    p = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    n, seen = 800, Counter()
    for step in range(n):
        estimate = PairedDSNAS().estimate(supernet, p, batch, 0.0, stream(0, "swap", step))
        (s,) = estimate.choices
        (k,) = {*estimate.gradient[0].nonzero()[:, 0].tolist()} - {s}
        seen[s, k] += 1
    expected = {
        (s, k): n * float(p[0, s] * p[0, k] / (1.0 - p[0, s]))
        for s in range(3)
        for k in range(3)
        if s != k
    }
    assert chisquare([seen[q] for q in expected], [*expected.values()]).pvalue > 1e-3


def test_the_draw_of_slots_is_even(network, judged, random_probabilities):
    supernet, batch, p = network(3, 2), judged("cross_entropy"), random_probabilities(3, 2)
    drawn = torch.zeros(3)
    for step in range(300):
        estimate = PairedDSNAS(pairs=2).estimate(supernet, p, batch, 0.0, stream(0, "p", step))
        moved = estimate.gradient.any(dim=1)
        assert moved.sum() == 2
        drawn += moved
    assert chisquare(drawn).pvalue > 1e-3


def variance(every):
    """Of the estimate as a vector, over (probability, estimate)."""
    mean = sum(probability * e.gradient for probability, e in every)
    return sum(probability * (e.gradient - mean).square().sum().item() for probability, e in every)


@pytest.fixture
def variances(judged, random_probabilities, outcomes):
    """Of the paired estimate and of REINFORCE at as many forward passes, exactly."""

    def variances(supernet, loss, passes):
        slots = supernet.space.slots
        p = random_probabilities(len(slots), len(slots[0].candidates))
        makers = (lambda: PairedDSNAS(pairs=passes - 1), lambda: Reinforce(samples=passes))
        return [variance(outcomes(make, supernet, p, judged(loss))) for make in makers]

    return variances


@pytest.mark.parametrize(("n_slots", "passes"), [(1, 2), (2, 2), (2, 3)])
def test_where_slots_add_up_it_varies_less_than_reinforce(n_slots, passes, network, variances):
    paired, reinforce = variances(network(n_slots, 2, joined=True), "affine", passes)
    assert 0.0 < paired < reinforce


def test_where_slots_interact_it_varies_more_than_reinforce(network, variances):
    """A chain of linear operations: a product, in which no slot has an effect of its own."""
    paired, reinforce = variances(network(2, 3), "cross_entropy", 2)
    assert 0.0 < reinforce < paired


def test_what_all_paths_share_does_not_enter_the_variance(
    network, judged, random_probabilities, outcomes
):
    supernet, p = network(2, 2), random_probabilities(2, 2)
    plain, shifted = (
        variance(outcomes(PairedDSNAS, supernet, p, judged("cross_entropy", constant)))
        for constant in (0.0, 100.0)
    )
    assert shifted == pytest.approx(plain, rel=1e-9)
