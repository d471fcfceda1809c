"""Latency on a new device from a few networks measured there and devices known already.

The log latency of the target is a Gaussian process. Its kernels compare networks by what the
reference devices would take for them, by costs that need no device, and by their choices. How
much each kernel counts is not estimated, as 20 networks are too few for that: the posterior is
averaged over many settings, each weighed by its evidence. Noise is part of a setting, hence the
target's own; it is Student's, for a phone that is interrupted now and then.

Beside the process with all kernels, two that know nothing of other devices are weighed against
it by their leave-one-out predictive density, so that references which mislead are not believed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, gammaln, logsumexp, ndtri
from scipy.stats import spearmanr

from predictor.errors import ModelDocumentError
from predictor.evaluation import check_latencies
from predictor.models.transfer_references import (
    Arrays,
    Encoded,
    Floats,
    Integers,
    References,
    check_format,
    distances2,
)

FORMAT = 1
KERNELS = ("references", "features", "features_smooth", "choices")


class Member(NamedTuple):
    """One process of the stack.

    Attributes:
        kernels: which of `KERNELS` it has.
        prior: weight in the stack before any measurement.
    """

    kernels: tuple[str, ...]
    prior: float


STACK = {
    "transfer": Member(KERNELS, 0.7),
    "analytic": Member(("features", "features_smooth"), 0.2),
    "additive": Member(("choices",), 0.1),
}

_AT_LEAST = 5
_SETTINGS = 1500
_KEPT = 64
"""Settings that stand for the posterior of all of them when networks are predicted."""

_OFF = 0.5  # probability that a setting does without a kernel
_LOG10_VARIANCE = (-2.5, 0.5)  # of a kernel, in variances of the samples
_LOG10_NOISE = (-4.0, 0.3)
_DEGREES = 3.0
"""Degrees of freedom of the noise; the fewest with a finite variance."""

_NOISE_AS_NORMAL = 2.05
"""Variance of the normal distribution whose 90 % lie where those of Student's with 3 degrees of
freedom lie, in squared scales."""

_ROUNDS = 4
_JITTER = 1e-8
_ALIKE = 0.7
_POOL = 1200
_SAMPLING_VARIANCES = (0.5, 0.5, 0.1, 0.3)
_SAMPLING_NOISE = 0.05


@dataclass(frozen=True)
class Transferred:
    """Predictions for some networks.

    Attributes:
        latency_ms: (n,) medians.
        sigma: (n,) standard deviation of a measurement's logarithm, in effect a relative error.
    """

    latency_ms: Floats
    sigma: Floats

    def interval_ms(self, level: float = 0.9) -> tuple[Floats, Floats]:
        """Where a share `level` of measurements should lie: (n,) lower and (n,) upper bounds."""
        factor = np.exp(float(ndtri(0.5 + level / 2.0)) * self.sigma)
        return self.latency_ms / factor, self.latency_ms * factor


class TransferRegressor:
    """Latency on one new device.

    Args:
        references: the devices known already, fitted.
        stack: the processes to weigh against each other.
        robust: whether the noise is Student's; normal otherwise.
        seed: of the settings that are averaged.

    Attributes:
        weights_: of each member of the stack; they sum to 1.
        alike_: largest rank correlation of a reference's latencies with the measured ones.
        nearest_: name of that reference.
        warning_: why predictions may be poor, or empty.
    """

    def __init__(
        self,
        references: References,
        stack: dict[str, Member] = STACK,
        *,
        robust: bool = True,
        seed: int = 0,
    ) -> None:
        self.references = references
        self.stack = stack
        self.robust = robust
        self.seed = seed

    def fit(self, networks: Encoded, latency_ms: Floats) -> Self:
        """Fit to `n` networks as `References.encode` gives them, and their (n,) latencies.

        Raises:
            BadTableError: fewer than 5 networks, or latencies that nothing can be learnt from.
        """
        check_latencies(latency_ms, "latency_ms", at_least=_AT_LEAST)
        log = np.log(latency_ms)
        self.centre_, self.spread_ = float(np.median(log)), float(log.std())
        y = (log - self.centre_) / self.spread_
        self.networks_ = networks
        kernels = _kernels(networks, networks)
        fits = [self._member(member, kernels, y) for member in self.stack.values()]
        scores = np.array([fit.log_density for fit in fits])
        scores += np.log([member.prior for member in self.stack.values()])
        weights = np.exp(scores - logsumexp(scores))
        self.weights_ = dict(zip(self.stack, weights.tolist(), strict=True))
        self._keep(fits, weights)
        self._judge(y)
        return self

    def predict(self, networks: Encoded) -> Transferred:
        """Latency of `n` networks as `References.encode` gives them."""
        kernels = _kernels(networks, self.networks_)  # (4, n, n_measured)
        prior = _variances(networks)  # (4, n)
        first = second = np.zeros(len(networks.features))
        tail = _NOISE_AS_NORMAL if self.robust else 1.0
        for share, setting in zip(self.shares_, self.kept_, strict=True):
            cross = np.tensordot(setting.variances, kernels, 1) + 1.0
            mean = cross @ setting.coefficients
            explained = np.einsum("ni,ij,nj->n", cross, setting.inverse, cross, optimize=True)
            left = np.maximum(setting.variances @ prior + 1.0 - explained, 0.0)
            first = first + share * mean
            second = second + share * (mean**2 + left + tail * setting.noise)
        sigma = np.sqrt(np.maximum(second - first**2, 0.0))
        return Transferred(np.exp(self.centre_ + self.spread_ * first), self.spread_ * sigma)

    def _member(self, member: Member, kernels: Floats, y: Floats) -> "_Fit":
        has = np.array([name in member.kernels for name in KERNELS])
        variances, noise = _settings(has, self.seed)
        degrees = _DEGREES if self.robust else np.inf
        return _fit(kernels, variances, noise, degrees, y)

    def _keep(self, fits: Sequence["_Fit"], weights: Floats) -> None:
        """Systematic resampling: as many settings as predictions can afford."""
        share = np.concatenate([w * fit.shares for w, fit in zip(weights, fits, strict=True)])
        marks = (np.arange(_KEPT) + 0.5) / _KEPT
        drawn = np.searchsorted(np.cumsum(share), marks * share.sum())
        which, times = np.unique(np.minimum(drawn, len(share) - 1), return_counts=True)
        self.shares_: Floats = times / _KEPT
        self.kept_ = [
            fits[index // _SETTINGS].setting(index % _SETTINGS) for index in which.tolist()
        ]

    def _judge(self, y: Floats) -> None:
        ranks = [abs(float(spearmanr(column, y).statistic)) for column in self.networks_.scaled.T]
        best = int(np.argmax(np.nan_to_num(ranks)))
        self.alike_, self.nearest_ = ranks[best], self.references.names[best]
        self.warning_ = ""
        if self.alike_ < _ALIKE:
            self.warning_ = (
                f"no similar device is registered: the nearest, {self.nearest_}, has a rank "
                f"correlation of {self.alike_:.2f}; measure twice as many networks"
            )
        elif max(self.weights_, key=self.weights_.__getitem__) != "transfer":
            self.warning_ = (
                "the measurements are explained better without the registered devices; "
                "measure twice as many networks"
            )

    def to_arrays(self) -> Arrays:
        """What `predict` needs beside the references, with the version of this format."""
        return {
            "format": FORMAT,
            "centre": self.centre_,
            "spread": self.spread_,
            "robust": self.robust,
            "networks": list(self.networks_),
            "shares": self.shares_,
            "kept": [list(setting) for setting in self.kept_],
            "weights": self.weights_,
            "alike": self.alike_,
            "nearest": self.nearest_,
            "warning": self.warning_,
        }

    @classmethod
    def from_arrays(cls, references: References, arrays: Arrays) -> Self:
        """The inverse of `to_arrays`, with the same references.

        Raises:
            ModelDocumentError: another format, or something is missing.
        """
        check_format(arrays, FORMAT)
        try:
            self = cls(references, robust=bool(arrays["robust"]))
            self.centre_, self.spread_ = float(arrays["centre"]), float(arrays["spread"])
            self.networks_ = Encoded(*(np.asarray(b, float) for b in arrays["networks"]))
            self.shares_ = np.asarray(arrays["shares"], float)
            self.kept_ = [
                _Setting(np.asarray(v), np.asarray(c), np.asarray(i), float(n))
                for v, c, i, n in arrays["kept"]
            ]
            self.weights_ = dict(arrays["weights"])
            self.alike_, self.nearest_ = float(arrays["alike"]), str(arrays["nearest"])
            self.warning_ = str(arrays["warning"])
        except KeyError as error:
            raise ModelDocumentError(f"a transfer model without {error}") from None
        return self


def propose(networks: Encoded, n: int, seed: int = 0) -> Integers:
    """Rows of the `n` networks to measure on a new device, of those given.

    Each takes away most of the variance that the others leave in all of a random pool (active
    learning by expected variance, Cohn 1996): typical networks first, where a search by the
    largest variance alone measures extremes.
    """
    drawn = np.random.default_rng(seed).permutation(len(networks.features))[:_POOL]
    pool = networks.rows(drawn)
    covariance = np.tensordot(np.array(_SAMPLING_VARIANCES), _kernels(pool, pool), 1)
    taken: list[int] = []
    while len(taken) < min(n, len(drawn)):
        gain = (covariance**2).sum(0) / (np.diag(covariance) + _SAMPLING_NOISE)
        gain[taken] = -1.0
        best = int(gain.argmax())
        column = covariance[:, best]
        covariance = covariance - np.outer(column, column) / (column[best] + _SAMPLING_NOISE)
        taken.append(best)
    return drawn[taken]


class _Setting(NamedTuple):
    """One posterior; variances are those of the standardised log latency.

    Attributes:
        variances: (4,) of the kernels.
        coefficients: (n,) of the measured networks.
        inverse: (n, n) of their covariance.
        noise: squared scale of the noise.
    """

    variances: Floats
    coefficients: Floats
    inverse: Floats
    noise: float


@dataclass(frozen=True)
class _Fit:
    """One member's posteriors, a setting each, and how well it foretells what it leaves out."""

    variances: Floats  # (s, 4)
    noise: Floats  # (s,)
    coefficients: Floats  # (s, n)
    inverse: Floats  # (s, n, n)
    shares: Floats  # (s,), their evidence, normalised
    log_density: float

    def setting(self, index: int) -> _Setting:
        return _Setting(
            self.variances[index],
            self.coefficients[index],
            self.inverse[index],
            float(self.noise[index]),
        )


