"""The search: deterministic, exactly resumable, driven by budgets, blind to the test set."""

import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from search_core.checkpoints import load_checkpoint, save_checkpoint
from search_core.constraint import (
    AbsoluteReward,
    AugmentedLagrangian,
    Constraint,
    DualAscent,
    Observed,
)
from search_core.costs import SeparableCost, macs_cost, parameter_cost
from search_core.data.augmentation import Augmentation
from search_core.data.dataset import ImageDataset
from search_core.errors import (
    BudgetUnreachableError,
    CheckpointError,
    DatasetError,
    NonFiniteLossError,
    SearchInterrupted,
    UnknownEstimatorError,
)
from search_core.estimators.presets import ESTIMATORS
from search_core.events import CheckpointReady, Notice, Progress
from search_core.nn.supernet import Supernet
from search_core.randomness import stream
from search_core.search import SearchConfig, SearchResult, run_search
from search_core.space.nasbench201 import nasbench201
from search_core.train import WeightRecipe

EPOCH = 8  # steps of 64 images; the digits are cut to as many
HELD_OUT = 128  # images of a two-level search
CONFIG = SearchConfig(
    WeightRecipe(total_steps=24, warmup_steps=2, batch_size=64),
    search_steps=2 * EPOCH,
    warmup_steps=EPOCH // 2,
    alpha_learning_rate=0.08,
    freeze_threshold=0.25,
)
FREE = replace(CONFIG, freeze_threshold=2.0)  # nothing ever freezes
TWO_LEVEL = sorted(name for name in ESTIMATORS if not ESTIMATORS[name]().trains_weights)


@pytest.fixture(scope="module")
def data(data):
    n = EPOCH * CONFIG.recipe.batch_size
    return replace(data, train_images=data.train_images[:n], train_labels=data.train_labels[:n])


def macs_within(space, budget, **rule):
    return [Constraint("macs", macs_cost(space), budget, **rule)]


def tight(space):
    """The cheapest of `tiny` has 6,816 MACs; this price is low, so that it rises to the end."""
    return macs_within(space, 7_000.0, rule=AugmentedLagrangian(rho=0.003))


class Heard:
    """Everything that a run reports; checkpoints are copied."""

    def __init__(self):
        self.progress, self.checkpoints, self.notices = [], [], []

    def __call__(self, event):
        match event:
            case Progress():
                self.progress.append(event)
            case Notice():
                self.notices.append(event)
            case CheckpointReady(checkpoint):
                self.checkpoints.append(copy.deepcopy(checkpoint))


def search(space, data, config=CONFIG, constraints=None, **arguments):
    """Run to the end: (result, what was heard)."""
    heard = Heard()
    constraints = tight(space) if constraints is None else constraints
    return run_search(space, config, data, constraints, report=heard, **arguments), heard


def interrupted_after(n_steps, space, data, path, config=CONFIG, constraints=None, resume=None):
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
            tight(space) if constraints is None else constraints,
            report=report,
            should_stop=lambda: next(asked) == n_steps,
            resume=resume,
        )
    return load_checkpoint(path)


def recording(data):
    """`data`, and what it is asked for: (kind, seed, step, batch size, images of that part)."""
    asked = []

    class Recording(ImageDataset):
        def training_batch(self, *address):
            asked.append(("training", *address, self.n_train))
            return super().training_batch(*address)

        def plain_batch(self, *address):
            asked.append(("plain", *address, self.n_train))
            return super().plain_batch(*address)

    return Recording(**vars(data)), asked


@pytest.fixture(scope="module")
def unbroken(tiny, data):
    return search(tiny, data)


@pytest.fixture(scope="module")
def without_budget(tiny, data):
    return search(tiny, data, FREE, ())


def same(identical, left, right):
    """Whether two runs ended in the same place, to the last bit."""
    (a, a_heard), (b, b_heard) = left, right
    a_last, b_last = a_heard.progress[-1], b_heard.progress[-1]
    return (
        identical(dict(a.supernet.state_dict()), dict(b.supernet.state_dict()))
        and torch.equal(a.probabilities, b.probabilities)
        and torch.equal(a.log_probabilities, b.log_probabilities)
        and a.frozen == b.frozen
        and a.steps == b.steps
        and a.summary == b.summary
        and (a_last.completed, a_last.metrics) == (b_last.completed, b_last.metrics)
        and identical(a_heard.checkpoints[-1].state, b_heard.checkpoints[-1].state)
    )


def test_the_run_held_up_here_has_a_frozen_slot_a_searched_one_and_a_price(unbroken):
    """Or else the tests below would say little."""
    _, heard = unbroken
    assert 0 < len(heard.checkpoints[0].state["freezer"]["frozen"]) < 3
    assert 0 < len(heard.checkpoints[-1].state["freezer"]["frozen"]) < 3
    assert heard.progress[-1].metrics["macs_multiplier"] > 0.0
    assert not heard.notices


def test_a_search_is_a_function_of_its_seed(tiny, data, identical, unbroken):
    torch.manual_seed(1234)
    assert same(identical, search(tiny, data), unbroken)
    other, _ = search(tiny, data, replace(CONFIG, seed=1))
    assert not torch.equal(other.log_probabilities, unbroken[0].log_probabilities)


