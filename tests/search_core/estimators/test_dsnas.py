"""DSNAS held against the exact gradient, by enumerating every path of tiny networks."""

from itertools import product
from math import prod

import pytest
import torch
from torch.nn.functional import batch_norm, cross_entropy

from search_core.data.dataset import Batch
from search_core.estimators import dsnas
from search_core.estimators.dsnas import DSNAS
from search_core.nn.supernet import Supernet
from search_core.randomness import stream

WIDTH = 4
BATCH = Batch(
    torch.randn(5, WIDTH, dtype=torch.float64, generator=stream(0, "inputs")),
    torch.tensor([0, 1, 2, 3, 1]),
)
PROJECTION = torch.randn(5, WIDTH, dtype=torch.float64, generator=stream(0, "projection"))
CLOSE = {"rtol": 1e-5, "atol": 1e-7}  # the gates are float32


def linear_supernet(n_slots, n_candidates):
    """Linear operations in float64, called as a supernet is: (images, choices, gates)."""
    shape = (n_slots, n_candidates, WIDTH, WIDTH)
    weights = torch.randn(shape, dtype=torch.float64, generator=stream(1, "weights")) / 2

    def supernet(images, choices, gates):
        features = images
        for slot, choice in enumerate(choices):
            features = features @ weights[slot, choice] * gates[slot]
        return features

    return supernet


def random_logits(n_slots, n_candidates):
    shape = (n_slots, n_candidates)
    return torch.randn(shape, dtype=torch.float64, generator=stream(2, "logits"))


def mean_estimate(monkeypatch, supernet, logits, prepare=lambda _: None):
    """The expectation of the estimate, by enumeration of the paths."""
    p = logits.softmax(dim=1)
    mean = torch.zeros_like(p)
    for path in product(*(range(p.shape[1]) for _ in p)):
        monkeypatch.setattr(dsnas, "sample_path", lambda *_, path=path: path)
        estimator = DSNAS()
        prepare(estimator)
        estimate = estimator.estimate(supernet, p, BATCH, 0.0, torch.Generator())
        mean += prod(p[slot, k] for slot, k in enumerate(path)) * estimate.gradient
    return mean


def exact_gradient(supernet, logits, loss):
    """The gradient of the expected loss in the logits, by enumeration of the paths."""
    logits = logits.clone().requires_grad_()
    p = logits.softmax(dim=1)
    gates = torch.ones(len(p), dtype=torch.float64)
    expected = sum(
        prod(p[slot, k] for slot, k in enumerate(path)) * loss(supernet(BATCH.images, path, gates))
        for path in product(*(range(p.shape[1]) for _ in p))
    )
    return torch.autograd.grad(expected, logits)[0]


def use_loss(monkeypatch, loss):
    monkeypatch.setattr(dsnas, "cross_entropy", lambda scores, *_, **__: loss(scores))


def affine(scores):
    return (PROJECTION * scores).sum() + 3.0


def quadratic(scores):
    return 0.5 * scores.square().sum()


def cubic(scores):
    return (PROJECTION * scores**3).sum()


@pytest.mark.parametrize(("loss", "degree"), [(affine, 1), (quadratic, 2), (cubic, 3)])
def test_the_mean_is_the_degree_of_a_homogeneous_loss_times_the_exact_gradient(
    monkeypatch, loss, degree
):
    """Degree 1, an affine loss, is the case where the estimate is unbiased."""
    supernet, logits = linear_supernet(3, 3), random_logits(3, 3)
    use_loss(monkeypatch, loss)
    mean = mean_estimate(monkeypatch, supernet, logits)
    torch.testing.assert_close(mean, degree * exact_gradient(supernet, logits, loss), **CLOSE)


def test_for_any_loss_of_one_layer_the_mean_is_the_centred_first_order_cost(monkeypatch):
    """E_j = p_j (g_j - sum_k p_k g_k) with g_k = <dL/dy at o_k, o_k>."""
    supernet, logits = linear_supernet(1, 4), random_logits(1, 4)
    p, g = logits.softmax(dim=1)[0], []
    for k in range(4):
        output = supernet(BATCH.images, (k,), torch.ones(1)).requires_grad_()
        (slope,) = torch.autograd.grad(cross_entropy(output, BATCH.labels), output)
        g.append((slope * output.detach()).sum())
    g = torch.stack(g)
    mean = mean_estimate(monkeypatch, supernet, logits)
    torch.testing.assert_close(mean[0], p * (g - (p * g).sum()), **CLOSE)


def test_on_cross_entropy_the_mean_is_not_the_exact_gradient(monkeypatch):
    supernet, logits = linear_supernet(2, 3), random_logits(2, 3)
    mean = mean_estimate(monkeypatch, supernet, logits)
    exact = exact_gradient(supernet, logits, lambda scores: cross_entropy(scores, BATCH.labels))
    assert not torch.allclose(mean, exact, rtol=0.05, atol=0.0)


def test_a_constant_added_to_the_loss_changes_nothing(monkeypatch):
    supernet, logits = linear_supernet(2, 3), random_logits(2, 3)
    use_loss(monkeypatch, quadratic)
    mean = mean_estimate(monkeypatch, supernet, logits)
    use_loss(monkeypatch, lambda scores: quadratic(scores) + 1000.0)
    assert torch.equal(mean_estimate(monkeypatch, supernet, logits), mean)


