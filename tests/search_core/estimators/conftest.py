"""Exact expectations: networks small enough to enumerate, and every draw taken in turn."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from torch import nn

from search_core.data.dataset import Batch
from search_core.nn.ops import Zero
from search_core.nn.supernet import Supernet
from search_core.randomness import stream
from search_core.space.blocks import BlockKind, BlockSpec
from search_core.space.space import Layer, SearchSpace, Slot

WIDTH, SIDE_PX, N_CLASSES, BATCH_SIZE = 3, 2, 4, 5


def network(n_slots=2, n_candidates=3, *, zero=False, joined=False, after=None):
    """A real supernet in float64 whose operations are 1x1 convolutions without bias.

    Linear from the images to the scores, so that the loss decides what an estimator sees.

    Args:
        zero: the last candidate of each slot is a `Zero`.
        joined: slots 0 and 1 both read the images and are summed; else all form a chain.
        after: makes the module that follows each slot's output.
    """
    none, conv = (
        BlockSpec(kind, 1, 1, 1, WIDTH, WIDTH, SIDE_PX)
        for kind in (BlockKind.NONE, BlockKind.CONV_LINEAR)
    )
    candidates = (*[conv] * (n_candidates - 1), none if zero else conv)
    layers, node = [], 0
    for slot in range(n_slots):
        if joined and slot == 1:
            layers.append(Layer(candidates, slot, source=0, target=1))
        else:
            layers.append(Layer(candidates, slot, source=node, target=node + 1))
            node += 1
        if after is not None and not (joined and slot == 0):
            layers.append(Layer((conv,), source=node, target=node + 1))
            node += 1
    tail = BlockSpec(BlockKind.FC, 1, 1, 1, WIDTH, N_CLASSES, SIDE_PX)
    layers.append(Layer((tail,), source=node, target=node + 1))
    slots = tuple(Slot(str(slot), tuple("abcdefgh"[:n_candidates])) for slot in range(n_slots))
    space = SearchSpace("linear", 1, WIDTH, SIDE_PX, N_CLASSES, slots, tuple(layers))
    supernet = Supernet(space, stream(0, "tail"))
    weights = stream(0, "operations")
    for layer, operations in zip(space.layers[:-1], supernet.layers, strict=False):
        for k, block in enumerate(layer.blocks):
            if layer.slot is None:
                operations[k] = after()
            elif block.kind is not BlockKind.NONE:
                operations[k] = nn.Conv2d(WIDTH, WIDTH, 1, bias=False)
                nn.init.normal_(operations[k].weight, 0.0, 0.7, generator=weights)
            else:
                assert isinstance(operations[k], Zero)
    return supernet.double()


IMAGES = torch.randn(BATCH_SIZE, WIDTH, SIDE_PX, SIDE_PX, generator=stream(0, "images")).double()
LABELS = torch.tensor([0, 1, 2, 3, 1])
PROJECTION = torch.randn(BATCH_SIZE, N_CLASSES, generator=stream(0, "projection")).double()

LOSSES = {  # of scores (B, n_classes)
    "affine": lambda scores: (PROJECTION * scores).sum() + 3.0,
    "quadratic": lambda scores: 0.5 * scores.square().sum(),
    "cubic": lambda scores: (PROJECTION * scores**3).sum(),
    "cross_entropy": lambda scores: Batch(IMAGES, LABELS).loss(scores),
}


@dataclass(frozen=True)
class JudgedBatch(Batch):
    """A batch whose loss is any function of the scores."""

    judge: Callable = LOSSES["cross_entropy"]

    def loss(self, scores, label_smoothing=0.0):  # noqa: ARG002
        return self.judge(scores)


class Draws:
    """torch's random functions, following a plan: which outcome to take at each draw."""

    def __init__(self, plan, n_heights):
        self.plan, self.taken, self.probability = plan, [], 1.0
        nodes, weights = np.polynomial.legendre.leggauss(n_heights)
        self.heights, self.height_weights = (nodes + 1.0) / 2.0, weights / 2.0

    def take(self, weights):
        branch = self.plan[len(self.taken)] if len(self.taken) < len(self.plan) else 0
        self.taken.append((branch, len(weights)))
        self.probability *= float(weights[branch])
        return branch

    def multinomial(self, p, n, **_):
        if p.ndim == 2:
            return torch.stack([self.multinomial(row, n) for row in p])
        left, chosen = p.clone(), []
        for _ in range(n):
            options = left.nonzero()[:, 0]
            chosen.append(int(options[self.take(left[options] / left.sum())]))
            left[chosen[-1]] = 0.0
        return torch.tensor(chosen)

    def randint(self, n, *_, **__):
        return torch.tensor(self.take([1.0 / n] * n))

    def randperm(self, n, **_):
        left = list(range(n))
        return torch.tensor([left.pop(self.take([1.0 / len(left)] * len(left))) for _ in range(n)])

    def rand(self, *_, **__):
        return torch.tensor(self.heights[self.take(self.height_weights)])

    def next_plan(self):
        plan = list(self.taken)
        while plan:
            branch, n = plan.pop()
            if branch + 1 < n:
                return [b for b, _ in plan] + [branch + 1]
        return None


