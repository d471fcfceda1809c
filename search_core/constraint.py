"""The budget as part of the objective."""

from dataclasses import dataclass

import torch


@dataclass
class AugmentedLagrangian:
    """Inequality constraint ``cost <= budget`` in the Powell-Hestenes-Rockafellar form.

    With the relative violation ``c = cost / budget - 1`` the objective gains
    ``(max(0, multiplier + rho c)^2 - multiplier^2) / (2 rho)``, whose weight on ``c`` is
    ``max(0, multiplier + rho c)``. Under the budget the term fades to nothing; over it the
    multiplier rises until the budget is met, so no price has to be guessed.

    Attributes:
        budget: in the unit of the cost.
        rho: curvature; also the step of the multiplier.
        multiplier: the current price of one relative unit of violation, at least 0.
    """

    budget: float
    rho: float = 1.0
    multiplier: float = 0.0

    def penalty(self, expected: torch.Tensor) -> torch.Tensor:
        """What to add to the loss, a scalar differentiable in the expected cost."""
        violation = expected / self.budget - 1.0
        active = torch.clamp(self.multiplier + self.rho * violation, min=0.0)
        return (active.square() - self.multiplier**2) / (2.0 * self.rho)

    def update(self, cost: float) -> None:
        """The outer step: move the multiplier by the violation of the current architecture."""
        violation = cost / self.budget - 1.0
        self.multiplier = max(0.0, self.multiplier + self.rho * violation)
