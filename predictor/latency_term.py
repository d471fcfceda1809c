"""The latency a search is charged: the fitted model as a differentiable cost."""

from predictor.network import NetworkLatencyModel
from search_core.costs import SeparableCost


class LatencyTerm(SeparableCost):
    """A `DifferentiableCost` in ms; ProxylessNAS, equation 2, with a fitted table.

    The expectation over architectures is exact because the model is additive in the slots.
    """

    def __init__(self, model: NetworkLatencyModel) -> None:
        super().__init__(model.offset_ms, model.table_ms, "ms")
