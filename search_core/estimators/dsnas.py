"""DSNAS: architecture and weights by one backward pass through one path.

Hu et al., "DSNAS: Direct Neural Architecture Search without Parameter Retraining", 2020.
"""

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

_BASELINE_DECAY = 0.95


class DSNAS(Stateless):
    """The low-biased single-path estimator (equation 9 of the paper).

    A gate of value 1 multiplies the chosen operation's output of each slot. Its gradient
    ``c_l = <dL/dy_l, y_l>`` is the cost of that choice, and the estimate of slot l is
    ``c_l (onehot(s_l) - p_l)``. Exact in expectation where the loss is affine in each
    operation's output, d times the gradient where it is homogeneous of degree d; otherwise
    biased.

    Args:
        baseline: subtract a running mean of each slot's cost from it. The expectation stays
            what it was, because the score ``onehot - p`` has mean zero, and the variance
            falls by the square of that mean.
    """

    name = "dsnas"
    trains_weights = True
    alpha_betas = (0.5, 0.999)

    def __init__(self, *, baseline: bool = True) -> None:
        self._decay = _BASELINE_DECAY if baseline else None
        self._baseline = torch.zeros(())  # (n_slots,) after the first step

    def estimate(
        self,
        supernet: Paths,
        probabilities: torch.Tensor,
        batch: Batch,
        label_smoothing: float,
        generator: torch.Generator,
        *,
        progress: float = 0.0,  # noqa: ARG002
        objective: Objective | None = None,  # noqa: ARG002
    ) -> Estimate:
        """See `Estimator.estimate`."""
        choices = sample_path(probabilities, generator)
        loss, costs = gate_costs(supernet, choices, batch, label_smoothing)
        costs = costs.to(probabilities)
        gradient = (costs - self._baseline)[:, None] * (
            one_hot(choices, probabilities) - probabilities
        )
        if self._decay is not None:
            self._baseline = costs + self._decay * (self._baseline - costs)
        return Estimate(choices, gradient, loss, costs.abs().mean().item())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """See `Estimator.state_dict`."""
        return {"baseline": self._baseline}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """See `Estimator.load_state_dict`."""
        self._baseline = state["baseline"]


class PathIntegratedDSNAS(Stateless):
    """DSNAS with the gate of one slot at a random height instead of 1.

    The cost of DSNAS is the slope of the loss at the full output, a poor stand-in for what
    the operation is worth: for a convex loss it is never below ``L(o) - L(0)``, and at a
    trained scale it is near zero or positive where nothing at all costs exactly zero. But
    ``L(o) - L(0)`` is the integral over t in (0, 1) of ``<dL/dy at t o, o>``. So each step
    one slot is drawn and its gate set to t ~ U(0, 1); the estimate of that slot is unbiased
    whatever the loss, in one path and one backward pass. It is multiplied by the number of
    slots it was drawn from, so that the whole gradient is unbiased.

    The heights are stratified: n visits of a slot fall once into each n-th of (0, 1). A
    running mean of each slot's cost is subtracted as in `DSNAS`. The weights of the drawn
    slot learn under its gate, all others as ever.
    """

    name = "dsnas_path_integrated"
    trains_weights = True
    alpha_betas = (0.5, 0.999)
    _STRATA = 8

    def __init__(self) -> None:
        self._baseline = torch.zeros(())  # (n_slots,) after the first step
        self._visits = torch.zeros((), dtype=torch.int64)  # likewise

    def estimate(
        self,
        supernet: Paths,
        probabilities: torch.Tensor,
        batch: Batch,
        label_smoothing: float,
        generator: torch.Generator,
        *,
        progress: float = 0.0,  # noqa: ARG002
        objective: Objective | None = None,  # noqa: ARG002
    ) -> Estimate:
        """See `Estimator.estimate`."""
        n_slots = len(probabilities)
        if self._visits.ndim == 0:
            self._baseline = probabilities.new_zeros(n_slots)
            self._visits = torch.zeros(n_slots, dtype=torch.int64)
        choices = sample_path(probabilities, generator)
        candidates = undecided(probabilities)
        heights = probabilities.new_ones(n_slots)
        slot = None
        if candidates:
            slot = candidates[int(torch.randint(len(candidates), (), generator=generator))]
            stratum = int(self._visits[slot]) % self._STRATA
            draw = torch.rand((), generator=generator).item()
            heights[slot] = (stratum + draw) / self._STRATA
        loss, costs = gate_costs(supernet, choices, batch, label_smoothing, heights)
        gradient = torch.zeros_like(probabilities)
        signal = 0.0
        if slot is not None:
            cost = costs[slot].to(probabilities)
            score = one_hot(choices, probabilities)[slot] - probabilities[slot]
            gradient[slot] = len(candidates) * (cost - self._baseline[slot]) * score
            self._visits[slot] += 1
            self._baseline[slot] += (1.0 - _BASELINE_DECAY) * (cost - self._baseline[slot])
            signal = abs(float(cost))
        return Estimate(choices, gradient, loss, signal)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """See `Estimator.state_dict`."""
        return {"baseline": self._baseline.clone(), "visits": self._visits.clone()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """See `Estimator.load_state_dict`."""
        self._baseline, self._visits = state["baseline"].clone(), state["visits"].clone()


def gate_costs(
    supernet: Paths,
    choices: tuple[int, ...],
    batch: Batch,
    label_smoothing: float,
    heights: torch.Tensor | None = None,
) -> tuple[float, torch.Tensor]:
    """One forward and one backward pass of a path, with a gate at each slot.

    Args:
        heights: (n_slots,), values of the gates; ones when None.

    Returns:
        The loss, and ``c_l = <dL/dy_l, o_l>`` of every slot, (n_slots,): the gradient of its
        gate. The weights' gradients are left in ``.grad``.
    """
    values = torch.ones(len(choices)) if heights is None else heights
    gates = values.to(batch.images, copy=True).requires_grad_()  # (n_slots,)
    loss = batch.loss(supernet(batch.images, choices, gates), label_smoothing)
    loss.backward()  # type: ignore[no-untyped-call]
    costs = torch.zeros_like(gates) if gates.grad is None else gates.grad  # None: all Zero
    return loss.item(), costs.cpu()
