"""Training a decided network: a DSNAS child that goes on, or any architecture from scratch."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from search_core.checkpoints import Checkpoint
from search_core.data.dataset import ImageDataset
from search_core.errors import NonFiniteLossError, SearchInterrupted
from search_core.events import CheckpointReady, Progress, Report, ShouldStop, ignore, never
from search_core.nn.network import Network


@dataclass(frozen=True)
class WeightRecipe:
    """How weights are trained; the search and what follows it share one schedule.

    Attributes:
        total_steps: length of the cosine schedule, over every phase together.
        warmup_steps: linear rise of the rate from nothing.
        learning_rate: at the top of the schedule.
        weight_decay: none on BatchNorm and biases, as in the DSNAS code.
    """

    total_steps: int
    warmup_steps: int
    batch_size: int = 64
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 4e-5
    label_smoothing: float = 0.1

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
        return torch.optim.SGD(groups, lr=self.learning_rate, momentum=self.momentum)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def fingerprint(*settings: object) -> str:
    """A digest of plain settings, to tell one run's checkpoints from another's."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def check_finite(loss: float, step: int) -> None:
    """Raises NonFiniteLossError when `loss` is NaN or infinite."""
    if not math.isfinite(loss):
        raise NonFiniteLossError(f"the loss is {loss} at step {step}; lower the learning rate")


def train_network(
    network: Network,
    data: ImageDataset,
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
        resume: a checkpoint of this very run.

    Raises:
        SearchInterrupted: `should_stop` said so; a checkpoint was reported just before.
        NonFiniteLossError: the loss is not a number any more.
        CheckpointError: `resume` belongs to another run.
    """
    identity = fingerprint(
        [str(block) for block in network.blocks], data.name, asdict(recipe), seed, start_step
    )
    optimizer = recipe.optimizer(network)
    step = start_step
    if resume is not None:
        resume.expect("train", identity)
        network.load_state_dict(resume.state["network"])
        optimizer.load_state_dict(resume.state["optimizer"])
        step = resume.step

    def checkpoint() -> CheckpointReady:
        state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
        return CheckpointReady(Checkpoint("train", step, identity, state))

    n_steps = recipe.total_steps - start_step
    epoch_steps = data.steps_per_epoch(recipe.batch_size)
    network.train()
    while step < recipe.total_steps:
        batch = data.training_batch(seed, step, recipe.batch_size)
        set_rate(optimizer, recipe.rate_at(step))
        optimizer.zero_grad()
        loss = cross_entropy(
            network(batch.images), batch.labels, label_smoothing=recipe.label_smoothing
        )
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1

        if step % epoch_steps == 0 or step == recipe.total_steps:
            check_finite(loss.item(), step)
            metrics: Mapping[str, float] = {"train_loss": loss.item()}
            report(Progress("training", step - start_step, n_steps, metrics))
            report(checkpoint())
        if should_stop():
            report(checkpoint())
            raise SearchInterrupted(f"stopped after training step {step}")
    recalibrate_batch_norm(network, data)


@torch.no_grad()
def recalibrate_batch_norm(network: nn.Module, data: ImageDataset, batch_size: int = 256) -> None:
    """Replace running statistics by their plain average over batches of all training images.

    Statistics gathered while many paths shared a layer describe none of them.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    network.train()
    for images in torch.split(data.train_images, batch_size):
        network(data.normalise(images))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, data: ImageDataset, *, batch_size: int = 256) -> float:
    """Share of held-out test images that `network` labels rightly, in [0, 1]."""
    network.eval()
    right = 0
    batches = zip(
        torch.split(data.test_images, batch_size),
        torch.split(data.test_labels, batch_size),
        strict=True,
    )
    for images, labels in batches:
        right += int((network(data.normalise(images)).argmax(1) == labels).sum())
    return right / len(data.test_labels)
