"""What the estimators are on average, held against the gradient by enumeration.

REINFORCE, the paired and the path-integrated estimator are exact on any loss; those that take
the loss for linear in each operation's output only where it is.
"""

import pytest
import torch
from torch import nn

from search_core.estimators.dsnas import DSNAS, PathIntegratedDSNAS
from search_core.estimators.paired import PairedDSNAS
from search_core.estimators.proxyless import Proxyless
from search_core.estimators.reinforce import Reinforce

CLOSE = {"rtol": 1e-8, "atol": 1e-10}
LINEARISING = {"dsnas": DSNAS, "proxyless": Proxyless}
EXACT = {
    "reinforce_2": lambda: Reinforce(samples=2),
    "paired_1": PairedDSNAS,
    "paired_2": lambda: PairedDSNAS(pairs=2),
    "path_integrated": PathIntegratedDSNAS,
}
NETWORKS = {
    "chain": {},
    "sum node": {"n_slots": 3, "n_candidates": 2, "joined": True},
    "sum node with Zero": {"joined": True, "zero": True},
    "tanh between": {"after": nn.Tanh},
    "sum node, tanh, Zero": {"joined": True, "after": nn.Tanh, "zero": True},
}
LINEAR = [name for name in NETWORKS if "tanh" not in name]


@pytest.fixture
def mean_of(expectation, prepared):
    """`expectation`, of a path-integrated estimate over one round of its strata."""

    def mean_of(make, supernet, p, batch, n_heights=2):
        if make is not PathIntegratedDSNAS:
            return expectation(make, supernet, p, batch)
        zeros, n = torch.zeros(len(p), dtype=torch.float64), PathIntegratedDSNAS._STRATA
        rounds = [
            prepared(make, baseline=zeros, visits=torch.full((len(p),), visit))
            for visit in range(n)
        ]
        return sum(expectation(go, supernet, p, batch, n_heights=n_heights) for go in rounds) / n

    return mean_of


@pytest.fixture
def case(request, network, random_probabilities):
    supernet = network(**NETWORKS[request.param])
    slots = supernet.space.slots
    return supernet, random_probabilities(len(slots), len(slots[0].candidates))


@pytest.mark.parametrize("case", LINEAR, indirect=True)
@pytest.mark.parametrize("name", [*LINEARISING, *EXACT])
def test_on_an_affine_loss_each_is_exact_on_every_layer(name, case, judged, mean_of, exact_of_loss):
    batch = judged("affine")
    exact = exact_of_loss(*case, batch)
    assert exact.abs().amin() > 1e-4
    torch.testing.assert_close(mean_of((LINEARISING | EXACT)[name], *case, batch), exact, **CLOSE)


@pytest.mark.parametrize(
    ("case", "loss", "n_heights"),
    [
        ("sum node", "cubic", 2),  # of degree 3 in any one output
        ("chain", "cross_entropy", 5),
        ("tanh between", "cross_entropy", 7),
        ("sum node, tanh, Zero", "quadratic", 7),
    ],
    indirect=["case"],
)
@pytest.mark.parametrize("name", EXACT)
def test_on_any_loss_these_are_exact_on_every_layer(
    name, case, loss, n_heights, judged, mean_of, exact_of_loss
):
    batch = judged(loss)
    mean, exact = mean_of(EXACT[name], *case, batch, n_heights), exact_of_loss(*case, batch)
    assert exact.abs().amin() > 1e-4
    torch.testing.assert_close(mean, exact, **CLOSE)


@pytest.mark.parametrize("case", ["chain"], indirect=True)
@pytest.mark.parametrize("name", LINEARISING)
def test_on_cross_entropy_the_linearising_ones_are_not(name, case, judged, mean_of, exact_of_loss):
    batch = judged("cross_entropy")
    mean, exact = mean_of(LINEARISING[name], *case, batch), exact_of_loss(*case, batch)
    assert not torch.allclose(mean, exact, rtol=0.05, atol=0.0)


@pytest.mark.parametrize("case", ["chain", "sum node with Zero"], indirect=True)
@pytest.mark.parametrize("name", [*LINEARISING, *EXACT])
def test_frozen_slots_leave_the_others_exact(name, case, judged, mean_of, exact_of_loss):
    supernet, p = case
    p = p.clone()
    p[1] = torch.tensor([0.0, 1.0, 0.0])
    p[0, 0], p[0, 1:] = 0.0, p[0, 1:] / p[0, 1:].sum()
    batch = judged("affine")
    mean = mean_of((LINEARISING | EXACT)[name], supernet, p, batch)
    torch.testing.assert_close(mean, exact_of_loss(supernet, p, batch), **CLOSE)
    assert mean[0, 0] == 0.0
    assert (mean[1] == 0.0).all()


def test_a_constant_added_to_the_loss_changes_no_estimate_at_all(network, judged, outcomes):
    """The slopes do not see it; differences of two losses lose it, up to rounding."""
    supernet = network(after=nn.Tanh)
    p = torch.full((2, 3), 1.0 / 3.0, dtype=torch.float64)
    for make in (DSNAS, Proxyless, *EXACT.values()):
        plain, shifted = (
            outcomes(make, supernet, p, judged("cross_entropy", constant))
            for constant in (0.0, 64.0)
        )
        for (_, a), (_, b) in zip(plain, shifted, strict=True):
            torch.testing.assert_close(a.gradient, b.gradient, rtol=0.0, atol=1e-12)
