"""Going on from another search: from all of it, from its weights, or only reading its end."""

import copy
from dataclasses import replace

import pytest
import torch

from search_core.checkpoints import Checkpoint
from search_core.config import SearchConfig
from search_core.constraint import Constraint
from search_core.costs import macs_cost
from search_core.errors import CheckpointError
from search_core.events import CheckpointReady
from search_core.search import (
    SearchResult,
    WarmStart,
    finished_search,
    run_search,
    search_identity,
)
from search_core.train import WeightRecipe

EPOCH = 8
CONFIG = SearchConfig(
    WeightRecipe(total_steps=24, warmup_steps=2, batch_size=64),
    search_steps=2 * EPOCH,
    warmup_steps=EPOCH // 2,
    alpha_learning_rate=0.08,
    freeze_threshold=0.25,
)
LONGER = replace(
    CONFIG, recipe=replace(CONFIG.recipe, total_steps=40), search_steps=3 * EPOCH, warmup_steps=0
)


@pytest.fixture(scope="module")
def data(data):
    n = EPOCH * CONFIG.recipe.batch_size
    return replace(data, train_images=data.train_images[:n], train_labels=data.train_labels[:n])


@pytest.fixture(scope="module")
def run(tiny, data):
    """Runs a search: its result, and every checkpoint it reported."""

    def search(config=CONFIG, **arguments) -> tuple[SearchResult, list[Checkpoint]]:
        checkpoints = []

        def report(event):
            if isinstance(event, CheckpointReady):
                checkpoints.append(copy.deepcopy(event.checkpoint))

        budget = [Constraint("macs", macs_cost(tiny), 12_000.0)]
        return run_search(tiny, config, data, budget, report=report, **arguments), checkpoints

    return search


@pytest.fixture(scope="module")
def first(run):
    return run()


@pytest.fixture(scope="module")
def same(identical):
    def compare(left: SearchResult, right: SearchResult) -> bool:
        return (
            identical(dict(left.supernet.state_dict()), dict(right.supernet.state_dict()))
            and torch.equal(left.probabilities, right.probabilities)
            and torch.equal(left.log_probabilities, right.log_probabilities)
            and (left.frozen, left.steps) == (right.frozen, right.steps)
        )

    return compare


def test_a_finished_search_is_read_from_its_checkpoint_to_the_last_bit(tiny, first, same):
    result, checkpoints = first
    found = finished_search(tiny, CONFIG, checkpoints[-1])
    assert same(found, result)
    assert found.decide() == result.decide()
    assert result.frozen  # or the comparison would say little


def test_going_on_with_all_of_a_search_is_going_on_with_it(run, first, same):
    """From the middle of the very same search: as if it had been resumed."""
    result, (middle, *_) = first
    assert middle.step < result.steps
    again, _ = run(warm_start=WarmStart(middle, whole=True))
    assert same(again, result)


def test_extending_is_resuming_on_a_longer_schedule(tiny, data, run, first, same):
    """By its definition: the state of the end, the step of the end, the new schedule."""
    result, checkpoints = first
    extended, _ = run(LONGER, warm_start=WarmStart(checkpoints[-1], whole=True))
    budget = [Constraint("macs", macs_cost(tiny), 12_000.0)]
    renamed = replace(checkpoints[-1], fingerprint=search_identity(tiny, LONGER, data, budget))
    defined, _ = run(LONGER, resume=renamed)
    assert same(extended, defined)
    assert extended.steps == LONGER.search_steps > result.steps
    assert not torch.equal(extended.log_probabilities, result.log_probabilities)


def test_a_search_that_is_extended_by_nothing_ends_where_it_began(run, first, same):
    result, checkpoints = first
    config = replace(CONFIG, recipe=replace(CONFIG.recipe, total_steps=25))
    again, reported = run(config, warm_start=WarmStart(checkpoints[-1], whole=True))
    assert same(again, result)
    assert [checkpoint.step for checkpoint in reported] == [result.steps]  # for the next one


def test_of_a_warm_start_only_the_weights_are_taken(run, first, identical):
    _, checkpoints = first
    _, (start, *_) = run(LONGER, warm_start=WarmStart(checkpoints[-1]))
    assert start.step == 0
    assert identical(start.state["supernet"], checkpoints[-1].state["supernet"])
    assert not start.state["logits"].any()  # equal parts
    assert not start.state["weight_optimizer"].get("state")
    assert start.state["freezer"]["frozen"] == {}


def test_a_warm_search_that_is_stopped_resumes_as_itself(run, first, same):
    _, checkpoints = first
    warm_start = WarmStart(checkpoints[-1])
    unbroken, reported = run(LONGER, warm_start=warm_start)
    resumed, _ = run(LONGER, warm_start=warm_start, resume=reported[1])
    assert 0 < reported[1].step < unbroken.steps
    assert same(resumed, unbroken)


def test_where_a_search_begins_is_part_of_its_identity(tiny, data, first):
    _, (middle, *_, last) = first
    starts = [None, *(WarmStart(c, whole) for c in (middle, last) for whole in (False, True))]
    names = {search_identity(tiny, LONGER, data, (), start) for start in starts}
    assert len(names) == len(starts)


def test_a_search_that_began_elsewhere_is_not_resumed(run, first):
    _, checkpoints = first
    with pytest.raises(CheckpointError, match="start without it"):
        run(warm_start=WarmStart(checkpoints[0]), resume=checkpoints[0])


def test_a_checkpoint_of_another_space_is_refused(micro, run, first):
    _, checkpoints = first
    with pytest.raises(CheckpointError, match="not of micro"):
        finished_search(micro, CONFIG, checkpoints[-1])


def test_a_checkpoint_of_training_is_refused(tiny, run, first):
    _, checkpoints = first
    trained = replace(checkpoints[-1], stage="train")
    for read in (
        lambda: finished_search(tiny, CONFIG, trained),
        lambda: run(warm_start=WarmStart(trained)),
    ):
        with pytest.raises(CheckpointError, match="of a train run"):
            read()
