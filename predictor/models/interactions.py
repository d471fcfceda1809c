"""What block sums leave over in whole networks: a Gaussian process on the residual.

Every kernel is multilinear in the one-hot choices of the slots. The mean of the process over
architectures drawn from probabilities P, slot by slot, is therefore the process at P itself:
no sampling, and its differences are the differences of exchanged operations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from predictor.errors import UnusableMeasurementsError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_PRIOR_SPREAD = 2.0
"""Of the logarithm of each variance: a factor of 7 either way is one standard deviation."""

_DTYPE = torch.float64
_STEPS = 60
_OUTLIER = 3.0
_JITTER = 1e-9


class Slots(NamedTuple):
    """The slots of a space as a Gaussian process sees them.

    Attributes:
        ms: (n_slots, width) block sums of each candidate, 0 where there is no candidate.
        groups_ms: (n_slots, width, n_groups) of these, what belongs to each group of blocks
            that are alike (one kernel size, one resolution, ...).
    """

    ms: Floats
    groups_ms: Floats


@dataclass(frozen=True)
class Variances:
    """How far each kind of residual goes; relative variances, hence without unit.

    Attributes:
        alike: of what blocks of one group take longer together.
        place: of what a block takes longer at its place.
        adjacent: of what two candidates of adjacent slots take longer beside each other.
        product: of what depends on everything at once, by the share of equal slots.
        similarity: what is left of the product kernel for each slot that differs.
        noise: of a measurement.
    """

    alike: float = 1e-3
    place: float = 1e-3
    adjacent: float = 3e-4
    product: float = 3e-4
    similarity: float = 0.8
    noise: float = 3e-4


@dataclass(frozen=True)
class Interactions:
    """A fitted residual as plain numbers, in ms.

    ``R(a) = sum_l table[l, a_l] + sum_l pairs[l][a_l, a_(l+1)]
    + sum_i weights[i] prod_l (1 if a_l == networks[i, l] else similarity)``.

    Attributes:
        table_ms: (n_slots, width).
        pairs_ms: (n_slots - 1, width, width), of slot l and the one after it.
        weights_ms: (n,).
        networks: (n, n_slots) choices.
        similarity: in 0..1.
    """

    table_ms: Floats
    pairs_ms: Floats
    weights_ms: Floats
    networks: Ints
    similarity: float

    def at(self, choices: Ints) -> Floats:
        """The residual of networks (n, n_slots), in ms."""
        slots = np.arange(choices.shape[1])
        equal = choices[:, None, :] == self.networks[None]
        residual_ms: Floats = (
            self.table_ms[slots, choices].sum(axis=1)
            + self.pairs_ms[slots[:-1], choices[:, :-1], choices[:, 1:]].sum(axis=1)
            + np.where(equal, 1.0, self.similarity).prod(axis=2) @ self.weights_ms
        )
        return residual_ms


class InteractionProcess:
    """Fits `Interactions` to the residuals of measured networks.

    Args:
        without: names of kernels of `Variances` to leave out, for ablations.
    """

    def __init__(self, slots: Slots, without: Sequence[str] = ()) -> None:
        self._slots = slots
        self._without = tuple(without)

    def fit(self, choices: Ints, residual_ms: Floats, predicted_ms: Floats) -> Variances:
        """Variances of greatest marginal likelihood, with a broad prior around the defaults.

        The noise grows with the latency, so that errors count relative to it; networks that no
        variance explains (beyond three robust deviations) are given more.

        Args:
            choices: (n, n_slots) of the measured networks.
            residual_ms: (n,) measured less predicted by block sums.
            predicted_ms: (n,) by block sums.

        Raises:
            UnusableMeasurementsError: a number is not finite.
        """
        if not (np.isfinite(residual_ms).all() and np.isfinite(predicted_ms).all()):
            raise UnusableMeasurementsError("a residual of the networks is not a finite number")
        unit = float(np.median(predicted_ms))
        kernels = self._kernels(choices, choices, unit)
        y = torch.as_tensor(residual_ms / unit)
        noise = torch.as_tensor(_noise_shape(residual_ms, predicted_ms) / unit**2)
        start = _as_tensor(Variances())
        start = torch.cat([start[:4].log(), torch.logit(start[4:5]), start[5:].log()])
        free = torch.tensor([f.name not in self._without for f in fields(Variances)], dtype=_DTYPE)
        moved = torch.zeros_like(start, requires_grad=True)
        optimizer = torch.optim.LBFGS([moved], max_iter=_STEPS, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            v = self._variances(start + free * moved)
            covariance = kernels.covariance(v) + torch.diag(v[5] * noise + _JITTER)
            factor = torch.linalg.cholesky(covariance)
            solved = torch.cholesky_solve(y[:, None], factor)[:, 0]
            likelihood = -0.5 * y @ solved - factor.diagonal().log().sum()
            prior = -0.5 * (moved / _PRIOR_SPREAD).square().sum()
            negated: torch.Tensor = -(likelihood + prior)
            negated.backward()  # type: ignore[no-untyped-call]
            return negated

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        found = self._variances((start + free * moved).detach()).tolist()
        named = dict(zip((f.name for f in fields(Variances)), found, strict=True))
        return replace(Variances(), **named)

    def condition(
        self, variances: Variances, choices: Ints, residual_ms: Floats, predicted_ms: Floats
    ) -> Interactions:
        """The posterior mean given these networks, as numbers; arguments as of `fit`."""
        unit = float(np.median(predicted_ms))
        kernels = self._kernels(choices, choices, unit)
        v = _as_tensor(variances)
        noise = torch.as_tensor(_noise_shape(residual_ms, predicted_ms) / unit**2)
        covariance = kernels.covariance(v) + torch.diag(v[5] * noise + _JITTER)
        alpha = torch.linalg.solve(covariance, torch.as_tensor(residual_ms / unit)).numpy() * unit

        ms, groups = self._slots.ms / unit, self._slots.groups_ms / unit
        chosen = np.eye(ms.shape[1])[choices]  # (n, n_slots, width)
        alike = np.einsum("nlc,lcg->ng", chosen, groups)
        table = variances.alike * groups @ (alpha @ alike)
        table += variances.place * ms**2 * np.einsum("n,nlc->lc", alpha, chosen)
        beside = (ms[:-1, :, None] + ms[1:, None, :]) ** 2  # (n_slots - 1, width, width)
        pairs = np.einsum("n,nlc,nld->lcd", alpha, chosen[:, :-1], chosen[:, 1:])
        return Interactions(
            table_ms=table,
            pairs_ms=variances.adjacent * beside * pairs,
            weights_ms=variances.product * alpha,
            networks=choices.copy(),
            similarity=variances.similarity if variances.product else 1.0,
        )

    def _variances(self, raw: torch.Tensor) -> torch.Tensor:
        """In the order of `Variances`, kernels left out at 0."""
        v = torch.cat([raw[:4].exp(), torch.sigmoid(raw[4:5]), raw[5:].exp()])
        kept = [f.name not in self._without for f in fields(Variances)]
        return torch.where(torch.tensor(kept), v, torch.zeros_like(v))

    def _kernels(self, left: Ints, right: Ints, unit: float) -> "_Kernels":
        ms, groups = self._slots.ms / unit, self._slots.groups_ms / unit
        slots = np.arange(ms.shape[0])
        equal = (left[:, None, :] == right[None]).astype(float)  # (n, m, n_slots)
        alike = [groups[slots, choices].sum(axis=1) for choices in (left, right)]
        at = ms[slots, left]  # (n, n_slots)
        beside = (at[:, :-1] + at[:, 1:]) ** 2
        return _Kernels(
            alike=torch.as_tensor(alike[0] @ alike[1].T),
            place=torch.as_tensor((equal * at[:, None] ** 2).sum(axis=2)),
            adjacent=torch.as_tensor(
                (equal[..., :-1] * equal[..., 1:] * beside[:, None]).sum(axis=2)
            ),
            equal=torch.as_tensor(equal),
        )


class _Kernels(NamedTuple):
    """What the covariances of networks (n, m) are made of; `equal` (n, m, n_slots)."""

    alike: torch.Tensor
    place: torch.Tensor
    adjacent: torch.Tensor
    equal: torch.Tensor

    def covariance(self, v: torch.Tensor) -> torch.Tensor:
        """Under the variances `v`, in the order of `Variances`."""
        product = (v[4] + (1.0 - v[4]) * self.equal).prod(dim=2)
        return v[0] * self.alike + v[1] * self.place + v[2] * self.adjacent + v[3] * product


def _as_tensor(variances: Variances) -> torch.Tensor:
    return torch.tensor([getattr(variances, f.name) for f in fields(variances)], dtype=_DTYPE)


def _noise_shape(residual_ms: Floats, predicted_ms: Floats) -> Floats:
    """(n,) in ms^2: what a relative noise variance is multiplied by, larger for outliers."""
    relative = residual_ms / predicted_ms
    deviation = 1.4826 * float(np.median(np.abs(relative - np.median(relative))))
    far = np.abs(relative - np.median(relative)) / max(deviation, 1e-12)
    shape: Floats = predicted_ms**2 * np.maximum(1.0, (far / _OUTLIER) ** 4)
    return shape
