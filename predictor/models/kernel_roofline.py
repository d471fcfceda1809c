"""Devices as rooflines: what a call, a launch, a multiply-accumulate and a byte cost on each."""

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from predictor.errors import UnusableMeasurementsError

Floats = NDArray[np.float64]

_LEAST_SHARE = 1e-3  # of the pooled time: work that nobody's time was traced to is still not free
_ROUNDS = 10


class Rooflines(BaseEstimator):  # type: ignore[misc]
    """Latency as a sum of work times a device's prices, all non-negative.

    Prices come from non-negative least squares on relative errors, drawn to those of all devices
    together at the device's own speed, so that a device with few measurements, or none of some
    sort of work, is priced as its peers are.

    Args:
        pull: how many measurements the pooled price of one sort of work is worth.

    Attributes:
        prices_ms_: by device, (n_work,) ms for each unit of work.
    """

    def __init__(self, pull: float = 1.0) -> None:
        self.pull = pull

    def fit(self, work: Floats, devices: Sequence[str], latency_ms: Floats) -> Self:
        """Fit to work (n, n_work), not negative, devices (n,) and latencies (n,) in ms."""
        names = np.asarray(devices, str)
        typical = work.max(axis=0)
        typical[typical == 0.0] = 1.0
        relative = work / typical / latency_ms[:, None]

        # prices that all devices share, up to the speed of each
        slowness = {name: float(np.median(latency_ms[names == name])) for name in set(names)}
        for _ in range(_ROUNDS):
            scale = np.array([slowness[name] for name in names])
            pooled, _ = nnls(relative * scale[:, None], np.ones(len(names)))
            asked = np.maximum((relative * scale[:, None]).mean(axis=0), 1e-9)
            pooled = np.maximum(pooled, _LEAST_SHARE / asked * (asked > 1e-9))
            logs = -np.log(relative @ pooled)
            slowness = {name: float(np.exp(logs[names == name].mean())) for name in slowness}

        self.prices_ms_ = {}
        for name, slow in slowness.items():
            prior = slow * np.maximum(pooled, 1e-9)  # without any such work: as good as free
            drawn = np.sqrt(self.pull) * np.diag(1.0 / prior)
            rows = np.concatenate((relative[names == name], drawn))
            self.prices_ms_[name] = nnls(rows, np.ones(len(rows)))[0] / typical
        return self

    def predict(self, work: Floats, devices: Sequence[str]) -> Floats:
        """Latencies (n,) in ms, positive.

        Raises:
            UnusableMeasurementsError: a device that was not fitted.
        """
        check_is_fitted(self)
        names = np.asarray(devices, str)
        unknown = set(names) - set(self.prices_ms_)
        if unknown:
            raise UnusableMeasurementsError(f"no measurements of {', '.join(sorted(unknown))}")
        sums = np.empty(len(work))
        for name in set(names):
            sums[names == name] = work[names == name] @ self.prices_ms_[name]
        return np.maximum(sums, 1e-9)