# exact resume

OPTIONS = {"dsnas_paired": {"pairs": 2}, "reinforce": {"samples": 3}}
CASES = {
    name: (replace(CONFIG, estimator=name, estimator_options=OPTIONS.get(name, {})), tight)
    for name in ESTIMATORS
}


def two_budgets(space):
    parameters = Constraint("parameters", parameter_cost(space), 1_800.0, DualAscent())
    return [*tight(space), parameters]


def rewarded(space):
    return macs_within(space, 7_000.0, rule=AbsoluteReward())


EVERYTHING = replace(
    CONFIG,
    largest_share=0.4,
    operation_warmup=True,
    temperature=(0.5, 0.05),
    alpha_betas=(0.5, 0.99),
)
CASES |= {
    "nothing": (FREE, lambda _: ()),
    "two-level with everything": (
        replace(EVERYTHING, estimator="proxyless_two_path", alpha_every=3),
        two_budgets,
    ),
    "one-level with everything": (replace(EVERYTHING, estimator="dsnas_paired"), two_budgets),
    "rewards": (replace(CASES["reinforce"][0], alpha_every=2), rewarded),
}


def with_held_out(config):
    two_level = config.estimator in TWO_LEVEL
    return replace(config, held_out_images=HELD_OUT) if two_level else config


@pytest.fixture(scope="module", params=CASES)
def case(request, tiny, data):
    """A search, what it came to unbroken, and the steps of its epoch."""
    config, constraints = CASES[request.param]
    config = with_held_out(config)
    constraints = constraints(tiny)
    held_out = HELD_OUT if config.estimator in TWO_LEVEL else 0
    return SimpleNamespace(
        config=config,
        constraints=constraints,
        epoch=(data.n_train - held_out) // config.recipe.batch_size,
        unbroken=search(tiny, data, config, constraints),
    )


@pytest.mark.parametrize(
    "where", ["first", "warm-up ends", "epoch ends", "mid-epoch", "last but one"]
)
def test_a_resumed_search_equals_the_unbroken_one(tiny, data, identical, case, tmp_path, where):
    n_steps = {
        "first": 1,
        "warm-up ends": case.config.warmup_steps,
        "epoch ends": case.epoch,
        "mid-epoch": case.epoch + 3,
        "last but one": case.config.search_steps - 1,
    }[where]
    arguments = (case.config, case.constraints)
    checkpoint = interrupted_after(n_steps, tiny, data, tmp_path / "search.ckpt", *arguments)
    assert checkpoint.step == n_steps
    assert same(identical, search(tiny, data, *arguments, resume=checkpoint), case.unbroken)


def test_a_search_interrupted_at_its_end_has_nothing_left_to_do(
    tiny, data, identical, unbroken, tmp_path
):
    checkpoint = interrupted_after(2 * EPOCH, tiny, data, tmp_path / "search.ckpt")
    assert identical(checkpoint.state, unbroken[1].checkpoints[-1].state)
    result, heard = search(tiny, data, resume=checkpoint)
    assert not heard.progress
    assert same(identical, (result, unbroken[1]), unbroken)


def test_what_is_compared_moves_in_every_case(case):
    """Weights, statistics, logits and both optimisers: or equality would say nothing."""
    first, *_, last = (checkpoint.state for checkpoint in case.unbroken[1].checkpoints)
    assert not torch.equal(first["logits"], last["logits"])
    for name in ("layers.0.0.conv.weight", "layers.0.0.bn.running_var"):
        assert not torch.equal(first["supernet"][name], last["supernet"][name])
    assert first["weight_optimizer"]["state"].keys() <= last["weight_optimizer"]["state"].keys()
    assert last["alpha_optimizer"]["state"][0]["exp_avg_sq"].abs().sum() > 0.0
    assert last["health"] != first["health"]


def test_a_search_interrupted_twice_equals_the_unbroken_one(
    tiny, data, identical, unbroken, tmp_path
):
    first = interrupted_after(6, tiny, data, tmp_path / "search.ckpt")
    second = interrupted_after(5, tiny, data, tmp_path / "search.ckpt", resume=first)
    assert second.step == 11
    assert same(identical, search(tiny, data, resume=second), unbroken)


def test_resuming_leaves_the_checkpoint_as_it_is(tiny, data, identical, tmp_path):
    checkpoint = interrupted_after(11, tiny, data, tmp_path / "search.ckpt")
    before = copy.deepcopy(checkpoint.state)
    search(tiny, data, resume=checkpoint)
    assert identical(checkpoint.state, before)


@pytest.mark.parametrize(
    "change", ["config", "budget", "constraint", "space", "data", "augmentation", "stage"]
)
def test_a_checkpoint_of_another_search_is_refused(tiny, data, tmp_path, change):
    checkpoint = interrupted_after(1, tiny, data, tmp_path / "search.ckpt")
    space, dataset, config, constraints = tiny, data, CONFIG, tight(tiny)
    match change:
        case "config":
            config = replace(CONFIG, alpha_every=2)
        case "budget":
            constraints = macs_within(tiny, 8_000.0)
        case "constraint":
            constraints = macs_within(tiny, 7_000.0, rule=DualAscent())
        case "space":
            space = replace(tiny, version=2)
        case "data":
            dataset = replace(data, train_labels=data.train_labels.flip(0))
        case "augmentation":
            dataset = data.augmented(Augmentation())
        case "stage":
            checkpoint = replace(checkpoint, stage="train")
    with pytest.raises(CheckpointError):
        run_search(space, config, dataset, constraints, resume=checkpoint)


