"""What an architecture costs, exactly and in expectation."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from search_core.space.blocks import BlockSpec
from search_core.space.space import Architecture, SearchSpace


class DifferentiableCost(Protocol):
    """A cost that a gradient search can be charged.

    Guarantees of every implementation:

    - `expected(one_hot(a)) == exact(a)`;
    - `expected(P)` equals the mean of `exact(a)` over architectures drawn from `P`, slot by
      slot independently, and is differentiable in `P`: no sampling, no variance;
    - both are in `unit`, and both are pure.
    """

    @property
    def unit(self) -> str:
        """The unit of every value, for example ``ms`` or ``MAC``."""
        ...

    def expected(self, probabilities: torch.Tensor) -> torch.Tensor:
        """The mean cost, a float64 scalar, of architectures drawn from `probabilities`.

        Args:
            probabilities: (n_slots, n_candidates) float64; rows sum to 1, absent
                candidates have probability 0.
        """
        ...

    def exact(self, architecture: Architecture) -> float:
        """The cost of one architecture."""
        ...


class SeparableCost:
    """A cost that is a constant plus one term a slot; the knapsack decode needs this form.

    Args:
        offset: cost of everything that no slot decides.
        table: ``table[l][k]``, the cost of candidate k of slot l; rows may differ in length.
        unit: of all of them.
    """

    def __init__(self, offset: float, table: Sequence[Sequence[float]], unit: str) -> None:
        self.offset = offset
        self.table = [list(row) for row in table]
        self._unit = unit
        width = max(len(row) for row in self.table)
        padded = [row + [0.0] * (width - len(row)) for row in self.table]
        self._matrix = torch.tensor(padded, dtype=torch.float64)  # (n_slots, n_candidates)

    @classmethod
    def of_blocks(
        cls, space: SearchSpace, cost: Callable[[BlockSpec], float], unit: str
    ) -> "SeparableCost":
        """The sum of `cost` over the blocks of a network."""
        return cls(*space.slot_costs(cost), unit)

    @property
    def unit(self) -> str:
        """The unit of every value."""
        return self._unit

    def expected(self, probabilities: torch.Tensor) -> torch.Tensor:
        """See `DifferentiableCost.expected`; its gradient is the table itself."""
        return self.offset + (probabilities * self._matrix).sum()

    def exact(self, architecture: Architecture) -> float:
        """See `DifferentiableCost.exact`."""
        chosen = zip(self.table, architecture.choices, strict=True)
        return self.offset + sum(row[choice] for row, choice in chosen)


class BottleneckCost:
    """A cost that is the maximum of one value a slot and of what no slot decides.

    Args:
        floor: value of everything that no slot decides.
        table: ``table[l][k]``, the value of candidate k of slot l; rows may differ in length.
        unit: of all of them.
    """

    def __init__(self, floor: float, table: Sequence[Sequence[float]], unit: str) -> None:
        self.floor = floor
        self.table = [list(row) for row in table]
        self._unit = unit
        width = max(len(row) for row in self.table)
        padded = [row + [float("inf")] * (width - len(row)) for row in self.table]
        raised = torch.tensor(padded, dtype=torch.float64).clamp_min(floor)
        finite = raised[torch.isfinite(raised)]
        self._levels = torch.unique(finite)  # (n_levels,) rising
        # (n_levels, n_slots, n_candidates): whether a candidate stays at or below a level
        self._within = (raised[None] <= self._levels[:, None, None]).to(torch.float64)

    @property
    def unit(self) -> str:
        """The unit of every value."""
        return self._unit

    def expected(self, probabilities: torch.Tensor) -> torch.Tensor:
        """See `DifferentiableCost.expected`: the mean of a maximum of independent variables.

        With F(v) the product over slots of the probability to stay at or below v, the mean is
        the sum over the levels of ``v (F(v) - F(v'))``, v' being the level below.
        """
        below = (self._within * probabilities).sum(dim=2).prod(dim=1)  # (n_levels,)
        steps = torch.diff(below, prepend=below.new_zeros(1))
        return (self._levels * steps).sum()

    def exact(self, architecture: Architecture) -> float:
        """See `DifferentiableCost.exact`."""
        chosen = zip(self.table, architecture.choices, strict=True)
        return max(self.floor, *(row[choice] for row, choice in chosen))


def macs_cost(space: SearchSpace) -> SeparableCost:
    """Multiply-accumulates of one image."""
    return SeparableCost.of_blocks(space, lambda block: block.macs, "MAC")


def parameter_cost(space: SearchSpace) -> SeparableCost:
    """Trainable scalars."""
    return SeparableCost.of_blocks(space, lambda block: block.parameters, "parameter")
