"""Whole-network milliseconds from block sums: a robust line."""

from typing import Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import HuberRegressor
from sklearn.utils.validation import check_is_fitted

Floats = NDArray[np.float64]


class AffineCalibration(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """``network_ms = offset + scale * block_sum_ms``, by Huber regression on relative errors.

    Attributes:
        offset_: ms that every call pays, whatever the blocks.
        scale_: how much longer a block takes inside a network than in its chain.
    """

    def fit(self, X: Floats, y: Floats) -> Self:  # noqa: N803 - scikit-learn's name
        """Fit to block sums (n, 1) and measured networks (n,), both in ms."""
        sums, measured = np.asarray(X, float).ravel(), np.asarray(y, float)
        unit = float(np.median(measured))  # HuberRegressor's epsilon supposes values near 1
        line = HuberRegressor(alpha=0.0, max_iter=1000)
        line.fit(sums[:, None] / unit, measured / unit, sample_weight=(unit / measured) ** 2)
        self.scale_ = float(line.coef_[0])
        self.offset_ = float(line.intercept_) * unit
        return self

    def predict(self, X: Floats) -> Floats:  # noqa: N803 - scikit-learn's name
        """Network milliseconds (n,) of block sums (n, 1)."""
        check_is_fitted(self)
        sums: Floats = np.asarray(X, float).ravel()
        return self.offset_ + self.scale_ * sums
