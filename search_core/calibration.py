"""How fast this machine trains: a few seconds of timing become a `MachineProfile`.

Real blocks run forward and backward in turns, several times over; non-negative least squares
on relative errors finds what a call and a unit of each kind of work cost. What the loop around
the network costs is read off the real `run_search`. Everything but the clock is fixed.

    python -m search_core.calibration MODULE ...

is how a calibration asks what starting a process that needs these modules takes.
"""

import importlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import TypeVar

import numpy as np
import torch
from scipy.optimize import nnls
from torch import nn

from search_core.checkpoints import save_checkpoint
from search_core.config import SearchConfig
from search_core.constraint import AugmentedLagrangian, Constraint
from search_core.costs import macs_cost
from search_core.data.augmentation import Augmentation
from search_core.data.dataset import ImageDataset
from search_core.effort import (
    BLOCK_UNITS,
    STEM_CHANNELS,
    UNITS,
    MachineProfile,
    SearchPlan,
    block_work,
    predict_step,
    sums_work,
    tensors,
)
from search_core.events import CheckpointReady, SearchEvent
from search_core.nn.network import Network
from search_core.nn.ops import BN_EPS_SEARCH, build_operation, initialise
from search_core.randomness import stream
from search_core.search import run_search
from search_core.space.blocks import BlockKind, BlockSpec
from search_core.space.presets import get_space
from search_core.space.space import Layer, SearchSpace, Slot
from search_core.train import WeightRecipe

Unit = TypeVar("Unit")

BLOCKS: tuple[tuple[str, int], ...] = (
    # micro
    ("conv_k3_e1_s1_i1_o16_r8", 32),
    ("conv_k1_e1_s1_i80_o160_r2", 32),
    ("classifier_k1_e1_s1_i160_o10_r2", 32),
    ("mbconv_k3_e1_s1_i16_o24_r8", 32),
    ("mbconv_k5_e3_s1_i24_o24_r8", 32),
    ("mbconv_k3_e6_s2_i24_o40_r8", 32),
    ("mbconv_k5_e6_s1_i40_o40_r4", 32),
    ("mbconv_k3_e3_s2_i40_o80_r4", 32),
    ("mbconv_k5_e1_s2_i40_o80_r4", 32),
    ("mbconv_k3_e6_s1_i80_o80_r2", 32),
    # proxyless_cifar_mb
    ("mbconv_k3_e1_s1_i16_o16_r32", 16),
    ("mbconv_k3_e3_s1_i24_o24_r32", 16),
    ("mbconv_k7_e3_s1_i16_o24_r32", 16),
    ("mbconv_k5_e6_s1_i24_o40_r32", 8),
    ("mbconv_k3_e6_s2_i40_o80_r32", 8),
    ("mbconv_k5_e3_s1_i80_o80_r16", 16),
    ("mbconv_k7_e6_s1_i80_o96_r16", 16),
    ("mbconv_k3_e6_s1_i96_o96_r16", 16),
    ("mbconv_k3_e3_s1_i192_o192_r8", 32),
    ("mbconv_k5_e6_s1_i192_o192_r8", 32),
    ("mbconv_k7_e3_s1_i192_o320_r8", 32),
    # nasbench201
    ("convlinear_k3_e1_s1_i3_o16_r32", 32),
    ("reluconv_k3_e1_s1_i16_o16_r32", 32),
    ("reluconv_k1_e1_s1_i16_o16_r32", 32),
    ("reluconv_k3_e1_s1_i64_o64_r8", 32),
    ("reluconv_k1_e1_s1_i64_o64_r8", 32),
    ("avgpool_k3_e1_s1_i16_o16_r32", 32),
    ("avgpool_k3_e1_s1_i64_o64_r8", 32),
    ("reduction_k3_e1_s2_i32_o64_r16", 32),
    ("bnrelu_k1_e1_s1_i64_o64_r8", 32),
    ("classifier_k1_e1_s1_i64_o10_r8", 32),
    # spos_cifar
    ("convrelu_k3_e1_s1_i3_o16_r32", 16),
    ("convrelu_k1_e1_s1_i320_o640_r8", 32),
    ("shuffle_k3_e1_s1_i64_o64_r32", 16),
    ("shuffle_k5_e1_s2_i64_o160_r32", 16),
    ("shuffle_k7_e1_s1_i160_o160_r16", 32),
    ("shuffle_k5_e1_s1_i640_o640_r8", 32),
    ("xception_k3_e1_s1_i320_o320_r8", 32),
    ("fc_k1_e1_s1_i1024_o10_r8", 32),
    # proxyless_imagenet
    ("mbconv_k5_e3_s1_i24_o24_r56", 2),
    ("mbconv_k7_e3_s2_i24_o40_r56", 2),
    ("mbconv_k3_e6_s1_i96_o96_r14", 4),
    # proxyless_cifar_tree
    ("bnconv_k1_e1_s1_i88_o24_r32", 8),
    ("groupconv_k3_e1_s1_i32_o64_r32", 8),
    ("groupconv_k3_e1_s1_i72_o144_r16", 8),
    ("dilconv_k3_e1_s1_i30_o30_r32", 16),
    ("dilconv_k3_e1_s1_i58_o58_r16", 16),
    ("sepconv_k7_e1_s1_i36_o36_r32", 8),
    ("maxpool_k3_e1_s1_i72_o72_r16", 16),
    ("padded_k1_e1_s2_i176_o184_r32", 8),
    ("firsthalf_k1_e1_s1_i88_o44_r32", 16),
)
"""What is timed: blocks and how many images, so that each takes some milliseconds."""

