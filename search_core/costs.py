"""What an architecture costs, exactly and in expectation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch

from search_core.errors import UnpricedBlockError
from search_core.space.blocks import FREE, BlockKind, BlockSpec
from search_core.space.primitives import Primitive
from search_core.space.space import Architecture, SearchSpace

_FLOAT32_BYTES = 4

_IN_PLACE = frozenset({Primitive.BATCH_NORM, Primitive.RELU, Primitive.RELU6, Primitive.ADD})
"""Steps whose output may take the place of an input that nothing else reads."""


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
    """A cost that is a constant plus one term a slot; the knapsack limits it exactly.

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

    @property
    def minimum(self) -> float:
        """The exact cost of the cheapest architecture."""
        return self.offset + sum(map(min, self.table))

    def expected(self, probabilities: torch.Tensor) -> torch.Tensor:
        """See `DifferentiableCost.expected`; its gradient is the table itself."""
        return self.offset + (probabilities * self._matrix).sum()

    def exact(self, architecture: Architecture) -> float:
        """See `DifferentiableCost.exact`."""
        chosen = zip(self.table, architecture.choices, strict=True)
        return self.offset + sum(row[choice] for row, choice in chosen)


@runtime_checkable
class NearlySeparableCost(DifferentiableCost, Protocol):
    """A cost of which a sum over the slots is the greater part.

    The knapsack decides by the sum, with some slack, and what it finds is held against the
    exact cost; see `search_core.constraint.Constraints.best`.
    """

    @property
    def separable(self) -> SeparableCost:
        """A sum over the slots near this cost."""
        ...

    @property
    def slack(self) -> float:
        """How far that sum may be above this cost, at networks that were looked at."""
        ...

    def describe(self) -> object:
        """Plain values that tell this cost from another."""
        ...


class BottleneckCost:
    """A cost that is the largest of one value a slot; the knapsack caps it exactly.

    Args:
        floor: the largest value that no slot decides; the cost is never less.
        table: ``table[l][k]``, the largest value of the layers of slot l when it is decided
            for candidate k; rows may differ in length.
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
        self._levels: torch.Tensor = torch.unique(finite)  # (n_levels,) rising
        # (n_levels, n_slots, n_candidates): whether a candidate stays at or below a level
        self._within = (raised[None] <= self._levels[:, None, None]).to(torch.float64)

    @property
    def unit(self) -> str:
        """The unit of every value."""
        return self._unit

    @property
    def minimum(self) -> float:
        """The exact cost of the cheapest architecture."""
        return max(self.floor, *map(min, self.table))

    def expected(self, probabilities: torch.Tensor) -> torch.Tensor:
        """See `DifferentiableCost.expected`: the mean of a maximum of independent variables.

        With F(v) the product over slots of the probability to stay at or below v, the mean is
        the sum over the levels of ``v (F(v) - F(v'))``, v' being the level below. Its derivative
        in ``probabilities[l, k]`` is the mean cost given that slot l is decided for k.
        """
        below = (self._within * probabilities).sum(dim=2).prod(dim=1)  # (n_levels,)
        steps = torch.diff(below, prepend=below.new_zeros(1))
        return (self._levels * steps).sum()

    def exact(self, architecture: Architecture) -> float:
        """See `DifferentiableCost.exact`."""
        chosen = zip(self.table, architecture.choices, strict=True)
        return max(self.floor, *(row[choice] for row, choice in chosen))


def lookup(table: Mapping[str, float]) -> Callable[[BlockSpec], float]:
    """The cost of a block from a table by its string; blocks that compute nothing are free.

    The function returned raises `UnpricedBlockError` for a block that the table does not
    hold: a guess in its place would go unnoticed.
    """

    def cost(block: BlockSpec) -> float:
        if str(block) in table:
            return table[str(block)]
        if block.kind in FREE:
            return 0.0
        raise UnpricedBlockError(str(block))

    return cost


def macs_cost(space: SearchSpace) -> SeparableCost:
    """Multiply-accumulates of one image."""
    return SeparableCost.of_blocks(space, lambda block: block.macs, "MAC")


def parameter_cost(space: SearchSpace) -> SeparableCost:
    """Trainable scalars."""
    return SeparableCost.of_blocks(space, lambda block: block.parameters, "parameter")


def peak_activation_cost(space: SearchSpace) -> BottleneckCost:
    """Bytes of activations alive at once, at the most, for one image in float32.

    Layers run one after the other, and steps inside them; a tensor lives from the step that
    makes it to the last one that reads it. BatchNorm, activations and additions work in place
    where nothing else reads their input. What lies between layers depends on the space alone:
    a node counts from its first layer to its last reader, even where the operations chosen
    there compute nothing. Weights are not counted.
    """
    floor, table = 0.0, [[0.0] * len(slot.candidates) for slot in space.slots]
    elements = {0: space.in_channels * space.resolution_px**2}  # node -> scalars
    last_reader = {source: i for i, (source, _) in enumerate(space.edges)}
    for i, (layer, (source, target)) in enumerate(zip(space.layers, space.edges, strict=True)):
        alive = [node for node in elements if last_reader.get(node, i) >= i]
        stays = last_reader[source] > i
        held = sum(elements[node] for node in alive if node != source)
        accumulates = target in elements
        peaks = [
            _FLOAT32_BYTES * float(held + _working_set(block, stays=stays, joins=accumulates))
            for block in layer.blocks
        ]
        if layer.slot is None:
            floor = max(floor, *peaks)
        else:
            table[layer.slot] = list(map(max, table[layer.slot], peaks))
        elements[target] = layer.blocks[0].out_channels * layer.blocks[0].out_resolution_px ** 2
    return BottleneckCost(floor, table, "byte")


def _working_set(block: BlockSpec, *, stays: bool, joins: bool) -> int:
    """Scalars that `block` keeps alive at once, at the most, its input and output included.

    Args:
        stays: whether the input is read again by a later layer.
        joins: whether the output is added to a tensor that exists already.
    """
    sizes = [block.in_channels * block.resolution_px**2, *(s.out_elements for s in block.steps)]
    if not block.steps:
        copied = stays and not joins and (block.kind is BlockKind.SKIP or block.has_shortcut)
        return sizes[0] * (2 if copied else 1)
    last_read = {value: i for i, step in enumerate(block.steps, 1) for value in step.inputs}
    if stays or block.has_shortcut:
        last_read[0] = len(block.steps) + 1
    alive, peak = {0}, 0
    for i, step in enumerate(block.steps, 1):
        dying = {value for value in step.inputs if last_read[value] == i}
        if dying and step.primitive in _IN_PLACE:
            alive.remove(dying.pop())
        alive.add(i)
        peak = max(peak, sum(sizes[value] for value in alive))
        alive -= dying
    return peak
