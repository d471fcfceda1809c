"""Whether a search is alive, and what is said when it is not."""

import math

import pytest
import torch

from search_core.estimators.base import Estimate
from search_core.health import (
    Health,
    collapse_of,
    dead_signal,
    discretisation_gap,
    entropy,
    likely,
    marked,
    relative_entropy,
    share,
)
from search_core.space.blocks import FREE, WEIGHTLESS
from search_core.space.nasbench201 import OPERATIONS, nasbench201
from search_core.space.presets import get_space


@pytest.fixture(scope="module")
def cell():
    return nasbench201(cells_per_stage=1)


@pytest.fixture(scope="module")
def chain():
    return get_space("proxyless_cifar_mb")


def certain(space, choices, p=1.0):
    """(n_slots, n_candidates): `p` on each choice, the rest on the others alike."""
    rows = torch.zeros(len(space.slots), space.n_candidates, dtype=torch.float64)
    for slot, decision in enumerate(space.slots):
        n = len(decision.candidates)
        rows[slot, :n] = (1.0 - p) / (n - 1)
        rows[slot, choices[slot]] = p
    return rows


def cells(space, text):
    """Choices of a cell by the first letter of each operation: n, s, 1, 3, a."""
    return ["ns13a".index(letter) for letter in text]


def estimate(signal):
    return Estimate((0,), torch.zeros(1, 1), 1.0, signal)


def test_entropy_is_that_of_each_slot_on_average(tiny):
    uniform = torch.zeros(3, 4, dtype=torch.float64)
    for slot, n in enumerate((3, 2, 4)):
        uniform[slot, :n] = 1.0 / n
    assert entropy(uniform) == pytest.approx((math.log(3) + math.log(2) + math.log(4)) / 3)
    assert relative_entropy(tiny, uniform) == pytest.approx(1.0)
    half = uniform.clone()
    half[0] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert relative_entropy(tiny, half) == pytest.approx(2 / 3)
    decided = certain(tiny, (0, 1, 3))
    assert entropy(decided) == relative_entropy(tiny, decided) == 0.0


def test_share_is_over_the_slots_that_have_a_marked_candidate(tiny):
    """Only the slot `body` may be Zero."""
    p = torch.tensor([[0.2, 0.3, 0.5, 0.0], [0.9, 0.1, 0.0, 0.0], [0.25] * 4])
    assert share(p, marked(tiny, FREE)) == pytest.approx(0.1)
    assert share(p, torch.zeros(3, 4, dtype=torch.bool)) == 0.0


def test_kinds_are_marked_where_the_candidates_are(cell, tiny):
    names = [OPERATIONS[k] for k in range(5) if marked(cell, FREE)[0, k]]
    assert names == ["none", "skip_connect"]
    names = [OPERATIONS[k] for k in range(5) if marked(cell, WEIGHTLESS)[5, k]]
    assert names == ["none", "skip_connect", "avg_pool_3x3"]
    assert marked(tiny, FREE).nonzero().tolist() == [[1, 1]]


def test_the_gap_is_what_deciding_costs():
    assert discretisation_gap(0.5, 0.75) == 0.25


@pytest.mark.parametrize(
    ("choices", "kind", "names"),
    [
        ("nnnnnn", "no_path", "0->1, 0->2, 1->2, 0->3, 1->3, 2->3"),
        ("333nnn", "no_path", "0->3, 1->3, 2->3"),
        ("3nnnnn", "no_path", "0->2"),
        ("ssssss", "nothing", "none of the 6 slots"),
        ("nnnsnn", "nothing", "none of the 6 slots"),
        ("nnnann", "no_weights", "none of the 6 slots"),
        ("nnn3nn", "one_operation", "only 0->3 keeps"),
        ("s1ssss", "one_operation", "only 0->2 keeps"),
        ("333333", None, ""),
        ("3n3s3n", None, ""),
        ("nnn33a", None, ""),
    ],
)
def test_a_cell_with_too_little_left_has_collapsed(cell, choices, kind, names):
    collapse = collapse_of(cell, cells(cell, choices))
    if kind is None:
        assert collapse is None
        return
    assert collapse.kind == kind
    assert names in collapse.text
    assert "warm-up" in collapse.text  # what to do


def zeros(space, n):
    """Choices with Zero in the first `n` slots that have it."""
    able = [s for s, slot in enumerate(space.slots) if "Z" in slot.candidates]
    return [
        slot.candidates.index("Z") if s in able[:n] else 0 for s, slot in enumerate(space.slots)
    ]


