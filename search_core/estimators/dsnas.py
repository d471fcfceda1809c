"""DSNAS: architecture and weights by one backward pass through one path.

Hu et al., "DSNAS: Direct Neural Architecture Search without Parameter Retraining", 2020.
"""

from collections.abc import Mapping

import torch

from search_core.data.dataset import Batch
from search_core.estimators.base import (
    Estimate,
    Objective,
    Paths,
    Stateless,
    backward,
    one_hot,
    sample_path,
    undecided,
)
from search_core.nn.gates import gate_gradients

_BASELINE_DECAY = 0.95


class DSNAS(Stateless):
    """The low-biased single-path estimator (equation 9 of the paper).

    A gate of value 1 multiplies the chosen operation's output of each slot; where that output
    is proportional to weights it need not even be there (`gate_costs`). Its gradient
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
        heights: dict[int, float] = {}
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
    heights: Mapping[int, float] | None = None,
) -> tuple[float, torch.Tensor]:
    """One forward and one backward pass of a path, as if with a gate at each slot.

    A gate really stands only where its value is not 1. Elsewhere the gradients of the weights
    tell what it would, or, where the output is not proportional to any, a look at it in backward.

    Args:
        heights: slot -> value of its gate, and no other slot's cost is asked for; ones, and
            the costs of all slots, when None.

    Returns:
        The loss, and ``c_l = <dL/dy_l, o_l>`` of the slots asked for, (n_slots,) on the CPU:
        the gradient of its gate. The weights' gradients are left in ``.grad``.
    """
    if heights is not None:
        return _costs_at(heights, supernet, choices, batch, label_smoothing)
    told = supernet.output_parameters(choices)
    owned = [(w, slot) for slot, of_slot in enumerate(told) for w in of_slot or ()]
    parameters, owners = [w for w, _ in owned], [slot for _, slot in owned]
    earlier = [w.grad for w in parameters]
    for w in parameters:
        w.grad = None
    looked_at = [(k,) if told[slot] is None else () for slot, k in enumerate(choices)]
    gates = None
    if any(looked_at):
        gates = batch.images.new_zeros(len(choices), 1 + max(choices), requires_grad=True)
    rows = None if gates is None else gates.unbind()
    seen = None if gates is None else looked_at

    loss = backward(batch.loss(supernet(batch.images, choices, rows, seen), label_smoothing))

    costs = loss.new_zeros(len(choices))
    gate_gradients(parameters, [w.grad for w in parameters], owners, out=costs)
    if gates is not None and gates.grad is not None:
        costs += gates.grad.sum(dim=1)
    for w, gradient in zip(parameters, earlier, strict=True):
        if gradient is not None:  # as autograd does
            w.grad = gradient if w.grad is None else gradient + w.grad
    return fetched(loss, costs)


def _costs_at(
    heights: Mapping[int, float],
    supernet: Paths,
    choices: tuple[int, ...],
    batch: Batch,
    label_smoothing: float,
) -> tuple[float, torch.Tensor]:
    gates: list[torch.Tensor | None] = [None] * len(choices)
    for slot, height in heights.items():
        gates[slot] = batch.images.new_full((), height, requires_grad=True)
    loss = backward(batch.loss(supernet(batch.images, choices, gates), label_smoothing))
    costs = loss.new_zeros(len(choices))
    for slot, gate in enumerate(gates):
        if gate is not None and gate.grad is not None:  # None: nothing reads the output
            costs[slot] = gate.grad
    return fetched(loss, costs)


def fetched(loss: torch.Tensor, values: torch.Tensor) -> tuple[float, torch.Tensor]:
    """A loss and what belongs to it, on the host by one transfer."""
    if loss.device.type == "cpu":
        return loss.item(), values
    together = torch.cat([loss.detach()[None], values.flatten().to(loss)]).cpu()
    return together[0].item(), together[1:].view(values.shape)
