"""Latencies of blocks that nobody measured on a device, from what was measured there and elsewhere.

    log(ms) = log(roofline of the device) + g(block) + h(block, device) + noise

`g` and `h` are Gaussian processes on the fields that identify a block, with a length-scale a
field (ARD, Matérn 5/2): `g` is what all devices have in common beside their rooflines, `h` what
one device has to itself. For hundreds of blocks this beats boosted trees several times over
(`benchmarks/kernel_regression.py`). Used while a latency model is fitted; what is stored is the
table that it filled, so there is nothing to load.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from predictor.errors import BadTableError
from predictor.evaluation import check_latencies
from predictor.features import Workload, comparable, key_features, work
from predictor.models.kernel_roofline import Rooflines
from search_core.space.blocks import FREE, BlockSpec

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Blocks = Sequence[BlockSpec | Workload]

LEAST_BLOCKS = 8
"""Fewest measurements that a regressor is fitted to."""

_ROWS_FOR_SCALES = 400  # length-scales are found on so many rows at most: their cost is cubic
_STEPS = 60
_JITTER = 0.01  # relative, what no field of a block explains
_MARGIN_OCTAVES = 0.5  # beyond the measured sizes


class BlockPredictions(NamedTuple):
    """Predictions of blocks on one device, each (n,).

    Attributes:
        ms: milliseconds, positive; 0 for blocks that compute nothing.
        sigma_ms: standard deviation of that.
        covered: the device measured blocks of this sort, and each size of this one is at most
            half an octave beyond theirs.
    """

    ms: Floats
    sigma_ms: Floats
    covered: Flags


class BlockRegressor(BaseEstimator):  # type: ignore[misc]
    """A Gaussian process over blocks and devices, around each device's roofline.

    Cost grows with the third power of the measurements: some thousands are the most.

    Args:
        roofline: whether a device's mean is its roofline, else one constant.
        shared: whether devices learn from each other.
        relevance: whether each field has a length-scale of its own.
        seed: of the rows that the length-scales are found on.

    Attributes:
        rooflines_: the device's prices of work.
        jitter_: relative standard deviation of what no field explains.
    """

    def __init__(
        self,
        *,
        roofline: bool = True,
        shared: bool = True,
        relevance: bool = True,
        seed: int = 0,
    ) -> None:
        self.roofline = roofline
        self.shared = shared
        self.relevance = relevance
        self.seed = seed

    def fit(
        self,
        blocks: Blocks,
        devices: Sequence[str],
        latency_ms: Floats,
        sigma_ms: Floats | None = None,
    ) -> Self:
        """Fit to measured blocks of one device or of several.

        Args:
            blocks: n of them; the same block may be there for several devices.
            devices: (n,) names.
            latency_ms: (n,) in ms, for the batch of the block.
            sigma_ms: (n,) standard deviation of each measurement; none is perfect where absent.

        Raises:
            BadTableError: too few, not positive, not finite or all alike; it names the row.
        """
        latency_ms = np.asarray(latency_ms, float)
        sigma_ms = np.zeros_like(latency_ms) if sigma_ms is None else np.asarray(sigma_ms, float)
        _check(blocks, devices, latency_ms, sigma_ms)
        self._blocks = [Workload.of(block) for block in blocks]
        self._devices = np.asarray(devices, str)
        self._latency_ms, self._sigma_ms = latency_ms, sigma_ms

        asked = work(blocks) if self.roofline else np.ones((len(blocks), 1))
        self.rooflines_ = Rooflines().fit(asked, devices, latency_ms)
        target = torch.tensor(np.log(latency_ms / self.rooflines_.predict(asked, devices)))
        features = key_features(blocks)
        self._centre, self._spread = features.mean(axis=0), features.std(axis=0)
        self._spread[self._spread == 0.0] = 1.0  # a field that only varies later is still far
        self._x = self._scaled(features)  # (n, d)
        noise = torch.tensor((sigma_ms / latency_ms) ** 2)

        some = np.random.default_rng(self.seed).permutation(len(blocks))[:_ROWS_FOR_SCALES]
        self._fit_scales(torch.tensor(some), target[some], noise[some])
        with torch.no_grad():
            names = self._devices
            covariance = self._kernel(self._x, self._x, names, names)
            covariance += torch.diag(noise + self.jitter_**2)
            self._root = torch.linalg.cholesky(covariance)
            self._alpha = torch.cholesky_solve(target[:, None], self._root)[:, 0]
        return self

    def predict(self, blocks: Blocks, device: str) -> BlockPredictions:
        """Latencies of blocks on one of the devices that were fitted.

        Raises:
            UnusableMeasurementsError: nothing was measured on the device.
        """
        check_is_fitted(self)
        workloads = [Workload.of(block) for block in blocks]
        names = [device] * len(blocks)
        asked = work(blocks) if self.roofline else np.ones((len(blocks), 1))
        mean = np.log(self.rooflines_.predict(asked, names))
        with torch.no_grad():
            x = self._scaled(key_features(blocks))
            cross = self._kernel(x, self._x, np.asarray(names, str), self._devices)  # (m, n)
            log_ms = mean + (cross @ self._alpha).numpy()
            solved = torch.linalg.solve_triangular(self._root, cross.T, upper=False)
            prior = float((self._amplitudes**2).sum())
            variance = prior - (solved**2).sum(dim=0).numpy()
        sigma = np.sqrt(np.maximum(variance, 0.0) + self.jitter_**2)
        ms = np.exp(log_ms)

        here = np.flatnonzero(self._devices == device)
        free = np.array([workload.block.kind in FREE for workload in workloads])
        ms = np.where(free, 0.0, ms)
        return BlockPredictions(ms, sigma * ms, self._covered(workloads, here) | free)

    def _scaled(self, features: Floats) -> torch.Tensor:
        return torch.tensor((features - self._centre) / self._spread)

    def _fit_scales(self, rows: torch.Tensor, target: torch.Tensor, noise: torch.Tensor) -> None:
        """Maximise the marginal likelihood under log-normal priors, by L-BFGS."""
        n_scales = self._x.shape[1] if self.relevance else 1
        start = torch.log(
            torch.tensor([1.0] * 2 * n_scales + [2.0] * 2 + [0.1] * 3 + [_JITTER]).double()
        )
        strength = torch.tensor([1.0] * (2 * n_scales + 2) + [0.1] * 3 + [1.0])
        parameters = start.clone().requires_grad_()
        names, x = self._devices[rows.numpy()], self._x[rows]
        optimiser = torch.optim.LBFGS(
            [parameters], max_iter=_STEPS, history_size=20, line_search_fn="strong_wolfe"
        )

        def loss() -> torch.Tensor:
            optimiser.zero_grad()
            self._unpack(parameters, n_scales)
            covariance = self._kernel(x, x, names, names)
            covariance = covariance + torch.diag(noise + self._jitter**2)
            root = torch.linalg.cholesky(covariance)
            alpha = torch.cholesky_solve(target[:, None], root)[:, 0]
            fit = 0.5 * target @ alpha + root.diagonal().log().sum()
            total: torch.Tensor = fit + 0.5 * (strength * (parameters - start) ** 2).sum()
            total.backward()  # type: ignore[no-untyped-call]
            return total

        optimiser.step(loss)  # type: ignore[no-untyped-call]
        self._unpack(parameters.detach(), n_scales)
        self.jitter_ = float(self._jitter)

    def _unpack(self, parameters: torch.Tensor, n_scales: int) -> None:
        values = parameters.clamp(math.log(1e-3), math.log(1e2)).exp()
        parts = torch.split(values, [n_scales, n_scales, 2, 3, 1])
        shared, own, common, self._amplitudes, jitter = parts
        # a length-scale for all fields, and by how much each departs from it
        self._scales = common[0] * shared, common[1] * own
        self._jitter = jitter[0]

    def _kernel(
        self, a: torch.Tensor, b: torch.Tensor, names_a: NDArray[np.str_], names_b: NDArray[np.str_]
    ) -> torch.Tensor:
        """(n_a, n_b); what devices share, then what each has to itself."""
        same = torch.tensor(names_a[:, None] == names_b[None, :], dtype=torch.float64)
        (shared, own), (v_shared, v_own, v_constant) = self._scales, self._amplitudes**2
        common = v_shared * _matern(a / shared, b / shared)
        if not self.shared:
            common = common * same
        covariance: torch.Tensor = common + same * (v_own * _matern(a / own, b / own) + v_constant)
        return covariance

    def _covered(self, workloads: list[Workload], here: NDArray[np.intp]) -> Flags:
        kinds, sizes = comparable(workloads)
        known_kinds, known_sizes = comparable([self._blocks[i] for i in here])
        covered = np.zeros(len(workloads), bool)
        for row, kind in enumerate(kinds):
            alike = known_sizes[[known == kind for known in known_kinds]]
            if len(alike):
                low, high = alike.min(axis=0) - _MARGIN_OCTAVES, alike.max(axis=0) + _MARGIN_OCTAVES
                covered[row] = bool(((low <= sizes[row]) & (sizes[row] <= high)).all())
        return covered


def _matern(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Matérn 5/2 of points (n, d) and (m, d) whose length-scale is 1: (n, m)."""
    squares = (a**2).sum(dim=1)[:, None] + (b**2).sum(dim=1)[None] - 2.0 * a @ b.T
    r = (5.0 * squares.clamp_min(1e-12)).sqrt()
    return (1.0 + r + r**2 / 3.0) * torch.exp(-r)


def _check(blocks: Blocks, devices: Sequence[str], latency_ms: Floats, sigma_ms: Floats) -> None:
    if not len(blocks) == len(devices) == len(latency_ms) == len(sigma_ms):
        counts = f"{len(blocks)}, {len(devices)}, {len(latency_ms)} and {len(sigma_ms)}"
        raise BadTableError(f"blocks, devices, latencies and sigmas differ in number: {counts}")
    check_latencies(latency_ms, "latency_ms", at_least=LEAST_BLOCKS)
    wrong = np.flatnonzero(~(np.isfinite(sigma_ms) & (sigma_ms >= 0.0)))
    if len(wrong):
        row = int(wrong[0])
        raise BadTableError(
            f"a standard deviation is at least 0 ms, got {sigma_ms[row]}",
            row=row,
            column="sigma_ms",
        )
    for row, block in enumerate(blocks):
        if Workload.of(block).block.kind in FREE:
            raise BadTableError(f"{block} computes nothing and has no latency", row=row)
