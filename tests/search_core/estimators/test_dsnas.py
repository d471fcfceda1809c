"""DSNAS: what its linearisation is worth, its baseline, and where its signal dies."""

import pytest
import torch
from torch import nn

from search_core.estimators.dsnas import DSNAS
from search_core.randomness import stream

CLOSE = {"rtol": 1e-9, "atol": 1e-12}


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize(("loss", "degree"), [("quadratic", 2), ("cubic", 3)])
def test_on_a_homogeneous_loss_the_mean_is_its_degree_times_the_exact_gradient(
    loss, degree, joined, network, judged, random_probabilities, expectation, exact_of_loss
):
    """On a chain; at a sum node one summand alone is not homogeneous."""
    supernet, batch = network(n_slots=3, joined=joined), judged(loss)
    p = random_probabilities(3)
    mean, exact = expectation(DSNAS, supernet, p, batch), exact_of_loss(supernet, p, batch)
    torch.testing.assert_close(mean[2], degree * exact[2], **CLOSE)  # behind the sum
    assert torch.allclose(mean[:2], degree * exact[:2], **CLOSE) is not joined


def test_for_any_loss_of_one_layer_the_mean_is_the_centred_first_order_cost(
    network, judged, random_probabilities, expectation
):
    """E_j = p_j (g_j - sum_k p_k g_k) with g_k = <dL/dy at o_k, o_k>."""
    supernet, batch = network(1, 4), judged("cross_entropy")
    p, g = random_probabilities(1, 4), []
    for operation in supernet.layers[0]:
        output = operation(batch.images).detach().requires_grad_()
        (slope,) = torch.autograd.grad(batch.loss(supernet.layers[1][0](output)), output)
        g.append((slope * output.detach()).sum())
    g = torch.stack(g)
    mean = expectation(DSNAS, supernet, p, batch)
    torch.testing.assert_close(mean[0], p[0] * (g - (p[0] * g).sum()), **CLOSE)


def test_a_constant_added_to_the_loss_changes_no_bit(network, judged, random_probabilities):
    supernet, p = network(), random_probabilities()
    plain, shifted = (
        DSNAS().estimate(supernet, p, judged("quadratic", constant), 0.0, stream(0, "path"))
        for constant in (0.0, 1000.0)
    )
    assert torch.equal(plain.gradient, shifted.gradient)
    assert shifted.loss == pytest.approx(plain.loss + 1000.0)


def test_an_estimate_is_the_cost_of_each_choice_times_its_score(
    network, judged, random_probabilities
):
    """c_l = <dL/dy_l, y_l>, and the signal is its mean absolute value."""
    supernet, batch, p = network(), judged("cross_entropy"), random_probabilities()
    estimate = DSNAS().estimate(supernet, p, batch, 0.0, stream(0, "path"))
    outputs = []
    features = batch.images
    for operations, choice in zip(supernet.layers, (*estimate.choices, 0), strict=True):
        features = operations[choice](features)
        outputs.append(features)
    slopes = torch.autograd.grad(batch.loss(features), outputs[:2])
    costs = [(s * y.detach()).sum().item() for s, y in zip(slopes, outputs, strict=False)]
    for slot, choice in enumerate(estimate.choices):
        score = -p[slot]
        score[choice] += 1.0
        torch.testing.assert_close(estimate.gradient[slot], costs[slot] * score, **CLOSE)
    assert estimate.signal == pytest.approx(sum(map(abs, costs)) / 2, rel=1e-9)


def test_a_path_without_any_operation_costs_nothing(network, judged):
    supernet = network(zero=True)
    none = torch.tensor([[0.0, 1e-30, 1.0]] * 2, dtype=torch.float64)
    estimate = DSNAS().estimate(supernet, none, judged("cross_entropy"), 0.0, stream(0, "path"))
    assert estimate.choices == (2, 2)
    assert (estimate.gradient == 0.0).all()
    assert estimate.signal == 0.0


@pytest.mark.parametrize(("eps", "alive"), [(1e-12, False), (1e-2, True)])
def test_batch_norm_right_after_the_gate_kills_the_signal_unless_its_epsilon_is_large(
    eps, alive, network, judged, random_probabilities
):
    supernet = network(1, 2, after=lambda: nn.BatchNorm2d(3, eps=eps))
    estimate = DSNAS().estimate(
        supernet, random_probabilities(1, 2), judged("cross_entropy"), 0.0, stream(0, "path")
    )
    assert estimate.signal > 1e-4 if alive else estimate.signal < 1e-11


def test_no_baseline_changes_the_mean(network, judged, random_probabilities, expectation, prepared):
    supernet, p, batch = network(), random_probabilities(), judged("cross_entropy")
    plain = expectation(lambda: DSNAS(baseline=False), supernet, p, batch)
    for baseline in ([0.0, 0.0], [0.7, -1.3], [100.0, 100.0]):
        shifted = prepared(DSNAS, baseline=torch.tensor(baseline, dtype=torch.float64))
        mean = expectation(shifted, supernet, p, batch)
        torch.testing.assert_close(mean, plain, rtol=1e-9, atol=1e-11)


def test_the_baseline_follows_the_cost_of_the_path(network, judged):
    supernet, batch = network(2, 1), judged("cubic")  # one path, so the cost is always the same
    p = torch.ones(2, 1, dtype=torch.float64)
    estimator, plain = DSNAS(), DSNAS(baseline=False)
    for _ in range(200):
        signal = estimator.estimate(supernet, p, batch, 0.0, stream(0, "path")).signal
        plain.estimate(supernet, p, batch, 0.0, stream(0, "path"))
    baseline = estimator.state_dict()["baseline"]
    assert baseline.shape == (2,)
    assert baseline.abs().mean().item() == pytest.approx(signal, rel=1e-3)
    assert plain.state_dict()["baseline"] == 0.0