def enumerate_outcomes(monkeypatch, run, n_heights):
    """(probability, result) of every way in which the draws of `run` can fall.

    A uniform number takes `n_heights` Gauss-Legendre nodes with their weights instead, exact
    for polynomials of degree 2 n_heights - 1.
    """
    plan = []
    while plan is not None:
        draws = Draws(plan, n_heights)
        with monkeypatch.context() as patch:
            for name in ("multinomial", "randint", "randperm", "rand"):
                patch.setattr(torch, name, getattr(draws, name))
            result = run()
        yield draws.probability, result
        plan = draws.next_plan()


def paths(p):
    """(path, probability) of every path that can be drawn from `p`."""
    for path in product(*(row.nonzero()[:, 0].tolist() for row in p)):
        yield path, prod(float(p[slot, k]) for slot, k in enumerate(path))


def exact_gradient(p, value):
    """The gradient of the expected `value(path)` in the logits, by enumerating the paths."""
    logits = p.log().requires_grad_()
    q = logits.softmax(dim=1)
    expected = sum(
        prod(q[slot, k] for slot, k in enumerate(path)) * value(path) for path, _ in paths(p)
    )
    return torch.autograd.grad(expected, logits)[0]


@pytest.fixture(name="network", scope="session")
def _network():
    return network


@pytest.fixture(scope="session")
def judged():
    """The batch under the loss of that name, with a constant added."""

    def batch(loss, constant=0.0):
        return JudgedBatch(IMAGES, LABELS, judge=lambda scores: LOSSES[loss](scores) + constant)

    return batch


@pytest.fixture(scope="session")
def random_probabilities():
    """(n_slots, n_candidates) float64, none of them 0."""

    def probabilities(n_slots=2, n_candidates=3):
        logits = torch.randn(n_slots, n_candidates, generator=stream(0, "logits"))
        return logits.double().softmax(dim=1)

    return probabilities


@pytest.fixture(name="paths", scope="session")
def _paths():
    return paths


@pytest.fixture(name="exact_gradient", scope="session")
def _exact_gradient():
    return exact_gradient


@pytest.fixture(scope="session")
def exact_of_loss():
    """The exact gradient of the expected loss of a supernet on a batch."""

    def exact(supernet, p, batch):
        def value(path):
            with torch.no_grad():
                return batch.loss(supernet(batch.images, path)).item()

        return exact_gradient(p, value)

    return exact


@pytest.fixture
def outcomes(monkeypatch):
    """Every estimate that can be drawn, with its probability."""

    def outcomes(make, supernet, p, batch, *, n_heights=4, **options):
        def run():
            return make().estimate(supernet, p, batch, 0.0, torch.Generator(), **options)

        return list(enumerate_outcomes(monkeypatch, run, n_heights))

    return outcomes


@pytest.fixture
def expectation(outcomes):
    """The exact expectation of the gradient that a fresh `make()` estimates."""

    def expectation(make, supernet, p, batch, **options):
        every = outcomes(make, supernet, p, batch, **options)
        assert sum(probability for probability, _ in every) == pytest.approx(1.0)
        return sum(probability * estimate.gradient for probability, estimate in every)

    return expectation


@pytest.fixture(scope="session")
def prepared():
    """Makers of an estimator that goes on from a state."""

    def prepared(make, **state):
        def go_on():
            estimator = make()
            estimator.load_state_dict(state)
            return estimator

        return go_on

    return prepared
