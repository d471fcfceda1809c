"""From block sums to networks: a robust line, and what blocks do to each other."""

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from predictor.models.affine import AffineCalibration
from predictor.models.interactions import InteractionProcess, Interactions, Slots

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_FOLDS = 10

_PERFECT = 1e-4
"""A relative error of the line that leaves nothing to explain."""


class NetworkCalibration:
    """``network_ms = offset + scale * block_sum_ms + interactions``.

    Args:
        slots: block sums of the candidates, and which blocks are alike.
        without: kernels of `Variances` to leave out, for ablations.

    Attributes:
        process: of the interactions.
        line_: the robust line.
        interactions_: what it leaves over; None where that says nothing about other networks.
        left_out_ms_: (n,) predictions of the networks, each by a fit that has not seen it.
        line_left_out_ms_: the same by the line alone.
    """

    def __init__(self, slots: Slots, without: Sequence[str] = ()) -> None:
        self.process = InteractionProcess(slots, without)

    def fit(self, choices: Ints, sums_ms: Floats, measured_ms: Floats) -> Self:
        """Fit to measured networks.

        The interactions are kept when networks left out of both line and interactions are
        predicted better with them, by more than two standard errors.

        Args:
            choices: (n, n_slots).
            sums_ms: (n,) of their blocks.
            measured_ms: (n,).

        Raises:
            UnusableMeasurementsError: a number is not finite.
        """
        every = np.arange(len(choices))
        self.line_, predicted_ms = _line(sums_ms, measured_ms)
        self.line_left_out_ms_ = self.left_out_ms_ = np.empty(len(choices))
        for i in every:
            line, _ = _line(np.delete(sums_ms, i), np.delete(measured_ms, i))
            self.line_left_out_ms_[i] = line.predict(sums_ms[i : i + 1])[0]
        self.interactions_: Interactions | None = None
        if _errors(self.line_left_out_ms_, measured_ms).mean() < _PERFECT:
            return self

        left_out_ms = np.empty(len(choices))
        for out in np.array_split(every, min(len(choices), _FOLDS)):
            rest = np.setdiff1d(every, out)
            line, fitted_ms = _line(sums_ms[rest], measured_ms[rest])
            found = self._residual(choices[rest], measured_ms[rest], fitted_ms)
            left_out_ms[out] = line.predict(sums_ms[out]) + found.at(choices[out])
        gain = _errors(self.line_left_out_ms_, measured_ms) - _errors(left_out_ms, measured_ms)
        if gain.mean() > 2.0 * gain.std() / len(gain) ** 0.5:
            self.left_out_ms_ = left_out_ms
            self.interactions_ = self._residual(choices, measured_ms, predicted_ms)
        return self

    def _residual(self, choices: Ints, measured_ms: Floats, predicted_ms: Floats) -> Interactions:
        return self.process.fit(choices, measured_ms - predicted_ms, predicted_ms)

    def predict(self, choices: Ints, sums_ms: Floats) -> Floats:
        """Milliseconds (n,) of networks (n, n_slots) with these block sums (n,)."""
        latency_ms = self.line_.predict(sums_ms)
        if self.interactions_ is not None:
            latency_ms = latency_ms + self.interactions_.at(choices)
        return latency_ms


def _line(sums_ms: Floats, measured_ms: Floats) -> tuple[AffineCalibration, Floats]:
    line = AffineCalibration().fit(sums_ms[:, None], measured_ms)
    return line, line.predict(sums_ms)


def _errors(predicted_ms: Floats, measured_ms: Floats) -> Floats:
    relative: Floats = np.abs(predicted_ms / measured_ms - 1.0)
    return relative
