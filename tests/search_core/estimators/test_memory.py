"""What an estimate keeps for its backward pass: the activations of one path."""

import pytest
import torch

from search_core.estimators.presets import ESTIMATORS
from search_core.randomness import stream


def kept_bytes(run):
    """Bytes of feature maps (B, C, H, W) and scores (B, n) that `run` keeps for backward."""
    kept = []

    def keep(tensor):
        if tensor.ndim in {2, 4} and len(tensor) == 5:  # the batch
            kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(kept)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_activations_kept_do_not_grow_with_the_candidates(name, network, judged):
    batch = judged("cross_entropy")

    def kept(n_candidates):
        supernet = network(3, n_candidates)
        p = torch.full((3, n_candidates), 1.0 / n_candidates, dtype=torch.float64)
        generator = stream(0, "path")
        return kept_bytes(lambda: ESTIMATORS[name]().estimate(supernet, p, batch, 0.0, generator))

    assert kept(2) == kept(8)
    assert (kept(8) > 0) is (name != "reinforce")  # which never goes backward


def test_a_sum_over_all_candidates_would_grow(network, judged):
    def kept(n_candidates):
        supernet, batch = network(1, n_candidates), judged("cross_entropy")
        gates = torch.ones(n_candidates, dtype=torch.float64, requires_grad=True)
        return kept_bytes(
            lambda: sum(
                gate * operation(batch.images)
                for gate, operation in zip(gates, supernet.layers[0], strict=True)
            )
        )

    assert kept(8) == 4 * kept(2) > 0
