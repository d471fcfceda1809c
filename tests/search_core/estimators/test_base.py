"""Sampling paths."""

import torch
from scipy.stats import chisquare

from search_core.estimators.base import sample_path
from search_core.randomness import stream

P = torch.tensor([[0.5, 0.3, 0.2], [0.05, 0.9, 0.05], [0.25, 0.75, 0.0]], dtype=torch.float64)


def test_paths_are_drawn_with_their_probabilities():
    n = 4000
    draws = torch.tensor([sample_path(P, stream(0, "path", i)) for i in range(n)])
    for slot, row in enumerate(P):
        counts = torch.bincount(draws[:, slot], minlength=3)
        present = row > 0.0
        assert counts[~present].sum() == 0
        assert chisquare(counts[present], n * row[present]).pvalue > 1e-3


def test_slots_are_drawn_independently():
    draws = torch.tensor([sample_path(P, stream(0, "path", i)) for i in range(4000)])
    joint = ((draws[:, 0] == 0) & (draws[:, 2] == 0)).double().mean().item()
    assert abs(joint - 0.5 * 0.25) < 0.02


def test_a_draw_is_a_function_of_the_generator():
    assert sample_path(P, stream(0, "path", 3)) == sample_path(P, stream(0, "path", 3))


def test_a_decided_slot_is_always_drawn_as_decided():
    decided = torch.eye(3, dtype=torch.float64)[[2, 0, 1]]
    assert {sample_path(decided, stream(0, "path", i)) for i in range(50)} == {(2, 0, 1)}
