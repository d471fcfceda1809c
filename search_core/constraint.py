"""The budget as part of the objective."""

from dataclasses import dataclass

import torch


@dataclass
class AugmentedLagrangian:
    """The constraint ``cost <= budget``, or ``cost = budget``, in its augmented Lagrangian form.

    With the relative violation ``c = cost / budget - 1`` the inequality (Powell, Hestenes and
    Rockafellar) adds ``(max(0, multiplier + rho c)^2 - multiplier^2) / (2 rho)``: under the
    budget the term fades to nothing, over it the multiplier rises until the budget is met. The
    equality adds ``multiplier c + rho c^2 / 2``, with a multiplier of either sign that also
    pulls an architecture up to its budget. Either way no price has to be guessed.

    Attributes:
        budget: in the unit of the cost.
        rho: curvature; also the step of the multiplier.
        equality: spend the budget instead of merely keeping it.
        multiplier: the current price of one relative unit of violation.
    """

    budget: float
    rho: float = 1.0
    equality: bool = False
    multiplier: float = 0.0

    def __post_init__(self) -> None:
        if not self.budget > 0.0:
            raise ValueError(f"a budget is greater than 0, got {self.budget:g}")

    def penalty(self, expected: torch.Tensor) -> torch.Tensor:
        """What to add to the loss, a scalar differentiable in the expected cost."""
        violation = expected / self.budget - 1.0
        if self.equality:
            return self.multiplier * violation + 0.5 * self.rho * violation.square()
        active = torch.clamp(self.multiplier + self.rho * violation, min=0.0)
        return (active.square() - self.multiplier**2) / (2.0 * self.rho)

    def update(self, cost: float) -> None:
        """The outer step: move the multiplier by the violation of the current architecture."""
        moved = self.multiplier + self.rho * (cost / self.budget - 1.0)
        self.multiplier = moved if self.equality else max(0.0, moved)
