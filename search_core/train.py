"""Training a decided network: a DSNAS child that goes on, or any architecture from scratch."""

import copy
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Literal

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from search_core.checkpoints import Checkpoint, KeptCheckpoint
from search_core.data.dataset import Batch, Dataset
from search_core.errors import NonFiniteLossError, SearchInterrupted
from search_core.events import (
    CheckpointReady,
    Notice,
    Progress,
    Report,
    ShouldStop,
    ignore,
    never,
    remaining_seconds,
)
from search_core.memory import explain_out_of_memory, with_room
from search_core.nn.network import Network
from search_core.randomness import stream

_FUSED = frozenset({"cpu", "cuda", "mps", "xpu"})
"""Devices on which one kernel can take the whole step of the optimiser."""


@dataclass(frozen=True)
class WeightRecipe:
    """How weights are trained; the search and what follows it share one schedule.

    Attributes:
        total_steps: length of the cosine schedule, over every phase together.
        warmup_steps: linear rise of the rate from nothing.
        learning_rate: at the top of the schedule.
        weight_decay: none on BatchNorm and biases, as in the DSNAS code.
        dropout: before the classifier, of decided networks; supernets are searched without.
        ema_decay: a decided network ends with the exponential moving average of its weights
            instead of the last ones; the decay rises to this value over the first steps.
            None keeps the last ones.
        gradient_clip: largest norm of the gradient of a decided network's weights.
        max_rollbacks: how often a loss that is not finite sends training back to its last
            checkpoint, at half the rate, before it is given up.
        precision: of convolutions and what lies between them; weights, their momenta,
            statistics and logits are float32 whatever it is. bfloat16 halves the memory and
            is for GPUs; on the CPUs measured it is slower.
    """

    total_steps: int
    warmup_steps: int
    batch_size: int = 64
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 4e-5
    label_smoothing: float = 0.1
    nesterov: bool = False
    dropout: float = 0.0
    ema_decay: float | None = None
    gradient_clip: float | None = None
    max_rollbacks: int = 3
    precision: Literal["float32", "bfloat16"] = "float32"

    @classmethod
    def proxyless(cls, epochs: int, epoch_steps: int, batch_size: int = 256) -> "WeightRecipe":
        """ProxylessNAS's training of derived networks: 300 epochs as published, scaled here.

        SGD with Nesterov momentum 0.9, a cosine from 0.05 for each 256 images, no decay on
        BatchNorm, label smoothing 0.1, dropout 0.1 (its mobile network), five warm-up epochs
        of 300. The published colour jitter is the data's affair
        (`search_core.data.augmentation`); the moving average is ours.
        """
        steps = epochs * epoch_steps
        return cls(
            total_steps=steps,
            warmup_steps=max(1, steps // 60),
            batch_size=batch_size,
            learning_rate=0.05 * batch_size / 256,
            nesterov=True,
            dropout=0.1,
            ema_decay=0.9999,
        )

    def rate_at(self, step: int) -> float:
        """Learning rate of `step`, counted from the start of the whole schedule."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return 0.5 * self.learning_rate * (1.0 + math.cos(math.pi * min(1.0, done)))

    def optimizer(self, module: nn.Module) -> torch.optim.SGD:
        """SGD with momentum; weights whose gradient is None are left alone."""
        decayed = [p for p in module.parameters() if p.ndim > 1]
        plain = [p for p in module.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        return torch.optim.SGD(
            groups,
            lr=self.learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            fused=all(p.device.type in _FUSED for p in module.parameters()),
        )

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Within it forward passes on `device` are in the recipe's precision."""
        if self.precision == "float32":
            return nullcontext()
        # a cast made without gradients, for a comparison, must not serve the pass that learns
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def all_finite(module: nn.Module) -> bool:
    """Whether no weight and no statistic of `module` is NaN or infinite."""
    return all(bool(tensor.isfinite().all()) for tensor in module.state_dict().values())


def fingerprint(*settings: object) -> str:
    """A digest of plain settings, to tell one run's checkpoints from another's."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def train_network(
    network: Network,
    data: Dataset,
    recipe: WeightRecipe,
    *,
    seed: int,
    start_step: int = 0,
    report: Report = ignore,
    should_stop: ShouldStop = never,
    resume: Checkpoint | None = None,
) -> None:
    """Train `network` in place from `start_step` to the end of the recipe's schedule.

    A DSNAS child starts where its search stopped (its second phase: inherited weights, the
    same cosine); a network trained from scratch starts at 0. BatchNorm statistics are
    recalibrated at the end.

    Args:
        seed: decides batch order and augmentation.
        report: hears progress and a checkpoint after every epoch.
        should_stop: asked after every step.
        resume: a checkpoint of this very run, as in `search_core.search.run_search`.

    Raises:
        SearchInterrupted: `should_stop` said so; a checkpoint was reported just before.
        NonFiniteLossError: the loss is not a number any more, however low the rate.
        OutOfMemoryError: a step does not fit; it names a batch size that does.
        CheckpointError: `resume` belongs to another run.
    """
    identity = fingerprint(
        [[str(block) for block in network.blocks], network.graph.edges],
        data.digest,
        asdict(data.augmentation),
        asdict(recipe),
        seed,
        start_step,
    )
    optimizer = recipe.optimizer(network)
    average = None if recipe.ema_decay is None else _moving_average(network, recipe.ema_decay)
    set_dropout(network, recipe.dropout)
    step, rollbacks = start_step, 0

    def checkpoint() -> Checkpoint:
        state = {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "average": None if average is None else average.state_dict(),
            "rollbacks": rollbacks,
        }
        return Checkpoint("train", step, identity, state)

    def restore(saved: Checkpoint) -> int:
        network.load_state_dict(saved.state["network"])
        optimizer.load_state_dict(copy.deepcopy(saved.state["optimizer"]))
        if average is not None:
            average.load_state_dict(saved.state["average"])
        return saved.step

    def backward(batch: Batch) -> torch.Tensor:
        optimizer.zero_grad()
        device = batch.images.device
        with _dropout_draws(recipe, seed, step, device), recipe.autocast(device):
            loss = batch.loss(network(batch.images), recipe.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def rehearsal(batch_size: int) -> None:
        backward(data.plain_batch(seed, 0, with_room(batch_size, data.n_train)))

    if resume is not None:
        resume.expect("train", identity)
        step, rollbacks = restore(resume), int(resume.state["rollbacks"])
    last_good = KeptCheckpoint(checkpoint())

    n_steps = recipe.total_steps - start_step
    epoch_steps = data.steps_per_epoch(recipe.batch_size)
    started, first_step = perf_counter(), step
    network.train()
    while step < recipe.total_steps:
        with explain_out_of_memory(recipe.batch_size, rehearsal):
            loss = backward(data.training_batch(seed, step, recipe.batch_size))
        set_rate(optimizer, recipe.rate_at(step) * 0.5**rollbacks)
        if recipe.gradient_clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), recipe.gradient_clip)
        optimizer.step()
        if average is not None:
            average.update_parameters(network)
        step += 1

        if step % epoch_steps == 0 or step == recipe.total_steps:
            train_loss = loss.item()
            # a loss that was not finite has spoilt the weights: back to the last checkpoint,
            # at half the rate
            if not (math.isfinite(train_loss) and all_finite(network)):
                trouble = "a weight is not finite"
                if not math.isfinite(train_loss):
                    trouble = f"the loss is {train_loss}"
                rollbacks += 1
                if rollbacks > recipe.max_rollbacks:
                    raise NonFiniteLossError(
                        f"{trouble} at step {step}, after {recipe.max_rollbacks} rollbacks "
                        f"at ever lower rates; lower the learning rate of {recipe.learning_rate:g}"
                    )
                report(Notice("rollback", f"{trouble} at step {step}; back to {last_good.step}"))
                step = restore(last_good.read())
                continue
            metrics: Mapping[str, float] = {"train_loss": train_loss}
            left = remaining_seconds(started, first_step, step, recipe.total_steps)
            report(Progress("training", step - start_step, n_steps, metrics, left))
            last_good = KeptCheckpoint(checkpoint())
            report(CheckpointReady(checkpoint()))
        if should_stop():
            report(CheckpointReady(checkpoint() if all_finite(network) else last_good.read()))
            raise SearchInterrupted(f"stopped after training step {step}")
    if average is not None:
        network.load_state_dict(average.module.state_dict())
    set_dropout(network, 0.0)
    recalibrate_batch_norm(network, data, min(recipe.batch_size, 256))  # which fits


def set_dropout(network: nn.Module, probability: float) -> None:
    """Give the classifier of `network` this dropout."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability


@contextmanager
def _dropout_draws(
    recipe: WeightRecipe, seed: int, step: int, device: torch.device
) -> Iterator[None]:
    """Dropout draws from torch's global generators; make them a function of (seed, step)."""
    if recipe.dropout == 0.0:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(stream(seed, "dropout", step).initial_seed())
        yield


def _moving_average(network: Network, decay: float) -> AveragedModel:
    def average(mean: torch.Tensor, new: torch.Tensor, n: torch.Tensor | int) -> torch.Tensor:
        updates = float(n)
        return mean + (1.0 - min(decay, (1.0 + updates) / (10.0 + updates))) * (new - mean)

    return AveragedModel(network, avg_fn=average)


@torch.no_grad()
def recalibrate_batch_norm(network: nn.Module, data: Dataset, batch_size: int = 256) -> None:
    """Replace running statistics by their plain average over batches of all training images.

    Statistics gathered while many paths shared a layer describe none of them. One image left
    over is passed over: it may have a single pixel at the end, which has no variance.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    network.train()
    for batch in data.train_batches(batch_size):
        if len(batch.labels) > 1:
            network(batch.images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


@torch.no_grad()
def right_labels(network: nn.Module, data: Dataset, *, batch_size: int = 256) -> torch.Tensor:
    """Which held-out test images `network` labels rightly; (n_test,) bool, on the CPU."""
    network.eval()
    right = [
        (network(batch.images).argmax(1) == batch.labels).cpu()
        for batch in data.test_batches(batch_size)
    ]
    return torch.cat(right)


@torch.no_grad()
def accuracy(network: nn.Module, data: Dataset, *, batch_size: int = 256) -> float:
    """Share of held-out test images that `network` labels rightly, in [0, 1]."""
    return right_labels(network, data, batch_size=batch_size).double().mean().item()
