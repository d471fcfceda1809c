"""ProxylessNAS's gradient estimators: binary gates on a single path.

Cai, Zhu, Han, "ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware",
2019, section 3.2.
"""

import torch

from search_core.data.dataset import Batch
from search_core.estimators.base import (
    Estimate,
    Objective,
    Paths,
    Stateless,
    centred,
    sample_path,
    undecided,
)
from search_core.nn.supernet import batch_statistics_only


class Proxyless(Stateless):
    """All gates: the gradient of every candidate's gate, at the memory of one path.

    With one-hot gates g the chosen output is the layer's; ``dL/dg_k = <dL/dy, o_k(x)>`` is
    computed for every candidate in backward, those off the path anew and unrecorded, and
    taken through the softmax (equation 4). A straight-through estimate: exact where the loss
    is affine in the layer's output. `Zero` takes part like any other candidate, with
    ``dL/dg = 0``, whether it was chosen or not.
    """

    name = "proxyless"
    trains_weights = False
    alpha_betas = (0.0, 0.999)

    def estimate(
        self,
        supernet: Paths,
        probabilities: torch.Tensor,
        batch: Batch,
        label_smoothing: float,
        generator: torch.Generator,
        *,
        progress: float = 0.0,  # noqa: ARG002
        objective: Objective | None = None,  # noqa: ARG002
    ) -> Estimate:
        """See `Estimator.estimate`."""
        choices = sample_path(probabilities, generator)
        searched = set(undecided(probabilities))
        compared = [
            torch.nonzero(row > 0.0)[:, 0].tolist() if slot in searched else []
            for slot, row in enumerate(probabilities)
        ]
        loss, gates = _gate_gradients(
            supernet, choices, compared, batch, label_smoothing, probabilities
        )
        return Estimate(choices, centred(probabilities, gates), loss, _mean(gates, compared))


class ProxylessTwoPath(Stateless):
    """Two candidates a slot: the published memory and time of the paper's section 3.2.2.

    A pair is drawn without replacement, one of it becomes active with its share of the pair's
    probability, and only the two logits learn: ``dL/dalpha_a = q_a q_b (dL/dg_a - dL/dg_b)``
    with q the softmax over the pair. After the optimiser's step both are shifted by the same
    amount, so that the probabilities of all other candidates stay exactly what they were.
    """

    name = "proxyless_two_path"
    trains_weights = False
    alpha_betas = (0.0, 0.999)

    def __init__(self) -> None:
        self._pairs: dict[int, tuple[int, int]] = {}  # slot -> pair of the latest estimate

    def estimate(
        self,
        supernet: Paths,
        probabilities: torch.Tensor,
        batch: Batch,
        label_smoothing: float,
        generator: torch.Generator,
        *,
        progress: float = 0.0,  # noqa: ARG002
        objective: Objective | None = None,  # noqa: ARG002
    ) -> Estimate:
        """See `Estimator.estimate`."""
        choices = probabilities.argmax(dim=1).tolist()  # of the decided slots
        compared: list[list[int]] = [[] for _ in choices]
        pair_probabilities = torch.zeros_like(probabilities)
        self._pairs = {}
        for slot in undecided(probabilities):
            row = probabilities[slot]
            pair = torch.multinomial(row, 2, generator=generator)
            shares = row[pair] / row[pair].sum()
            active = pair[torch.multinomial(shares, 1, generator=generator)]
            choices[slot] = int(active)
            compared[slot] = pair.tolist()
            pair_probabilities[slot, pair] = shares
            self._pairs[slot] = (int(pair[0]), int(pair[1]))
        loss, gates = _gate_gradients(
            supernet, tuple(choices), compared, batch, label_smoothing, probabilities
        )
        gradient = centred(pair_probabilities, gates)
        return Estimate(
            tuple(choices), gradient, loss, _mean(gates, compared), pair_probabilities > 0.0
        )

    def settle(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """`after` with each pair's total probability back at what it was `before`."""
        settled = after.clone()
        for slot, pair in self._pairs.items():
            rows = list(pair)
            offset = after[slot, rows].logsumexp(0) - before[slot, rows].logsumexp(0)
            settled[slot, rows] -= offset
        return settled


def _gate_gradients(
    supernet: Paths,
    choices: tuple[int, ...],
    compared: list[list[int]],
    batch: Batch,
    label_smoothing: float,
    like: torch.Tensor,
) -> tuple[float, torch.Tensor]:
    """The loss, and dL/dg (n_slots, n_candidates) at the compared candidates; no weight learns."""
    gates = torch.zeros_like(like).to(batch.images).requires_grad_()
    with batch_statistics_only(supernet):
        scores = supernet(batch.images, choices, gates, compared)
    loss = batch.loss(scores, label_smoothing)
    if not any(compared):
        return loss.item(), torch.zeros_like(like)
    (gradient,) = torch.autograd.grad(loss, gates)
    return loss.item(), gradient.to(like)


def _mean(gates: torch.Tensor, compared: list[list[int]]) -> float:
    return gates.abs().sum().item() / max(1, sum(map(len, compared)))
