"""The latency a search is charged: the fitted model as a differentiable cost."""

from predictor.network import NetworkLatencyModel
from search_core.costs import SeparableCost


class LatencyTerm(SeparableCost):
    """A `DifferentiableCost` in ms; ProxylessNAS, equation 2, with a fitted table.

    The expectation over architectures is exact because the model is additive in the slots.

    Args:
        budget_ms: what the target cannot run costs more than this, so that no budget has room
            for it.
    """

    def __init__(self, model: NetworkLatencyModel, budget_ms: float = 0.0) -> None:
        rows = [list(row) for row in model.table_ms]
        for slot, choice in model.unsupported:
            rows[slot][choice] = max(rows[slot][choice], 1.5 * budget_ms)
        super().__init__(model.offset_ms, rows, "ms")
