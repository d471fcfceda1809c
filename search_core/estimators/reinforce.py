"""The score function: unbiased for any objective, differentiable or not."""

import torch

from search_core.data.dataset import Batch
from search_core.estimators.base import (
    Estimate,
    Objective,
    Paths,
    Stateless,
    one_hot,
    sample_path,
    undecided,
)
from search_core.nn.batch_norm import batch_statistics_only


class Reinforce(Stateless):
    """REINFORCE with a leave-one-out baseline (ProxylessNAS section 3.3.2; Kool et al. 2019).

    `samples` paths are evaluated on the same images; each one's objective is compared with
    the mean of the others, ``(1 / M) sum_m (f_m - b_m) (onehot(s_m) - p)``. Unbiased for any
    objective: the loss by default, or the reward that a constraint defines.
    """

    name = "reinforce"
    trains_weights = False
    alpha_betas = (0.0, 0.999)

    def __init__(self, *, samples: int = 8) -> None:
        self._samples = samples

    def estimate(
        self,
        supernet: Paths,
        probabilities: torch.Tensor,
        batch: Batch,
        label_smoothing: float,
        generator: torch.Generator,
        *,
        progress: float = 0.0,  # noqa: ARG002
        objective: Objective | None = None,
    ) -> Estimate:
        """See `Estimator.estimate`."""
        paths = [sample_path(probabilities, generator) for _ in range(self._samples)]
        outcomes = []
        with torch.no_grad():
            for path in paths:
                with batch_statistics_only(*supernet.operations(path)):
                    scores = supernet(batch.images, path)  # (B, n_classes)
                right = (scores.argmax(dim=1) == batch.labels).to(scores).mean()
                outcomes.append(torch.stack([batch.loss(scores, label_smoothing), right]))
        losses, rights = torch.stack(outcomes, dim=1).cpu().tolist()
        values = losses
        if objective is not None:
            values = [objective(*one) for one in zip(paths, losses, rights, strict=True)]
        objectives = torch.tensor(values, dtype=probabilities.dtype)
        others = (objectives.sum() - objectives) / max(1, self._samples - 1)
        advantages = objectives - others
        gradient = torch.zeros_like(probabilities)
        searched = undecided(probabilities)
        for path, advantage in zip(paths, advantages, strict=True):
            score = one_hot(path, probabilities) - probabilities
            gradient[searched] += advantage * score[searched] / self._samples
        return Estimate(paths[0], gradient, losses[0], advantages.abs().mean().item())