NETWORKS: tuple[tuple[str, int], ...] = (
    ("micro", 32),
    ("nasbench201_n1", 32),
    ("spos_cifar", 8),
    ("proxyless_cifar_mb", 8),
)
"""Whole networks are timed too: what backward needs has left the caches by then."""

_NETWORK_WEIGHT = 3.0
"""A network is worth so many blocks: networks are what will be predicted."""

REHEARSAL_SECONDS = 1.0
"""A calibration given less than this is none: it does everything once, on single images."""

_LEAST_ROUNDS = 3
_TURN_SECONDS = 0.012
_LOOP_STEPS = 40
_LOOP_BATCH = 32
_LARGE_BYTES = 31 * 2**20
_KEEPING = ("convolution scalar", "norm", "clip", "pass", "pool", "linear", "move")


def calibrate(
    *,
    device: str = "cpu",
    name: str = "",
    seconds: float = 4.0,
    modules: Sequence[str] = ("search_core.search", "search_core.data.load"),
) -> MachineProfile:
    """The profile of this machine with the threads that torch uses now.

    Args:
        name: of the processor, kept in the profile.
        seconds: of timing blocks, at the least `_LEAST_ROUNDS` times; the whole takes some
            seconds more. See `REHEARSAL_SECONDS`.
        modules: what an attempt imports.
    """
    rehearsal = seconds < REHEARSAL_SECONDS
    start_up_seconds, set_up_seconds, base_bytes = _start_up(modules)
    byte_seconds = _fresh_byte_seconds()
    specimens = [
        make(name, 1 if rehearsal else images, device)
        for make, listed in ((_Specimen.of_block, BLOCKS), (_Specimen.of_network, NETWORKS))
        for name, images in listed
    ]
    _time_in_turns(specimens, seconds, 1 if rehearsal else _LEAST_ROUNDS)
    found = _fitted(specimens)
    profile = MachineProfile(
        device=device,
        name=name,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        coefficients={**found, "step": _zero("step"), "epoch": _zero("epoch")},
        start_up_seconds=start_up_seconds,
        set_up_seconds=set_up_seconds,
        byte_seconds=byte_seconds if device == "cpu" else 0.0,
        base_bytes=base_bytes if device == "cpu" else 0,
        error=_left_out_error(specimens),
    )
    return _with_loop(profile, 8 if rehearsal else _LOOP_STEPS)