# what is asked of the data


def test_every_step_asks_for_its_own_batch(tiny, data, tmp_path):
    recorded, asked = recording(data)
    checkpoint = interrupted_after(11, tiny, recorded, tmp_path / "search.ckpt")
    search(tiny, recorded, resume=checkpoint)
    last = ("plain", CONFIG.seed, 2 * EPOCH, 64, 512)  # on which the decision is compared
    steps = [("training", CONFIG.seed, step, 64, 512) for step in range(2 * EPOCH)]
    assert asked == [*steps, last]


def test_the_test_set_has_no_say(tiny, data, identical, unbroken):
    blind = replace(data, test_images=data.test_images[:0], test_labels=data.test_labels[:0])
    result, _ = search(tiny, blind)
    assert identical(dict(result.supernet.state_dict()), dict(unbroken[0].supernet.state_dict()))
    assert torch.equal(result.log_probabilities, unbroken[0].log_probabilities)


@pytest.mark.parametrize("estimator", TWO_LEVEL)
@pytest.mark.parametrize("alpha_every", [1, 3])
def test_weights_and_logits_never_see_each_others_images(tiny, data, estimator, alpha_every):
    recorded, asked = recording(data)
    config = with_held_out(replace(CONFIG, estimator=estimator, alpha_every=alpha_every))
    search(tiny, recorded, config)
    weights = [("training", 0, step, 64, 512 - HELD_OUT) for step in range(2 * EPOCH)]
    moving = range(CONFIG.warmup_steps, 2 * EPOCH)
    turns = [step for step in moving if step % alpha_every == 0]
    logits = [("plain", 0, step // alpha_every, 64, HELD_OUT) for step in turns]
    assert [a for a in asked if a[0] == "training"] == weights
    assert [a for a in asked if a[0] == "plain" and a[-1] == HELD_OUT] == logits
    last = ("plain", 0, 2 * EPOCH, 64, 512 - HELD_OUT)  # on which the decision is compared
    assert asked[-1] == last
    assert len(asked) == len(weights) + len(logits) + 1


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS.keys() - TWO_LEVEL))
def test_one_level_estimators_take_both_from_one_batch(tiny, data, estimator):
    recorded, asked = recording(data)
    search(tiny, recorded, replace(CONFIG, estimator=estimator, held_out_images=HELD_OUT))
    assert asked[:-1] == [("training", 0, step, 64, 512) for step in range(2 * EPOCH)]


@pytest.mark.parametrize("estimator", TWO_LEVEL)
def test_a_tenth_of_the_images_is_held_out_unless_told_otherwise(tiny, data, estimator):
    recorded, asked = recording(data)
    recipe = replace(CONFIG.recipe, batch_size=32)
    search(tiny, recorded, replace(CONFIG, recipe=recipe, estimator=estimator))
    assert {a[0]: a[-1] for a in asked[:-1]} == {"training": 461, "plain": 51}


@pytest.mark.parametrize("estimator", TWO_LEVEL)
def test_logits_move_at_their_turn_only(tiny, data, estimator):
    """Stopped after each step, every run shows the logits of that moment."""
    config = with_held_out(replace(CONFIG, estimator=estimator, alpha_every=3))
    logits = [torch.zeros(3, 4, dtype=torch.float64)]

    def report(event):
        if isinstance(event, CheckpointReady):
            checkpoints.append(copy.deepcopy(event.checkpoint))

    checkpoint = None
    for _ in range(10):
        checkpoints = []
        with pytest.raises(SearchInterrupted):
            run_search(
                tiny,
                config,
                data,
                report=report,
                should_stop=lambda: True,
                resume=checkpoint,
            )
        checkpoint = checkpoints[-1]
        logits.append(checkpoint.state["logits"])
    moved = [step for step in range(10) if not torch.equal(logits[step], logits[step + 1])]
    assert moved == [6, 9]  # the warm-up has four steps


def test_a_batch_larger_than_the_held_out_images_is_refused_at_once(tiny, data):
    recorded, asked = recording(data)
    config = replace(CONFIG, estimator="proxyless", held_out_images=40)
    with pytest.raises(DatasetError, match="40 training images"):
        search(tiny, recorded, config)
    assert asked == []


# events


@pytest.mark.parametrize("search_steps", [2 * EPOCH, 2 * EPOCH + 3])
def test_each_epoch_and_the_end_have_progress_and_a_checkpoint(tiny, data, search_steps):
    result, heard = search(tiny, data, replace(CONFIG, search_steps=search_steps))
    ends = list(dict.fromkeys([EPOCH, 2 * EPOCH, search_steps]))
    assert [(p.phase, p.completed, p.total) for p in heard.progress] == [
        ("searching", end, search_steps) for end in ends
    ]
    assert [(c.stage, c.step) for c in heard.checkpoints] == [("search", end) for end in ends]
    assert result.steps == search_steps


