"""The steps that a search is made of; `search_core.search.run_search` says when which is taken."""

from dataclasses import dataclass

import torch

from search_core.config import SearchConfig
from search_core.data.dataset import Batch
from search_core.estimators.base import Estimate, Estimator, Objective, backward, sample_path
from search_core.nn.supernet import ALL, Supernet
from search_core.path_sgd import PathSGD
from search_core.randomness import stream


@dataclass(frozen=True)
class Steps:
    """One step each of the weights, of weights and logits together, and of the logits.

    Every one runs a single path, and what it draws is a function of (seed, step). A step of
    the weights never waits for the device; each of the others does once, for one vector.

    Attributes:
        objective: what the logits minimise in place of the loss, for REINFORCE.
    """

    config: SearchConfig
    supernet: Supernet
    estimator: Estimator
    weights: PathSGD
    objective: Objective | None = None

    def train(self, batch: Batch, p: torch.Tensor, step: int, rate: float) -> torch.Tensor:
        """A step of the weights alone; returns the loss, a scalar on the device.

        Args:
            p: (n_slots, n_candidates) float64, what the path is drawn from.
            rate: learning rate.
        """
        path = self._path(p, step)
        recipe = self.config.recipe
        with recipe.autocast(batch.images.device):
            loss = batch.loss(self.supernet(batch.images, path), recipe.label_smoothing)
        loss = backward(loss)
        self.weights.step(path, rate)
        return loss

    def train_and_search(self, batch: Batch, p: torch.Tensor, step: int, rate: float) -> Estimate:
        """A step of the weights whose backward pass serves the logits as well (single level)."""
        estimate = self._estimate(batch, p, step, "path", self.config.recipe.label_smoothing)
        self.weights.step(estimate.choices, rate)
        return estimate

    def search(self, batch: Batch, p: torch.Tensor, step: int) -> Estimate:
        """A step of the logits alone, on held-out images and plain cross-entropy (two levels)."""
        return self._estimate(batch, p, step, "alpha", 0.0)

    def _estimate(
        self, batch: Batch, p: torch.Tensor, step: int, purpose: str, label_smoothing: float
    ) -> Estimate:
        with self.config.recipe.autocast(batch.images.device):
            return self.estimator.estimate(
                self.supernet,
                p,
                batch,
                label_smoothing,
                stream(self.config.seed, purpose, step),
                progress=step / self.config.search_steps,
                objective=self.objective,
            )

    def _path(self, p: torch.Tensor, step: int) -> tuple[int, ...]:
        """The path of a step of the weights; `ALL` where a slot runs every candidate."""
        generator = stream(self.config.seed, "path", step)
        path = sample_path(p, generator)
        warmup_steps = self.config.warmup_steps
        if step >= warmup_steps or not self.config.operation_warmup:
            return path
        together = torch.rand(len(path), generator=generator) < 1.0 - step / warmup_steps
        return tuple(ALL if t else k for t, k in zip(together.tolist(), path, strict=True))
