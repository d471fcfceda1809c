"""ProxylessNAS: all gates by recomputation, and two of them at a time."""

from itertools import permutations

import pytest
import torch
from scipy.stats import chisquare
from torch import nn

from search_core.data.dataset import Batch
from search_core.estimators.dsnas import DSNAS
from search_core.estimators.proxyless import Proxyless, ProxylessTwoPath
from search_core.nn.ops import Zero
from search_core.nn.supernet import Supernet
from search_core.randomness import stream
from search_core.space.nasbench201 import nasbench201

CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def gate_gradients(supernet, batch, choices):
    """dL/dg_k = <dL/dy, o_k(x)> (n_slots, n_candidates) at the path `choices`, written out.

    The layer's output is ``sum_k g_k o_k(x)`` with outputs off the path detached. Returns the
    gradient in the images too.
    """
    space = supernet.space
    gates = torch.zeros(len(space.slots), space.n_candidates, dtype=torch.float64)
    gates[range(len(choices)), choices] = 1.0
    gates.requires_grad_()
    images = batch.images.clone().requires_grad_()
    features = images
    for layer, operations in zip(space.layers, supernet.layers, strict=True):
        if layer.slot is None:
            features = operations[0](features)
            continue
        outputs = [operation(features) for operation in operations]
        features = sum(
            gates[layer.slot, k] * (output if k == choices[layer.slot] else output.detach())
            for k, output in enumerate(outputs)
        )
    return torch.autograd.grad(
        batch.loss(features), (gates, images), allow_unused=True, materialize_grads=True
    )


def through_softmax(p, g):
    """J g with J = diag(p) - p p^T."""
    return torch.stack([(row.diag() - row.outer(row)) @ gates for row, gates in zip(p, g)])  # noqa: B905


@pytest.fixture
def normed(network):
    """A chain whose operations end in BatchNorm, in training mode."""
    supernet = network(3, 3, zero=True, after=nn.Tanh)
    for operations in supernet.layers:
        for k, operation in enumerate(operations):
            if isinstance(operation, nn.Conv2d):
                operations[k] = nn.Sequential(operation, nn.BatchNorm2d(3).double())
    return supernet


def test_recomputed_gates_are_those_of_the_full_sum(normed, judged, random_probabilities):
    batch, p = judged("cross_entropy"), random_probabilities(3)
    for step in range(4):
        estimate = Proxyless().estimate(normed, p, batch, 0.0, stream(0, "path", step))
        gates, _ = gate_gradients(normed, batch, estimate.choices)
        torch.testing.assert_close(estimate.gradient, through_softmax(p, gates), **CLOSE)


def test_the_gradient_in_the_images_is_that_of_the_full_sum(normed, judged):
    batch, choices = judged("cross_entropy"), (1, 0, 1)
    images = batch.images.clone().requires_grad_()
    gates = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    loss = batch.loss(normed(images, choices, gates, [range(3)] * 3))
    gradients = torch.autograd.grad(loss, (gates, images))
    for gradient, expected in zip(gradients, gate_gradients(normed, batch, choices), strict=True):
        torch.testing.assert_close(gradient, expected, **CLOSE)


def test_on_the_squared_norm_of_one_layer_the_mean_compares_with_the_mean_output(
    network, judged, random_probabilities, expectation
):
    """E_i = p_i (<m, o_i> - <m, m>) with m = sum_k p_k o_k, for L = |y|^2 / 2."""
    supernet, batch, p = network(1, 4), judged("quadratic"), random_probabilities(1, 4)
    with torch.no_grad():
        outputs = torch.stack([supernet(batch.images, (k,)).flatten() for k in range(4)])
    mean_output = p[0] @ outputs
    expected = p[0] * (outputs @ mean_output - mean_output @ mean_output)
    mean = expectation(Proxyless, supernet, p, batch)
    torch.testing.assert_close(mean[0], expected, **CLOSE)


def test_for_any_loss_the_mean_is_that_of_the_gates_of_every_path(
    network, judged, random_probabilities, expectation, paths
):
    supernet, batch, p = network(), judged("cross_entropy"), random_probabilities()
    expected = sum(
        probability * through_softmax(p, gate_gradients(supernet, batch, path)[0])
        for path, probability in paths(p)
    )
    torch.testing.assert_close(expectation(Proxyless, supernet, p, batch), expected, **CLOSE)


def test_dsnas_is_the_diagonal_of_the_gates(network, judged, random_probabilities, outcomes):
    """Both take the same slope; DSNAS sees that of the chosen gate alone."""
    supernet, batch, p = network(), judged("cross_entropy"), random_probabilities()
    for (_, dsnas), (_, proxyless) in zip(
        outcomes(DSNAS, supernet, p, batch), outcomes(Proxyless, supernet, p, batch), strict=True
    ):
        assert dsnas.choices == proxyless.choices
        g, _ = gate_gradients(supernet, batch, dsnas.choices)
        for slot, choice in enumerate(dsnas.choices):
            score = -p[slot]
            score[choice] += 1.0
            torch.testing.assert_close(dsnas.gradient[slot], g[slot, choice] * score, **CLOSE)


