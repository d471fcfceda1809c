"""What to measure next, and when to stop."""

from dataclasses import astuple

import numpy as np
import pytest
import torch

from predictor.acquisition import block_values, is_known_well, network_values
from predictor.intervals import ConformalIntervals
from predictor.kits import block_subject, chains
from predictor.models.interactions import InteractionProcess, Slots, Variances
from predictor.network import NetworkLatencyModel


def test_a_block_is_worth_the_variance_it_brings_into_the_expectation(micro):
    decided = [[1.0 if k == 2 else 0.0 for k in range(6)] for _ in micro.slots]
    decided[0] = [0.25, 0.75, 0.0, 0.0, 0.0, 0.0]
    sigma_ms = dict.fromkeys(micro.distinct_blocks, 0.1)
    seconds = dict.fromkeys(micro.distinct_blocks, 0.5)
    values = block_values(micro, decided, sigma_ms, seconds)
    first = next(layer for layer in micro.layers if layer.slot == 0)
    for choice, share in enumerate((0.25, 0.75, 0.0)):
        found = values[block_subject(first.blocks[choice], 1)]
        assert found == pytest.approx((share * 0.1) ** 2 / 0.5)


def test_what_was_measured_is_worth_nothing_and_what_takes_long_is_worth_less(micro):
    some, other, known = micro.distinct_blocks[1:4]
    seconds = dict.fromkeys(micro.distinct_blocks, 1.0) | {other: 4.0}
    values = block_values(micro, None, {some: 0.2, other: 0.2}, seconds)
    assert values[block_subject(known, 1)] == 0.0
    assert values[block_subject(some, 1)] == pytest.approx(4.0 * values[block_subject(other, 1)])
    assert {values[block_subject(some, n)] for n in chains(some)} == {
        values[block_subject(some, 1)]
    }


def test_measuring_by_value_finds_the_expectation_with_fewer_blocks(micro, block_ms):
    """A search that is nearly decided need not know what it will not draw."""
    rng = np.random.default_rng(0)
    rows = [rng.dirichlet(0.15 * np.ones(6)).tolist() for _ in micro.slots]
    truth = {b: block_ms(b) for b in micro.distinct_blocks}
    guess = {b: ms * float(np.exp(0.3 * rng.normal())) for b, ms in truth.items()}
    sigma_ms = {b: 0.3 * ms for b, ms in guess.items()}
    seconds = dict.fromkeys(micro.distinct_blocks, 1.0)
    values = block_values(micro, rows, sigma_ms, seconds)

    def error(order, n):
        table = {**guess, **{b: truth[b] for b in order[:n]}}

        def mean(table):
            fixed, costs = micro.slot_costs(lambda b: table[b])
            return fixed + sum(
                p * c
                for ps, cs in zip(rows, costs, strict=True)
                for p, c in zip(ps, cs, strict=True)
            )

        return abs(mean(table) / mean(truth) - 1.0)

    by_value = sorted(truth, key=lambda b: -values[block_subject(b, 1)])
    at_random = [
        error([list(truth)[i] for i in rng.permutation(len(truth))], 12) for _ in range(50)
    ]
    assert error(by_value, 12) < 0.2 * np.mean(at_random)


@pytest.fixture
def process():
    ms = np.random.default_rng(0).uniform(0.1, 1.0, (4, 3))
    return InteractionProcess(Slots(ms, ms[:, :, None], np.array([(0, 1), (1, 2), (2, 3)]))), ms


def networks(ms, n, seed):
    choices = np.random.default_rng(seed).integers(0, 3, (n, 4))
    return choices, ms[np.arange(4), choices].sum(axis=1)


def test_the_variance_taken_away_is_what_conditioning_takes_away(process):
    process, ms = process
    v = Variances(0.01, 0.02, 0.01, 0.03, 0.6, 0.001)
    measured, offered, drawn = (networks(ms, n, seed) for n, seed in ((25, 1), (4, 2), (6, 3)))
    seconds = np.array([1.0, 2.0, 1.0, 1.0])
    values = network_values(process, v, measured, offered, drawn, seconds)
    unit_ms = float(np.median(measured[1]))
    for i in range(4):
        one = offered[0][i : i + 1], offered[1][i : i + 1]
        variances = []
        for groups in ((measured, drawn), (measured, one, drawn)):
            choices, ms = (np.concatenate(part) for part in zip(*groups, strict=True))
            known = process._known(choices, 0.0 * ms, ms, unit_ms)
            whole = known.covariance(torch.tensor(astuple(v), dtype=torch.float64)).numpy()
            n = len(ms) - 6
            left = whole[n:, n:] - whole[n:, :n] @ np.linalg.solve(whole[:n, :n], whole[:n, n:])
            variances.append(left.diagonal() * unit_ms**2)
        taken = (variances[0] - variances[1]).mean() / seconds[i]
        assert values[i] == pytest.approx(taken, rel=1e-4)
    again = network_values(process, v, measured, measured, drawn, np.ones(25))
    assert again.max() < values.max()  # what is measured already tells little more


def test_enough_is_when_the_interval_at_the_incumbent_is_narrow():
    intervals = ConformalIntervals(0.9, (2.0,), (0.02, 0.08), (0.02, 0.08), (10, 10))
    model = NetworkLatencyModel("d", 0.5, ((1.0, 2.0),), 0.01, intervals=intervals)
    assert is_known_well(model, 1.5)
    assert not is_known_well(model, 2.5)
    assert is_known_well(model, 2.5, half_width=0.1)
    assert not is_known_well(NetworkLatencyModel("d", 0.5, ((1.0, 2.0),), 0.01), 1.5)
