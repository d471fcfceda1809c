"""Progressive freezing."""

import pytest
import torch

from search_core.freeze import Freezer

P = torch.tensor([[0.70, 0.20, 0.10], [0.45, 0.35, 0.20], [0.05, 0.45, 0.50]])


def test_a_slot_freezes_on_its_best_once_the_lead_reaches_the_threshold():
    freezer = Freezer(threshold=0.3)
    assert freezer.update(P, step=12) == [0]
    assert freezer.frozen == {0: 0}
    assert freezer.frozen_at == {0: 12}


def test_a_lead_of_exactly_the_threshold_freezes():
    freezer = Freezer(threshold=0.25)
    assert freezer.update(torch.tensor([[0.5, 0.25, 0.25]])) == [0]


def test_a_slot_with_one_candidate_has_nothing_to_decide():
    freezer = Freezer(threshold=0.3)
    assert freezer.update(torch.tensor([[1.0, 0.0], [0.6, 0.4]])) == [0]
    alone = Freezer(threshold=0.3)
    assert alone.update(torch.ones(2, 1)) == [0, 1]
    assert alone.frozen == {0: 0, 1: 0}


def test_a_frozen_slot_keeps_its_choice_whatever_comes_later():
    freezer = Freezer(threshold=0.3)
    freezer.update(P, step=1)
    news = freezer.update(torch.tensor([[0.0, 0.9, 0.1], [0.1, 0.9, 0.0], [0.3, 0.3, 0.4]]), 2)
    assert news == [1]
    assert freezer.frozen == {0: 0, 1: 1}
    assert freezer.frozen_at == {0: 1, 1: 2}


def test_the_deadline_decides_the_rest_and_keeps_them_apart():
    freezer = Freezer(threshold=0.3)
    freezer.update(P, step=7)
    assert freezer.finish(P) == [1, 2]
    assert (freezer.frozen, freezer.finished) == ({0: 0}, {1: 0, 2: 2})
    assert freezer.apply(P).tolist() == [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    assert freezer.update(torch.eye(3), step=8) == freezer.finish(torch.eye(3)) == []
    assert freezer.report(3) == {
        "frozen": 1,
        "decided_at_the_deadline": 2,
        "frozen_at_step": {"0": 7},
    }


def test_frozen_rows_are_one_hot_and_the_others_stay():
    freezer = Freezer(threshold=0.3, frozen={2: 1, 0: 2})
    applied = freezer.apply(P)
    assert applied.tolist()[0] == [0.0, 0.0, 1.0]
    assert applied.tolist()[2] == [0.0, 1.0, 0.0]
    assert torch.equal(applied[1], P[1])


def test_nothing_frozen_changes_nothing():
    freezer = Freezer(threshold=0.3)
    assert torch.equal(freezer.apply(P), P)
    assert torch.equal(freezer.mask(P), P)


def test_a_mask_leaves_the_rows_that_are_searched():
    masked = Freezer(threshold=0.3, frozen={1: 0}, finished={2: 0}).mask(P)
    assert masked.tolist() == [P[0].tolist(), [0.0] * 3, [0.0] * 3]


def test_no_gradient_passes_through_a_frozen_row():
    logits = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.arange(9, dtype=torch.float64).view(3, 3)
    applied = Freezer(threshold=0.3, frozen={1: 0}).apply(logits.softmax(dim=1))
    (applied * weights).sum().backward()
    assert (logits.grad[1] == 0.0).all()
    assert (logits.grad[[0, 2]] != 0.0).any(dim=1).all()


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.5, 0.999)),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
}


def moments(optimizer, logits):
    state = optimizer.state[logits]
    return {k: t.clone() for k, t in state.items() if t is not None and t.shape == logits.shape}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps_before", [0, 5])
def test_held_logits_and_their_moments_stay_as_they_are_to_the_last_bit(name, steps_before):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    optimizer, freezer = OPTIMIZERS[name]([logits]), Freezer(threshold=0.3)

    def step():
        gradient = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        logits.grad = freezer.mask(gradient)
        with freezer.holding(optimizer, logits):
            optimizer.step()

    for _ in range(steps_before):
        step()
    freezer.frozen, freezer.finished = {1: 2}, {3: 0}
    values, before = logits.detach().clone(), moments(optimizer, logits)
    for _ in range(10):
        step()
    after = moments(optimizer, logits)
    assert after
    held, searched = [1, 3], [0, 2]
    assert torch.equal(logits[held], values[held])
    assert (logits[searched] != values[searched]).all()
    for moment, tensor in after.items():
        expected = before.get(moment, torch.zeros(4, 3, dtype=torch.float64))
        assert torch.equal(tensor[held], expected[held])
        assert (tensor[searched] != expected[searched]).all()


def test_a_masked_gradient_alone_does_not_stop_adam():
    """What `holding` is for."""
    logits = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    optimizer, freezer = torch.optim.Adam([logits], lr=0.1), Freezer(threshold=0.3)
    logits.grad = torch.ones(2, 3, dtype=torch.float64)
    optimizer.step()
    values = logits.detach().clone()
    freezer.frozen = {0: 1}
    logits.grad = freezer.mask(logits.grad)
    optimizer.step()
    assert (logits[0] < values[0] - 0.01).all()


def test_a_freezer_goes_on_from_its_state():
    first, second = Freezer(threshold=0.3), Freezer(threshold=0.3)
    first.update(P, step=3)
    first.finish(P)
    state = first.state_dict()
    second.load_state_dict(state)
    second.frozen[9] = 9  # the state is a copy
    assert state == {"frozen": {0: 0}, "frozen_at": {0: 3}, "finished": {1: 0, 2: 2}}
