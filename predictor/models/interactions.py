"""What block sums leave over in whole networks: a Gaussian process on the residual.

Every kernel is multilinear in the one-hot choices of the slots. The mean of the process over
architectures drawn from probabilities P, slot by slot, is therefore the process at P itself:
no sampling, and its differences are the differences of exchanged operations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from predictor.errors import UnusableMeasurementsError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_PRIOR_SPREAD = 2.0
"""Of the logarithm of each variance: a factor of 7 either way is one standard deviation."""

_FARTHEST = 8.0
"""As far as a logarithm may go from its prior mean."""

_DOUBTED = 3.0
_DTYPE = torch.float64
_STEPS = 60
_JITTER = 1e-8


class Slots(NamedTuple):
    """The slots of a space as a Gaussian process sees them.

    Attributes:
        ms: (n_slots, width) block sums of each candidate, 0 where there is no candidate.
        groups_ms: (n_slots, width, n_groups) of these, what belongs to each group of blocks
            that are alike (one kernel size, one resolution, ...).
        pairs: (n_pairs, 2) slots that are adjacent: layers of one read what layers of the other
            make.
    """

    ms: Floats
    groups_ms: Floats
    pairs: Ints


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

    ``R(a) = sum_l table[l, a_l] + sum_(l, m) pairs[l, m][a_l, a_m]
    + sum_i weights[i] prod_l (1 if a_l == networks[i, l] else similarity)``.

    Attributes:
        table_ms: (n_slots, width).
        pairs: (n_pairs, 2) adjacent slots.
        pairs_ms: (n_pairs, width, width).
        weights_ms: (n,).
        networks: (n, n_slots) choices.
        similarity: in 0..1.
        variances: under which this is the posterior mean.
    """

    table_ms: Floats
    pairs: Ints
    pairs_ms: Floats
    weights_ms: Floats
    networks: Ints
    similarity: float
    variances: Variances

    def at(self, choices: Ints) -> Floats:
        """The residual of networks (n, n_slots), in ms."""
        slots = np.arange(choices.shape[1])
        equal = choices[:, None, :] == self.networks[None]
        residual_ms: Floats = (
            self.table_ms[slots, choices].sum(axis=1)
            + self.pairs_ms[
                np.arange(len(self.pairs)),
                choices[:, self.pairs[:, 0]],
                choices[:, self.pairs[:, 1]],
            ].sum(axis=1)
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

    def fit(self, choices: Ints, residual_ms: Floats, predicted_ms: Floats) -> Interactions:
        """The posterior mean under the variances of greatest posterior density.

        The noise grows with the latency, so that errors count relative to it. A network that
        all the others contradict, by more than three standard deviations, is doubted: its
        noise is raised to what was seen, and the variances are found anew.

        Args:
            choices: (n, n_slots) of the measured networks.
            residual_ms: (n,) measured less predicted by block sums.
            predicted_ms: (n,) by block sums.

        Raises:
            UnusableMeasurementsError: a number is not finite.
        """
        if not (np.isfinite(residual_ms).all() and np.isfinite(predicted_ms).all()):
            raise UnusableMeasurementsError("a residual of the networks is not a finite number")
        known = self._known(choices, residual_ms, predicted_ms)
        v = self._likeliest(known)
        inverse = torch.linalg.inv(known.covariance(v))
        surprise = (inverse @ known.y).abs() / inverse.diagonal().sqrt()  # left out, standardised
        if float(surprise.max()) > _DOUBTED:
            known = known._replace(noise=known.noise * (surprise / _DOUBTED).clamp_min(1.0) ** 4)
            v = self._likeliest(known)
        return self._posterior(v, known, choices)

    def posterior(
        self, variances: Variances, choices: Ints, residual_ms: Floats, predicted_ms: Floats
    ) -> Interactions:
        """The posterior mean under variances that are given; arguments as of `fit`."""
        v = _as_tensor(variances)
        return self._posterior(v, self._known(choices, residual_ms, predicted_ms), choices)

    def covariance_given(
        self,
        variances: Variances,
        measured: tuple[Ints, Floats],
        left: tuple[Ints, Floats],
        right: tuple[Ints, Floats],
    ) -> Floats:
        """What two groups of networks still have in common once some are measured, in ms^2.

        Args:
            measured, left, right: choices (n, n_slots) and predicted latencies (n,) in ms.

        Returns:
            (n_left, n_right) posterior covariance of the residuals, without noise.
        """
        groups = (measured, left, right)
        choices = np.concatenate([choices for choices, _ in groups])
        predicted_ms = np.concatenate([ms for _, ms in groups])
        unit_ms = float(np.median(measured[1]))
        known = self._known(choices, np.zeros(len(choices)), predicted_ms, unit_ms)
        v = _as_tensor(variances)
        prior = known.covariance(v).numpy() - np.diag(v[5].item() * known.noise.numpy() + _JITTER)
        cut = np.cumsum([len(ms) for _, ms in groups])
        a, b, c = slice(0, cut[0]), slice(cut[0], cut[1]), slice(cut[1], cut[2])
        noisy = prior[a, a] + np.diag(v[5].item() * known.noise.numpy()[a] + _JITTER)
        left_over: Floats = prior[b, c] - prior[b, a] @ np.linalg.solve(noisy, prior[a, c])
        return left_over * unit_ms**2

    def _likeliest(self, known: "_Known") -> torch.Tensor:
        """Variances of greatest posterior density, with a broad prior around the defaults."""
        start = _as_tensor(Variances())
        start = torch.cat([start[:4].log(), torch.logit(start[4:5]), start[5:].log()])
        kept = torch.tensor([f.name not in self._without for f in fields(Variances)])
        moved = torch.zeros_like(start, requires_grad=True)

        def variances() -> torch.Tensor:
            raw = start + _FARTHEST * torch.tanh(moved / _FARTHEST)
            v = torch.cat([raw[:4].exp(), torch.sigmoid(raw[4:5]), raw[5:].exp()])
            return torch.where(kept, v, torch.zeros_like(v))

        optimizer = torch.optim.LBFGS([moved], max_iter=_STEPS, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            factor = torch.linalg.cholesky(known.covariance(variances()))
            solved = torch.cholesky_solve(known.y[:, None], factor)[:, 0]
            likelihood = -0.5 * known.y @ solved - factor.diagonal().log().sum()
            prior = -0.5 * (moved / _PRIOR_SPREAD).square().sum()
            negated: torch.Tensor = -(likelihood + prior)
            negated.backward()  # type: ignore[no-untyped-call]
            return negated

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        return variances().detach()

    def _posterior(self, v: torch.Tensor, known: "_Known", choices: Ints) -> Interactions:
        alpha = torch.linalg.solve(known.covariance(v), known.y).numpy() * known.unit_ms
        alike_variance, place, adjacent, product, similarity, _ = v.tolist()
        ms, groups = self._slots.ms / known.unit_ms, self._slots.groups_ms / known.unit_ms
        chosen = np.eye(ms.shape[1])[choices]  # (n, n_slots, width)
        alike = np.einsum("nlc,lcg->ng", chosen, groups)
        table = alike_variance * groups @ (alpha @ alike)
        table += place * ms**2 * np.einsum("n,nlc->lc", alpha, chosen)
        first, second = self._slots.pairs.T
        beside = (ms[first, :, None] + ms[second, None, :]) ** 2  # (n_pairs, width, width)
        pairs = np.einsum("n,npc,npd->pcd", alpha, chosen[:, first], chosen[:, second])
        return Interactions(
            table_ms=table,
            pairs=self._slots.pairs,
            pairs_ms=adjacent * beside * pairs,
            weights_ms=product * alpha,
            networks=choices.copy(),
            similarity=similarity if product else 1.0,
            variances=Variances(*v.tolist()),
        )

    def _known(
        self,
        choices: Ints,
        residual_ms: Floats,
        predicted_ms: Floats,
        unit_ms: float | None = None,
    ) -> "_Known":
        unit_ms = unit_ms or float(np.median(predicted_ms))
        ms, groups = self._slots.ms / unit_ms, self._slots.groups_ms / unit_ms
        slots = np.arange(ms.shape[0])
        equal = (choices[:, None, :] == choices[None]).astype(float)  # (n, n, n_slots)
        alike = groups[slots, choices].sum(axis=1)
        at = ms[slots, choices]  # (n, n_slots)
        first, second = self._slots.pairs.T
        beside = (at[:, first] + at[:, second]) ** 2  # (n, n_pairs)
        return _Known(
            unit_ms=unit_ms,
            y=torch.as_tensor(residual_ms / unit_ms),
            noise=torch.as_tensor((predicted_ms / unit_ms) ** 2),
            alike=torch.as_tensor(alike @ alike.T),
            place=torch.as_tensor((equal * at[:, None] ** 2).sum(axis=2)),
            adjacent=torch.as_tensor(
                (equal[..., first] * equal[..., second] * beside[:, None]).sum(axis=2)
            ),
            equal=torch.as_tensor(equal),
        )


class _Known(NamedTuple):
    """Measured networks, in units of `unit_ms`, and what their covariances are made of.

    Attributes:
        y: (n,) residuals.
        noise: (n,) what the noise variance is multiplied by.
        alike, place, adjacent: (n, n) kernels.
        equal: (n, n, n_slots), whether two networks are decided alike in a slot.
    """

    unit_ms: float
    y: torch.Tensor
    noise: torch.Tensor
    alike: torch.Tensor
    place: torch.Tensor
    adjacent: torch.Tensor
    equal: torch.Tensor

    def covariance(self, v: torch.Tensor) -> torch.Tensor:
        """(n, n), noise included, under the variances `v` in the order of `Variances`."""
        product = (v[4] + (1.0 - v[4]) * self.equal).prod(dim=2)
        kernels = v[0] * self.alike + v[1] * self.place + v[2] * self.adjacent + v[3] * product
        return kernels + torch.diag(v[5] * self.noise + _JITTER)


def _as_tensor(variances: Variances) -> torch.Tensor:
    return torch.tensor([getattr(variances, f.name) for f in fields(variances)], dtype=_DTYPE)
