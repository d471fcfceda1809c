"""Straight-through Gumbel-softmax on one path."""

import pytest
import torch
from scipy.stats import chisquare

from search_core.estimators.dsnas import DSNAS
from search_core.estimators.gumbel import StraightThroughGumbel
from search_core.randomness import stream

CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def perturbed(p, generator):
    """ln p + G of the draw that this generator gives."""
    return p.log() - torch.empty_like(p).exponential_(generator=generator).log()


@pytest.mark.parametrize(("progress", "tau"), [(0.0, 5.0), (0.5, 2.75), (1.0, 0.5)])
def test_the_gradient_is_that_of_the_soft_choice_times_the_cost(
    progress, tau, network, judged, random_probabilities
):
    """c d p~_s / d alpha, by autograd, at the temperature of that share of the search."""
    supernet, batch = network(), judged("cross_entropy")
    logits = random_probabilities().log().requires_grad_()
    p = logits.detach().softmax(dim=1)
    estimate = StraightThroughGumbel().estimate(
        supernet, p, batch, 0.0, stream(0, "noise"), progress=progress
    )
    noisy = perturbed(logits.softmax(dim=1), stream(0, "noise"))
    assert estimate.choices == tuple(noisy.argmax(dim=1).tolist())
    gates = torch.ones(2, dtype=torch.float64, requires_grad=True)
    loss = batch.loss(supernet(batch.images, estimate.choices, gates))
    (costs,) = torch.autograd.grad(loss, gates)
    soft = (noisy / tau).softmax(dim=1)[range(2), estimate.choices]
    (expected,) = torch.autograd.grad((costs * soft).sum(), logits)
    torch.testing.assert_close(estimate.gradient, expected, **CLOSE)
    assert estimate.loss == pytest.approx(loss.item())
    assert estimate.signal == pytest.approx(costs.abs().mean().item())


def test_the_temperature_is_annealed_between_the_ends_asked_for(
    network, judged, random_probabilities
):
    supernet, batch, p = network(), judged("quadratic"), random_probabilities()

    def gradient(progress, **ends):
        estimator = StraightThroughGumbel(**ends)
        generator = stream(0, "noise")
        return estimator.estimate(supernet, p, batch, 0.0, generator, progress=progress).gradient

    middle = gradient(0.25, tau_start=4.0, tau_end=2.0)
    assert torch.equal(middle, gradient(0.7, tau_start=3.5, tau_end=3.5))
    assert not torch.allclose(middle, gradient(0.5, tau_start=4.0, tau_end=2.0))


def test_the_maximum_of_the_perturbed_logits_is_drawn_as_the_softmax_says(network, judged):
    supernet, batch = network(1, 4), judged("affine")
    p = torch.tensor([[0.4, 0.3, 0.0, 0.3]], dtype=torch.float64)
    n, counts = 1000, torch.zeros(4)
    for step in range(n):
        estimate = StraightThroughGumbel().estimate(
            supernet, p, batch, 0.0, stream(0, "gumbel", step)
        )
        counts[estimate.choices[0]] += 1
    present = p[0] > 0.0
    assert counts[~present].sum() == 0
    assert chisquare(counts[present], n * p[0, present]).pvalue > 1e-3


def test_the_cost_is_that_of_dsnas(network, judged, random_probabilities):
    """Gradient over gradient: (p~_s / tau) (delta_js - p~_j) against (delta_js - p_j)."""
    supernet, batch = network(2, 3), judged("cross_entropy")
    p = random_probabilities()
    gumbel = StraightThroughGumbel().estimate(supernet, p, batch, 0.0, stream(0, "noise"))
    one_hot = torch.nn.functional.one_hot(torch.tensor(gumbel.choices), 3).double()
    dsnas = DSNAS().estimate(supernet, one_hot, batch, 0.0, stream(0, "path"))
    assert dsnas.choices == gumbel.choices
    assert dsnas.signal == pytest.approx(gumbel.signal)


def test_candidates_that_were_not_drawn_are_never_touched(network, judged, random_probabilities):
    """The published code adds their zero-valued gates, which moves them as if they gave ones."""
    supernet, batch, p = network(), judged("cross_entropy"), random_probabilities()
    estimate = StraightThroughGumbel().estimate(supernet, p, batch, 0.0, stream(0, "noise"))
    before = estimate.gradient.clone()
    drawn = {(slot, k) for slot, k in enumerate(estimate.choices)}
    for slot, operations in enumerate(supernet.layers[:2]):
        for k, operation in enumerate(operations):
            if (slot, k) not in drawn:
                assert operation.weight.grad is None
                operation.weight.data.fill_(float("nan"))
    again = StraightThroughGumbel().estimate(supernet, p, batch, 0.0, stream(0, "noise"))
    assert torch.equal(again.gradient, before)
