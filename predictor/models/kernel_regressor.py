"""Latencies of single convolutions from tables of hundreds of thousands of them.

Such tables are grids with holes: most of what decides the latency of a convolution, above all
which algorithm the library picks, it shares with those that differ in one property only. So
boosted trees see, beside shapes and work, what the measured neighbours took; and they do not
predict a latency but what is left over an estimate that needs no fitting: with `a` and `b`
neighbours along two axes and `ab` the corner opposite, log t = log t_a + log t_b - log t_ab, the
median over all such corners.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.utils.validation import check_is_fitted

from predictor.errors import BadTableError
from predictor.evaluation import check_latencies
from predictor.features import Convolutions
from predictor.models.kernel_roofline import Rooflines

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Flags = NDArray[np.bool_]

LEAST_CONVOLUTIONS = 200
"""Fewest measurements that a regressor is fitted to."""

AXES = (
    "precision",
    "batch",
    "in_channels",
    "resolution_px",
    "out_channels",
    "kernel",
    "stride",
    "fused",
    "width",
)
"""Ways to a neighbour: one property moves; with "width", both channel counts in proportion."""

_CHANNELS = frozenset({"in_channels", "out_channels", "width"})
_UNSEEN: tuple[frozenset[str], ...] = (
    frozenset({"in_channels", "width"}),
    frozenset({"out_channels", "width"}),
    frozenset({"width"}),
    frozenset({"kernel"}),
    frozenset({"resolution_px"}),
)
"""Axes that still lead somewhere when nothing was measured with an in_channels, and so on."""


class KernelRegressor(BaseEstimator):  # type: ignore[misc]
    """Boosted trees on what the neighbours of a convolution leave unexplained.

    Args:
        iterations, leaves, learning_rate: of the trees.
        neighbours: whether the trees see single neighbours.
        corners: whether they start from the median over the corners.
        work: whether they see logarithms of work, residues and tiles beside plain sizes.
        unseen: rows that are learnt from once more as if one of their sizes had never been
            measured, as a share of all.
        rows: most rows that the trees are grown on; neighbours are always sought among all.
        seed: of which rows those are, and of the trees.

    Attributes:
        rooflines_: prices of work by precision.
    """

    def __init__(
        self,
        *,
        iterations: int = 400,
        leaves: int = 255,
        learning_rate: float = 0.08,
        neighbours: bool = True,
        corners: bool = True,
        work: bool = True,
        unseen: float = 0.5,
        rows: int = 1_000_000,
        seed: int = 0,
    ) -> None:
        self.iterations = iterations
        self.leaves = leaves
        self.learning_rate = learning_rate
        self.neighbours = neighbours
        self.corners = corners
        self.work = work
        self.unseen = unseen
        self.rows = rows
        self.seed = seed

    def fit(self, convolutions: Convolutions, latency_ms: Floats) -> Self:
        """Fit to measured convolutions and their latencies (n,) in ms, batch included.

        Raises:
            BadTableError: too few, not positive, not finite or all alike; it names the row.
        """
        if len(convolutions) != len(latency_ms):
            raise BadTableError(f"{len(convolutions)} convolutions, {len(latency_ms)} latencies")
        check_latencies(latency_ms, "latency_ms", at_least=LEAST_CONVOLUTIONS)
        self.rooflines_ = Rooflines().fit(
            convolutions.work(), list(convolutions.precision), latency_ms
        )
        self._known = convolutions
        self._known_logs = np.log(latency_ms / self._roofline_ms(convolutions))

        rng = np.random.default_rng(self.seed)
        chosen = rng.permutation(len(convolutions))[: self.rows]
        again = rng.choice(chosen, int(self.unseen * len(chosen)), replace=False)
        nearest = _nearest(convolutions, np.ones(len(convolutions), bool))
        grown_on = np.concatenate((chosen, again))
        inputs, base = self._inputs(convolutions, nearest, grown_on, n_unseen=len(again))
        target = self._known_logs[grown_on] - base
        self._filled = np.isfinite(inputs).any(axis=0)  # an axis with one value leads nowhere
        self._trees = HistGradientBoostingRegressor(
            max_iter=self.iterations,
            max_leaf_nodes=self.leaves,
            learning_rate=self.learning_rate,
            min_samples_leaf=10,
            early_stopping=False,
            random_state=self.seed,
        ).fit(inputs[:, self._filled], target)
        return self

    def predict(self, convolutions: Convolutions) -> Floats:
        """Milliseconds (n,), positive.

        Raises:
            UnusableMeasurementsError: a precision that was not fitted.
        """
        check_is_fitted(self)
        roofline_ms = self._roofline_ms(convolutions)
        together = self._known.followed_by(convolutions)
        n_known = len(self._known)
        asked = np.arange(n_known, len(together))
        nearest = _nearest(together, np.arange(len(together)) < n_known)
        inputs, base = self._inputs(together, nearest, asked, n_unseen=0)
        correction: Floats = self._trees.predict(inputs[:, self._filled])
        return roofline_ms * np.exp(base + correction)

    def covered(self, convolutions: Convolutions) -> Flags:
        """Whether each value of each property was measured with this kind of convolution, (n,)."""
        check_is_fitted(self)
        covered = np.ones(len(convolutions), bool)
        for depthwise in (False, True):
            asked, known = (c.depthwise == depthwise for c in (convolutions, self._known))
            for name in AXES[:-1]:
                seen = np.unique(getattr(self._known, name)[known])
                covered &= ~asked | np.isin(getattr(convolutions, name), seen)
        return covered

    def _roofline_ms(self, convolutions: Convolutions) -> Floats:
        return self.rooflines_.predict(convolutions.work(), list(convolutions.precision))

    def _inputs(
        self, convolutions: Convolutions, nearest: Indices, rows: Indices, *, n_unseen: int
    ) -> tuple[Floats, Floats]:
        """What the trees see of `rows`, (n, d), and what they correct, (n,).

        Args:
            nearest: neighbours of every row of `convolutions`.
            n_unseen: how many of the last of `rows` lose neighbours as if a size were unseen.
        """
        known = np.append(self._known_logs, np.nan)  # -1, no neighbour, is not a number
        logs = known[nearest[rows]]  # (n, 2 * axes)
        corners = _corner_medians(known, nearest, rows)
        first_unseen = len(rows) - n_unseen
        logs[first_unseen:][_hidden(n_unseen, np.random.default_rng(self.seed))] = np.nan
        corners[first_unseen:] = np.nan
        if not self.corners:
            corners[:] = np.nan
        base = np.where(np.isnan(corners), _middle(logs), corners)
        base = np.nan_to_num(base, nan=0.0)
        if not self.neighbours:
            logs[:] = np.nan
        some = convolutions[rows]
        precision = np.searchsorted(sorted(self.rooflines_.prices_ms_), some.precision)
        own = some.features()
        if not self.work:
            own = own[:, : len(AXES) - 1]  # depthwise and the sizes stand first
        around = (logs - base[:, None], base, np.isnan(corners))
        return np.column_stack((precision, own, *around)), base


def _nearest(convolutions: Convolutions, known: Flags) -> Indices:
    """(n, 2 * axes) rows of the next smaller and larger known neighbour; -1 without any."""
    codes = {name: getattr(convolutions, name) for name in (*AXES[:-1], "depthwise")}
    codes["precision"] = np.unique(codes["precision"], return_inverse=True)[1]
    ratio = np.round(np.log2(codes["in_channels"] / codes["out_channels"]) * 64).astype(int)
    columns: list[Indices] = []
    for axis in AXES:
        if axis == "width":
            moving = codes["out_channels"]
            fixed = [*(v for k, v in codes.items() if k not in _CHANNELS), ratio]
        else:
            moving = codes[axis]
            fixed = [v for k, v in codes.items() if k != axis]
        columns.extend(_previous_and_next(moving, fixed, known))
    return np.stack(columns, axis=1)


def _previous_and_next(
    moving: NDArray[np.int64], fixed: Sequence[NDArray[np.int64]], known: Flags
) -> tuple[Indices, Indices]:
    order = np.lexsort((moving, *fixed))
    changes = np.any([np.diff(column[order]) != 0 for column in fixed], axis=0)
    group = np.concatenate(([0], np.cumsum(changes)))
    lower, upper = np.full((2, len(order)), -1)
    lower[order] = _last_known(order, group, known)
    upper[order[::-1]] = _last_known(order[::-1], -group[::-1], known)
    return lower, upper


def _last_known(order: Indices, group: NDArray[np.int64], known: Flags) -> Indices:
    """For each row in `order`, the last known one before it in its group, or -1."""
    places = np.where(known[order], np.arange(len(order)), -1)
    before = np.concatenate(([-1], np.maximum.accumulate(places)[:-1]))
    return np.where((before >= 0) & (group[before] == group), order[before], -1)


def _corner_medians(known: Floats, nearest: Indices, rows: Indices) -> Floats:
    """Median over all corners of log t_a + log t_b - log t_ab, (n,); NaN without any."""
    axes = [axis for axis in AXES for _ in range(2)]
    pairs = [
        (i, j)
        for i, j in combinations(range(len(axes)), 2)
        if axes[i] != axes[j] and not {axes[i], axes[j]} <= _CHANNELS
    ]
    estimates = np.empty((len(rows), len(pairs)), np.float32)
    for column, (i, j) in zip(estimates.T, pairs, strict=True):
        a, b = nearest[rows, i], nearest[rows, j]
        opposite = np.where(a >= 0, nearest[a, j], -1)
        column[:] = known[a] + known[b] - known[opposite]
    return _middle(estimates)


def _middle(values: NDArray[np.floating]) -> Floats:
    """Median of each row without its NaNs; NaN where there is nothing else."""
    ordered = np.sort(values, axis=1)  # NaNs last
    count = np.isfinite(ordered).sum(axis=1)
    rows = np.arange(len(ordered))
    low, high = ordered[rows, np.maximum(count - 1, 0) // 2], ordered[rows, count // 2]
    middle: Floats = 0.5 * (low.astype(float) + high)
    return middle


def _hidden(n: int, rng: np.random.Generator) -> Flags:
    """Which neighbours a row would lose if nothing had been measured with one of its sizes."""
    axes = [axis for axis in AXES for _ in range(2)]
    leads = np.array([[axis not in remaining for axis in axes] for remaining in _UNSEEN])
    hidden: Flags = leads[rng.integers(len(_UNSEEN), size=n)]
    side = rng.integers(4, size=n)[:, None]  # a quarter each at the lower and the upper end
    one_sided: Flags = side == np.arange(len(axes))[None] % 2
    return hidden | one_sided
