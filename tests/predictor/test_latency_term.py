"""The latency a search is charged."""

import random
from dataclasses import replace

import pytest
import torch

from predictor.fit import fit_latency_model
from predictor.latency_term import LatencyTerm


@pytest.fixture(scope="module")
def model(micro, synthetic_kit):
    return fit_latency_model(micro, synthetic_kit(micro))[0]


def one_hot(choices):
    return torch.eye(6, dtype=torch.float64)[list(choices)]


def test_at_one_hot_the_expectation_is_the_prediction(micro, model):
    term, rng = LatencyTerm(model), random.Random(0)
    for architecture in (micro.sample(rng) for _ in range(50)):
        predicted = model.predict_ms(architecture)
        assert term.exact(architecture) == pytest.approx(predicted, rel=1e-14)
        expected = term.expected(one_hot(architecture.choices)).item()
        assert expected == pytest.approx(predicted, rel=1e-12)


def test_at_equal_probabilities_the_expectation_is_the_mean_of_the_space(micro, model):
    term = LatencyTerm(model)
    mean = model.offset_ms + sum(sum(row) / len(row) for row in model.table_ms)
    p = torch.full((6, 6), 1 / 6, dtype=torch.float64)
    assert term.expected(p).item() == pytest.approx(mean, rel=1e-12)


def test_the_gradient_in_the_logits_is_the_softmax_jacobian_times_the_table(model):
    logits = torch.linspace(-1.0, 1.0, 36, dtype=torch.float64).view(6, 6).requires_grad_()
    p = logits.softmax(dim=1)
    LatencyTerm(model).expected(p).backward()
    table = torch.tensor(model.table_ms, dtype=torch.float64)
    p = p.detach()
    expected = p * (table - (p * table).sum(dim=1, keepdim=True))
    assert (logits.grad != 0.0).all()
    torch.testing.assert_close(logits.grad, expected, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("budget_ms", [0.01, 1.0, 1e4])
def test_no_budget_has_room_for_what_the_target_cannot_run(model, budget_ms):
    term = LatencyTerm(replace(model, unsupported=((0, 2),)), budget_ms)
    plain = LatencyTerm(model)
    with_it = [2, 0, 0, 0, 0, 0]
    rest = [0, 0, 0, 0, 0, 0]
    assert term.expected(one_hot(with_it)).item() > budget_ms
    assert term.expected(one_hot(rest)).item() == plain.expected(one_hot(rest)).item()


def test_the_unit_is_milliseconds(model):
    assert LatencyTerm(model).unit == "ms"
