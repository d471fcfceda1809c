"""SGD on one path: what torch's SGD on all weights does, at the cost of the path."""

import random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from search_core.nn.supernet import ALL, Supernet
from search_core.path_sgd import PathSGD
from search_core.randomness import stream
from search_core.space.nasbench201 import nasbench201
from search_core.train import WeightRecipe

RECIPE = WeightRecipe(20, 0, learning_rate=0.1, weight_decay=0.1)


def plain_sgd(recipe, supernet):
    """torch's own, neither fused nor told anything about paths."""
    decayed = [p for p in supernet.parameters() if p.ndim > 1]
    others = [p for p in supernet.parameters() if p.ndim <= 1]
    return torch.optim.SGD(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others}],
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        foreach=False,
        fused=False,
    )


def backward(supernet, images, path):
    supernet(images, path).square().sum().backward()


@pytest.fixture
def images():
    return torch.randn(6, 1, 8, 8, generator=stream(0, "images")).double()


def fresh(space):
    return Supernet(space, stream(0, "weights")).double()


PATHS = [
    (0, 0, 1),
    (2, 0, 1),
    (0, 1, 3),
    (0, 0, 1),
    (2, 0, 3),
    (0, 0, 3),
]  # never 1 . . or . . 0, 2


@pytest.mark.parametrize("options", [{}, {"nesterov": True}, {"momentum": 0.0}])
def test_weights_are_those_of_plain_sgd_after_the_same_paths(tiny, images, options):
    recipe = WeightRecipe(**{**vars(RECIPE), **options})
    ours, theirs = fresh(tiny), fresh(tiny)
    optimizer, plain = PathSGD(recipe, ours), plain_sgd(recipe, theirs)
    for step, path in enumerate(PATHS):
        rate = recipe.rate_at(step)
        backward(ours, images, path)
        optimizer.step(path, rate)
        plain.zero_grad()
        backward(theirs, images, path)
        for group in plain.param_groups:
            group["lr"] = rate
        plain.step()
    moved = 0
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=name)
        moved += not torch.equal(a, dict(fresh(tiny).named_parameters())[name])
    assert moved > 20
    mine, whole = optimizer.state_dict()["state"], plain.state_dict()["state"]
    buffers = {
        k: v["momentum_buffer"] for k, v in whole.items() if v["momentum_buffer"] is not None
    }
    assert {k for k, v in mine.items() if v.get("momentum_buffer") is not None} == set(buffers)
    for index, buffer in buffers.items():
        torch.testing.assert_close(mine[index]["momentum_buffer"], buffer, rtol=1e-9, atol=1e-12)


def test_candidates_never_sampled_stay_bit_equal_and_have_no_momentum(tiny, images):
    supernet, start = fresh(tiny), fresh(tiny)
    optimizer = PathSGD(RECIPE, supernet)
    for path in PATHS:
        backward(supernet, images, path)
        optimizer.step(path, 0.1)
    untouched = [(1, 1), (4, 0), (4, 2)]  # (layer, candidate)
    for layer, candidate in untouched:
        mine, first = supernet.layers[layer][candidate], start.layers[layer][candidate]
        for (name, a), (_, b) in zip(
            mine.state_dict().items(), first.state_dict().items(), strict=True
        ):
            assert torch.equal(a, b), (layer, candidate, name)
        assert all(p.grad is None for p in mine.parameters())
    indices = {p: i for i, p in enumerate(_in_order(supernet))}
    with_momenta = set(optimizer.state_dict()["state"])
    for layer, candidate in untouched:
        own = {indices[p] for p in supernet.layers[layer][candidate].parameters()}
        assert own
        assert not own & with_momenta


def _in_order(supernet):
    return [p for p in supernet.parameters() if p.ndim > 1] + [
        p for p in supernet.parameters() if p.ndim <= 1
    ]


def test_a_candidate_that_rests_keeps_its_momentum(tiny, images):
    """Plain SGD passes a weight without a gradient over: its momentum does not run on."""
    supernet = fresh(tiny)
    optimizer = PathSGD(RECIPE, supernet)
    backward(supernet, images, (0, 0, 0))
    optimizer.step((0, 0, 0), 0.1)
    resting = supernet.layers[1][0]
    before = {name: t.clone() for name, t in resting.state_dict().items()}
    state = {i: s["momentum_buffer"].clone() for i, s in optimizer.state_dict()["state"].items()}
    for _ in range(3):
        backward(supernet, images, (1, 1, 1))
        optimizer.step((1, 1, 1), 0.1)
    assert all(torch.equal(t, before[name]) for name, t in resting.state_dict().items())
    indices = {p: i for i, p in enumerate(_in_order(supernet))}
    for parameter in resting.parameters():
        index = indices[parameter]
        assert torch.equal(optimizer.state_dict()["state"][index]["momentum_buffer"], state[index])


def test_gradients_are_cleared_where_they_were(tiny, images):
    supernet = fresh(tiny)
    optimizer = PathSGD(RECIPE, supernet)
    for path in PATHS:
        backward(supernet, images, path)
        optimizer.step(path, 0.1)
        assert all(p.grad is None for p in supernet.parameters())


class Touched(TorchDispatchMode):
    """How many weights each call of the fused optimiser is given."""

    def __init__(self):
        super().__init__()
        self.counts = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._fused_sgd_.default:
            self.counts.append(len(args[0]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("path", [(0, 0, 1), (2, 1, 3), (1, ALL, 0)])
def test_only_the_weights_of_the_path_are_touched(tiny, images, path):
    supernet = fresh(tiny)
    optimizer = PathSGD(RECIPE, supernet)
    with Touched() as touched:
        for _ in range(2):
            backward(supernet, images, path)
            optimizer.step(path, 0.1)
    own = sum(len(list(op.parameters())) for op in supernet.operations(path))
    assert 0 < own < len(list(supernet.parameters()))
    assert sum(touched.counts) == 2 * own


def test_an_edge_that_leads_nowhere_waits_for_its_momentum():
    """In a cell an operation on the path may get no gradient, and later one."""
    space = nasbench201(channels=4, cells_per_stage=1, resolution_px=8)
    images = torch.randn(2, 3, 8, 8, generator=stream(0, "cell images"))
    rng = random.Random(0)
    dead = (3, 0, 0, 3, 0, 0)  # the convolution on slot 0 is read by nothing that goes on
    paths = [dead, *(space.sample(rng).choices for _ in range(6)), (3, 3, 3, 3, 3, 3), dead]
    ours, theirs = (Supernet(space, stream(0, "weights")) for _ in range(2))
    optimizer, plain = PathSGD(RECIPE, ours), plain_sgd(RECIPE, theirs)
    for path in paths:
        backward(ours, images, path)
        optimizer.step(path, 0.01)
        plain.zero_grad()
        backward(theirs, images, path)
        for group in plain.param_groups:
            group["lr"] = 0.01
        plain.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)


def test_it_goes_on_from_its_state(tiny, images, identical):
    first, second = fresh(tiny), fresh(tiny)
    before, after = PathSGD(RECIPE, first), PathSGD(RECIPE, second)
    for path in PATHS[:3]:
        backward(first, images, path)
        before.step(path, 0.1)
    state = before.state_dict()
    second.load_state_dict(first.state_dict())
    after.load_state_dict(state)
    for path in PATHS[3:]:
        for supernet, optimizer in ((first, before), (second, after)):
            backward(supernet, images, path)
            optimizer.step(path, 0.1)
    assert identical(dict(first.state_dict()), dict(second.state_dict()))
    assert identical(before.state_dict()["state"], after.state_dict()["state"])
