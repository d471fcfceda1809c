"""Steps to be timed side by side: plain training of a path, and every step of a search on it.

The plain network is the path itself with the supernet's own modules in their place: the best
plain loop that we can write, channels last, a fused optimiser, gradients set to None. A search
step is everything `search_core.search.run_search` does in one: probabilities, the draw, forward
and backward, the weights' optimiser, the price of the budget and the logits' optimiser.
"""

import copy
import gc
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal

import torch
from torch.nn.functional import cross_entropy

from search_core.config import SearchConfig
from search_core.constraint import Constraint, Constraints
from search_core.costs import macs_cost
from search_core.data.augmentation import Augmentation
from search_core.data.dataset import Batch, ImageDataset
from search_core.estimators.presets import ESTIMATORS
from search_core.health import Health
from search_core.logits import Logits
from search_core.nn.network import Network
from search_core.nn.ops import BN_EPS_SEARCH
from search_core.nn.supernet import Supernet
from search_core.path_sgd import PathSGD
from search_core.randomness import stream
from search_core.space.blocks import BlockKind, BlockSpec
from search_core.space.graph import Graph
from search_core.space.space import Architecture, Layer, SearchSpace, Slot
from search_core.steps import Steps
from search_core.train import WeightRecipe

RATE = 0.01
LABEL_SMOOTHING = 0.1
CERTAIN = 30.0
"""Lead of the path's logits: it is as good as sure to be drawn, and yet nothing is decided."""

Step = Callable[[], object]
Precision = Literal["float32", "bfloat16"]


def at_resolution(space: SearchSpace, resolution_px: int) -> SearchSpace:
    """`space` on images of another size; strides stay where they are."""
    sizes = {0: resolution_px}
    layers = []
    for layer, (source, target) in zip(space.layers, space.edges, strict=True):
        blocks = tuple(replace(block, resolution_px=sizes[source]) for block in layer.blocks)
        sizes[target] = blocks[0].out_resolution_px
        layers.append(replace(layer, blocks=blocks))
    name = f"{space.name}@{resolution_px}px"
    return replace(space, name=name, resolution_px=resolution_px, layers=tuple(layers))


def repeated(space: SearchSpace, architecture: Architecture, n: int) -> SearchSpace:
    """The path `architecture` of `space` with `n` copies of its block to choose from in each slot.

    Every path of it is the same network, so that only what is beside the path can cost more.
    """
    slots = tuple(Slot(slot.name, tuple(f"c{k}" for k in range(n))) for slot in space.slots)
    layers = tuple(
        layer
        if layer.slot is None
        else replace(layer, blocks=(layer.blocks[architecture.choices[layer.slot]],) * n)
        for layer in space.layers
    )
    return replace(space, name=f"{space.name}x{n}", slots=slots, layers=layers, notation="")


def chain(n_layers: int, resolution_px: int = 16, channels: int = 32) -> SearchSpace:
    """MBConv slots of one shape one after the other, 3x3 and 5x5 with expansion 3 and 6."""
    shape = (1, channels, channels, resolution_px)
    candidates = tuple(
        BlockSpec(BlockKind.MBCONV, kernel, expansion, *shape)
        for kernel in (3, 5)
        for expansion in (3, 6)
    )
    stem = BlockSpec(BlockKind.CONV, 3, 1, 1, 3, channels, resolution_px)
    tail = BlockSpec(BlockKind.CLASSIFIER, 1, 1, 1, channels, 10, resolution_px)
    return SearchSpace(
        name=f"chain{n_layers}",
        version=1,
        in_channels=3,
        resolution_px=resolution_px,
        n_classes=10,
        slots=tuple(Slot(f"layer{i}", ("k3e3", "k3e6", "k5e3", "k5e6")) for i in range(n_layers)),
        layers=(
            Layer((stem,)),
            *(Layer(candidates, slot=i) for i in range(n_layers)),
            Layer((tail,)),
        ),
    )


def random_batch(space: SearchSpace, batch_size: int, device: str) -> Batch:
    """Noise with labels, channels last."""
    side = space.resolution_px
    images = torch.randn(
        batch_size, space.in_channels, side, side, generator=stream(0, "bench images")
    )
    labels = torch.arange(batch_size) % space.n_classes
    return Batch(
        images.to(device, memory_format=torch.channels_last), labels.to(device, torch.int64)
    )


def sampled(space: SearchSpace, n: int) -> list[Architecture]:
    """`n` architectures, drawn uniformly, always the same."""
    rng = random.Random(0)
    return [space.sample(rng) for _ in range(n)]


def noise(space: SearchSpace, n_images: int) -> ImageDataset:
    """Random pixels of the shape that `space` takes, with CIFAR-10's usual augmentation."""
    shape = (n_images, space.in_channels, space.resolution_px, space.resolution_px)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=stream(0, "bench pixels"))
    side = (pixels, torch.arange(n_images) % space.n_classes)
    channels = space.in_channels
    augmentation = Augmentation(shift_px=4, flip=True)
    means = ((127.5,) * channels, (73.9,) * channels)
    return ImageDataset("noise", *side, *side, *means, space.n_classes, augmentation)


