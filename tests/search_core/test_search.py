"""The search: deterministic, exactly resumable, driven by the budget, blind to the test set."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from search_core.checkpoints import load_checkpoint, save_checkpoint
from search_core.costs import SeparableCost, macs_cost
from search_core.data.dataset import ImageDataset
from search_core.errors import (
    BudgetUnreachableError,
    CheckpointError,
    NonFiniteLossError,
    SearchInterrupted,
)
from search_core.events import CheckpointReady, Progress
from search_core.nn.supernet import Supernet
from search_core.randomness import stream
from search_core.search import SearchConfig, SearchResult, run_search
from search_core.train import WeightRecipe

EPOCH = 8  # steps of 64 images; the digits are cut to as many
CONFIG = SearchConfig(
    WeightRecipe(total_steps=24, warmup_steps=2, batch_size=64),
    search_steps=2 * EPOCH,
    warmup_steps=EPOCH // 2,
    budget=6_000.0,  # MACs; `tiny` starts at 6,816, so the multiplier rises to the end
    alpha_learning_rate=0.08,
    freeze_threshold=0.25,
)


@pytest.fixture(scope="module")
def data(data):
    n = EPOCH * CONFIG.recipe.batch_size
    return replace(data, train_images=data.train_images[:n], train_labels=data.train_labels[:n])


def search(space, data, config=CONFIG, **arguments):
    """Run to the end: (result, progress events, copies of the checkpoints)."""
    progress, checkpoints = [], []

    def report(event):
        if isinstance(event, Progress):
            progress.append(event)
        else:
            checkpoints.append(copy.deepcopy(event.checkpoint))

    result = run_search(space, config, data, macs_cost(space), report=report, **arguments)
    return result, progress, checkpoints


def interrupted_after(n_steps, space, data, path, config=CONFIG, resume=None):
    """Run for `n_steps`, then stop: the last checkpoint, read back from the file at `path`."""
    asked = iter(range(1, 10**6))

    def report(event):
        if isinstance(event, CheckpointReady):
            save_checkpoint(event.checkpoint, path)

    with pytest.raises(SearchInterrupted):
        run_search(
            space,
            config,
            data,
            macs_cost(space),
            report=report,
            should_stop=lambda: next(asked) == n_steps,
            resume=resume,
        )
    return load_checkpoint(path)


def recording(data):
    """`data`, and the list of the (seed, step, batch size) it is asked for."""
    asked = []

    class Recording(ImageDataset):
        def training_batch(self, *address):
            asked.append(address)
            return super().training_batch(*address)

    return Recording(**vars(data)), asked


@pytest.fixture(scope="module")
def unbroken(tiny, data):
    return search(tiny, data)


@pytest.fixture(scope="module")
def without_budget(tiny, data):
    return search(tiny, data, replace(CONFIG, budget=None, freeze_threshold=2.0))


def same(identical, left, right):
    """Whether two runs ended in the same place, to the last bit."""
    (a, a_progress, a_checkpoints), (b, b_progress, b_checkpoints) = left, right
    return (
        identical(dict(a.supernet.state_dict()), dict(b.supernet.state_dict()))
        and torch.equal(a.probabilities, b.probabilities)
        and torch.equal(a.log_probabilities, b.log_probabilities)
        and a.frozen == b.frozen
        and a.steps == b.steps
        and a_progress[-1] == b_progress[-1]
        and identical(a_checkpoints[-1].state, b_checkpoints[-1].state)
    )


def test_the_run_held_up_here_has_a_frozen_slot_a_searched_one_and_a_price(unbroken):
    """Or else the tests below would say little."""
    _, progress, checkpoints = unbroken
    assert 0 < len(checkpoints[0].state["frozen"]) < 3
    assert 0 < len(checkpoints[-1].state["frozen"]) < 3
    assert progress[-1].metrics["multiplier"] > 0.0


def test_a_search_is_a_function_of_its_seed(tiny, data, identical, unbroken):
    torch.manual_seed(1234)
    assert same(identical, search(tiny, data), unbroken)
    other, *_ = search(tiny, data, replace(CONFIG, seed=1))
    assert not torch.equal(other.log_probabilities, unbroken[0].log_probabilities)


@pytest.mark.parametrize(
    "n_steps",
    [1, EPOCH // 2, EPOCH, EPOCH + 3, 2 * EPOCH - 1],
    ids=["first", "warm-up ends", "epoch ends", "mid-epoch", "last but one"],
)
def test_a_resumed_search_equals_the_unbroken_one(
    tiny, data, identical, unbroken, tmp_path, n_steps
):
    checkpoint = interrupted_after(n_steps, tiny, data, tmp_path / "search.ckpt")
    assert checkpoint.step == n_steps
    assert same(identical, search(tiny, data, resume=checkpoint), unbroken)


def test_a_search_interrupted_twice_equals_the_unbroken_one(
    tiny, data, identical, unbroken, tmp_path
):
    first = interrupted_after(6, tiny, data, tmp_path / "search.ckpt")
    second = interrupted_after(5, tiny, data, tmp_path / "search.ckpt", resume=first)
    assert second.step == 11
    assert same(identical, search(tiny, data, resume=second), unbroken)


def test_a_search_without_a_budget_resumes_as_exactly(
    tiny, data, identical, without_budget, tmp_path
):
    config = replace(CONFIG, budget=None, freeze_threshold=2.0)
    checkpoint = interrupted_after(11, tiny, data, tmp_path / "search.ckpt", config)
    assert same(identical, search(tiny, data, config, resume=checkpoint), without_budget)


def test_every_step_asks_for_its_own_batch(tiny, data, tmp_path):
    recorded, asked = recording(data)
    checkpoint = interrupted_after(11, tiny, recorded, tmp_path / "search.ckpt")
    search(tiny, recorded, resume=checkpoint)
    assert asked == [(CONFIG.seed, step, 64) for step in range(2 * EPOCH)]


def test_the_test_set_has_no_say(tiny, data, identical, unbroken):
    blind = replace(data, test_images=data.test_images[:0], test_labels=data.test_labels[:0])
    assert same(identical, search(tiny, blind), unbroken)


def test_each_epoch_ends_with_progress_and_a_checkpoint(unbroken):
    result, progress, checkpoints = unbroken
    ends = [EPOCH, 2 * EPOCH]
    assert [(p.phase, p.completed, p.total) for p in progress] == [
        ("searching", end, 2 * EPOCH) for end in ends
    ]
    assert [(c.stage, c.step) for c in checkpoints] == [("search", end) for end in ends]
    assert result.steps == 2 * EPOCH


def test_the_metrics_are_those_of_the_probabilities(tiny, unbroken):
    result, progress, _ = unbroken
    metrics, cost = progress[-1].metrics, macs_cost(tiny)
    current = tiny.architecture(result.probabilities.argmax(dim=1).tolist())
    assert metrics["expected_cost"] == cost.expected(result.probabilities).item()
    assert metrics["current_cost"] == cost.exact(current)
    assert metrics["frozen_slots"] == len(result.frozen)


def test_frozen_slots_keep_their_logits_and_searched_ones_move(unbroken):
    _, _, checkpoints = unbroken
    for before, after in pairwise(checkpoints):
        for slot in range(3):
            held = torch.equal(before.state["logits"][slot], after.state["logits"][slot])
            assert held is (slot in before.state["frozen"])


def test_a_frozen_slot_stays_frozen_on_the_same_candidate(unbroken):
    result, _, checkpoints = unbroken
    stages = [*(c.state["frozen"] for c in checkpoints), result.frozen]
    for before, after in pairwise(stages):
        assert before.items() <= after.items()


def test_frozen_rows_are_one_hot_and_absent_candidates_impossible(tiny, unbroken):
    result, *_ = unbroken
    assert torch.allclose(result.probabilities.sum(dim=1), torch.ones(3, dtype=torch.float64))
    for slot, choice in result.frozen.items():
        assert result.probabilities[slot].tolist() == [float(k == choice) for k in range(4)]
    for slot, decision in enumerate(tiny.slots):
        absent = slice(len(decision.candidates), None)
        assert (result.probabilities[slot, absent] == 0.0).all()
        assert (result.log_probabilities[slot, absent] == -torch.inf).all()


def test_warm_up_trains_weights_and_leaves_the_logits_alone(tiny, data):
    config = replace(CONFIG, warmup_steps=EPOCH, search_steps=EPOCH)
    result, _, (checkpoint,) = search(tiny, data, config)
    assert (checkpoint.state["logits"] == 0.0).all()
    assert checkpoint.state["multiplier"] == 0.0
    assert not result.frozen
    start = Supernet(tiny, stream(CONFIG.seed, "weights"))
    assert not torch.equal(start.layers[0][0].conv.weight, result.supernet.layers[0][0].conv.weight)


def test_a_tight_budget_lowers_the_expected_cost(tiny, data, without_budget):
    cost = macs_cost(tiny)
    tight, progress, _ = search(tiny, data, replace(CONFIG, freeze_threshold=2.0))
    free, *_ = without_budget
    assert cost.expected(tight.probabilities) < 0.9 * cost.expected(free.probabilities)
    costs = [p.metrics["expected_cost"] for p in progress]
    assert costs == sorted(costs, reverse=True)


def test_a_budget_that_nothing_exceeds_changes_nothing(tiny, data, without_budget):
    generous, *_ = search(tiny, data, replace(CONFIG, budget=1e9, freeze_threshold=2.0))
    assert torch.equal(generous.log_probabilities, without_budget[0].log_probabilities)


def test_the_multiplier_rises_while_the_budget_is_exceeded(unbroken, without_budget):
    multipliers = [p.metrics["multiplier"] for p in unbroken[1]]
    assert 0.0 < multipliers[0] < multipliers[1]
    assert [p.metrics["multiplier"] for p in without_budget[1]] == [0.0] * 2


def test_spending_the_budget_pulls_the_cost_up_to_it(tiny, data, without_budget):
    cost = macs_cost(tiny)
    config = replace(CONFIG, budget=45_000.0, spend_budget=True, freeze_threshold=2.0)
    spent, *_ = search(tiny, data, config)
    assert cost.expected(spent.probabilities) > 1.1 * cost.expected(without_budget[0].probabilities)


@pytest.mark.parametrize("change", ["config", "space", "data", "stage"])
def test_a_checkpoint_of_another_search_is_refused(tiny, data, tmp_path, change):
    checkpoint = interrupted_after(1, tiny, data, tmp_path / "search.ckpt")
    space = replace(tiny, version=2) if change == "space" else tiny
    dataset = replace(data, name="other") if change == "data" else data
    config = replace(CONFIG, budget=7_000.0) if change == "config" else CONFIG
    if change == "stage":
        checkpoint = replace(checkpoint, stage="train")
    with pytest.raises(CheckpointError):
        run_search(space, config, dataset, macs_cost(space), resume=checkpoint)


def test_a_loss_that_is_no_number_is_an_error(tiny, data):
    recipe = replace(CONFIG.recipe, learning_rate=1e30, warmup_steps=0)
    config = replace(CONFIG, recipe=recipe, search_steps=EPOCH, warmup_steps=EPOCH)
    with pytest.raises(NonFiniteLossError, match="lower the learning rate"):
        search(tiny, data, config)


# the decision


def result_with(space, frozen=()):
    """A result whose probabilities favour the last candidate of each slot."""
    logits = torch.full((3, 4), -torch.inf, dtype=torch.float64)
    for slot, decision in enumerate(space.slots):
        n = len(decision.candidates)
        logits[slot, :n] = torch.arange(n, dtype=torch.float64)
    log_p = logits.log_softmax(dim=1)
    supernet = Supernet(space, stream(0, "weights"))
    return SearchResult(supernet, log_p.exp(), log_p, dict(frozen), 66)


COST = SeparableCost(10.0, [[1.0, 2.0, 3.0], [1.0, 4.0], [1.0, 2.0, 3.0, 4.0]], "ms")


def test_without_a_budget_the_most_probable_architecture_is_decided(tiny):
    assert result_with(tiny).decide(COST, None).choices == (2, 1, 3)


@pytest.mark.parametrize("budget", [21.0, 20.5, 17.0, 13.0])
def test_the_decision_is_within_the_budget_offset_included(tiny, budget):
    decided = result_with(tiny).decide(COST, budget)
    assert COST.exact(decided) <= budget


def test_frozen_slots_stay_as_they_are_where_the_budget_allows_it(tiny):
    result = result_with(tiny, {1: 1, 2: 0})
    assert result.decide(COST, None).choices == (2, 1, 0)
    assert result.decide(COST, 16.0).choices == (0, 1, 0)


def test_frozen_slots_give_way_where_the_budget_demands_it(tiny):
    result = result_with(tiny, {1: 1, 2: 3})
    assert result.decide(COST, 14.0).choices == (0, 0, 1)


def test_a_budget_below_every_architecture_is_unreachable(tiny):
    with pytest.raises(BudgetUnreachableError):
        result_with(tiny).decide(COST, 12.9)


def test_a_loss_that_diverges_while_logits_are_searched_is_still_named(tiny, data):
    recipe = replace(CONFIG.recipe, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(NonFiniteLossError):
        run_search(tiny, replace(CONFIG, recipe=recipe, warmup_steps=0), data, macs_cost(tiny))