def test_rows_of_an_estimate_sum_to_zero(data, micro):
    supernet = Supernet(micro, stream(0, "weights"))
    p = random_logits(6, 6).softmax(dim=1)
    batch = data.training_batch(0, 0, 32)
    gradient = DSNAS().estimate(supernet, p, batch, 0.1, stream(0, "path", 0)).gradient
    assert gradient.dtype == torch.float64
    assert (gradient.abs().sum(dim=1) > 0.0).all()
    torch.testing.assert_close(
        gradient.sum(dim=1), torch.zeros(6, dtype=torch.float64), rtol=0.0, atol=1e-12
    )


def test_decided_slots_and_absent_candidates_get_no_gradient(data, tiny):
    supernet = Supernet(tiny, stream(0, "weights"))
    p = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.25] * 4], dtype=torch.float64)
    for step in range(4):
        batch = data.training_batch(0, step, 32)
        gradient = DSNAS().estimate(supernet, p, batch, 0.1, stream(0, "path", step)).gradient
        assert (gradient[0] == 0.0).all()
        assert (gradient[1, 2:] == 0.0).all()
        assert (gradient[2] != 0.0).all()


def test_an_estimate_leaves_gradients_on_the_sampled_path_alone(data, tiny):
    supernet = Supernet(tiny, stream(0, "weights"))
    p = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0], [1.0] * 4], dtype=torch.float64)
    p /= p.sum(dim=1, keepdim=True)
    batch = data.training_batch(0, 0, 32)
    estimate = DSNAS().estimate(supernet, p, batch, 0.1, stream(0, "path", 1))
    for index, layer in enumerate(tiny.layers):
        chosen = 0 if layer.slot is None else estimate.choices[layer.slot]
        for k, operation in enumerate(supernet.layers[index]):
            for parameter in operation.parameters():
                assert (parameter.grad is not None) is (k == chosen)


def test_the_loss_is_the_smoothed_cross_entropy_of_the_path(data, tiny, identical):
    supernet, twin = (Supernet(tiny, stream(0, "weights")) for _ in range(2))
    p = torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0], [0, 0, 1.0, 0]], dtype=torch.float64)
    batch = data.training_batch(0, 0, 32)
    estimate = DSNAS().estimate(supernet, p, batch, 0.1, stream(0, "path", 0))
    loss = cross_entropy(twin(batch.images, (0, 0, 2)), batch.labels, label_smoothing=0.1)
    loss.backward()
    assert estimate.choices == (0, 0, 2)
    assert estimate.loss == loss.item()
    pairs = zip(supernet.parameters(), twin.parameters(), strict=True)
    assert all(identical(a.grad, b.grad) for a, b in pairs)


def test_a_path_without_any_operation_costs_nothing():
    constant = torch.zeros(5, WIDTH, requires_grad=True)
    p = torch.full((1, 2), 0.5, dtype=torch.float64)
    estimate = DSNAS().estimate(lambda *_: constant, p, BATCH, 0.0, stream(0, "path"))
    assert (estimate.gradient == 0.0).all()
    assert estimate.signal == 0.0


@pytest.mark.parametrize(("eps", "has_signal"), [(1e-12, False), (1e-2, True)])
def test_batch_norm_right_after_the_gate_kills_the_signal_unless_its_epsilon_is_large(
    eps, has_signal
):
    gated = linear_supernet(1, 2)

    def supernet(images, choices, gates):
        return batch_norm(gated(images, choices, gates) / 4, None, None, training=True, eps=eps)

    p = torch.full((1, 2), 0.5, dtype=torch.float64)
    estimate = DSNAS().estimate(supernet, p, BATCH, 0.0, stream(0, "path"))
    assert (estimate.signal > 1e-3) is has_signal
    assert has_signal or estimate.signal < 1e-7


def test_the_baseline_leaves_the_mean_as_it_is(monkeypatch):
    supernet, logits = linear_supernet(2, 3), random_logits(2, 3)
    baseline = torch.tensor([0.7, -1.3], dtype=torch.float64)
    plain = mean_estimate(monkeypatch, supernet, logits)
    shifted = mean_estimate(
        monkeypatch, supernet, logits, lambda e: e.load_state_dict({"baseline": baseline})
    )
    torch.testing.assert_close(shifted, plain, rtol=1e-9, atol=1e-12)


def test_the_baseline_follows_the_cost_of_the_path():
    supernet = linear_supernet(2, 1)  # one path, so the cost is always the same
    p = torch.ones(2, 1, dtype=torch.float64)
    estimator = DSNAS()
    signal = estimator.estimate(supernet, p, BATCH, 0.0, stream(0, "path")).signal
    for _ in range(200):
        estimator.estimate(supernet, p, BATCH, 0.0, stream(0, "path"))
    baseline = estimator.state_dict()["baseline"]
    assert baseline.abs().mean().item() == pytest.approx(signal, rel=1e-3)


def test_an_estimator_goes_on_from_its_state(data, tiny):
    p = torch.full((3, 4), 0.25, dtype=torch.float64)
    p[0], p[1] = torch.tensor([0.4, 0.3, 0.3, 0.0]), torch.tensor([0.5, 0.5, 0.0, 0.0])
    supernet, first, second = Supernet(tiny, stream(0, "weights")), DSNAS(), DSNAS()
    batch, path = data.training_batch(0, 0, 32), (0, "path", 1)
    first.estimate(supernet, p, batch, 0.1, stream(*path))
    second.load_state_dict(first.state_dict())
    gradients = [
        e.estimate(supernet, p, batch, 0.1, stream(*path)).gradient for e in (first, second)
    ]
    assert torch.equal(*gradients)
    assert not torch.equal(
        DSNAS().estimate(supernet, p, batch, 0.1, stream(*path)).gradient, gradients[0]
    )
