"""What the steps of a search cost, in counts: operations, weights, bytes, waits, Python calls."""

import random
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.step_cases import saved_bytes
from search_core.config import SearchConfig
from search_core.constraint import Constraint, Constraints
from search_core.costs import macs_cost
from search_core.data.augmentation import Augmentation
from search_core.data.dataset import Batch
from search_core.estimators.base import sample_path
from search_core.estimators.presets import ESTIMATORS
from search_core.logits import Logits
from search_core.losses import Losses
from search_core.nn.network import Network
from search_core.nn.ops import BN_EPS_SEARCH
from search_core.nn.supernet import Supernet
from search_core.path_sgd import PathSGD
from search_core.randomness import stream
from search_core.space.blocks import BlockKind, BlockSpec
from search_core.space.nasbench201 import nasbench201
from search_core.space.space import Layer, SearchSpace, Slot
from search_core.steps import Steps
from search_core.train import WeightRecipe

RECIPE = WeightRecipe(10, 0, batch_size=6, learning_rate=0.05)
N_SLOTS = 3
SINGLE_LEVEL = sorted(n for n in ESTIMATORS if ESTIMATORS[n]().trains_weights)
BACKWARD = sorted(n for n in ESTIMATORS if n != "reinforce")


def chain(n_candidates):
    """Slots of MBConv blocks that all cost the same, however many there are."""
    block = BlockSpec(BlockKind.MBCONV, 3, 2, 1, 8, 8, 8)
    stem = BlockSpec(BlockKind.CONV, 3, 1, 1, 3, 8, 8)
    tail = BlockSpec(BlockKind.CLASSIFIER, 1, 1, 1, 8, 10, 8)
    names = tuple(f"k{k}" for k in range(n_candidates))
    slots = tuple(Slot(str(i), names) for i in range(N_SLOTS))
    layers = (Layer((block,) * n_candidates, slot=i) for i in range(N_SLOTS))
    return SearchSpace("chain", 1, 3, 8, 10, slots, (Layer((stem,)), *layers, Layer((tail,))))


def batch_of(space, device="cpu"):
    side = space.resolution_px
    images = torch.randn(6, space.in_channels, side, side, generator=stream(0, "images"))
    return Batch(
        images.to(device, memory_format=torch.channels_last), torch.arange(6, device=device) % 10
    )


class Search:
    """A search between two steps, sure of one path and yet undecided."""

    def __init__(self, space, estimator="dsnas", path=(0,) * N_SLOTS, device="cpu"):
        self.space, self.path = space, tuple(path)
        config = SearchConfig(RECIPE, 10, 0, estimator=estimator)
        self.supernet = Supernet(space, stream(0, "weights")).to(device).train()
        prices = Constraints([Constraint("macs", macs_cost(space), 1e5)])
        made = ESTIMATORS[estimator]()
        self.logits = Logits(space, config, made, prices)
        for slot, choice in enumerate(path):
            self.logits.values.data[slot, choice] = 30.0
        self.weights = PathSGD(RECIPE, self.supernet)
        self.steps = Steps(config, self.supernet, made, self.weights)
        self.batch = batch_of(space, device)

    def weight_step(self):
        return self.steps.train(self.batch, self.logits.probabilities, 0, 0.05)

    def search_step(self):
        p = self.logits.probabilities
        if self.steps.estimator.trains_weights:
            estimate = self.steps.train_and_search(self.batch, p, 0, 0.05)
        else:
            estimate = self.steps.search(self.batch, p, 0)
        assert estimate.choices == self.path
        estimate = self.logits.priced(estimate, 0)
        values = self.logits.values.detach().clone()
        assert estimate.gradient.isfinite().all()
        self.logits.move(estimate)
        self.logits.values.data.copy_(values)

    def plain_step(self):
        """The best plain loop on the path's own modules."""
        graph = self.space.graph(self.space.architecture(self.path))
        network = Network(graph, self.supernet.operations(self.path), BN_EPS_SEARCH).train()
        optimizer = RECIPE.optimizer(network)

        def step():
            optimizer.zero_grad()
            self.batch.loss(network(self.batch.images), RECIPE.label_smoothing).backward()
            optimizer.step()

        return step


