"""Prices of kernels, learnt from files whose kernels were only ever timed together.

Blocks, chains of blocks and whole networks are measured; kernels are not, since an isolated one
pays for reorders that a network does not pay. A file's latency is what a call costs plus the
prices of its kernels, so prices are found that add up to the files:

1. Rates. A kernel pays for its launch, multiply-accumulates, activations and constants, each at
   a rate of its kind: non-negative least squares on relative errors, drawn to rates common to
   all kinds. What was never measured is priced at the common rates, a roofline.
2. Corrections. What the rates leave over is a Gaussian process on a kernel's relative price, by
   its sizes and its window, and another on the size of the file: networks run slower than their
   blocks. Files hold sums of both, and a sum of Gaussian variables is one, so the fit to files
   is exact and is read off for kernels.

Prediction needs numpy alone.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from predictor.errors import ModelDocumentError, UnusableMeasurementsError
from predictor.evaluation import check_latencies
from predictor.intervals import ConformalIntervals, conformal_intervals
from predictor.onnx_kernels import Kernel, KernelGraph, Kind

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Standing = Literal["fitted", "outside", "unknown"]
Part = Literal["kinds", "kernels", "files"]

FORMAT = "tailor-kernel-prices/1"
FEATURES_VERSION = 1
"""Of `Kernel` and of what is taken from it here."""

LEAST_FILES = 20
LEAST_NETWORKS = 10

OUTSIDE_FACTOR = 1.5
"""A kernel unlike every fitted one is taken to cost its price within this factor."""

UNKNOWN_FACTOR = 4.0
"""So is one of an operator never fitted, or whose work could not be counted."""

_KINDS: tuple[Kind, ...] = get_args(Kind)
_FACTORS = {"outside": OUTSIDE_FACTOR, "unknown": UNKNOWN_FACTOR}
_NEAR = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0])  # between points that are still alike
_FOLDS = 5
_LEAST_RATE = 0.2  # of the common rate
_LEAST_SHARE = 0.01  # of the time, for what least squares would give away
_PULL = 0.05  # noise of a file over the spread of the rates of kinds, both relative
_LEAST_PRICE = 0.2  # of what the rates say
_FILE_LENGTH = 2.0  # factor between latencies, as a logarithm, over which files stay alike
_LEAST_VARIANCE = 1e-8
"""Of measurements without noise: what keeps a covariance positive."""

_FILES_FOR_SCALES = 400


@dataclass(frozen=True)
class PricedKernel:
    """One bar of the waterfall.

    Attributes:
        standing: ``fitted``: some fitted kernel of its operator has its window and stride, and
            its sizes within a factor of two; ``outside``: none has; ``unknown``: its operator
            was never fitted, or its work could not be counted.
    """

    name: str
    operator: str
    latency_ms: float
    standing: Standing


@dataclass(frozen=True)
class FilePrediction:
    """What a file is predicted to take.

    Attributes:
        latency_ms: the sum of `call_ms` and the kernels.
        low_ms, high_ms: the interval; wide where much was not fitted.
        call_ms: what a call costs, whatever it runs.
        kernels: in the order in which they run.
        unknown: operators priced without ever having been fitted, sorted.
        coverage: share of the latency in fitted kernels and the call.
    """

    latency_ms: float
    low_ms: float
    high_ms: float
    call_ms: float
    kernels: tuple[PricedKernel, ...]
    unknown: tuple[str, ...]
    coverage: float


class KernelPrices:
    """The prices of one target; see the module.

    Args:
        parts: rates by kind, corrections by kernel, corrections by file. All of them, except
            to see what each is good for.

    Attributes:
        runtime_: what optimised the fitted files; files of another are not priced.
        operators_: (n_kernels,) of the distinct fitted kernels.
        solution_: call, rates and corrections.
        intervals_: from networks that were left out in turn.
    """

    def __init__(self, parts: Collection[Part] = ("kinds", "kernels", "files")) -> None:
        self.parts = parts

    def fit(
        self, graphs: Sequence[KernelGraph], latency_ms: Floats, is_network: Sequence[bool]
    ) -> Self:
        """Find prices that add up to measured files.

        Args:
            graphs: (n_files,) what was measured.
            latency_ms: (n_files,) of one call.
            is_network: (n_files,) which files are whole networks; the intervals are theirs.

        Raises:
            BadTableError: a latency is no positive number, all are alike, or they are few.
            UnusableMeasurementsError: there are few networks, or the files were optimised by
                several runtimes.
        """
        measured = np.asarray(latency_ms, float)
        networks = np.flatnonzero(np.asarray(is_network, bool))
        check_latencies(measured, "latency_ms", at_least=LEAST_FILES)
        if len(networks) < LEAST_NETWORKS:
            raise UnusableMeasurementsError(
                f"{len(networks)} whole networks, and at least {LEAST_NETWORKS} are needed to "
                "tell how far to trust the prices"
            )
        runtimes = sorted({graph.runtime for graph in graphs})
        if len(runtimes) > 1:
            raise UnusableMeasurementsError(
                f"the files were optimised by several runtimes: {', '.join(runtimes)}"
            )
        files = _Files.of(graphs)
        self.runtime_, self.operators_ = runtimes[0], files.operators
        self.solution_ = _solve(files, measured, self.parts)
        left_out_ms = np.empty(len(networks))
        for fold in range(_FOLDS):
            test = networks[fold::_FOLDS]
            rest = np.setdiff1d(np.arange(len(measured)), test)
            refit = _solve(files.only(rest), measured[rest], self.parts, self.solution_.scales)
            left_out_ms[fold::_FOLDS] = refit.totals_ms(files.only(test))
        self.intervals_ = conformal_intervals(left_out_ms.tolist(), measured[networks].tolist())
        return self

    def predict(self, graph: KernelGraph) -> FilePrediction:
        """Price every kernel of a file.

        Raises:
            ModelDocumentError: another runtime, or another version of it, optimised the file.
        """
        if graph.runtime != self.runtime_:
            raise ModelDocumentError(
                f"the prices are of {self.runtime_}, the file was optimised by {graph.runtime}"
            )
        kinds, points, work = _arrays(graph.kernels)
        call_ms, prices_ms = self.solution_.prices_ms(kinds, points, work)
        latency_ms = call_ms + float(prices_ms.sum())
        kernels = tuple(
            PricedKernel(kernel.name, kernel.operator, float(ms), self._standing(kernel, point))
            for kernel, ms, point in zip(graph.kernels, prices_ms, points, strict=True)
        )
        doubtful_ms = {
            standing: sum(k.latency_ms for k in kernels if k.standing == standing)
            for standing in _FACTORS
        }
        coverage = 1.0 - sum(doubtful_ms.values()) / latency_ms
        low_ms, high_ms = self.intervals_.of(latency_ms)
        return FilePrediction(
            latency_ms=latency_ms,
            low_ms=coverage * low_ms + sum(ms / _FACTORS[s] for s, ms in doubtful_ms.items()),
            high_ms=coverage * high_ms + sum(ms * _FACTORS[s] for s, ms in doubtful_ms.items()),
            call_ms=call_ms,
            kernels=kernels,
            unknown=tuple(sorted({k.operator for k in kernels if k.standing == "unknown"})),
            coverage=coverage,
        )

    def to_document(self) -> dict[str, Any]:
        """A JSON-able document; `from_document` reads it back."""
        versions = {"format": FORMAT, "features": FEATURES_VERSION, "unit": "ms"}
        solution = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self.solution_).items()
        }
        return {
            **versions,
            "runtime": self.runtime_,
            "operators": list(self.operators_),
            **solution,
            "intervals": asdict(self.intervals_),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """The prices that `to_document` wrote.

        Raises:
            ModelDocumentError: the document is damaged or of an unknown format.
        """
        known = tuple(document.get(key) for key in ("format", "features", "unit"))
        if known != (FORMAT, FEATURES_VERSION, "ms"):
            raise ModelDocumentError(
                f"prices of kernels are {FORMAT}, features {FEATURES_VERSION}, in ms; got {known}"
            )
        prices = cls()
        try:
            prices.runtime_ = str(document["runtime"])
            prices.operators_ = tuple(map(str, document["operators"]))
            n, n_files = len(prices.operators_), len(document["file_log_ms"])
            prices.solution_ = _Solution(
                kinds=_array(document["kinds"], n).astype(np.int64),
                points=_array(document["points"], n, 7),
                call_ms=float(_array(document["call_ms"])),
                rates_ms=_array(document["rates_ms"], len(_KINDS), 4),
                scales=_array(document["scales"], 3),
                weights=_array(document["weights"], n),
                file_log_ms=_array(document["file_log_ms"], n_files),
                file_weights=_array(document["file_weights"], n_files),
            )
            prices.intervals_ = _intervals(document["intervals"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelDocumentError(f"damaged prices of kernels: {error!r}") from error
        return prices

    def _standing(self, kernel: Kernel, point: Floats) -> Standing:
        fitted = np.array([operator == kernel.operator for operator in self.operators_])
        if not kernel.counted or not fitted.any():
            return "unknown"
        alike = self.solution_.points[fitted & (self.solution_.kinds == _KINDS.index(kernel.kind))]
        near = (np.abs(alike - point) <= _NEAR).all(axis=1)
        return "fitted" if near.any() else "outside"


@dataclass(frozen=True)
class _Files:
    """Files as counts of distinct kernels.

    Attributes:
        operators: (n_kernels,).
        kinds, points, work: (n_kernels,), (n_kernels, 7), (n_kernels, 4); see `_arrays`.
        counts: (n_files, n_kernels).
    """

    operators: tuple[str, ...]
    kinds: Ints
    points: Floats
    work: Floats
    counts: Floats

    @classmethod
    def of(cls, graphs: Sequence[KernelGraph]) -> Self:
        """The files of `graphs`."""
        places: dict[tuple[Any, ...], int] = {}
        kernels: list[Kernel] = []
        cells: list[tuple[int, int]] = []
        for row, graph in enumerate(graphs):
            for kernel in graph.kernels:
                key = (kernel.operator, kernel.kind, _point(kernel), _work(kernel))
                if key not in places:
                    places[key] = len(kernels)
                    kernels.append(kernel)
                cells.append((row, places[key]))
        counts = np.zeros((len(graphs), len(kernels)))
        np.add.at(counts, tuple(np.array(cells).T), 1.0)
        return cls(tuple(k.operator for k in kernels), *_arrays(kernels), counts)

    def only(self, rows: Ints) -> "_Files":
        """Some of the files."""
        return _Files(self.operators, self.kinds, self.points, self.work, self.counts[rows])


@dataclass(frozen=True)
class _Solution:
    """What prices are made of.

    Attributes:
        kinds: (n_kernels,) of the distinct fitted kernels, as indices.
        points: (n_kernels, 7) see `_point`.
        call_ms: what a call costs.
        rates_ms: (n_kinds, 4) of the quantities of `_work`.
        scales: (3,) spreads of the corrections of kernels and of files, and the noise; relative.
        weights: (n_kernels,) of the fitted kernels in the correction of any kernel.
        file_log_ms, file_weights: (n_files,) the same of whole files.
    """

    kinds: Ints
    points: Floats
    call_ms: float
    rates_ms: Floats
    scales: Floats
    weights: Floats
    file_log_ms: Floats
    file_weights: Floats

    def prices_ms(self, kinds: Ints, points: Floats, work: Floats) -> tuple[float, Floats]:
        """What the call and each kernel (n,) of one file cost."""
        base_ms = _base_ms(work, kinds, self.rates_ms)
        of_file = self._of_files(np.array([self.call_ms + base_ms.sum()]))
        factors = np.maximum(_LEAST_PRICE, 1.0 + of_file + self._of_kernels(points, kinds))
        return self.call_ms * max(_LEAST_PRICE, 1.0 + float(of_file[0])), base_ms * factors

    def totals_ms(self, files: _Files) -> Floats:
        """The latencies of files, (n,)."""
        base_ms = _base_ms(files.work, files.kinds, self.rates_ms)
        sums_ms = self.call_ms + files.counts @ base_ms
        of_kernels = files.counts @ (base_ms * self._of_kernels(files.points, files.kinds))
        totals: Floats = sums_ms * (1.0 + self._of_files(sums_ms)) + of_kernels
        return totals

    def _of_kernels(self, points: Floats, kinds: Ints) -> Floats:
        """Relative corrections of kernels, (n,)."""
        likeness = _likeness(points, kinds, self.points, self.kinds)
        corrections: Floats = self.scales[0] ** 2 * likeness @ self.weights
        return corrections

    def _of_files(self, sums_ms: Floats) -> Floats:
        """Relative corrections of files, (n,), by what the rates say of them."""
        likeness = _file_likeness(np.log(sums_ms), self.file_log_ms)
        corrections: Floats = self.scales[1] ** 2 * likeness @ self.file_weights
        return corrections


def _solve(
    files: _Files, measured_ms: Floats, parts: Collection[Part], scales: Floats | None = None
) -> _Solution:
    """Rates, then corrections; the scales of these are found where none are given."""
    call_ms, rates_ms = _rates(files, measured_ms, by_kind="kinds" in parts)
    base_ms = _base_ms(files.work, files.kinds, rates_ms)  # (n_kernels,)
    sums_ms = call_ms + files.counts @ base_ms  # (n_files,)
    shares = files.counts * base_ms / sums_ms[:, None]  # (n_files, n_kernels)
    residuals, file_log_ms = measured_ms / sums_ms - 1.0, np.log(sums_ms)
    alike = _likeness(files.points, files.kinds, files.points, files.kinds)
    parts_of_covariance = np.stack(  # (3, n_files, n_files)
        [
            shares @ alike @ shares.T * ("kernels" in parts),
            _file_likeness(file_log_ms, file_log_ms) * ("files" in parts),
            np.eye(len(residuals)),
        ]
    )
    scales = _scales(parts_of_covariance, residuals) if scales is None else scales
    covariance = np.tensordot(scales**2, parts_of_covariance, axes=1)
    weights = np.asarray(np.linalg.solve(covariance, residuals), float)  # (n_files,)
    return _Solution(
        kinds=files.kinds,
        points=files.points,
        call_ms=call_ms,
        rates_ms=rates_ms,
        scales=scales,
        weights=shares.T @ weights if "kernels" in parts else np.zeros(len(base_ms)),
        file_log_ms=file_log_ms,
        file_weights=weights if "files" in parts else np.zeros(len(weights)),
    )


def _arrays(kernels: Sequence[Kernel]) -> tuple[Ints, Floats, Floats]:
    """Kinds as indices (n,), points (n, 7) and work (n, 4) of kernels."""
    return (
        np.array([_KINDS.index(k.kind) for k in kernels], np.int64),
        np.array([_point(k) for k in kernels], float).reshape(-1, 7),
        np.array([_work(k) for k in kernels], float).reshape(-1, 4),
    )


def _work(kernel: Kernel) -> tuple[float, ...]:
    """Launches, and 1e6 multiply-accumulates, bytes of activations, bytes of constants."""
    activations = kernel.bytes_read + kernel.bytes_written
    return 1.0, kernel.macs / 1e6, activations / 1e6, kernel.weight_bytes / 1e6


def _point(kernel: Kernel) -> tuple[float, ...]:
    """Log2 of the bytes read, written and constant, of window and stride; and two flags."""
    sizes = (
        *(kernel.bytes_read, kernel.bytes_written, kernel.weight_bytes),
        *(kernel.window, kernel.stride),
    )
    flags = (0.5 * kernel.adds, 0.5 * bool(kernel.activation))
    return (*(math.log2(max(1, size)) for size in sizes), *flags)


def _base_ms(work: Floats, kinds: Ints, rates_ms: Floats) -> Floats:
    """What the rates say of kernels, (n,), by their work (n, 4)."""
    prices: Floats = (work * rates_ms[kinds]).sum(axis=1)
    return prices


def _rates(files: _Files, measured_ms: Floats, *, by_kind: bool) -> tuple[float, Floats]:
    """Milliseconds of a call, and rates (n_kinds, 4); the same for all kinds if not `by_kind`."""
    from scipy.optimize import nnls

    n, n_kinds = len(measured_ms), len(_KINDS)
    work = np.einsum("fk,kt,kw->ftw", files.counts, np.eye(n_kinds)[files.kinds], files.work)
    ones = np.ones((n, 1))
    pooled = np.hstack([ones, work.sum(axis=1)]) / measured_ms[:, None]  # (n, 5)
    common, _ = nnls(pooled, ones[:, 0])
    share = _LEAST_SHARE / np.maximum(pooled.mean(axis=0), 1e-12)
    common[1:] = np.maximum(common, share)[1:]
    if not by_kind:
        return float(common[0]), np.tile(common[1:], (n_kinds, 1))
    prior = np.concatenate([np.maximum(common, share)[:1], np.tile(common[1:], n_kinds)])
    least = np.concatenate([[0.0], np.full(4 * n_kinds, _LEAST_RATE)])
    each = np.hstack([ones, work.reshape(n, -1)]) / measured_ms[:, None] * prior
    # |each x - 1|^2 + pull^2 |x - 1|^2 over x >= least, x being the rates over their priors
    system = np.vstack([each, _PULL * np.eye(len(prior))])
    found, _ = nnls(system, np.r_[ones[:, 0], np.full(len(prior), _PULL)] - system @ least)
    rates_ms = (least + found) * prior
    return float(rates_ms[0]), rates_ms[1:].reshape(n_kinds, 4)


def _likeness(points_a: Floats, kinds_a: Ints, points_b: Floats, kinds_b: Ints) -> Floats:
    """Correlation of the corrections of kernels, (n, m): of one kind, and near each other."""
    squares = ((points_a[:, None] - points_b[None]) ** 2).sum(axis=-1)
    likeness: Floats = np.exp(-0.5 * squares) * (kinds_a[:, None] == kinds_b[None])
    return likeness


def _file_likeness(log_ms_a: Floats, log_ms_b: Floats) -> Floats:
    """Correlation of the corrections of files, (n, m)."""
    distances = (log_ms_a[:, None] - log_ms_b[None]) / _FILE_LENGTH
    likeness: Floats = np.exp(-0.5 * distances**2)
    return likeness


def _scales(parts_of_covariance: Floats, residuals: Floats) -> Floats:
    """The most plausible scales (3,): marginal likelihood under broad log-normal priors."""
    from scipy.optimize import minimize

    rows = np.arange(0, len(residuals), -(-len(residuals) // _FILES_FOR_SCALES))
    some = parts_of_covariance[:, rows[:, None], rows]
    middle, spread = np.log([0.05, 0.03, 0.02]), np.array([1.0, 1.0, 0.5])

    def loss(logs: Floats) -> float:
        scales = np.maximum(np.exp(2.0 * logs), _LEAST_VARIANCE)
        root = np.linalg.cholesky(np.tensordot(scales, some, axes=1))
        white = np.linalg.solve(root, residuals[rows])
        prior = ((logs - middle) / spread) ** 2
        return float(0.5 * white @ white + np.log(np.diag(root)).sum() + 0.5 * prior.sum())

    scales = np.exp(minimize(loss, middle, method="L-BFGS-B").x)
    found: Floats = np.maximum(scales, _LEAST_VARIANCE**0.5)
    return found


def _array(values: Any, *shape: int) -> Floats:
    array = np.asarray(values, float)
    if array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"an array of {shape} finite numbers was expected, got {array.shape}")
    return array


def _intervals(fields: Mapping[str, Any]) -> ConformalIntervals:
    return ConformalIntervals(
        level=float(fields["level"]),
        edges_ms=tuple(map(float, fields["edges_ms"])),
        half_width=tuple(map(float, fields["half_width"])),
        upper=tuple(map(float, fields["upper"])),
        n=tuple(map(int, fields["n"])),
    )
