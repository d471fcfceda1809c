"""Straight-through Gumbel-softmax on one path."""

import torch

from search_core.data.dataset import Batch
from search_core.estimators.base import (
    Estimate,
    Objective,
    Paths,
    Stateless,
    one_hot,
)
from search_core.estimators.dsnas import gate_costs


class StraightThroughGumbel(Stateless):
    """Hard one-hot forward, gradient through ``softmax((ln p + G) / tau)`` (GDAS).

    The published code adds the zero-valued gates of the other candidates to the feature map,
    which feeds each of them the sum of the layer's gradient as if its output were all ones;
    here they are never touched. The gradient is ``(p~_s / tau) (delta_js - p~_j) c`` with c
    the cost of DSNAS. The temperature falls linearly over the search.
    """

    name = "gumbel"
    trains_weights = True
    alpha_betas = (0.5, 0.999)

    def __init__(self, *, tau_start: float = 5.0, tau_end: float = 0.5) -> None:
        self._tau = (tau_start, tau_end)

    def estimate(
        self,
        supernet: Paths,
        probabilities: torch.Tensor,
        batch: Batch,
        label_smoothing: float,
        generator: torch.Generator,
        *,
        progress: float = 0.0,
        objective: Objective | None = None,  # noqa: ARG002
    ) -> Estimate:
        """See `Estimator.estimate`."""
        tau = self._tau[0] + progress * (self._tau[1] - self._tau[0])
        exponential = torch.empty_like(probabilities).exponential_(generator=generator)
        perturbed = probabilities.log() - exponential.log()  # ln p + Gumbel noise
        choices = tuple(perturbed.argmax(dim=1).tolist())
        soft = (perturbed / tau).softmax(dim=1)
        loss, costs = gate_costs(supernet, choices, batch, label_smoothing)
        costs = costs.to(probabilities)
        chosen = one_hot(choices, probabilities)
        weight = (soft * chosen).sum(dim=1, keepdim=True) / tau
        gradient = costs[:, None] * weight * (chosen - soft)
        return Estimate(choices, gradient, loss, costs.abs().mean().item())
