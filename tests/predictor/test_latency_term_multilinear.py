"""The identities that a search relies on, with pairs and similarities in the model."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from predictor.latency_term import LatencyTerm
from predictor.network import NetworkLatencyModel, Pair, Similarity
from search_core.space.space import Architecture

WIDTHS = (3, 2, 4, 3)


def rows(generator, n, width, scale=1.0):
    return tuple(map(tuple, (scale * torch.rand(n, width, generator=generator).double()).tolist()))


@pytest.fixture(scope="module")
def model():
    """Four slots of different widths, every kind of term, large enough to matter."""
    g = torch.Generator().manual_seed(3)
    return NetworkLatencyModel(
        "d",
        0.7,
        tuple(rows(g, 1, w, 2.0)[0] for w in WIDTHS),
        0.01,
        pairs=tuple(Pair(i, j, rows(g, WIDTHS[i], WIDTHS[j])) for i, j in ((0, 1), (1, 2), (0, 3))),
        similarity=Similarity(0.6, ((0, 0, 0, 0), (2, 1, 3, 2), (1, 1, 2, 0)), (0.9, -0.5, 0.3)),
    )


def architectures():
    return [Architecture("d", c) for c in itertools.product(*map(range, WIDTHS))]


def probabilities(sharpness, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(4, 4, generator=g, dtype=torch.float64)
    for slot, width in enumerate(WIDTHS):
        logits[slot, width:] = -torch.inf
    return logits.softmax(dim=1)


def one_hot(architecture):
    return torch.eye(4, dtype=torch.float64)[list(architecture.choices)]


def test_at_one_hot_the_expectation_is_the_exact_cost(model):
    term = LatencyTerm(model)
    for architecture in architectures():
        expected = term.expected(one_hot(architecture)).item()
        assert expected == pytest.approx(term.exact(architecture), rel=1e-13)
        assert term.exact(architecture) == pytest.approx(model.predict_ms(architecture), rel=1e-13)


@pytest.mark.parametrize("sharpness", [0.0, 0.3, 1.0, 4.0, 20.0])
def test_the_expectation_is_the_mean_over_all_architectures(model, sharpness):
    term, p = LatencyTerm(model), probabilities(sharpness)
    mean = 0.0
    for architecture in architectures():
        chance = 1.0
        for slot, choice in enumerate(architecture.choices):
            chance *= p[slot, choice].item()
        mean += chance * term.exact(architecture)
    assert term.expected(p).item() == pytest.approx(mean, rel=1e-12)


def test_the_gradient_is_what_exchanging_an_operation_adds_on_average(model):
    term, p = LatencyTerm(model), probabilities(1.0).requires_grad_()
    (gradient,) = torch.autograd.grad(term.expected(p), p)
    for slot, width in enumerate(WIDTHS):
        for choice in range(width):
            with_it, without = p.detach().clone(), p.detach().clone()
            with_it[slot], without[slot] = 0.0, 0.0
            with_it[slot, choice], without[slot, 0] = 1.0, 1.0
            exchanged = (term.expected(with_it) - term.expected(without)).item()
            assert (gradient[slot, choice] - gradient[slot, 0]).item() == pytest.approx(
                exchanged, abs=1e-12
            )


def test_at_one_hot_the_gradient_is_the_exact_exchange(model):
    term, base = LatencyTerm(model), Architecture("d", (1, 0, 3, 2))
    p = one_hot(base).requires_grad_()
    (gradient,) = torch.autograd.grad(term.expected(p), p)
    for slot, width in enumerate(WIDTHS):
        for choice in range(width):
            choices = [*base.choices[:slot], choice, *base.choices[slot + 1 :]]
            difference = term.exact(Architecture("d", tuple(choices))) - term.exact(base)
            told = gradient[slot, choice] - gradient[slot, base.choices[slot]]
            assert told.item() == pytest.approx(difference, abs=1e-9)


def test_the_nearest_sum_is_off_by_no_more_than_its_slack_where_it_was_looked_at(model):
    term = LatencyTerm(model)
    over = [term.separable.exact(a) - term.exact(a) for a in architectures()]
    assert term.slack == pytest.approx(max(over), rel=1e-9)  # 72 architectures, 512 draws
    assert sum(over) == pytest.approx(0.0, abs=1e-9)  # right on average


def test_without_interactions_the_nearest_sum_is_the_cost_itself():
    plain = LatencyTerm(NetworkLatencyModel("d", 0.5, ((1.0, 2.0), (3.0, 4.0)), 0.01))
    assert plain.slack == 0.0
    for choices in itertools.product((0, 1), repeat=2):
        a = Architecture("d", choices)
        assert plain.separable.exact(a) == plain.exact(a)


def test_a_stored_model_gives_the_search_the_latency_it_predicts(micro):
    path = Path(__file__).parent / "documents" / "latency_model_2.json"
    stored = json.loads(path.read_text())
    term = LatencyTerm(NetworkLatencyModel.from_document(stored["document"]))
    for text, predicted_ms in stored["predictions"].items():
        architecture = micro.parse(text)
        p = torch.eye(6, dtype=torch.float64)[list(architecture.choices)]
        assert term.expected(p).item() == pytest.approx(predicted_ms, rel=1e-12)