@pytest.fixture(params=["tiny", "cell"])
def zero_case(request, tiny):
    """A real supernet, probabilities with one undecided slot, that slot, and its `Zero`."""
    cell = nasbench201(channels=4, cells_per_stage=1, resolution_px=16)
    space, slot, zero, decided = (tiny, 1, 1, 0) if request.param == "tiny" else (cell, 3, 0, 3)
    supernet = Supernet(space, stream(0, "weights"))
    first = next(i for i, layer in enumerate(space.layers) if layer.slot == slot)
    assert isinstance(supernet.layers[first][zero], Zero)
    p = torch.zeros(len(space.slots), space.n_candidates, dtype=torch.float64)
    p[:, decided] = 1.0
    p[slot, decided] = 0.0
    n = len(space.slots[slot].candidates)
    p[slot, :n] = 1.0 / n
    return supernet, p, slot, zero


@pytest.mark.parametrize("estimator", [Proxyless, ProxylessTwoPath])
def test_a_chosen_zero_does_not_stop_its_slot_from_learning(zero_case, estimator):
    """In the published code a block that is skipped updates none of its logits."""
    supernet, p, slot, zero = zero_case
    space = supernet.space
    shape = (4, space.in_channels, space.resolution_px, space.resolution_px)
    batch = Batch(torch.randn(shape, generator=stream(0, "images")), torch.tensor([0, 1, 2, 3]))
    seen = set()
    for step in range(24):
        estimate = estimator().estimate(supernet, p, batch, 0.0, stream(0, "path", step))
        chosen = estimate.choices[slot] == zero
        if chosen or estimator is Proxyless:
            present = p[slot] > 0.0 if estimator is Proxyless else estimate.moves[slot]
            assert (estimate.gradient[slot, present] != 0.0).all()
            assert (estimate.gradient[slot, ~present] == 0.0).all()
        seen.add(chosen)
    assert seen == {True, False}


def test_an_unchosen_zero_is_compared_as_a_gate_without_effect(network, judged):
    """dL/dg_zero = 0, so its logit moves by -p_zero times the mean of the others."""
    supernet, batch = network(1, 3, zero=True), judged("cross_entropy")
    p = torch.tensor([[0.5, 0.2, 0.3]], dtype=torch.float64)
    for step in range(6):
        estimate = Proxyless().estimate(supernet, p, batch, 0.0, stream(0, "path", step))
        g = gate_gradients(supernet, batch, estimate.choices)[0][0]
        assert g[2] == 0.0
        expected = -p[0, 2] * (p[0] * g).sum()
        torch.testing.assert_close(estimate.gradient[0, 2], expected, **CLOSE)


# two paths


def pair_of(estimate, slot=0):
    a, b = estimate.moves[slot].nonzero()[:, 0].tolist()
    return a, b


def test_the_two_logits_of_a_pair_move_against_each_other(network, judged, random_probabilities):
    """dL/dalpha_a = q_a q_b (dL/dg_a - dL/dg_b) = -dL/dalpha_b, with q over the pair."""
    supernet, batch, p = network(3, 4), judged("cross_entropy"), random_probabilities(3, 4)
    for step in range(10):
        estimate = ProxylessTwoPath().estimate(supernet, p, batch, 0.0, stream(0, "path", step))
        g, _ = gate_gradients(supernet, batch, estimate.choices)
        for slot in range(3):
            a, b = pair_of(estimate, slot)
            q_a, q_b = p[slot, [a, b]] / p[slot, [a, b]].sum()
            expected = torch.zeros(4, dtype=torch.float64)
            expected[a] = q_a * q_b * (g[slot, a] - g[slot, b])
            expected[b] = -expected[a]
            assert estimate.choices[slot] in {a, b}
            torch.testing.assert_close(estimate.gradient[slot], expected, **CLOSE)


def inclusion(p):
    """Probability of each pair i < j: p_i p_j / (1 - p_i) + p_i p_j / (1 - p_j)."""
    pairs = {}
    for i, j in permutations(range(len(p)), 2):
        pair = (min(i, j), max(i, j))
        pairs[pair] = pairs.get(pair, 0.0) + float(p[i] * p[j] / (1.0 - p[i]))
    return pairs


def test_pairs_and_the_active_one_of_each_are_drawn_with_their_probabilities(
    network, judged, random_probabilities
):
    supernet, batch, p = network(1, 4), judged("affine"), random_probabilities(1, 4)
    n, pairs, active = 800, dict.fromkeys(inclusion(p[0]), 0), torch.zeros(4)
    for step in range(n):
        estimate = ProxylessTwoPath().estimate(supernet, p, batch, 0.0, stream(0, "pair", step))
        pairs[pair_of(estimate)] += 1
        active[estimate.choices[0]] += 1
    expected, shares = inclusion(p[0]), [0.0] * 4
    for (i, j), probability in expected.items():
        for k in (i, j):
            shares[k] += probability * float(p[0, k] / (p[0, i] + p[0, j]))
    assert sum(expected.values()) == pytest.approx(1.0)
    assert chisquare([pairs[q] for q in expected], [n * e for e in expected.values()]).pvalue > 1e-3
    assert chisquare(active, [n * share for share in shares]).pvalue > 1e-3