def test_the_time_left_falls_to_nothing(unbroken):
    *before, last = [p.remaining_seconds for p in unbroken[1].progress]
    assert all(seconds > 0.0 for seconds in before)
    assert last == 0.0


def test_the_metrics_are_those_of_the_probabilities(tiny, unbroken):
    result, heard = unbroken
    metrics, cost = heard.progress[-1].metrics, macs_cost(tiny)
    current = tiny.architecture(result.probabilities.argmax(dim=1).tolist())
    assert metrics["macs_expected"] == cost.expected(result.probabilities).item()
    assert metrics["macs_current"] == cost.exact(current)
    assert metrics["frozen_slots"] == len(result.frozen)
    p = result.probabilities
    assert metrics["entropy"] == pytest.approx(-torch.xlogy(p, p).sum(dim=1).mean().item())
    assert metrics["nothing_share"] == pytest.approx(p[1, 1].item())  # the only Zero
    assert metrics["signal"] > 0.0
    health = result.summary["health"]
    assert {"signal", "entropy", "nothing_share"} <= health.keys()
    assert health.items() <= metrics.items()


@pytest.mark.parametrize("estimator", TWO_LEVEL)
def test_the_training_loss_is_that_of_the_weights(tiny, data, estimator):
    """Not that of the held-out images: without smoothing it would be smaller by far."""
    recipe = replace(CONFIG.recipe, label_smoothing=1.0)
    config = with_held_out(replace(CONFIG, recipe=recipe, estimator=estimator))
    _, heard = search(tiny, data, config, ())
    uniform = torch.log(torch.tensor(10.0)).item()  # the least that full smoothing allows
    assert heard.progress[-1].metrics["train_loss"] >= uniform - 1e-6


# freezing


def test_frozen_slots_keep_logits_and_moments_and_searched_ones_move(unbroken):
    for before, after in pairwise(c.state for c in unbroken[1].checkpoints):
        (adam,), (adam_after,) = (
            list(state["alpha_optimizer"]["state"].values()) for state in (before, after)
        )
        for slot in range(3):
            frozen = slot in before["freezer"]["frozen"]
            for first, second in [
                (before["logits"], after["logits"]),
                (adam["exp_avg"], adam_after["exp_avg"]),
                (adam["exp_avg_sq"], adam_after["exp_avg_sq"]),
            ]:
                assert torch.equal(first[slot], second[slot]) is frozen


def test_a_frozen_slot_stays_frozen_on_the_same_candidate(unbroken):
    result, heard = unbroken
    stages = [*(c.state["freezer"]["frozen"] for c in heard.checkpoints), result.frozen]
    for before, after in pairwise(stages):
        assert before.items() <= after.items()


def test_what_is_frozen_comes_from_the_checkpoint_not_from_the_logits(tiny, data, tmp_path):
    checkpoint = interrupted_after(EPOCH, tiny, data, tmp_path / "search.ckpt")
    frozen = {0: 2, 2: 1}  # whatever the logits say
    assert checkpoint.state["freezer"]["frozen"] != frozen
    checkpoint.state["freezer"] = {"frozen": frozen, "frozen_at": {0: 5, 2: 7}}
    result, _ = search(tiny, data, resume=checkpoint)
    assert frozen.items() <= result.frozen.items()
    assert {"0": 5, "2": 7}.items() <= result.summary["freezing"]["frozen_at_step"].items()


def test_the_summary_counts_what_froze_and_what_the_deadline_decided(unbroken, without_budget):
    result, heard = unbroken
    freezing = result.summary["freezing"]
    assert freezing["frozen"] == len(result.frozen)
    assert freezing["decided_at_the_deadline"] == 3 - len(result.frozen)
    at_first = heard.checkpoints[0].state["freezer"]["frozen"]
    assert freezing["frozen_at_step"] == {
        str(slot): EPOCH if slot in at_first else 2 * EPOCH for slot in sorted(result.frozen)
    }
    assert without_budget[0].summary["freezing"] == {
        "frozen": 0,
        "decided_at_the_deadline": 3,
        "frozen_at_step": {},
    }


def test_frozen_rows_are_one_hot_and_absent_candidates_impossible(tiny, unbroken):
    result, _ = unbroken
    assert torch.allclose(result.probabilities.sum(dim=1), torch.ones(3, dtype=torch.float64))
    for slot, choice in result.frozen.items():
        assert result.probabilities[slot].tolist() == [float(k == choice) for k in range(4)]
    for slot, decision in enumerate(tiny.slots):
        absent = slice(len(decision.candidates), None)
        assert (result.probabilities[slot, absent] == 0.0).all()
        assert (result.log_probabilities[slot, absent] == -torch.inf).all()


