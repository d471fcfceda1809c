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
    one_hot,
    sample_path,
    undecided,
)
from search_core.estimators.dsnas import fetched
from search_core.nn.batch_norm import batch_statistics_only
from search_core.nn.gates import gate_gradients


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
        open_slots = undecided(probabilities)
        if open_slots:
            rows = probabilities[open_slots]
            pairs = torch.multinomial(rows, 2, generator=generator)  # (n_open, 2)
            shares = rows.gather(1, pairs)
            shares = shares / shares.sum(dim=1, keepdim=True)
            active = pairs.gather(1, torch.multinomial(shares, 1, generator=generator))
            pair_probabilities[open_slots] = torch.zeros_like(rows).scatter(1, pairs, shares)
            drawn = zip(open_slots, pairs.tolist(), active[:, 0].tolist(), strict=True)
            for slot, pair, chosen in drawn:
                choices[slot], compared[slot] = chosen, pair
                self._pairs[slot] = (pair[0], pair[1])
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
    parameters = supernet.output_parameters(choices)
    told = {slot for slot, of_slot in enumerate(parameters) if of_slot is not None}
    wanted = [
        [k for k in of_slot if k != choices[slot] or slot not in told]
        for slot, of_slot in enumerate(compared)
    ]
    owned = [(w, slot) for slot in told if compared[slot] for w in parameters[slot] or ()]
    gates = batch.images.new_zeros(like.shape, requires_grad=True)
    with batch_statistics_only(*supernet.operations(choices)):
        scores = supernet(batch.images, choices, gates.unbind(), wanted)
    loss = batch.loss(scores, label_smoothing)
    found = torch.zeros_like(gates)
    if any(compared):
        weights, owners = [w for w, _ in owned], [slot for _, slot in owned]
        of_gates, *of_weights = torch.autograd.grad(loss, [gates, *weights], allow_unused=True)
        if of_gates is not None:
            found += of_gates
        of_chosen = found.new_zeros(len(found))
        gate_gradients(weights, of_weights, owners, out=of_chosen)
        on_path = one_hot(choices, like).to(found, non_blocking=True)
        found += of_chosen[:, None] * on_path
    value, gradient = fetched(loss, found)
    return value, gradient.to(like)


def _mean(gates: torch.Tensor, compared: list[list[int]]) -> float:
    return gates.abs().sum().item() / max(1, sum(map(len, compared)))