def test_the_mean_of_a_pair_is_weighted_by_its_inclusion(
    network, judged, random_probabilities, expectation
):
    """E_i = sum_j P({i, j}) q_i q_j (g_i - g_j), here with gates that no choice changes."""
    supernet, batch, p = network(1, 4), judged("affine"), random_probabilities(1, 4)
    g, expected = gate_gradients(supernet, batch, (0,))[0][0], torch.zeros_like(p)
    for (i, j), probability in inclusion(p[0]).items():
        both = float(p[0, i] * p[0, j] / (p[0, i] + p[0, j]) ** 2)
        expected[0, i] += probability * both * (g[i] - g[j])
        expected[0, j] += probability * both * (g[j] - g[i])
    mean = expectation(ProxylessTwoPath, supernet, p, batch)
    torch.testing.assert_close(mean, expected, **CLOSE)


def test_on_an_affine_loss_the_mean_points_the_right_way_on_every_layer(
    network, judged, random_probabilities, expectation, exact_of_loss
):
    supernet, batch, p = network(), judged("affine"), random_probabilities()
    mean, exact = (
        expectation(ProxylessTwoPath, supernet, p, batch),
        exact_of_loss(supernet, p, batch),
    )
    assert (torch.cosine_similarity(mean, exact, dim=1) > 0.6).all()
    assert torch.equal((exact / p).argmin(dim=1), (mean / p).argmin(dim=1))


def test_with_two_candidates_it_is_exact_on_an_affine_loss(
    network, judged, random_probabilities, expectation, exact_of_loss
):
    supernet, batch, p = network(2, 2), judged("affine"), random_probabilities(2, 2)
    mean = expectation(ProxylessTwoPath, supernet, p, batch)
    torch.testing.assert_close(mean, exact_of_loss(supernet, p, batch), **CLOSE)


def test_a_step_leaves_the_probabilities_of_all_others_where_they_were(
    network, judged, random_probabilities
):
    """Adam without a first moment, then the shift: untouched logits do not move at all."""
    supernet, batch, estimator = network(2, 5), judged("cross_entropy"), ProxylessTwoPath()
    logits = random_probabilities(2, 5).log().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05, betas=estimator.alpha_betas)
    for step in range(30):
        p = logits.detach().softmax(dim=1)
        estimate = estimator.estimate(supernet, p, batch, 0.0, stream(0, "path", step))
        logits.grad = estimate.gradient
        before = logits.detach().clone()
        optimizer.step()
        after = logits.detach().clone()
        settled = estimator.settle(before, after)
        logits.data.copy_(settled)
        others = ~estimate.moves
        assert torch.equal(after[others], before[others])
        assert torch.equal(settled[others], before[others])
        q = settled.softmax(dim=1)
        torch.testing.assert_close(q[others], p[others], rtol=1e-13, atol=0.0)
        for slot in range(2):
            a, b = pair_of(estimate, slot)
            assert float(q[slot, a] + q[slot, b]) == pytest.approx(
                float(p[slot, a] + p[slot, b]), rel=1e-13
            )
            ratio = (after[slot, a] - after[slot, b]).exp().item()
            assert float(q[slot, a] / q[slot, b]) == pytest.approx(ratio, rel=1e-12)
    assert (logits != random_probabilities(2, 5).log()).sum() > 5


def test_the_first_step_moves_each_logit_of_a_pair_by_the_rate(network, judged):
    logits = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    estimator, p = ProxylessTwoPath(), logits.detach().softmax(dim=1)
    optimizer = torch.optim.Adam([logits], lr=1e-3, betas=estimator.alpha_betas)
    batch = judged("cross_entropy")
    estimate = estimator.estimate(network(1, 4), p, batch, 0.0, stream(0, "path"))
    logits.grad = estimate.gradient
    optimizer.step()
    moved = logits.detach()[estimate.moves].abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-3), rtol=1e-5, atol=0.0)


def test_a_decided_slot_is_not_settled(network, judged):
    estimator = ProxylessTwoPath()
    p = torch.tensor([[0.0, 1.0, 0.0], [0.2, 0.3, 0.5]], dtype=torch.float64)
    estimate = estimator.estimate(network(), p, judged("affine"), 0.0, stream(0, "path"))
    assert estimate.choices[0] == 1
    assert not estimate.moves[0].any()
    after = torch.arange(6, dtype=torch.float64).view(2, 3)
    assert torch.equal(estimator.settle(torch.zeros_like(after), after)[0], after[0])
