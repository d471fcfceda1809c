"""Latency of whole networks on a device from nothing but its own measurements.

A network takes the sum of what its amounts cost, more or less: ::

    latency_ms = prices . amounts / (1 - deviation)

The prices are a Bayesian linear regression in milliseconds, because runtimes add; the deviation
is a Gaussian process on the choices, for what the amounts do not tell. Both are fitted to
relative errors as the mean absolute percentage error has them, (measured - predicted) / measured.
"""

import json
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from sklearn.exceptions import NotFittedError

from predictor.errors import BadTableError, ModelDocumentError
from predictor.evaluation import check_latencies

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FORMAT = "tailor-scratch-latency-1"

FEWEST = 10
"""Measured networks that a fit needs at least."""

_OFFSET = 30.0  # of the amount that every network has; large, so that no prior pulls on its price
_SMALLEST = 0.2  # of the median latency: what is faster counts as this fast in relative errors
_FLOOR = 0.5  # of the smallest latency measured: what prices never fall below
_LARGEST_DEVIATION = 0.9
_TUNED_ON = 400  # networks that the kernel is chosen on; all of them are conditioned on
_AT_ONCE = 2048  # networks predicted at once, for the sake of memory
_NORMAL_90 = 1.645


@dataclass(frozen=True)
class Prediction:
    """Latencies of n networks.

    Attributes:
        latency_ms: (n,).
        sigma_ms: (n,), standard deviation of a measurement about the prediction.
        covered: (n,), whether every amount and every choice is inside what was measured.
    """

    latency_ms: Floats
    sigma_ms: Floats
    covered: NDArray[np.bool_]