class Operations(TorchDispatchMode):
    """Counts aten calls, and of convolutions' backward passes what they are asked for."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.calls[name] += 1
        if name == "convolution_backward":
            to_input, to_weight, _ = args[-1]
            self.calls["gradient of an input"] += to_input
            self.calls["gradient of a weight"] += to_weight
        return func(*args, **(kwargs or {}))


def counted(step):
    step()  # momenta and caches are made by now
    with Operations() as operations:
        step()
    return operations.calls


CONVOLUTIONS = ("convolution", "gradient of an input", "gradient of a weight", "native_batch_norm")
HEAVY = (*CONVOLUTIONS, "native_batch_norm_backward", "_fused_sgd_", "hardtanh_backward")


def heavy(calls):
    return {name: calls[name] for name in HEAVY}


def test_a_step_of_the_weights_executes_what_plain_training_of_its_path_does():
    search = Search(chain(5), path=(4, 0, 2))
    plain, ours = counted(search.plain_step()), counted(search.weight_step)
    assert heavy(ours) == heavy(plain)
    assert heavy(plain)["convolution"] == 1 + 3 * N_SLOTS
    image_sized = ("mul", "add", "clone", "copy_", "stack")
    assert {n: ours[n] for n in image_sized} == {n: plain[n] for n in image_sized}


@pytest.mark.parametrize("estimator", ["dsnas", "gumbel"])
def test_logits_beside_the_weights_cost_no_pass_over_any_image(estimator):
    """No gate multiplies a feature map: the products are of logits and of BatchNorm's weights."""
    search = Search(chain(5), estimator, path=(4, 0, 2))
    plain, ours = counted(search.plain_step()), counted(search.search_step)
    assert heavy(ours) == heavy(plain)
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            if func.overloadpacket.__name__ in ("mul", "sum", "zeros_like", "new_zeros"):
                sizes.append(made.numel())
            return made

    with Sizes():
        search.search_step()
    assert 0 < max(sizes) <= 2 * 8 * N_SLOTS  # scale and shift of the last BatchNorms


def test_only_the_slot_at_another_height_has_a_gate():
    search = Search(chain(5), "dsnas_path_integrated", path=(4, 0, 2))
    plain, ours = counted(search.plain_step()), counted(search.search_step)
    assert heavy(ours) == heavy(plain)


PASSES = {  # of the slots' operations: forward ones in all, and those that go backward
    "dsnas_paired": (2, 1),
    "proxyless_two_path": (2, 1),
    "proxyless": (5, 1),
    "reinforce": (8, 0),
}


@pytest.mark.parametrize("estimator", sorted(PASSES))
def test_the_others_run_as_many_candidates_as_they_compare(estimator):
    search = Search(chain(5), estimator, path=(4, 0, 2))
    calls = counted(search.search_step)
    forward, backward = PASSES[estimator]
    stem = forward if estimator in ("dsnas_paired", "reinforce") else 1
    assert calls["convolution"] == stem + 3 * N_SLOTS * forward
    learns = estimator in SINGLE_LEVEL
    assert calls["gradient of a weight"] == learns * (1 + 3 * N_SLOTS)
    # the gates need the gradient of no image, and not of what leads to the first slot
    inputs = 3 * N_SLOTS * backward - (not learns and backward) * 3
    assert calls["gradient of an input"] == inputs
    assert calls["_fused_sgd_"] == (2 if learns else 0)  # with weight decay and without


# memory


