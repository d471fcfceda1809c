"""DSNAS: architecture and weights by one backward pass through one path.

Hu et al., "DSNAS: Direct Neural Architecture Search without Parameter Retraining", 2020.
"""

import torch
from torch.nn.functional import cross_entropy

from search_core.data.dataset import Batch
from search_core.estimators.base import Estimate, sample_path
from search_core.nn.supernet import Supernet


class DSNAS:
    """The low-biased single-path estimator (equation 9 of the paper).

    A gate of value 1 multiplies the chosen operation's output of each slot. Its gradient
    ``c_l = <dL/dy_l, y_l>`` is the cost of that choice, and the estimate of slot l is
    ``c_l (onehot(s_l) - p_l)``. Exact in expectation where the loss is affine in each
    operation's output, d times the gradient where it is homogeneous of degree d; otherwise
    biased.

    A running mean of each slot's cost is subtracted from it: the expectation stays what it
    was, because the score ``onehot - p`` has mean zero, and the variance falls by the
    square of that mean.
    """

    name = "dsnas"
    _BASELINE_DECAY = 0.95

    def __init__(self) -> None:
        self._baseline = torch.zeros(())  # (n_slots,) after the first step

    def estimate(
        self,
        supernet: Supernet,
        probabilities: torch.Tensor,
        batch: Batch,
        label_smoothing: float,
        generator: torch.Generator,
    ) -> Estimate:
        """See `Estimator.estimate`."""
        choices = sample_path(probabilities, generator)
        gates = torch.ones(len(choices), requires_grad=True)  # (n_slots,)
        scores = supernet(batch.images, choices, gates)  # (B, n_classes)
        loss = cross_entropy(scores, batch.labels, label_smoothing=label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        costs = torch.zeros_like(gates) if gates.grad is None else gates.grad  # None: all Zero
        costs = costs.to(probabilities.dtype)
        chosen = torch.zeros_like(probabilities)
        chosen[torch.arange(len(choices)), torch.tensor(choices)] = 1.0
        gradient = (costs - self._baseline)[:, None] * (chosen - probabilities)
        self._baseline = costs + self._BASELINE_DECAY * (self._baseline - costs)
        return Estimate(choices, gradient, loss.item(), costs.abs().mean().item())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """See `Estimator.state_dict`."""
        return {"baseline": self._baseline}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """See `Estimator.load_state_dict`."""
        self._baseline = state["baseline"]
