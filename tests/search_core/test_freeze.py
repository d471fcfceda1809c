"""Progressive freezing."""

import torch

from search_core.freeze import Freezer

P = torch.tensor([[0.70, 0.20, 0.10], [0.45, 0.35, 0.20], [0.05, 0.45, 0.50]])


def test_a_slot_freezes_on_its_best_once_the_lead_reaches_the_threshold():
    freezer = Freezer(threshold=0.3)
    assert freezer.update(P) == [0]
    assert freezer.frozen == {0: 0}


def test_a_lead_of_exactly_the_threshold_freezes():
    freezer = Freezer(threshold=0.25)
    assert freezer.update(torch.tensor([[0.5, 0.25, 0.25]])) == [0]


def test_a_frozen_slot_keeps_its_choice_whatever_comes_later():
    freezer = Freezer(threshold=0.3)
    freezer.update(P)
    news = freezer.update(torch.tensor([[0.0, 0.9, 0.1], [0.1, 0.9, 0.0], [0.3, 0.3, 0.4]]))
    assert news == [1]
    assert freezer.frozen == {0: 0, 1: 1}


def test_frozen_rows_are_one_hot_and_the_others_stay():
    freezer = Freezer(threshold=0.3, frozen={2: 1, 0: 2})
    applied = freezer.apply(P)
    assert applied.tolist()[0] == [0.0, 0.0, 1.0]
    assert applied.tolist()[2] == [0.0, 1.0, 0.0]
    assert torch.equal(applied[1], P[1])


def test_nothing_frozen_changes_nothing():
    assert torch.equal(Freezer(threshold=0.3).apply(P), P)


def test_no_gradient_passes_through_a_frozen_row():
    logits = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.arange(9, dtype=torch.float64).view(3, 3)
    applied = Freezer(threshold=0.3, frozen={1: 0}).apply(logits.softmax(dim=1))
    (applied * weights).sum().backward()
    assert (logits.grad[1] == 0.0).all()
    assert (logits.grad[[0, 2]] != 0.0).any(dim=1).all()