@pytest.mark.parametrize("estimator", BACKWARD)
@pytest.mark.parametrize("n_candidates", [3, 12])
def test_a_search_step_keeps_what_plain_training_keeps(estimator, n_candidates):
    """Within a few hundred bytes of logits, whatever the candidates."""
    search = Search(chain(n_candidates), estimator)
    search.search_step()
    plain = saved_bytes(search.plain_step(), search.supernet)
    ours = saved_bytes(search.search_step, search.supernet)
    gated = 6 * 8 * 8 * 8 * 4 if estimator == "dsnas_path_integrated" else 0  # one output
    assert plain <= ours + 100
    assert ours <= plain + gated + 8 * 4 * N_SLOTS * n_candidates
    assert ours < 1.02 * plain + gated


def test_in_a_cell_a_node_is_kept_once_however_many_edges_read_it():
    """Skips and pools are told by their input; three of them share the cell's first node."""
    space = nasbench201(channels=4, cells_per_stage=1, resolution_px=8)
    search = Search(space, path=(3, 1, 3, 1, 3, 4))  # node 0: skip to 2, skip to 3
    search.search_step()
    plain = saved_bytes(search.plain_step(), search.supernet)
    ours = saved_bytes(search.search_step, search.supernet)
    nodes = sum(2 * 6 * c * s * s * 4 for c, s in ((4, 8), (8, 4), (16, 2)))  # nodes 0 and 2
    assert plain < ours <= plain + nodes + 4096


# waits


@pytest.fixture
def meta_data(data):
    """Images on a device that holds no values: whatever waits for one fails."""
    three = data.train_images.repeat(1, 3, 1, 1)
    augmentation = Augmentation(
        shift_px=1, flip=True, crop_scale=(0.5, 1.0), brightness=0.1, hue=0.1, cutout_px=2
    )
    coloured = replace(
        data,
        train_images=three,
        test_images=data.test_images.repeat(1, 3, 1, 1),
        mean=data.mean * 3,
        std=data.std * 3,
        augmentation=augmentation,
    )
    return coloured.to("meta")


def test_a_step_of_the_weights_never_waits_for_the_device(meta_data):
    search = Search(chain(3), device="meta")
    p, losses = search.logits.probabilities, Losses()
    for step in range(2):
        batch = meta_data.training_batch(0, step, 6)
        losses.add(step, search.steps.train(batch, p, step, 0.05))
    meta_data.plain_batch(0, 0, 6)
    with pytest.raises((RuntimeError, NotImplementedError)):
        losses.first_not_finite()  # which is where the host waits


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
def test_a_step_of_the_logits_waits_once(monkeypatch, meta_data, estimator):
    """On the meta device every other way to a value fails."""
    waits = []

    def values(tensor):
        waits.append(tensor.shape)
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    monkeypatch.setattr(torch.Tensor, "cpu", values)
    search = Search(chain(3), estimator, device="meta")
    batch = meta_data.plain_batch(0, 0, 6)
    p = search.logits.probabilities
    if search.steps.estimator.trains_weights:
        estimate = search.steps.train_and_search(batch, p, 0, 0.05)
    else:
        estimate = search.steps.search(batch, p, 0)
    assert len(waits) == 1
    search.logits.move(search.logits.priced(estimate, 0))
    assert len(waits) == 1


# growth


class Calls:
    """Counts the calls of Python functions and of built-in ones."""

    def __init__(self):
        self.n = 0

    def __enter__(self):
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)

    def _count(self, frame, event, argument):  # noqa: ARG002
        self.n += event in ("call", "c_call")


@pytest.mark.parametrize("kind", ["weights", *sorted(ESTIMATORS)])
def test_a_step_asks_no_candidate_that_is_off_its_path(kind):
    """As many calls with twelve candidates as with three; the published one compares them all."""

    def calls(n_candidates):
        search = Search(chain(n_candidates), "dsnas" if kind == "weights" else kind)
        step = search.weight_step if kind == "weights" else search.search_step
        for _ in range(3):
            step()
        with Calls() as counter:
            step()
        return counter.n

    few, many = calls(3), calls(12)
    if kind == "proxyless":
        assert many > few
    else:
        assert abs(many - few) <= 20, (few, many)


