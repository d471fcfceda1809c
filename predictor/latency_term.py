"""The latency a search is charged: the fitted model as a differentiable cost."""

import random

import torch

from predictor.network import NetworkLatencyModel
from search_core.costs import SeparableCost
from search_core.space.space import Architecture

_SAMPLES = 512


class LatencyTerm:
    """A `DifferentiableCost` in ms that a knapsack can be held to (`NearlySeparableCost`).

    ProxylessNAS's equation 2 with what blocks do to each other on top. Every part is
    multilinear in the probabilities of the slots, so that the expectation over architectures is
    the model at the probabilities, and the derivative by two candidates of a slot differs by
    exactly what exchanging one for the other adds on average.

    Slots that decide several layers (cells) are priced exactly: the model is a function of the
    slots' choices, not of the layers'. A candidate that leaves a layer out is one like the rest.

    Args:
        budget_ms: what the target cannot run costs more than this, so that no budget has room
            for it.
    """

    def __init__(self, model: NetworkLatencyModel, budget_ms: float = 0.0) -> None:
        self._model = model
        rows = [list(row) for row in model.table_ms]
        for slot, choice in model.unsupported:
            rows[slot][choice] = max(rows[slot][choice], 1.5 * budget_ms)
        self._additive = SeparableCost(model.offset_ms, rows, "ms")
        self._n_slots, self._width = len(rows), max(map(len, rows))
        self._first = torch.tensor([p.first for p in model.pairs], dtype=torch.long)
        self._second = torch.tensor([p.second for p in model.pairs], dtype=torch.long)
        self._pairs = torch.zeros(len(model.pairs), self._width, self._width, dtype=torch.float64)
        for i, pair in enumerate(model.pairs):
            ms = torch.tensor(pair.ms, dtype=torch.float64)
            self._pairs[i, : ms.shape[0], : ms.shape[1]] = ms
        similar = model.similarity
        self._networks = torch.tensor(similar.networks if similar else [], dtype=torch.long)
        self._weights = torch.tensor(similar.weights_ms if similar else [], dtype=torch.float64)
        self._factor = similar.factor if similar else 1.0
        self.separable, self.slack = self._nearest_separable(rows)

    @property
    def unit(self) -> str:
        """The unit of every value."""
        return "ms"

    def expected(self, probabilities: torch.Tensor) -> torch.Tensor:
        """See `DifferentiableCost.expected`: (n_slots, width) float64 to a scalar."""
        latency_ms = self._additive.expected(probabilities)
        if len(self._pairs):
            # one row, one matrix and one column a pair
            left = probabilities[self._first].unsqueeze(1)
            right = probabilities[self._second].unsqueeze(2)
            latency_ms = latency_ms + (left @ self._pairs @ right).sum()
        if len(self._weights):
            # (n_networks, n_slots): how probable it is that a slot is decided as there
            alike = probabilities[torch.arange(self._n_slots), self._networks]
            share = (self._factor + (1.0 - self._factor) * alike).prod(dim=1)
            latency_ms = latency_ms + self._weights @ share
        return latency_ms

    def exact(self, architecture: Architecture) -> float:
        """See `DifferentiableCost.exact`."""
        return self._additive.exact(architecture) + self._model.shared_ms(architecture)

    def describe(self) -> object:
        """Plain values that tell this cost from another."""
        return self._model.to_document()

    def _nearest_separable(self, rows: list[list[float]]) -> tuple[SeparableCost, float]:
        """The additive function whose effects are this one's at equal probabilities.

        Returns:
            It, and the largest amount by which it was above this one at random networks.
        """
        if not self._model.pairs and self._model.similarity is None:
            return self._additive, 0.0
        equal = torch.zeros(self._n_slots, self._width, dtype=torch.float64)
        for slot, row in enumerate(rows):
            equal[slot, : len(row)] = 1.0 / len(row)
        equal.requires_grad_()
        mean = self.expected(equal)
        (gradient,) = torch.autograd.grad(mean, equal)
        table = [gradient[slot, : len(row)].tolist() for slot, row in enumerate(rows)]
        centre = sum(sum(row) / len(row) for row in table)
        near = SeparableCost(float(mean.detach()) - centre, table, "ms")
        rng, digest = random.Random(0), self._model.space_digest
        drawn = [
            Architecture(digest, tuple(rng.randrange(len(row)) for row in rows))
            for _ in range(_SAMPLES)
        ]
        return near, max(0.0, *(near.exact(a) - self.exact(a) for a in drawn))