@dataclass
class Bench:
    """One supernet, and everything that can be done with a path of it."""

    space: SearchSpace
    batch_size: int
    device: str = "cpu"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        self.batch = random_batch(self.space, self.batch_size, self.device)
        self.supernet = Supernet(self.space, stream(0, "bench weights")).to(self.device).train()
        self.recipe = WeightRecipe(
            100, 0, batch_size=self.batch_size, learning_rate=RATE, precision=self.precision
        )
        self.weights = PathSGD(self.recipe, self.supernet)

    def plain(self, architecture: Architecture) -> Step:
        """A step of the best plain loop on the path's own modules."""
        network = self._network(architecture)
        optimizer = self.recipe.optimizer(network)

        def step() -> None:
            optimizer.zero_grad()
            with self.recipe.autocast(self.batch.images.device):
                loss = self.batch.loss(network(self.batch.images), LABEL_SMOOTHING)
            loss.backward()
            del loss  # nothing keeps the graph alive
            optimizer.step()

        return step

    def naive(self, architecture: Architecture) -> Step:
        """A step as it is commonly written: NCHW, float32, and SGD as it comes."""
        network = copy.deepcopy(self._network(architecture))
        network = network.to(memory_format=torch.contiguous_format)
        images = self.batch.images.contiguous()
        optimizer = torch.optim.SGD(
            network.parameters(), lr=RATE, momentum=0.9, weight_decay=self.recipe.weight_decay
        )

        def step() -> None:
            optimizer.zero_grad()
            loss = cross_entropy(
                network(images), self.batch.labels, label_smoothing=LABEL_SMOOTHING
            )
            loss.backward()
            optimizer.step()

        return step

    def weight_step(self, architecture: Architecture) -> Step:
        """A step of the weights alone, on the path that the logits are sure of."""
        steps, logits = self._search("proxyless_two_path", architecture)
        p = logits.probabilities

        def step() -> None:
            steps.train(self.batch, p, 0, RATE)

        return step

    def search_step(self, estimator: str, architecture: Architecture) -> Step:
        """A step of the logits: with the weights' or alone, as the estimator has it."""
        steps, logits = self._search(estimator, architecture)
        health, values = Health(self.space), logits.values.detach().clone()

        def step() -> None:
            p = logits.probabilities
            if steps.estimator.trains_weights:
                estimate = steps.train_and_search(self.batch, p, 0, RATE)
            else:
                estimate = steps.search(self.batch, p, 0)
            estimate = logits.priced(estimate, 0)
            assert bool(estimate.gradient.isfinite().all())
            logits.move(estimate)
            health.observe(estimate)
            logits.values.data.copy_(values)  # the next step is on the same path

        return step

    def _network(self, architecture: Architecture) -> Network:
        operations = self.supernet.operations(architecture.choices)
        graph: Graph = self.space.graph(architecture)
        return Network(graph, operations, BN_EPS_SEARCH).train()

    def _search(self, name: str, architecture: Architecture) -> tuple[Steps, Logits]:
        config = SearchConfig(self.recipe, 100, 0, estimator=name, alpha_learning_rate=1e-3)
        estimator = ESTIMATORS[name]()
        budget = Constraint("macs", macs_cost(self.space), self.space.macs(architecture))
        logits = Logits(self.space, config, estimator, Constraints([budget]))
        for slot, choice in enumerate(architecture.choices):
            logits.values.data[slot, choice] = CERTAIN
        return Steps(config, self.supernet, estimator, self.weights), logits


def interleaved(
    cases: dict[str, Step], repeats: int, device: str = "cpu", warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of each repeat of each case, all cases in turn within a repeat.

    Their order is drawn anew for each repeat: a step is a percent or two slower behind one that
    leaves the caches and the allocator as it does not like them.
    """
    names, order = list(cases), random.Random(0)
    for _ in range(warmup):
        for step in cases.values():
            step()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with _no_collector():
        for _ in range(repeats):
            for name in order.sample(names, len(names)):
                seconds[name].append(timed(cases[name], device))
    return seconds


def timed(step: Step, device: str = "cpu") -> float:
    """Seconds until `step` is done, on the device, too."""
    synchronise(device)
    began = perf_counter()
    step()
    synchronise(device)
    return perf_counter() - began


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


@contextmanager
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def ratios(seconds: dict[str, list[float]], case: str, to: str) -> list[float]:
    """Quotients within each repeat, where what disturbs both cancels."""
    return [a / b for a, b in zip(seconds[case], seconds[to], strict=True)]


def saved_bytes(step: Step, supernet: torch.nn.Module) -> int:
    """Bytes that `step` keeps for backward, each storage once; weights and statistics not."""
    own = {t.untyped_storage().data_ptr() for t in supernet.state_dict().values()}
    kept: dict[int, torch.UntypedStorage] = {}  # alive, so that no address is taken twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()  # without the graph, which would hold itself
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(storage.nbytes() for storage in kept.values())