def test_a_chain_that_is_mostly_skipped_has_collapsed(chain):
    able = sum("Z" in slot.candidates for slot in chain.slots)
    assert collapse_of(chain, zeros(chain, able // 2)) is None  # as the published networks
    collapse = collapse_of(chain, zeros(chain, able - 2))
    assert collapse.kind == "mostly_nothing"
    assert chain.slots[1].name in collapse.text
    assert collapse_of(chain, zeros(chain, able - 1)).kind == "one_operation"
    assert collapse_of(chain, zeros(chain, able)).kind == "nothing"


def test_a_space_that_cannot_be_left_empty_cannot_collapse(micro, tiny):
    assert collapse_of(micro, [0] * len(micro.slots)) is None
    assert collapse_of(tiny, [0, 1, 0]) is None


def test_a_slot_turns_to_nothing_only_by_a_clear_lead(cell):
    none, best = OPERATIONS.index("none"), OPERATIONS.index("nor_conv_3x3")
    p = torch.full((6, 5), 0.2, dtype=torch.float64)
    p[:, best] += 0.01
    p[:, none] += 0.05
    assert likely(cell, p) == [best] * 6
    assert likely(cell, p, lead=0.0) == [none] * 6
    assert likely(cell, certain(cell, [none] * 6)) == [none] * 6


def test_a_candidate_that_a_slot_does_not_have_is_never_likely(tiny):
    p = certain(tiny, (0, 1, 0))
    assert likely(tiny, p) == [0, 1, 0]


@pytest.mark.parametrize(
    ("signal", "first", "dead"),
    [(0.5, 1.0, False), (2e-3, 1.0, False), (5e-4, 1.0, True), (1e-9, 1e-9, True)],
)
def test_a_signal_is_dead_beside_the_first_one_or_by_itself(signal, first, dead):
    verdict = dead_signal(signal, first)
    assert (verdict is not None) is dead
    if dead:
        assert verdict.kind == "dead_signal"
        assert "1e-2" in verdict.text


# epoch by epoch


def test_an_epoch_is_summed_up_in_its_metrics(cell):
    health = Health(cell)
    for signal in (1.0, 3.0):
        health.observe(estimate(signal))
    p = certain(cell, cells(cell, "3a1s33"), p=0.6)
    assert health.end_epoch(p) == []
    assert health.metrics() == {
        "signal": 2.0,
        "entropy": entropy(p),
        "relative_entropy": relative_entropy(cell, p),
        "nothing_share": pytest.approx((5 * 0.2 + 0.7) / 6),
    }


def test_a_search_that_starts_undecided_raises_no_alarm(cell):
    """With equal logits the first candidate wins every argmax, and it is `none`."""
    health = Health(cell)
    p = torch.full((6, 5), 0.2, dtype=torch.float64)
    assert health.end_epoch(p) == []  # still in the warm-up: nothing was observed
    health.observe(estimate(1.0))
    p[:, 0] += 1e-3
    assert health.end_epoch(p) == []


def test_a_collapse_is_said_once(cell):
    health = Health(cell)
    collapsed = certain(cell, cells(cell, "nnn3nn"), p=0.9)
    codes = []
    for _ in range(2):
        health.observe(estimate(1.0))
        codes.append([notice.code for notice in health.end_epoch(collapsed)])
    assert codes == [["collapsed_to_one_operation"], []]
    assert health.verdict(collapsed).kind == "one_operation"
    assert health.verdict(certain(cell, cells(cell, "333333"))) is None


def test_a_dead_signal_is_told_while_something_is_still_searched(cell):
    alive = certain(cell, cells(cell, "333333"), p=0.5)
    for p, codes in ((alive, ["dead_signal"]), (certain(cell, cells(cell, "333333")), [])):
        health = Health(cell)
        for signal in (1.0, 1e-5):
            health.observe(estimate(signal))
            notices = health.end_epoch(p)
        assert [notice.code for notice in notices] == codes


def test_health_goes_on_from_its_state(cell):
    p = certain(cell, cells(cell, "nnn3nn"), p=0.9)
    first, second = Health(cell), Health(cell)
    first.observe(estimate(1.0))
    first.end_epoch(p)
    first.observe(estimate(1e-5))
    second.load_state_dict(first.state_dict())
    assert second.metrics() == first.metrics()
    assert [n.code for n in second.end_epoch(p)] == ["dead_signal"]  # not the collapse again
    assert [n.code for n in first.end_epoch(p)] == ["dead_signal"]
    assert second.state_dict() == first.state_dict()
