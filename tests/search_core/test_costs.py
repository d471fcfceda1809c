"""Costs: exact, in expectation, and their gradient."""

from itertools import product
from math import prod

import pytest
import torch

from search_core.costs import SeparableCost, macs_cost, parameter_cost
from search_core.nn.network import Network


@pytest.fixture(scope="module")
def cost(tiny):
    return SeparableCost.of_blocks(tiny, lambda block: 0.3 + 1e-4 * block.macs, "ms")


def one_hot(space, architecture):
    rows = torch.zeros(len(space.slots), space.n_candidates, dtype=torch.float64)
    rows[torch.arange(len(space.slots)), torch.tensor(architecture.choices)] = 1.0
    return rows


def everything(space):
    choices = product(*(range(len(slot.candidates)) for slot in space.slots))
    return [space.architecture(c) for c in choices]


def random_logits(space, seed=0):
    """(n_slots, n_candidates) float64, -inf where a slot has no such candidate."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(
        len(space.slots), space.n_candidates, dtype=torch.float64, generator=generator
    )
    for slot, decision in enumerate(space.slots):
        logits[slot, len(decision.candidates) :] = -torch.inf
    return logits


def test_the_expectation_at_one_hot_is_the_exact_cost(tiny, cost):
    for architecture in everything(tiny):
        expected = cost.expected(one_hot(tiny, architecture)).item()
        assert expected == pytest.approx(cost.exact(architecture), rel=1e-14)


def test_the_expectation_is_the_mean_over_all_architectures(tiny, cost):
    p = random_logits(tiny).softmax(dim=1)
    mean = sum(
        prod(p[slot, k].item() for slot, k in enumerate(a.choices)) * cost.exact(a)
        for a in everything(tiny)
    )
    assert cost.expected(p).dtype == torch.float64
    assert cost.expected(p).item() == pytest.approx(mean, rel=1e-13)


def test_the_gradient_in_the_logits_is_the_softmax_jacobian_times_the_table(tiny, cost):
    logits = random_logits(tiny).requires_grad_()
    cost.expected(logits.softmax(dim=1)).backward()
    for slot, row in enumerate(cost.table):
        p = logits[slot, : len(row)].detach().softmax(dim=0)
        jacobian = torch.diag(p) - torch.outer(p, p)
        expected = jacobian @ torch.tensor(row, dtype=torch.float64)
        torch.testing.assert_close(logits.grad[slot, : len(row)], expected, rtol=1e-11, atol=1e-14)


def test_at_equal_logits_the_gradient_is_the_distance_to_the_mean(cost):
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    SeparableCost(5.0, [[1.0, 2.0, 6.0]], "ms").expected(logits.softmax(dim=1)).backward()
    torch.testing.assert_close(
        logits.grad, torch.tensor([[-2.0, -1.0, 3.0]], dtype=torch.float64) / 3
    )


def test_absent_candidates_get_no_gradient(tiny, cost):
    logits = random_logits(tiny).requires_grad_()
    cost.expected(logits.softmax(dim=1)).backward()
    assert (logits.grad[torch.isinf(logits)] == 0.0).all()


def test_macs_and_parameters_are_those_of_the_network(tiny):
    for architecture in everything(tiny):
        network = Network(tiny.blocks(architecture))
        assert macs_cost(tiny).exact(architecture) == tiny.macs(architecture)
        parameters = sum(p.numel() for p in network.parameters())
        assert parameter_cost(tiny).exact(architecture) == parameters


def test_costs_say_their_unit(tiny, cost):
    assert [cost.unit, macs_cost(tiny).unit, parameter_cost(tiny).unit] == [
        "ms",
        "MAC",
        "parameter",
    ]
