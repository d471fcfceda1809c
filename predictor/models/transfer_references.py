"""Devices that are known already: what each would take for networks that it never ran."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

from predictor.errors import BadTableError, ModelDocumentError
from predictor.evaluation import check_latencies

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Arrays = dict[str, Any]
"""Numbers, strings, lists and numpy arrays by name; never a pickle."""

FORMAT = 1
_AT_LEAST = 10
_FARTHEST = 4.0
"""Standard deviations at which a feature is cut off: a network of which nothing is left to run
would otherwise stretch its scale."""

_FARTHEST_LATENCY = 5.0
_CHUNK = 4096


@dataclass(frozen=True)
class Measured:
    """Networks that were measured on one device.

    Attributes:
        choices: (n, n_slots), the candidate chosen in each slot.
        features: (n, n_features), costs of each network without any device.
        latency_ms: (n,).
    """

    choices: Integers
    features: Floats
    latency_ms: Floats

    def __post_init__(self) -> None:
        if not len(self.choices) == len(self.features) == len(self.latency_ms):
            raise BadTableError(
                f"{len(self.choices)} rows of choices, {len(self.features)} of features and "
                f"{len(self.latency_ms)} latencies"
            )


class Encoded(NamedTuple):
    """Networks as a transfer compares them, a row each; squared lengths are 1 on average.

    Attributes:
        scaled: (n, n_devices) standardised log latency that each reference would take.
        features: (n, n_features), standardised.
        choices: (n, sum of candidates), one-hot and centred.
    """

    scaled: Floats
    features: Floats
    choices: Floats

    def rows(self, index: Integers) -> "Encoded":
        """Those networks only."""
        return Encoded(*(block[index] for block in self))


class Encoding:
    """Networks as two blocks of columns: choices one-hot, and standardised features.

    Both are scaled so that a network's squared length is 1 on average: the linear kernel of
    each has unit variance.
    """

    def fit(self, choices: Integers, features: Floats) -> Self:
        """Learn scales from networks drawn at random from the space, (n, n_slots) and (n, f)."""
        self.n_candidates_: Integers = choices.max(0) + 1
        one_hot = self._one_hot(choices)
        self.choice_mean_: Floats = one_hot.mean(0)
        self.choice_scale_ = _length(one_hot - self.choice_mean_)
        self.feature_mean_: Floats = features.mean(0)
        varies = np.ptp(features, 0) > 0.0
        self.feature_unit_: Floats = varies / np.where(varies, features.std(0), 1.0)
        self.feature_scale_ = 1.0
        self.feature_scale_ = _length(self.features(features))
        return self

    def choices(self, choices: Integers) -> Floats:
        """Centred one-hot choices, (n, sum of candidates).

        Raises:
            BadTableError: a choice that no reference network has; it names the row.
        """
        self._check(choices)
        return (self._one_hot(choices) - self.choice_mean_) / self.choice_scale_

    def features(self, features: Floats) -> Floats:
        """Standardised features, (n, f)."""
        scaled = (features - self.feature_mean_) * self.feature_unit_
        return np.clip(scaled, -_FARTHEST, _FARTHEST) / self.feature_scale_

    def _one_hot(self, choices: Integers) -> Floats:
        return np.concatenate(
            [np.eye(n)[column] for n, column in zip(self.n_candidates_, choices.T, strict=True)],
            axis=1,
        )

    def _check(self, choices: Integers) -> None:
        unknown = (choices < 0) | (choices >= self.n_candidates_)
        if unknown.any():
            row, slot = np.argwhere(unknown)[0]
            raise BadTableError(
                f"slot {slot} has candidate {choices[row, slot]}, which no reference network has",
                row=int(row),
            )

    def to_arrays(self) -> Arrays:
        """The learned scales."""
        return {
            "n_candidates": self.n_candidates_,
            "choice_mean": self.choice_mean_,
            "choice_scale": self.choice_scale_,
            "feature_mean": self.feature_mean_,
            "feature_unit": self.feature_unit_,
            "feature_scale": self.feature_scale_,
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """The inverse of `to_arrays`."""
        self = cls()
        self.n_candidates_ = np.asarray(arrays["n_candidates"], np.int64)
        self.choice_mean_ = np.asarray(arrays["choice_mean"], float)
        self.choice_scale_ = float(arrays["choice_scale"])
        self.feature_mean_ = np.asarray(arrays["feature_mean"], float)
        self.feature_unit_ = np.asarray(arrays["feature_unit"], float)
        self.feature_scale_ = float(arrays["feature_scale"])
        return self


class ReferenceModel:
    """One device's log latency as a Gaussian process; its variances by type-II likelihood.

    The kernel is additive in the choices, linear in the features, and smooth in the features.
    """

    def fit(self, measured: Measured, name: str = "") -> Self:
        """Fit to a few hundred networks; time grows with the cube of their number.

        Raises:
            BadTableError: fewer than 10 networks, or latencies nothing can be learnt from.
        """
        check_latencies(measured.latency_ms, name, at_least=_AT_LEAST)
        self.encoding_ = Encoding().fit(measured.choices, measured.features)
        self.points_ = self._encode(measured.choices, measured.features)
        log = np.log(measured.latency_ms)
        self.centre_, self.spread_ = float(np.median(log)), float(log.std())
        y = np.clip((log - self.centre_) / self.spread_, -_FARTHEST_LATENCY, _FARTHEST_LATENCY)
        kernels = np.stack([*_kernels(self.points_, self.points_)])
        logs = minimize(
            _negative_log_likelihood,
            np.array([-1.0] * len(kernels) + [-3.0]),
            args=(kernels, y),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 25},
        ).x
        self.variances_: Floats = np.exp(logs)
        self.weights_: Floats = cho_solve(cho_factor(_gram(self.variances_, kernels)), y)
        return self

    def predict(self, choices: Integers, features: Floats) -> Floats:
        """Log of milliseconds, (n,)."""
        encoded = self._encode(choices, features)
        y = [
            sum(v * (k @ self.weights_) for v, k in zip(self.variances_, kernels, strict=False))
            for kernels in (
                _kernels(tuple(block[rows] for block in encoded), self.points_)
                for rows in _chunks(len(choices))
            )
        ]
        return self.centre_ + self.spread_ * np.concatenate(y)

    def _encode(self, choices: Integers, features: Floats) -> tuple[Floats, Floats]:
        return self.encoding_.choices(choices), self.encoding_.features(features)

    def to_arrays(self) -> Arrays:
        """Everything `predict` needs."""
        return {
            "encoding": self.encoding_.to_arrays(),
            "points": list(self.points_),
            "centre": self.centre_,
            "spread": self.spread_,
            "variances": self.variances_,
            "weights": self.weights_,
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """The inverse of `to_arrays`."""
        self = cls()
        self.encoding_ = Encoding.from_arrays(arrays["encoding"])
        one_hot, features = (np.asarray(block, float) for block in arrays["points"])
        self.points_ = (one_hot, features)
        self.centre_, self.spread_ = float(arrays["centre"]), float(arrays["spread"])
        self.variances_ = np.asarray(arrays["variances"], float)
        self.weights_ = np.asarray(arrays["weights"], float)
        return self


class References:
    """Every device that is known, and networks to compare devices on.

    Attributes:
        names: of the devices, in the order of the columns of `predict`.
    """

    def fit(self, measured: Mapping[str, Measured]) -> Self:
        """One model a device, each from its own networks of the one space.

        Raises:
            BadTableError: no device, or one with latencies that nothing can be learnt from.
        """
        if not measured:
            raise BadTableError("a transfer needs at least one reference device")
        self.names = tuple(measured)
        self.models_ = [ReferenceModel().fit(m, name) for name, m in measured.items()]
        first = next(iter(measured.values()))
        self.encoding_ = Encoding().fit(first.choices, first.features)
        log = self.predict(first.choices, first.features)
        self.mean_: Floats = log.mean(0)
        self.std_: Floats = log.std(0)
        return self

    def predict(self, choices: Integers, features: Floats) -> Floats:
        """Log of milliseconds on every device, (n, n_devices)."""
        return np.stack([model.predict(choices, features) for model in self.models_], axis=1)

    def encode(self, choices: Integers, features: Floats) -> Encoded:
        """Networks, (n, n_slots) and (n, n_features), as `TransferRegressor` takes them.

        Raises:
            BadTableError: a choice that no reference network has; it names the row.
        """
        scaled = (self.predict(choices, features) - self.mean_) / self.std_
        scaled = np.clip(scaled, -_FARTHEST_LATENCY, _FARTHEST_LATENCY)
        return Encoded(
            scaled / np.sqrt(scaled.shape[1]),
            self.encoding_.features(features),
            self.encoding_.choices(choices),
        )

    def to_arrays(self) -> Arrays:
        """Everything `predict` needs, with the version of this format."""
        return {
            "format": FORMAT,
            "names": list(self.names),
            "models": [model.to_arrays() for model in self.models_],
            "encoding": self.encoding_.to_arrays(),
            "mean": self.mean_,
            "std": self.std_,
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """The inverse of `to_arrays`.

        Raises:
            ModelDocumentError: another format, or something is missing.
        """
        check_format(arrays, FORMAT)
        self = cls()
        try:
            self.names = tuple(arrays["names"])
            self.models_ = [ReferenceModel.from_arrays(model) for model in arrays["models"]]
            self.encoding_ = Encoding.from_arrays(arrays["encoding"])
            self.mean_ = np.asarray(arrays["mean"], float)
            self.std_ = np.asarray(arrays["std"], float)
        except KeyError as error:
            raise ModelDocumentError(f"references without {error}") from None
        return self


def check_format(arrays: Arrays, known: int) -> None:
    """Refuse another version of a stored form.

    Raises:
        ModelDocumentError: naming both versions.
    """
    if arrays.get("format") != known:
        raise ModelDocumentError(
            f"format {arrays.get('format')!r} of a transfer model; this version reads {known}"
        )


def distances2(a: Floats, b: Floats) -> Floats:
    """Squared distances, (n, m), of points (n, d) and (m, d)."""
    squares: Floats = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2.0 * a @ b.T
    return np.maximum(squares, 0.0)


def _kernels(a: tuple[Floats, ...], b: tuple[Floats, ...]) -> Iterator[Floats]:
    """Additive in the choices, linear in the features, smooth in the features: (n, m) each."""
    yield a[0] @ b[0].T
    yield a[1] @ b[1].T
    yield np.exp(-0.5 * distances2(a[1], b[1]))


def _gram(variances: Floats, kernels: Floats) -> Floats:
    noise: Floats = (variances[-1] + 1e-6) * np.eye(kernels.shape[1])
    return np.tensordot(variances[:-1], kernels, 1) + noise


def _negative_log_likelihood(logs: Floats, kernels: Floats, y: Floats) -> tuple[float, Floats]:
    """And its gradient, with a broad prior on the logarithms of the variances.

    Rasmussen and Williams 2006, equations 5.8 and 5.9.
    """
    variances = np.exp(logs)
    factor = np.linalg.cholesky(_gram(variances, kernels))
    half = solve_triangular(factor, np.eye(len(y)), lower=True)
    inverse = half.T @ half
    weights = inverse @ y
    slope = inverse - np.outer(weights, weights)
    value = 0.5 * y @ weights + np.log(np.diag(factor)).sum() + 0.02 * logs @ logs
    traces = [*np.tensordot(kernels, slope, 2), np.trace(slope)]
    return float(value), 0.5 * variances * traces + 0.04 * logs


def _length(centred: Floats) -> float:
    return float(np.sqrt((centred**2).sum(1).mean())) or 1.0


def _chunks(n: int) -> Iterator[slice]:
    return (slice(start, start + _CHUNK) for start in range(0, n, _CHUNK))
