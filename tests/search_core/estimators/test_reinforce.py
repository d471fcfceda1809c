"""REINFORCE: exact for any objective, blind to constants."""

import pytest
import torch

from search_core.estimators.reinforce import Reinforce
from search_core.nn.supernet import Supernet
from search_core.randomness import stream

CLOSE = {"rtol": 1e-9, "atol": 1e-12}


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_any_objective_of_the_path_is_estimated_without_bias(
    samples, network, judged, random_probabilities, expectation, exact_gradient
):
    """Not differentiable, in the loss or otherwise; one sample has no baseline."""
    table = torch.randn(2, 2, 2, generator=stream(0, "table")).tolist()

    def objective(path, loss, accuracy):
        return table[path[0]][path[1]][path[0] ^ path[1]] + round(loss) + accuracy

    supernet, batch, p = network(2, 2), judged("quadratic"), random_probabilities(2, 2)

    def value(path):
        with torch.no_grad():
            scores = supernet(batch.images, path)
        right = (scores.argmax(dim=1) == batch.labels).double().mean().item()
        return objective(path, batch.loss(scores).item(), right)

    mean = expectation(lambda: Reinforce(samples=samples), supernet, p, batch, objective=objective)
    torch.testing.assert_close(mean, exact_gradient(p, value), rtol=1e-6, atol=1e-8)


def test_each_path_is_compared_with_the_mean_of_the_others(
    network, judged, random_probabilities, outcomes
):
    supernet, batch, p = network(2, 2), judged("cross_entropy"), random_probabilities(2, 2)
    for number, (_, estimate) in enumerate(
        outcomes(lambda: Reinforce(samples=3), supernet, p, batch)
    ):
        drawn = [tuple(number >> bit & 1 for bit in bits) for bits in ((5, 4), (3, 2), (1, 0))]
        losses = [batch.loss(supernet(batch.images, path)).item() for path in drawn]
        expected = torch.zeros_like(p)
        for path, loss in zip(drawn, losses, strict=True):
            score = torch.nn.functional.one_hot(torch.tensor(path), 2) - p
            expected += (loss - (sum(losses) - loss) / 2.0) * score / 3.0
        torch.testing.assert_close(estimate.gradient, expected, **CLOSE)
        assert estimate.choices == drawn[0]
        assert estimate.loss == losses[0]


def test_paths_that_are_all_alike_say_nothing(network, judged):
    p = torch.tensor([[1.0, 1e-300]] * 2, dtype=torch.float64)
    estimate = Reinforce().estimate(network(2, 2), p, judged("cubic"), 0.0, stream(0, "path"))
    assert estimate.signal == pytest.approx(0.0, abs=1e-12)
    assert estimate.gradient.abs().max() < 1e-12


def test_a_constant_in_the_objective_changes_nothing(network, judged, random_probabilities):
    supernet, batch, p = network(), judged("cross_entropy"), random_probabilities()
    plain, shifted = (
        Reinforce().estimate(
            supernet,
            p,
            batch,
            0.0,
            stream(0, "path"),
            objective=lambda _, loss, __, c=constant: loss + c,
        )
        for constant in (0.0, 1024.0)
    )
    torch.testing.assert_close(plain.gradient, shifted.gradient, rtol=0.0, atol=1e-12)
    assert plain.gradient.abs().amax() > 1e-3


def test_paths_are_judged_on_the_same_images_with_the_smoothing_asked_for(data, micro):
    supernet, batch = Supernet(micro, stream(0, "weights")), data.plain_batch(0, 0, 16)
    p = torch.full((6, 6), 1.0 / 6.0, dtype=torch.float64)
    seen = []
    Reinforce(samples=4).estimate(
        supernet,
        p,
        batch,
        0.1,
        stream(0, "path"),
        objective=lambda path, loss, accuracy: seen.append((path, loss, accuracy)) or loss,
    )
    assert len({path for path, _, _ in seen}) == 4
    for path, loss, accuracy in seen:
        with torch.no_grad():
            scores = supernet(batch.images, path)
        assert loss == pytest.approx(batch.loss(scores, 0.1).item(), rel=1e-5)
        assert accuracy == (scores.argmax(dim=1) == batch.labels).float().mean().item()