def test_paths_are_drawn_as_the_probabilities_say(tiny):
    config = SearchConfig(RECIPE, 10, 0)
    steps = Steps(config, Supernet(tiny, stream(0, "weights")), ESTIMATORS["dsnas"](), None)
    p = torch.tensor([[0.2, 0.5, 0.3, 0.0], [0.9, 0.1, 0.0, 0.0], [0.25] * 4]).double()
    drawn = [steps._path(p, step) for step in range(400)]
    assert drawn[7] == sample_path(p, stream(0, "path", 7))
    for slot, row in enumerate(p.tolist()):
        counts = Counter(path[slot] for path in drawn)
        for k, probability in enumerate(row):
            assert counts[k] / 400 == pytest.approx(probability, abs=0.08)


def test_losses_are_read_all_at_once_and_the_first_bad_one_is_named():
    losses, rng = Losses(), random.Random(0)
    for step in range(5):
        losses.add(step, torch.tensor(rng.random()))
    assert losses.first_not_finite() is None
    assert losses.latest > 0.0
    losses.add(5, torch.tensor(1.0))
    losses.add(6, float("inf"))
    losses.add(7, torch.tensor(float("nan")))
    losses.add(8, 2.0)
    bad = losses.first_not_finite()
    assert (bad.step, bad.value) == (6, float("inf"))
    assert losses.latest == 2.0
    assert losses.first_not_finite() is None  # was told


# precision


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
def test_bfloat16_is_close_to_float32_and_leaves_the_weights_in_it(estimator):
    def run(precision):
        search = Search(chain(3), estimator, path=(2, 0, 1))
        recipe = replace(RECIPE, precision=precision)
        config = replace(search.steps.config, recipe=recipe)
        steps = replace(search.steps, config=config)
        p = search.logits.probabilities
        if steps.estimator.trains_weights:
            estimate = steps.train_and_search(search.batch, p, 0, 0.05)
        else:
            estimate = steps.search(search.batch, p, 0)
        loss = steps.train(search.batch, p, 1, 0.05)
        return search.supernet, estimate, loss

    exact, rough = run("float32"), run("bfloat16")
    assert rough[1].loss != exact[1].loss
    assert rough[1].loss == pytest.approx(exact[1].loss, rel=0.02)
    assert rough[2].dtype == torch.float32
    assert float(rough[2]) == pytest.approx(float(exact[2]), rel=0.05)
    assert rough[1].gradient.isfinite().all()
    for (name, a), b in zip(
        rough[0].state_dict().items(), exact[0].state_dict().values(), strict=True
    ):
        assert a.dtype == b.dtype, name
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.05, msg=name)
    start = Search(chain(3)).supernet
    learned = [(2, 0), (0, 1), (1, 2)] if ESTIMATORS[estimator]().trains_weights else []
    for k, slot in learned:
        before, after = (s.layers[1 + slot][k].project.conv.weight for s in (start, rough[0]))
        assert not torch.equal(before, after)


def test_gate_costs_in_bfloat16_are_those_in_float32():
    """The recomputation in backward is in the precision of the pass forward."""
    gradients = []
    for precision in ("float32", "bfloat16"):
        search = Search(chain(3), "proxyless", path=(2, 0, 1))
        search.logits.values.data.zero_()
        config = replace(search.steps.config, recipe=replace(RECIPE, precision=precision))
        steps, dtypes = replace(search.steps, config=config), set()
        for operation in search.supernet.layers[2]:
            operation.register_forward_hook(lambda _m, _a, out, d=dtypes: d.add(out.dtype))
        gradients.append(steps.search(search.batch, search.logits.probabilities, 0).gradient)
        assert dtypes == {getattr(torch, precision)}
    scale = gradients[0].abs().max()
    torch.testing.assert_close(gradients[1] / scale, gradients[0] / scale, rtol=0.1, atol=0.1)
