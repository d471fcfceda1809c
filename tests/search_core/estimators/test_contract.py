"""What every estimator of the architecture gradient promises, asked of each of them."""

import copy
import io
from collections import Counter

import pytest
import torch

from search_core.data.dataset import Batch
from search_core.estimators.base import Estimate
from search_core.estimators.presets import ESTIMATORS
from search_core.nn.ops import Zero
from search_core.nn.supernet import Supernet
from search_core.randomness import stream
from search_core.space.nasbench201 import nasbench201

BATCH_SIZE = 12
SAMPLES = 8  # forward passes of REINFORCE


@pytest.fixture(params=ESTIMATORS)
def make(request):
    return ESTIMATORS[request.param]


class Case:
    """A real supernet with a batch, and probabilities that leave its slots undecided."""

    def __init__(self, supernet):
        self.supernet, self.space = copy.deepcopy(supernet), supernet.space
        space = self.space
        side = space.resolution_px
        images = torch.randn(
            BATCH_SIZE, space.in_channels, side, side, generator=stream(0, "images")
        )
        self.batch = Batch(images, torch.arange(BATCH_SIZE) % space.n_classes)
        logits = torch.randn(
            len(space.slots), space.n_candidates, generator=stream(0, "logits")
        ).double()
        for row, slot in zip(logits, space.slots, strict=True):
            row[len(slot.candidates) :] = -torch.inf
        self.p = logits.softmax(dim=1)

    def decided(self, *choices):
        """One-hot probabilities; None leaves a slot undecided."""
        p = self.p.clone()
        for row, choice in zip(p, choices, strict=True):
            if choice is not None:
                row.zero_()
                row[choice] = 1.0
        return p

    def estimate(self, estimator, step=0, p=None):
        p = self.p if p is None else p
        return estimator.estimate(self.supernet, p, self.batch, 0.1, stream(0, "path", step))

    def on_path(self, choices):
        """(layer, candidate) of the path."""
        return {
            (i, 0 if layer.slot is None else choices[layer.slot])
            for i, layer in enumerate(self.space.layers)
        }

    def buffers(self):
        return {name: buffer.clone() for name, buffer in self.supernet.named_buffers()}

    def gradients(self):
        return {name: p.grad for name, p in self.supernet.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def supernets(tiny, micro):
    """As they are when initialised; a `Case` takes a copy."""
    cell = nasbench201(channels=4, cells_per_stage=1, resolution_px=16)
    spaces = {"tiny": tiny, "micro": micro, "cell": cell}
    return {name: Supernet(space, stream(0, "weights")) for name, space in spaces.items()}


@pytest.fixture
def tiny_case(supernets):
    return Case(supernets["tiny"])


@pytest.fixture(params=["tiny", "micro", "cell"])
def case(request, supernets):
    return Case(supernets[request.param])


def place(name):
    """(layer, candidate) of a parameter or buffer."""
    layer, candidate = map(int, name.split(".")[1:3])
    return layer, candidate


def test_it_is_known_by_its_name(make):
    estimator = make()
    assert ESTIMATORS[estimator.name] is make
    assert 0.0 <= estimator.alpha_betas[0] < estimator.alpha_betas[1] < 1.0


def test_rows_are_finite_and_sum_to_zero(make, case):
    estimator, moved = make(), torch.zeros_like(case.p, dtype=torch.bool)
    before = case.p.clone()
    for step in range(6):
        estimate = case.estimate(estimator, step)
        assert isinstance(estimate, Estimate)
        gradient = estimate.gradient
        assert gradient.dtype == torch.float64
        assert gradient.shape == case.p.shape
        assert gradient.isfinite().all()
        assert gradient.sum(dim=1).abs().max() < 1e-12 * max(1.0, gradient.abs().max().item())
        assert not gradient.requires_grad
        moved |= gradient != 0.0
        assert all(case.p[slot, k] > 0.0 for slot, k in enumerate(estimate.choices))
        assert all(type(value) is float for value in (estimate.loss, estimate.signal))
        assert estimate.loss > 0.0
        assert estimate.signal >= 0.0
        if estimate.moves is not None:
            assert estimate.moves.shape == case.p.shape
            assert estimate.moves.dtype == torch.bool
            assert (gradient[~estimate.moves] == 0.0).all()
    assert not moved[case.p == 0.0].any()  # absent candidates
    assert moved.any()
    assert torch.equal(case.p, before)


@pytest.mark.parametrize("step", range(4))
def test_a_frozen_slot_gets_no_gradient_and_its_own_choice(make, tiny_case, step):
    p = tiny_case.decided(1, None, None)
    estimator = make()
    for _ in range(2):  # the second time with whatever it remembers
        estimate = tiny_case.estimate(estimator, step, p)
    assert estimate.choices[0] == 1
    assert (estimate.gradient[0] == 0.0).all()
    assert estimate.gradient[1:].any() or estimate.signal < 1e-6


def test_it_works_when_every_slot_is_frozen(make, case):
    choices = tuple(int(row.nonzero()[-1]) for row in case.p)
    estimator, p = make(), case.decided(*choices)
    for step in range(2):
        estimate = case.estimate(estimator, step, p)
        assert estimate.choices == choices
        assert (estimate.gradient == 0.0).all()
        assert estimate.loss > 0.0
    assert bool(case.gradients()) is estimator.trains_weights
    after = torch.randn_like(p)
    assert torch.equal(estimator.settle(p, after), after)


def test_zeros_on_the_whole_path_and_on_none_of_it(make, case):
    """`Zero` is a candidate like any other."""
    zeros = torch.zeros_like(case.p, dtype=torch.bool)
    for layer, candidates in zip(case.space.layers, case.supernet.layers, strict=True):
        for k, operation in enumerate(candidates):
            if isinstance(operation, Zero):
                zeros[layer.slot, k] = True
    for unlikely in (zeros, ~zeros):
        p = torch.where(unlikely, 1e-30 * case.p, case.p)
        p /= p.sum(dim=1, keepdim=True)
        estimate = case.estimate(make(), p=p)
        assert estimate.gradient.isfinite().all()
        assert estimate.gradient.sum(dim=1).abs().max() < 1e-12
        if make.name != "proxyless_two_path":  # whose pairs may hold a single Zero
            chosen = zeros[range(len(p)), estimate.choices]
            assert torch.equal(chosen, zeros.any(dim=1) & (unlikely is not zeros))


def test_weights_get_gradients_on_the_sampled_path_alone_or_not_at_all(make, case):
    estimator = make()
    estimate = case.estimate(estimator)
    if not estimator.trains_weights:
        assert not case.gradients()
        return
    path = case.on_path(estimate.choices)
    assert {place(name) for name in case.gradients()} <= path
    with_weights = {place(name) for name, _ in case.supernet.named_parameters()}
    if not case.space.notation:  # in a cell an edge may lead nowhere
        assert {place(name) for name in case.gradients()} == path & with_weights


def test_the_loss_is_the_smoothed_cross_entropy_of_the_path(make, case):
    """Path-integrated, with all gates at 1: where nothing is undecided."""
    twin, p = Case(case.supernet), case.p
    if make.name == "dsnas_path_integrated":
        p = case.decided(*p.argmax(dim=1).tolist())
    estimate = case.estimate(make(), p=p)
    loss = case.batch.loss(twin.supernet(case.batch.images, estimate.choices), 0.1)
    assert estimate.loss == loss.item()
    if make.trains_weights:
        loss.backward()
        gradients = twin.gradients()
        assert case.gradients().keys() == gradients.keys()
        for name, gradient in case.gradients().items():
            torch.testing.assert_close(gradient, gradients[name])


def test_running_statistics_follow_the_path_that_trains_or_stay(make, case):
    estimator, before = make(), case.buffers()
    estimate = case.estimate(estimator)
    after = case.buffers()
    path = case.on_path(estimate.choices)
    for name, buffer in after.items():
        moves = estimator.trains_weights and place(name) in path
        assert torch.equal(buffer, before[name]) is not moves
        if moves and name.endswith("num_batches_tracked"):
            assert buffer == 1


def modes(supernet):
    return [(m.training, getattr(m, "track_running_stats", None)) for m in supernet.modules()]


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_as_they_were(make, tiny_case, training):
    tiny_case.supernet.train(training)
    before = modes(tiny_case.supernet)
    tiny_case.estimate(make())
    assert modes(tiny_case.supernet) == before


def test_a_failure_leaves_the_modes_as_they_were(make, tiny_case):
    before = modes(tiny_case.supernet)
    tiny_case.supernet.layers[-1][0].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tiny_case.estimate(make())
    assert modes(tiny_case.supernet) == before


def same(a, b):
    assert a.choices == b.choices
    assert torch.equal(a.gradient, b.gradient)
    assert (a.loss, a.signal) == (b.loss, b.signal)
    assert (a.moves is None) is (b.moves is None)
    assert a.moves is None or torch.equal(a.moves, b.moves)


def test_the_draw_is_a_function_of_the_generator(make, case):
    world = torch.get_rng_state()
    same(case.estimate(make(), 3), case.estimate(make(), 3))
    assert torch.equal(torch.get_rng_state(), world)
    draws = {case.estimate(make(), step).choices for step in range(8)}
    assert len(draws) > 1


def test_it_goes_on_from_its_state(make, tiny_case, identical):
    first, second, third = make(), make(), make()
    for step in range(12):
        tiny_case.estimate(first, step)
    stored, state = io.BytesIO(), first.state_dict()
    torch.save(state, stored)
    stored.seek(0)
    second.load_state_dict(torch.load(stored, weights_only=True))
    unbroken = [tiny_case.estimate(first, step) for step in range(12, 24)]
    third.load_state_dict(state)  # has not moved with the estimator that gave it
    for estimator in (second, third):
        for step, estimate in enumerate(unbroken, start=12):
            same(estimate, tiny_case.estimate(estimator, step))
        assert identical(first.state_dict(), estimator.state_dict())


def test_a_fresh_state_can_be_loaded(make, tiny_case):
    estimator = make()
    estimator.load_state_dict(make().state_dict())
    same(tiny_case.estimate(estimator), tiny_case.estimate(make()))


def test_it_settles_nothing_but_a_pair(make):
    before, after = torch.randn(2, 3, 4, generator=stream(0, "logits")).double()
    assert torch.equal(make().settle(before, after), after)


EXECUTIONS = {  # of each layer: forward and, for gates, the recomputation in backward
    "dsnas": 1,
    "dsnas_path_integrated": 1,
    "gumbel": 1,
    "dsnas_paired": 2,
    "proxyless": 4,  # every candidate
    "proxyless_two_path": 2,
    "reinforce": SAMPLES,
}


def test_each_layer_is_executed_as_often_as_documented(make, network, judged, random_probabilities):
    """One candidate a layer is recorded for backward, by all that go backward."""
    supernet, executed, recorded = network(3, 4), Counter(), Counter()
    for slot, operations in enumerate(supernet.layers[:3]):
        for k, operation in enumerate(operations):

            def count(*_, slot=slot, k=k):
                executed[slot, k] += 1
                recorded[slot, k] += torch.is_grad_enabled()

            operation.register_forward_hook(count)
    p = random_probabilities(3, 4)
    for step in range(5):
        executed.clear()
        recorded.clear()
        estimate = make().estimate(supernet, p, judged("cubic"), 0.0, stream(0, "path", step))
        in_layer = [sum(executed[slot, k] for k in range(4)) for slot in range(3)]
        assert in_layer == [EXECUTIONS[make.name]] * 3
        path = dict.fromkeys(enumerate(estimate.choices), 1)
        assert +recorded == Counter({} if make.name == "reinforce" else path)
        if make.name == "proxyless":
            assert set(executed.values()) == {1}
        if make.name == "proxyless_two_path":
            assert set(executed) == set(map(tuple, estimate.moves.nonzero().tolist()))


def test_decided_slots_cost_nothing_more(make, network, judged):
    """No gate is compared and no path swapped where there is no choice."""
    supernet, executed = network(3, 4), Counter()
    for slot, operations in enumerate(supernet.layers[:3]):
        for operation in operations:
            operation.register_forward_hook(lambda *_, slot=slot: executed.update([slot]))
    make().estimate(supernet, torch.eye(4)[:3].double(), judged("cubic"), 0.0, stream(0, "path"))
    passes = SAMPLES if make.name == "reinforce" else 1
    assert executed == {0: passes, 1: passes, 2: passes}