def _kernels(a: Encoded, b: Encoded) -> Floats:
    """In the order of `KERNELS`, (4, n, m)."""
    return np.stack(
        [
            a.scaled @ b.scaled.T,
            a.features @ b.features.T,
            np.exp(-0.5 * distances2(a.features, b.features)),
            a.choices @ b.choices.T,
        ]
    )


def _variances(points: Encoded) -> Floats:
    """Diagonals of `_kernels(points, points)`, (4, n)."""
    one = np.ones(len(points.features))
    scaled, features, choices = ((block**2).sum(1) for block in points)
    return np.stack([scaled, features, one, choices])


def _settings(has: NDArray[np.bool_], seed: int) -> tuple[Floats, Floats]:
    """Variances of the kernels, (s, 4), and of the noise, (s,): drawn from a broad prior."""
    rng = np.random.default_rng(seed)
    variances = 10.0 ** rng.uniform(*_LOG10_VARIANCE, (_SETTINGS, len(has)))
    variances *= (rng.random(variances.shape) >= _OFF) * has
    return variances, 10.0 ** rng.uniform(*_LOG10_NOISE, _SETTINGS)


def _fit(kernels: Floats, variances: Floats, noise: Floats, degrees: float, y: Floats) -> _Fit:
    """Posteriors under Student's noise by variational inference, for all settings at once.

    Each measurement's precision is a Gamma variable; the evidence is the variational lower bound
    (Kuss 2006, section 5.3; Tipping and Lawrence 2005). With infinite degrees the noise is normal
    and the evidence exact.
    """
    identity = np.eye(len(y))
    prior = np.tensordot(variances, kernels, 1) + 1.0 + _JITTER * identity  # (s, n, n)
    scale2 = noise[:, None]
    precision = np.ones((len(noise), len(y)))  # of the noise, in 1 / scale2
    for _ in range(_ROUNDS if np.isfinite(degrees) else 1):
        noise_at = scale2 / precision
        inverse = np.asarray(np.linalg.inv(prior + noise_at[:, :, None] * identity), np.float64)
        coefficients: Floats = inverse @ y
        diagonal = np.einsum("sii->si", inverse)
        used, error = precision, noise_at * coefficients
        if np.isfinite(degrees):
            expected = error**2 + noise_at - noise_at**2 * diagonal
            precision = (degrees + 1.0) / (degrees + expected / scale2)
    evidence = -0.5 * (coefficients @ y) + 0.5 * np.linalg.slogdet(inverse)[1]
    if np.isfinite(degrees):
        evidence += _precision_bound(used, degrees).sum(1)
    shares: Floats = np.exp(evidence - logsumexp(evidence))
    # leaving one out: Rasmussen and Williams 2006, equation 5.12
    densities = np.sqrt(diagonal / (2.0 * np.pi)) * np.exp(-0.5 * coefficients**2 / diagonal)
    log_density = float(np.log(shares @ densities + 1e-300).sum())
    return _Fit(variances, noise, coefficients, inverse, shares, log_density)


def _precision_bound(precision: Floats, degrees: float) -> Floats:
    """What uncertain precisions add to the evidence: less than 0 where they are not 1."""
    shape, prior = (degrees + 1.0) / 2.0, degrees / 2.0
    rate = shape / precision
    log_mean = digamma(shape) - np.log(rate)
    divergence = (
        (shape - prior) * digamma(shape)
        - gammaln(shape)
        + gammaln(prior)
        + prior * (np.log(rate) - np.log(prior))
        + shape * (prior - rate) / rate
    )
    bound: Floats = 0.5 * (log_mean - np.log(precision)) - divergence
    return bound