def resident_bytes() -> int:
    """Memory of this process that is in use now; at its peak where the system tells no more."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    return pages * os.sysconf("SC_PAGE_SIZE")


# -- blocks ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Specimen:
    """A block or a network, ready to run, and what it took.

    Attributes:
        work: by unit, of the whole batch.
        is_first: whether nothing asks for the gradient of its input.
        weight: in the fit.
        kept_bytes: for backward, of the whole batch.
        times: activity -> seconds of each round; ``backward`` is the whole of it.
    """

    operation: nn.Module
    images: torch.Tensor
    work: Mapping[str, float]
    is_first: bool
    weight: float
    kept_bytes: float
    times: dict[str, list[float]]

    @classmethod
    def of_block(cls, text: str, images: int, device: str) -> "_Specimen":
        """The operation of a block, without its shortcut."""
        block = BlockSpec.parse(text)
        operation = build_operation(block, BN_EPS_SEARCH)
        initialise(operation, stream(0, "calibration"))
        work = block_work(block, images, shortcut=False)
        is_first = block.in_channels <= STEM_CHANNELS
        return cls._made(operation, block, work, images, device, 1.0, is_first=is_first)

    @classmethod
    def of_network(cls, name: str, images: int, device: str) -> "_Specimen":
        """A network drawn from the space of that name."""
        space = get_space(name)
        drawn = space.sample(random.Random(0))
        network = Network.initialised(space.graph(drawn), stream(0, "calibration"))
        work: Counter[str] = Counter(sums_work(space, images))
        for block in space.blocks(drawn):
            work.update(block_work(block, images))
        first = network.blocks[0]
        return cls._made(network, first, work, images, device, _NETWORK_WEIGHT, is_first=True)

    @classmethod
    def _made(
        cls,
        operation: nn.Module,
        first: BlockSpec,
        work: Mapping[str, float],
        images: int,
        device: str,
        weight: float,
        *,
        is_first: bool,
    ) -> "_Specimen":
        operation.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        shape = (images, first.in_channels, first.resolution_px, first.resolution_px)
        batch = torch.randn(shape, generator=stream(0, "images"))
        batch = batch.to(device, memory_format=torch.channels_last)
        kept = _kept_bytes(operation, batch)
        return cls(operation, batch, work, is_first, weight, kept, defaultdict(list))

    def run(self) -> None:
        """Time every activity once."""
        given = self.images.clone().requires_grad_(not self.is_first)
        learning = [*self.operation.parameters(), *([] if self.is_first else [given])]
        with self._timing("forward"):
            made = self.operation(given)
        gradient = torch.ones_like(made)
        with self._timing("backward"):
            torch.autograd.grad(made, learning, gradient)
        if not self.is_first:
            made = self.operation(given)
            with self._timing("inputs"):
                torch.autograd.grad(made, given, gradient)
        with torch.no_grad(), self._timing("unrecorded"):
            self.operation(given)

    @contextmanager
    def _timing(self, activity: str) -> Iterator[None]:
        started = _now(self.images.device)
        yield
        self.times[activity].append(_now(self.images.device) - started)

    def seconds(self, activity: str) -> float:
        """The median over the rounds."""
        return median(self.times[activity])

    def row(self, units: Sequence[str] = BLOCK_UNITS) -> list[float]:
        """Its amounts in the order of `units`."""
        return [self.work.get(unit, 0.0) for unit in units]

    def input_row(self) -> list[float]:
        """Its amounts where no first convolution computes the gradient of its input."""
        return [self.work.get(unit, 0.0) * (unit != "stem") for unit in BLOCK_UNITS]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def _time_in_turns(specimens: Sequence[_Specimen], seconds: float, least_rounds: int) -> None:
    """Time all of them, round after round, so that a disturbance meets every one alike."""
    for specimen in specimens:  # what runs for the first time sets itself up
        specimen.run()
        specimen.times.clear()
    end, rounds = perf_counter() + seconds, 0
    while rounds < least_rounds or perf_counter() < end:
        for specimen in specimens:
            turn_ends = perf_counter() + _TURN_SECONDS
            specimen.run()
            while perf_counter() < turn_ends:  # a small network's values stay in the caches
                specimen.run()
        rounds += 1


def _kept_bytes(operation: nn.Module, images: torch.Tensor) -> float:
    """Bytes that a forward pass of `operation` keeps for backward.

    Its weights do not count, nor its output, which the next block keeps if it needs it.
    """
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # without the graph, which would hold itself

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made = operation(images.clone().requires_grad_())
    for tensor in (made, *operation.state_dict().values()):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    return float(sum(kept.values()))


def _fitted(specimens: Sequence[_Specimen]) -> dict[str, dict[str, float]]:
    """The coefficients of everything that a block does."""
    weights = [specimen.weight for specimen in specimens]
    found = {}
    for activity in ("forward", "unrecorded"):
        rows = [specimen.row() for specimen in specimens]
        seconds = [specimen.seconds(activity) for specimen in specimens]
        found[activity] = _solved(rows, seconds, weights, BLOCK_UNITS)
    found["inputs"], found["weights"] = _fitted_backward(specimens)
    rows = [specimen.row(_KEEPING) for specimen in specimens]
    kept = _solved(rows, [specimen.kept_bytes for specimen in specimens], weights, _KEEPING)
    return {**found, "kept bytes": {**_zero("kept bytes"), **kept}}


def _fitted_backward(
    specimens: Sequence[_Specimen],
) -> tuple[dict[str, float], dict[str, float]]:
    """Coefficients of the inputs' gradients, and of what the weights' add to them."""
    nothing = [0.0] * len(BLOCK_UNITS)
    rows, seconds, weights = [], [], []
    for specimen in specimens:
        rows.append([*specimen.input_row(), *specimen.row()])
        seconds.append(specimen.seconds("backward"))
        weights.append(specimen.weight)
        if not specimen.is_first:
            rows.append([*specimen.input_row(), *nothing])
            seconds.append(specimen.seconds("inputs"))
            weights.append(specimen.weight)
    units = [(part, unit) for part in ("inputs", "weights") for unit in BLOCK_UNITS]
    solved = _solved(rows, seconds, weights, units)
    return (
        {unit: solved["inputs", unit] for unit in BLOCK_UNITS},
        {unit: solved["weights", unit] for unit in BLOCK_UNITS},
    )


def _solved(
    rows: Sequence[Sequence[float]],
    amounts: Sequence[float],
    weights: Sequence[float],
    units: Sequence[Unit],
) -> dict[Unit, float]:
    """Non-negative coefficients of `units` that give `amounts`, by least relative squares."""
    wanted = np.array(amounts)
    known = wanted > 0.0
    relative = np.array(rows)[known] / wanted[known, None]  # (n_rows, n_units)
    scale = np.maximum(relative.max(axis=0), 1e-300)
    importance = np.array(weights)[known]
    solution, _ = nnls(relative / scale * importance[:, None], importance)
    return dict(zip(units, (solution / scale).tolist(), strict=True))


def _left_out_error(specimens: Sequence[_Specimen], folds: int = 8) -> float:
    """Typical relative error of the seconds of blocks that were left out of the fit."""
    errors = []
    for fold in range(folds):
        found = _fitted([s for i, s in enumerate(specimens) if i % folds != fold])
        for specimen in specimens[fold::folds]:
            activities = ("forward", "inputs", "weights")
            predicted = sum(
                found[activity][unit] * amount
                for activity in activities
                for unit, amount in specimen.work.items()
                if not (activity == "inputs" and unit == "stem")
            )
            actual = specimen.seconds("forward") + specimen.seconds("backward")
            errors.append(abs(predicted / actual - 1.0))
    return median(errors)


def _zero(activity: str) -> dict[str, float]:
    return dict.fromkeys(UNITS[activity], 0.0)


# -- the loop around the network ---------------------------------------------------------


def _with_loop(profile: MachineProfile, steps: int) -> MachineProfile:
    """`profile` with what the loop around the network costs, read off real searches.

    What is left of a step when the network's share is taken off is the loop's: on the least
    of networks all of it is a constant; on a larger one the rest is put to its tensors.
    """
    micro, least = get_space("micro"), _least_space()
    step = {**_zero("step"), **_data_and_update(profile.device)}
    profile = _replaced(profile, step=step)
    alone = _step_seconds(least, profile.device, steps, warmup_only=True)
    step["call"] = max(0.0, alone - predict_step(_plan(least), profile).weights)
    profile = _replaced(profile, step=step)
    usual = _step_seconds(micro, profile.device, steps, warmup_only=True)
    rest = max(0.0, usual - predict_step(_plan(micro), profile).weights)
    both = _step_seconds(micro, profile.device, steps, warmup_only=False)
    step["logits"] = max(0.0, both - usual)
    ending = _step_seconds(micro, profile.device, steps // 2, warmup_only=True, epoch_steps=1)
    fixed, rows = micro.slot_costs(tensors)
    step["tensor"] = rest / (fixed + sum(map(mean, rows)))
    epoch = {"tensor": max(0.0, ending - usual) / (fixed + sum(map(sum, rows)))}
    return _replaced(profile, step=step, epoch=epoch)


def _replaced(profile: MachineProfile, **coefficients: dict[str, float]) -> MachineProfile:
    return replace(profile, coefficients={**profile.coefficients, **coefficients})


def _plan(space: SearchSpace, steps: int = 1) -> SearchPlan:
    return SearchPlan(space, 1, 1, _LOOP_BATCH, steps, steps, 1)


def _least_space() -> SearchSpace:
    """One decision between two small convolutions."""
    stem = BlockSpec(BlockKind.CONV, 3, 1, 1, 1, 8, 4)
    either = (
        BlockSpec(BlockKind.CONV, 1, 1, 1, 8, 8, 4),
        BlockSpec(BlockKind.CONV, 3, 1, 1, 8, 8, 4),
    )
    end = BlockSpec(BlockKind.CLASSIFIER, 1, 1, 1, 8, 10, 4)
    layers = Layer((stem,)), Layer(either, slot=0), Layer((end,))
    return SearchSpace("least", 1, 1, 4, 10, (Slot("only", ("k1", "k3")),), layers)


def _step_seconds(
    space: SearchSpace, device: str, steps: int, *, warmup_only: bool, epoch_steps: int = 0
) -> float:
    """Median seconds of a step of `run_search`; each ends an epoch if `epoch_steps` is 1."""
    data = _images(space.in_channels, space.resolution_px, (epoch_steps or steps + 1) * _LOOP_BATCH)
    ticks: list[float] = []

    def tick() -> bool:
        ticks.append(_now(torch.device(device)))
        return False

    config = SearchConfig(
        recipe=WeightRecipe(steps, 1, _LOOP_BATCH, learning_rate=1e-3),
        search_steps=steps,
        warmup_steps=steps - 1 if warmup_only else 0,
    )
    cost, rule = macs_cost(space), AugmentedLagrangian(equality=True)
    limit = Constraint("macs", cost, cost.offset + sum(map(mean, cost.table)), rule)
    with tempfile.TemporaryDirectory() as folder:

        def keep(event: SearchEvent) -> None:
            if isinstance(event, CheckpointReady):
                save_checkpoint(event.checkpoint, Path(folder) / "search.pt")

        run_search(space, config, data, [limit], device=device, report=keep, should_stop=tick)
    settled = ticks[len(ticks) // 4 : -1]  # the last step is no usual one
    return median(after - before for before, after in pairwise(settled))


def _images(channels: int, resolution_px: int, n: int) -> ImageDataset:
    shape = (n, channels, resolution_px, resolution_px)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=stream(0, "images"))
    labels = torch.arange(n) % 10
    return ImageDataset(
        name="noise",
        train_images=images,
        train_labels=labels,
        test_images=images[:1],
        test_labels=labels[:1],
        mean=(127.5,) * channels,
        std=(73.9,) * channels,
        n_classes=10,
        augmentation=Augmentation(shift_px=1, flip=channels == 3),
    )


def _data_and_update(device: str) -> dict[str, float]:
    """What a pixel of a batch takes, and a scalar among the weights."""
    data = _images(3, 32, 8 * _LOOP_BATCH).to(device)
    pixels = _LOOP_BATCH * 3 * 32**2
    drawing = _timed(device, lambda: data.training_batch(0, 0, _LOOP_BATCH))
    weight = nn.Linear(1024, 1024, bias=False, device=device)
    optimizer = WeightRecipe(1, 1).optimizer(weight)
    weight.weight.grad = torch.zeros_like(weight.weight)
    return {
        "pixel": drawing / pixels,
        "scalar": _timed(device, optimizer.step) / weight.weight.numel(),
    }


def _timed(device: str, run: Callable[[], object], times: int = 9) -> float:
    """Median seconds of `run`."""
    taken = []
    for _ in range(times):
        started = _now(torch.device(device))
        run()
        taken.append(_now(torch.device(device)) - started)
    return median(taken)


# -- a process of its own ----------------------------------------------------------------


def _start_up(modules: Sequence[str]) -> tuple[float, float, int]:
    """Seconds until a process has imported `modules`, then until it trains, and its memory."""
    started = perf_counter()
    ran = subprocess.run(
        [sys.executable, "-m", "search_core.calibration", *modules],
        stdout=subprocess.PIPE,
        check=True,
    )
    told = json.loads(ran.stdout)
    set_up_seconds = float(told["set_up_seconds"])
    return perf_counter() - started - set_up_seconds, set_up_seconds, int(told["resident_bytes"])


def _fresh_byte_seconds() -> float:
    """What a byte costs that the system has to provide first.

    It leaves the C library's allocator as it is some steps into a search: it has learnt from
    what was freed to keep it for what comes next.
    """
    block_seconds = []
    for _ in range(3):
        started = perf_counter()
        block = torch.empty(_LARGE_BYTES, dtype=torch.uint8).fill_(0)
        block_seconds.append(perf_counter() - started)
        del block
    return max(0.0, block_seconds[0] - min(block_seconds)) / _LARGE_BYTES


def main(modules: Sequence[str]) -> None:
    """Import `modules`, train one convolution, and print what that took."""
    for module in modules:
        importlib.import_module(module)
    started = perf_counter()
    specimen = _Specimen.of_block(BLOCKS[0][0], 1, "cpu")
    specimen.run()
    WeightRecipe(1, 1).optimizer(specimen.operation).step()  # what torch loads at first use
    told = {"set_up_seconds": perf_counter() - started, "resident_bytes": resident_bytes()}
    print(json.dumps(told))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