class ScratchModel:
    """Prices of amounts, and deviations by choice.

    A fit of 900 networks takes a second or two on one core, and grows with the cube of their
    number: a few thousand are the limit.

    Args:
        deviations: whether to fit them; without, the prices are all there is.

    Attributes:
        prices_: (1 + n_features,) in ms for one unit of `scale_`; the first is the offset.
        scale_: (1 + n_features,), what amounts are divided by.
        kernel_: logarithms of the kernel's four parameters, see `_kernel`.
        spread_: what the process's own sigma is multiplied by, so that 90 % of its leave-one-out
            errors are as small as 90 % of a normal distribution.
    """

    def __init__(self, deviations: bool = True) -> None:
        self.deviations = deviations

    def fit(self, choices: ArrayLike, features: ArrayLike, latency_ms: ArrayLike) -> Self:
        """Fit to measured networks of one device.

        Args:
            choices: (n, n_slots), the candidate chosen in each slot, counted from 0.
            features: (n, n_features), amounts that latency may grow with: structural counts,
                MACs, bytes.
            latency_ms: (n,).

        Raises:
            BadTableError: fewer than `FEWEST` networks, latencies that are not positive or
                all alike, or an amount that is not finite; it names the row.
        """
        chosen, amounts = _checked(choices, features)
        measured = np.asarray(latency_ms, float)
        check_latencies(measured, "latency_ms", at_least=FEWEST)
        if len(measured) != len(chosen):
            raise BadTableError(f"{len(chosen)} networks and {len(measured)} latencies")
        self.low_, self.high_ = amounts.min(0), amounts.max(0)
        self.seen_ = [np.unique(slot) for slot in chosen.T]
        self.floor_ms_ = _FLOOR * float(measured.min())
        largest = np.abs(amounts).max(0)
        self.scale_ = np.concatenate([[1 / _OFFSET], np.where(largest > 0.0, largest, 1.0)])
        unit = np.maximum(measured, _SMALLEST * np.median(measured))
        self.prices_, left_out = _prices(self._scaled(amounts) / unit[:, None], measured / unit)
        left_out_ms = np.maximum(left_out * unit, self.floor_ms_)
        deviation = np.clip(1.0 - left_out_ms / measured, -1.0, 1.0)
        self.choices_ = chosen
        self.unit_ = float(np.sqrt(np.mean(deviation**2))) + 1e-9
        self.kernel_ = _tuned(chosen, deviation / self.unit_) if self.deviations else _NO_KERNEL
        factor = cho_factor(_covariance(chosen, self.kernel_), lower=True)
        inverse = cho_solve(factor, np.eye(len(chosen)))
        self.weights_ = inverse @ (deviation / self.unit_)
        self.inverse_ = inverse
        # leave-one-out errors over their sigma: Rasmussen and Williams 2006, eqs. 5.10 and 5.12
        left_out_error = np.abs(self.weights_) / np.sqrt(np.diag(inverse))
        self.spread_ = max(float(np.quantile(left_out_error, 0.9)) / _NORMAL_90, 0.1)
        return self

    def predict(self, choices: ArrayLike, features: ArrayLike) -> Prediction:
        """Latencies of networks of the same space.

        Args:
            choices: (n, n_slots).
            features: (n, n_features), the amounts that `fit` was given.

        Raises:
            BadTableError: other slots or amounts than those fitted, or one that is not finite.
            NotFittedError: `fit` comes first.
        """
        if not hasattr(self, "prices_"):
            raise NotFittedError("ScratchModel.fit comes before predict")
        chosen, amounts = _checked(choices, features)
        if chosen.shape[1] != self.choices_.shape[1] or amounts.shape[1] != len(self.low_):
            raise BadTableError(
                f"fitted to {self.choices_.shape[1]} slots and {len(self.low_)} features, "
                f"got {chosen.shape[1]} and {amounts.shape[1]}"
            )
        if len(chosen) > _AT_ONCE:
            return self._in_parts(chosen, amounts)
        priced_ms = np.maximum(self._scaled(amounts) @ self.prices_, self.floor_ms_)
        across = _kernel(_differing(chosen, self.choices_), chosen.shape[1], self.kernel_)
        deviation = self.unit_ * (across @ self.weights_)
        deviation = np.clip(deviation, -_LARGEST_DEVIATION, _LARGEST_DEVIATION)
        own = np.exp(self.kernel_[[0, 1, 3]]).sum()
        variance = own - (across @ self.inverse_ * across).sum(1)
        latency_ms = priced_ms / (1.0 - deviation)
        sigma = self.spread_ * self.unit_ * np.sqrt(np.maximum(variance, 0.0))
        inside = ((amounts >= self.low_) & (amounts <= self.high_)).all(1)
        seen = [np.isin(slot, known) for slot, known in zip(chosen.T, self.seen_, strict=True)]
        return Prediction(latency_ms, sigma * latency_ms, inside & np.all(seen, axis=0))

    def _in_parts(self, choices: Integers, features: Floats) -> Prediction:
        starts = range(0, len(choices), _AT_ONCE)
        parts = [
            self.predict(choices[i : i + _AT_ONCE], features[i : i + _AT_ONCE]) for i in starts
        ]
        return Prediction(
            np.concatenate([part.latency_ms for part in parts]),
            np.concatenate([part.sigma_ms for part in parts]),
            np.concatenate([part.covered for part in parts]),
        )

    def _scaled(self, amounts: Floats) -> Floats:
        scaled: Floats = np.column_stack([np.ones(len(amounts)), amounts]) / self.scale_
        return scaled

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Everything that `from_arrays` needs, as plain arrays; ``document`` holds JSON."""
        document = {"format": FORMAT, "unit": "ms", "floor_ms": self.floor_ms_}
        document |= {"deviation_unit": self.unit_, "spread": self.spread_}
        return {
            "document": np.frombuffer(json.dumps(document).encode(), np.uint8),
            "prices": self.prices_,
            "scale": self.scale_,
            "low": self.low_,
            "high": self.high_,
            "kernel": self.kernel_,
            "choices": self.choices_,
            "weights": self.weights_,
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        """The model that `to_arrays` wrote.

        Raises:
            ModelDocumentError: damaged, or of an unknown format.
        """
        try:
            document = json.loads(np.asarray(arrays["document"], np.uint8).tobytes())
            known = document.get("format"), document.get("unit")
            if known != (FORMAT, "ms"):
                raise ModelDocumentError(f"a scratch model is {FORMAT} in ms, got {known}")
            model = cls()
            model.floor_ms_ = float(document["floor_ms"])
            model.unit_, model.spread_ = (
                float(document["deviation_unit"]),
                float(document["spread"]),
            )
            for name in ("prices", "scale", "low", "high", "kernel", "weights"):
                values = np.asarray(arrays[name], float)
                if not np.isfinite(values).all():
                    raise ModelDocumentError(f"damaged scratch model: {name} is not finite")
                setattr(model, f"{name}_", values)
            model.choices_ = np.asarray(arrays["choices"], np.int64)
            covariance = _covariance(model.choices_, model.kernel_)
            model.inverse_ = np.linalg.inv(covariance)
        except (KeyError, TypeError, ValueError, np.linalg.LinAlgError) as error:
            raise ModelDocumentError(f"damaged scratch model: {error!r}") from error
        model.seen_ = [np.unique(slot) for slot in model.choices_.T]
        return model


def _checked(choices: ArrayLike, features: ArrayLike) -> tuple[Integers, Floats]:
    chosen, amounts = np.asarray(choices, np.int64), np.asarray(features, float)
    if chosen.ndim != 2 or amounts.ndim != 2 or len(chosen) != len(amounts):
        raise BadTableError(
            f"choices and features are (n, n_slots) and (n, n_features), got {chosen.shape} and "
            f"{amounts.shape}"
        )
    wrong = np.flatnonzero(~np.isfinite(amounts).all(1))
    if len(wrong):
        raise BadTableError("an amount is not finite", row=int(wrong[0]))
    return chosen, amounts


def _prices(amounts: Floats, target: Floats) -> tuple[Floats, Floats]:
    """Bayesian linear regression with the prior that the evidence favours (MacKay 1992).

    Args:
        amounts: (n, n_features), target: (n,), both relative to what was measured.

    Returns:
        The prices (n_features,), and what each target is predicted as without it (n,).
    """
    n = len(target)
    left, singular, right = np.linalg.svd(amounts, full_matrices=False)
    projected = left.T @ target
    outside = max(float(target @ target - projected @ projected), 0.0)
    penalties = np.logspace(-10.0, 0.0, 41) * singular[0] ** 2

    def log_evidence(penalty: float) -> float:
        noise = (projected**2 * penalty / (singular**2 + penalty)).sum() + outside
        log_determinant = np.log((singular**2 + penalty) / penalty).sum()
        return -0.5 * float(n * np.log(noise + 1e-300) + log_determinant)

    penalty = max(penalties, key=log_evidence)
    shrunk = singular**2 / (singular**2 + penalty)
    residual = target - left @ (shrunk * projected)
    leverage = np.minimum((left**2 * shrunk).sum(1), 0.999)
    prices = right.T @ (singular / (singular**2 + penalty) * projected)
    return prices, target - residual / (1.0 - leverage)


# log of: variance of single choices, variance of their combinations, rate at which combinations
# forget, noise; the prior trusts the prices
_PRIOR_MEAN = np.array([-2.0, -2.0, 0.0, -0.3])
_PRIOR_SD = 1.5
_NO_KERNEL = np.array([-30.0, -30.0, 0.0, 0.0])


def _differing(one: Integers, other: Integers) -> Floats:
    """In how many slots networks differ, (n, m)."""
    differing = np.zeros((len(one), len(other)))
    for a, b in zip(one.T, other.T, strict=True):
        differing += a[:, None] != b
    return differing


def _kernel(differing: Floats, n_slots: int, kernel: Floats) -> Floats:
    """What networks have in common: choices one by one, and all together (Hamming)."""
    single, joint, rate = (float(value) for value in np.exp(kernel[:3]))
    return single * (1.0 - differing / n_slots) + joint * np.exp(-0.5 * rate * differing)


def _covariance(choices: Integers, kernel: Floats) -> Floats:
    common = _kernel(_differing(choices, choices), choices.shape[1], kernel)
    return common + float(np.exp(kernel[3])) * np.eye(len(choices))


def _tuned(choices: Integers, deviation: Floats) -> Floats:
    """The kernel's parameters of highest posterior density, (4,)."""
    if len(choices) > _TUNED_ON:
        subset = np.random.default_rng(0).choice(len(choices), _TUNED_ON, replace=False)
        choices, deviation = choices[subset], deviation[subset]
    differing, n_slots = _differing(choices, choices), choices.shape[1]
    identity = np.eye(len(choices))

    def loss(kernel: Floats) -> tuple[float, Floats]:
        single, joint, rate, noise = np.exp(kernel)
        parts = single * (1.0 - differing / n_slots), joint * np.exp(-0.5 * rate * differing)
        covariance = parts[0] + parts[1] + (noise + 1e-6) * identity
        factor = cho_factor(covariance, lower=True)
        inverse = cho_solve(factor, identity)
        weights = inverse @ deviation
        slope = 0.5 * (inverse - np.outer(weights, weights))
        by_rate = -0.5 * rate * differing * parts[1]
        gradient = [(slope * d).sum() for d in (*parts, by_rate)] + [noise * np.trace(slope)]
        away = (kernel - _PRIOR_MEAN) / _PRIOR_SD
        value = 0.5 * deviation @ weights + np.log(np.diag(factor[0])).sum() + 0.5 * away @ away
        return float(value), np.array(gradient) + away / _PRIOR_SD

    bounds = [(-9.0, 6.0), (-9.0, 6.0), (-9.0, 3.0), (-9.0, 3.0)]
    found = minimize(loss, _PRIOR_MEAN, jac=True, method="L-BFGS-B", bounds=bounds)
    return np.asarray(found.x, float)