# the warm-up


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_warm_up_trains_weights_and_leaves_the_logits_alone(tiny, data, estimator):
    config = with_held_out(replace(CONFIG, estimator=estimator))
    config = replace(config, warmup_steps=EPOCH, search_steps=EPOCH)
    result, heard = search(tiny, data, config)
    state = heard.checkpoints[-1].state
    assert (state["logits"] == 0.0).all()
    assert state["constraints"] == {"macs": 0.0}
    assert not state["alpha_optimizer"]["state"]
    assert not result.frozen
    start = Supernet(tiny, stream(CONFIG.seed, "weights"))
    assert not torch.equal(start.layers[0][0].conv.weight, result.supernet.layers[0][0].conv.weight)


@pytest.fixture
def runs_of(monkeypatch):
    """For each pass through the supernet, which of each slot's candidates ran."""
    passes = []
    forward = Supernet.forward

    def watched(self, images, choices, *rest):
        passes.append(tuple(choices))
        return forward(self, images, choices, *rest)

    monkeypatch.setattr(Supernet, "forward", watched)
    return passes


def test_operation_warmup_falls_from_all_candidates_to_one(tiny, data, runs_of):
    steps = 15 * EPOCH
    small = replace(data, train_images=data.train_images[:64], train_labels=data.train_labels[:64])
    recipe = replace(CONFIG.recipe, batch_size=8)
    config = replace(
        CONFIG, recipe=recipe, operation_warmup=True, warmup_steps=steps, search_steps=steps + EPOCH
    )
    search(tiny, small, config)
    assert set(runs_of[0]) == {-1}
    assert all(-1 not in path for path in runs_of[steps:])
    thirds = [runs_of[i * steps // 3 : (i + 1) * steps // 3] for i in range(3)]
    together = [sum(path.count(-1) for path in third) / (3 * len(third)) for third in thirds]
    assert together == pytest.approx([5 / 6, 1 / 2, 1 / 6], abs=0.12)  # 120 draws each
    singles = [path[2] for path in runs_of[:steps] if path[2] != -1]
    assert set(singles) == {0, 1, 2, 3}


def test_operation_warmup_trains_every_candidate_in_its_first_step(tiny, data, tmp_path):
    config = replace(CONFIG, operation_warmup=True)
    start = Supernet(tiny, stream(CONFIG.seed, "weights")).state_dict()
    checkpoint = interrupted_after(1, tiny, data, tmp_path / "search.ckpt", config)
    weights = [name for name in start if name.endswith("weight") and start[name].ndim > 1]
    still = [n for n in weights if torch.equal(start[n], checkpoint.state["supernet"][n])]
    assert len(weights) == 27
    assert still == []


def test_the_warm_up_draws_from_the_start(tiny, data, runs_of):
    steps = 20 * EPOCH
    small = replace(data, train_images=data.train_images[:64], train_labels=data.train_labels[:64])
    config = replace(
        CONFIG,
        recipe=replace(CONFIG.recipe, batch_size=8),
        largest_share=0.4,
        warmup_steps=steps,
        search_steps=steps,
    )
    result, _ = search(tiny, small, config, ())
    expected = [[0.3, 0.3, 0.4], [0.4, 0.6], [0.2, 0.2, 0.2, 0.4]]  # the last one is the largest
    for slot, row in enumerate(expected):
        drawn = [path[slot] for path in runs_of[:steps]]
        largest = 0 if slot == 1 else len(row) - 1
        wanted = dict.fromkeys(range(len(row)), (1.0 - 0.4) / (len(row) - 1)) | {largest: 0.4}
        shares = {k: drawn.count(k) / steps for k in wanted}
        assert shares == pytest.approx(wanted, abs=0.12)  # 160 draws
        p = result.probabilities[slot, : len(row)].tolist()
        assert dict(enumerate(p)) == pytest.approx(wanted)


def test_a_start_that_would_freeze_at_once_is_refused(tiny, data):
    with pytest.raises(ValueError, match="nothing would be searched"):
        search(tiny, data, replace(CONFIG, largest_share=0.9))


def test_a_high_price_of_certainty_keeps_the_search_near_its_start(tiny, data, without_budget):
    held, _ = search(tiny, data, replace(FREE, temperature=(50.0, 50.0)), ())
    start = torch.tensor([[1 / 3] * 3 + [0.0], [0.5] * 2 + [0.0] * 2, [0.25] * 4])
    far, near = (
        (result.probabilities - start).abs().max().item() for result in (without_budget[0], held)
    )
    assert near < 0.5 * far


# the budgets


def test_a_tight_budget_lowers_the_expected_cost(tiny, data, without_budget):
    cost = macs_cost(tiny)
    held, _ = search(tiny, data, FREE, macs_within(tiny, 7_000.0))
    free, _ = without_budget
    assert cost.expected(held.probabilities) < 0.9 * cost.expected(free.probabilities)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_heeds_a_budget(tiny, data, estimator):
    config = with_held_out(replace(FREE, estimator=estimator))
    cost = macs_cost(tiny)
    held, heard = search(tiny, data, config, macs_within(tiny, 7_000.0))
    start = torch.tensor([[1 / 3] * 3 + [0.0], [0.5] * 2 + [0.0] * 2, [0.25] * 4])
    assert cost.expected(held.probabilities) < 0.8 * cost.expected(start)
    costs = [p.metrics["macs_expected"] for p in heard.progress]
    assert costs == sorted(costs, reverse=True)


def test_a_budget_that_nothing_exceeds_changes_nothing(tiny, data, without_budget):
    generous, _ = search(tiny, data, FREE, macs_within(tiny, 1e9))
    assert torch.equal(generous.log_probabilities, without_budget[0].log_probabilities)


def test_a_cost_that_is_only_observed_changes_nothing_and_is_reported(tiny, data, without_budget):
    watched, heard = search(tiny, data, FREE, macs_within(tiny, 7_000.0, rule=Observed()))
    assert torch.equal(watched.log_probabilities, without_budget[0].log_probabilities)
    expected = macs_cost(tiny).expected(watched.probabilities).item()
    assert heard.progress[-1].metrics["macs_expected"] == expected


def test_the_multiplier_rises_while_the_budget_is_exceeded(tiny, data, unbroken):
    multipliers = [p.metrics["macs_multiplier"] for p in unbroken[1].progress]
    assert 0.0 < multipliers[0] < multipliers[1]
    _, generous = search(tiny, data, FREE, macs_within(tiny, 1e9))
    assert [p.metrics["macs_multiplier"] for p in generous.progress] == [0.0] * 2


def test_spending_the_budget_pulls_the_cost_up_to_it(tiny, data, without_budget):
    cost = macs_cost(tiny)
    equality = AugmentedLagrangian(equality=True)
    spent, _ = search(tiny, data, FREE, macs_within(tiny, 45_000.0, rule=equality))
    assert cost.expected(spent.probabilities) > 1.1 * cost.expected(without_budget[0].probabilities)


def test_two_budgets_have_a_multiplier_each(tiny, data):
    _, heard = search(tiny, data, FREE, two_budgets(tiny))
    metrics = heard.progress[-1].metrics
    assert {f"{name}_multiplier" for name in ("macs", "parameters")} <= metrics.keys()
    assert heard.checkpoints[-1].state["constraints"].keys() == {"macs", "parameters"}


def test_a_budget_below_every_architecture_is_refused_before_any_training(tiny, data):
    recorded, asked = recording(data)
    with pytest.raises(BudgetUnreachableError, match="macs budget 10"):
        search(tiny, recorded, constraints=macs_within(tiny, 10.0))
    assert asked == []


def test_a_reward_needs_an_estimator_that_can_follow_it(tiny, data):
    with pytest.raises(ValueError, match="only the estimator 'reinforce'"):
        search(tiny, data, constraints=rewarded(tiny))


def test_an_estimator_nobody_knows_is_named(tiny, data):
    with pytest.raises(UnknownEstimatorError, match=r"'sorcery'; known: dsnas, "):
        search(tiny, data, replace(CONFIG, estimator="sorcery"))


# what is not finite


def spoilt(data, spoil, at, times=1, kind="training_batch"):
    """`data` whose batch of step `at` is spoilt the first `times` times it is asked for."""
    left = [times]

    class Spoilt(ImageDataset):
        def training_batch(self, seed, step, batch_size):
            batch = super().training_batch(seed, step, batch_size)
            return self._spoil(batch, "training_batch", step)

        def plain_batch(self, seed, step, batch_size):
            batch = super().plain_batch(seed, step, batch_size)
            return self._spoil(batch, "plain_batch", step)

        def _spoil(self, batch, asked, step):
            if (asked, step) == (kind, at) and left[0]:
                left[0] -= 1
                batch.images[0, 0, 0, 0] = spoil
            return batch

    return Spoilt(**vars(data))


def rollbacks(heard):
    return [notice.text for notice in heard.notices if notice.code == "rollback"]


def rates(heard):
    groups = (c.state["weight_optimizer"]["param_groups"] for c in heard.checkpoints)
    return [{group["lr"] for group in pair} for pair in groups]


def expected_rates(halvings):
    ends = (EPOCH - 1, 2 * EPOCH - 1)
    return [{CONFIG.recipe.rate_at(s) * 0.5**n} for s, n in zip(ends, halvings, strict=True)]


@pytest.mark.parametrize("estimator", ["dsnas", "proxyless"])
@pytest.mark.parametrize(("at", "back_to", "halvings"), [(5, 0, (1, 1)), (11, EPOCH, (0, 1))])
def test_an_infinite_pixel_sends_the_search_back_at_half_the_rate(
    tiny, data, identical, estimator, at, back_to, halvings
):
    config = replace(CONFIG, estimator=estimator)
    dataset = data
    if estimator in TWO_LEVEL:  # as many training images as the others have
        config = with_held_out(config)
        dataset = enlarged(data)
    result, heard = search(tiny, spoilt(dataset, torch.inf, at), config)
    assert rollbacks(heard) == [f"the loss is nan at step {at}; back to {back_to}"]
    assert rates(heard) == expected_rates(halvings)
    assert result.summary["rollbacks"] == 1
    assert result.steps == 2 * EPOCH
    assert result.probabilities.isfinite().all()
    assert all(t.isfinite().all() for t in result.supernet.state_dict().values())

    # the same as going on from there at half the rate, with nothing ever spoilt
    _, healthy = search(tiny, dataset, config)
    if back_to:
        state = {**healthy.checkpoints[0].state, "rollbacks": 1}
        restart = replace(healthy.checkpoints[0], state=state)
        assert same(identical, (result, heard), search(tiny, dataset, config, resume=restart))


def enlarged(data):
    """`data` with `HELD_OUT` images more."""
    images, labels = (torch.cat([t, t[:HELD_OUT]]) for t in (data.train_images, data.train_labels))
    return replace(data, train_images=images, train_labels=labels)


@pytest.mark.parametrize("estimator", ["proxyless", "reinforce"])
def test_held_out_images_that_spoil_the_logits_send_the_search_back(tiny, data, estimator):
    """By then the weights have moved; they go back, too."""
    config = with_held_out(replace(CONFIG, estimator=estimator))
    result, heard = search(tiny, spoilt(enlarged(data), torch.inf, 11, kind="plain_batch"), config)
    assert rollbacks(heard) == [f"the loss of held-out images is nan at step 11; back to {EPOCH}"]
    assert result.probabilities.isfinite().all()
    assert result.summary["rollbacks"] == 1


def test_a_resumed_search_remembers_its_rollbacks(tiny, data, identical, tmp_path):
    unbroken = search(tiny, spoilt(data, torch.inf, 11))
    path = tmp_path / "search.ckpt"
    # steps 0 to 10, then 8 to 13 again; the step that is spoilt is not counted
    checkpoint = interrupted_after(11 + 6, tiny, spoilt(data, torch.inf, 11), path)
    assert (checkpoint.step, checkpoint.state["rollbacks"]) == (14, 1)
    assert same(identical, search(tiny, data, resume=checkpoint), unbroken)


@pytest.mark.parametrize("max_rollbacks", [0, 2])
def test_a_search_is_given_up_after_the_rollbacks_allowed(tiny, data, max_rollbacks):
    heard = Heard()
    config = replace(CONFIG, max_rollbacks=max_rollbacks)
    with pytest.raises(
        NonFiniteLossError,
        match=rf"nan at step 11, after {max_rollbacks} rollbacks .* lower the learning rate of 0.1",
    ):
        run_search(tiny, config, spoilt(data, torch.inf, 11, times=99), (), report=heard)
    assert len(rollbacks(heard)) == max_rollbacks


@pytest.mark.parametrize("times", [1, 99])
def test_a_statistic_that_overflows_does_not_get_into_a_checkpoint(tiny, data, times):
    """BatchNorm hides the pixel from the loss, and remembers its variance: infinite."""
    heard = Heard()
    dataset = spoilt(data, 1e30, EPOCH - 1, times=times)
    if times == 1:
        run_search(tiny, CONFIG, dataset, (), report=heard)
        assert rollbacks(heard) == [f"a weight is not finite at step {EPOCH - 1}; back to 0"]
    else:
        with pytest.raises(NonFiniteLossError, match="a weight is not finite"):
            run_search(tiny, CONFIG, dataset, (), report=heard)
    for checkpoint in heard.checkpoints:
        assert all(t.isfinite().all() for t in checkpoint.state["supernet"].values())


def test_a_search_stopped_in_a_bad_moment_leaves_its_last_good_checkpoint(
    tiny, data, identical, tmp_path
):
    spoilt_at_11 = spoilt(data, 1e30, 11, times=2)
    unbroken = search(tiny, spoilt(data, 1e30, 11))
    checkpoint = interrupted_after(13, tiny, spoilt_at_11, tmp_path / "search.ckpt")
    assert (checkpoint.step, checkpoint.state["rollbacks"]) == (EPOCH, 0)
    assert same(identical, search(tiny, spoilt_at_11, resume=checkpoint), unbroken)


@pytest.mark.parametrize("warmup_steps", [0, 4])
def test_a_rate_that_no_halving_mends_is_named(tiny, data, warmup_steps):
    recipe = replace(CONFIG.recipe, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(NonFiniteLossError, match=r"lower the learning rate of 1e\+30"):
        search(tiny, data, replace(CONFIG, recipe=recipe, warmup_steps=warmup_steps))


@dataclass(frozen=True)
class Barrier:
    """``(1 - E / budget)^-1/2``, which is no number over the budget."""

    def terms(self, expected, budget, multiplier):  # noqa: ARG002
        return 1.0, (1.0 - expected / budget) ** -0.5

    def updated(self, multiplier, violation):  # noqa: ARG002
        return multiplier


def test_a_penalty_that_is_no_number_does_not_get_into_the_logits(tiny, data):
    """The loss itself is fine."""
    _, heard = search(tiny, data, FREE, macs_within(tiny, 60_000.0, rule=Barrier()))
    assert heard.progress[-1].metrics["macs_expected"] < 60_000.0
    with pytest.raises(NonFiniteLossError, match="the gradient of the logits is not finite"):
        search(tiny, data, FREE, macs_within(tiny, 7_000.0, rule=Barrier()))


# health


@pytest.fixture(scope="module")
def colours(data):
    """The digits in three colours, twice as large."""

    def coloured(images):
        return images.repeat_interleave(3, dim=1)

    return replace(
        data,
        train_images=coloured(data.train_images),
        test_images=coloured(data.test_images),
        mean=data.mean * 3,
        std=data.std * 3,
    )


@pytest.fixture(scope="module")
def cell():
    return nasbench201(channels=4, cells_per_stage=1, resolution_px=8)


def hardly_anything(cell):
    """A budget that holds one skip at most, and is kept most easily by six times ``none``."""
    cost = SeparableCost(1.0, [[0.0, 0.2, 1.0, 1.0, 1.0]] * 6, "operation")
    return [Constraint("operations", cost, 1.3)]


TO_NOTHING = replace(FREE, alpha_learning_rate=0.5, search_steps=3 * EPOCH)


def test_a_search_that_falls_to_nothing_says_so_once(cell, colours):
    result, heard = search(cell, colours, TO_NOTHING, hardly_anything(cell))
    assert set(result.probabilities.argmax(dim=1).tolist()) == {0}
    decided = result.decide(hardly_anything(cell))
    assert cell.format(decided) == "|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|"
    codes = [notice.code for notice in heard.notices]
    assert len(set(codes)) == len(codes)
    collapse = result.summary["collapse"]
    assert (f"collapsed_to_{collapse['kind']}", collapse["text"]) in [
        (notice.code, notice.text) for notice in heard.notices
    ]


def test_a_collapse_is_not_told_again_after_a_resume(cell, colours, tmp_path):
    arguments = (TO_NOTHING, hardly_anything(cell))
    checkpoint = interrupted_after(2 * EPOCH, cell, colours, tmp_path / "search.ckpt", *arguments)
    assert checkpoint.state["health"]["told"]
    result, heard = search(cell, colours, *arguments, resume=checkpoint)
    assert heard.notices == []
    assert result.summary["collapse"] is not None


def test_a_search_that_is_well_has_nothing_to_say(cell, colours):
    config = replace(FREE, largest_share=0.5, alpha_learning_rate=0.01)
    result, heard = search(cell, colours, config, ())
    assert heard.notices == []
    assert result.summary["collapse"] is None


def test_a_signal_that_is_dead_is_said_once(tiny, data):
    """With one class the loss is 0, whatever is chosen."""
    classifier = replace(tiny.layers[-1].blocks[0], out_channels=1)
    last = replace(tiny.layers[-1], blocks=(classifier,))
    one_class = replace(tiny, n_classes=1, layers=(*tiny.layers[:-1], last))
    labels = torch.zeros_like(data.train_labels)
    result, heard = search(one_class, replace(data, train_labels=labels, n_classes=1), FREE, ())
    (notice,) = heard.notices
    assert notice.code == "dead_signal"
    assert "the logits learn from noise" in notice.text
    assert result.summary["health"]["signal"] == 0.0


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


def within(budget, rule=None):
    return [Constraint("latency", COST, budget, rule or Observed())]


def test_without_a_budget_the_most_probable_architecture_is_decided(tiny):
    assert result_with(tiny).decide().choices == (2, 1, 3)


@pytest.mark.parametrize("budget", [21.0, 20.5, 17.0, 13.0])
@pytest.mark.parametrize("rule", [Observed(), AugmentedLagrangian(), DualAscent()])
def test_the_decision_is_within_the_budget_offset_included(tiny, budget, rule):
    decided = result_with(tiny).decide(within(budget, rule))
    assert COST.exact(decided) <= budget


def test_frozen_slots_stay_as_they_are_where_the_budget_allows_it(tiny):
    result = result_with(tiny, {1: 1, 2: 0})
    assert result.decide().choices == (2, 1, 0)
    assert result.decide(within(16.0)).choices == (0, 1, 0)


def test_frozen_slots_give_way_where_the_budget_demands_it(tiny):
    result = result_with(tiny, {1: 1, 2: 3})
    assert result.decide(within(14.0)).choices in {(1, 0, 0), (0, 0, 1)}  # equal in both


def test_a_budget_below_every_architecture_is_unreachable(tiny):
    with pytest.raises(BudgetUnreachableError):
        result_with(tiny).decide(within(12.9))
    with pytest.raises(BudgetUnreachableError):
        result_with(tiny).decide_best(3, within(12.9))


def test_several_budgets_are_kept_at_once(tiny):
    constraints = [*within(17.0), Constraint("macs", macs_cost(tiny), 9_000.0, Observed())]
    decided = result_with(tiny).decide(constraints)
    assert all(constraint.violation(decided) <= 0.0 for constraint in constraints)


def test_the_best_are_ranked_by_probability_and_keep_the_budget(tiny):
    result = result_with(tiny, {2: 0})  # what froze is only a preference here
    fitting = [a for a in tiny if COST.exact(a) <= 16.0]

    def log_probability(architecture):
        return sum(
            result.log_probabilities[s, k].item() for s, k in enumerate(architecture.choices)
        )

    found = result.decide_best(5, within(16.0))
    ranked = sorted(map(log_probability, fitting), reverse=True)
    assert [log_probability(a) for a in found] == pytest.approx(ranked[:5])
    assert len(set(found)) == 5
    assert set(found) <= set(fitting)
