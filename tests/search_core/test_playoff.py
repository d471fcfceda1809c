"""The playoff between a search's best architectures."""

from dataclasses import replace

import pytest
import torch

from search_core.data.dataset import ImageDataset
from search_core.errors import NonFiniteLossError, SearchInterrupted
from search_core.events import Notice, Progress
from search_core.nn.supernet import Supernet
from search_core.playoff import held_out_loss, playoff, qualify
from search_core.randomness import stream
from search_core.space.nasbench201 import nasbench201
from search_core.train import WeightRecipe

RECIPE = WeightRecipe(total_steps=3, warmup_steps=1, batch_size=32)


@pytest.fixture(scope="module")
def parts(data):
    few = replace(data, train_images=data.train_images[:256], train_labels=data.train_labels[:256])
    return few.split(96)


@pytest.fixture
def supernet(tiny):
    return Supernet(tiny, stream(0, "weights"))


def contenders(space, n):
    return list(space)[::4][:n]


def play(supernet, parts, n, recipe=RECIPE, *, seed=0, **arguments):
    """Standings, the winner's network, and what was reported."""
    events = []
    chosen = contenders(supernet.space, n)
    standings, network = playoff(
        supernet, chosen, *parts, recipe, seed=seed, report=events.append, **arguments
    )
    return standings, network, events


@pytest.mark.parametrize(
    ("n", "rounds"),
    [
        (1, [1]),
        (2, [1, 1]),
        (3, [2, 2, 1]),
        (5, [3, 3, 2, 1, 1]),
        (6, [3, 3, 2, 1, 1, 1]),
    ],
)
def test_half_of_them_go_on_after_each_round(supernet, parts, n, rounds):
    standings, _, events = play(supernet, parts, n)
    assert [standing.rounds for standing in standings] == rounds
    assert {s.architecture for s in standings} == set(contenders(supernet.space, n))
    progress = [event for event in events if isinstance(event, Progress)]
    assert [p.completed for p in progress] == list(range(1, sum(rounds) + 1))
    assert {(p.phase, p.total) for p in progress} == {("playoff", sum(rounds))}


def test_the_better_half_goes_on_and_the_best_of_the_last_round_wins(supernet, parts):
    standings, network, events = play(supernet, parts, 6)
    for last in (3, 2, 1):
        losses = [s.loss for s in standings if s.rounds == last]
        assert losses == sorted(losses)
    first_round = [e.metrics["held_out_loss"] for e in events[:6]]
    chosen = contenders(supernet.space, 6)
    went_on = {s.architecture for s in standings if s.rounds > 1}
    best = sorted(range(6), key=first_round.__getitem__)[:3]
    assert went_on == {chosen[i] for i in best}
    winner = standings[0]
    assert held_out_loss(network, parts[1]) == (winner.loss, winner.accuracy)
    assert network.blocks == supernet.space.blocks(winner.architecture)
    notice = events[-1]
    assert isinstance(notice, Notice)
    assert notice.text == supernet.space.format(winner.architecture)


def test_a_playoff_is_a_function_of_its_seed(supernet, parts, identical):
    first, network, _ = play(supernet, parts, 3)
    torch.manual_seed(1234)
    again, same, _ = play(supernet, parts, 3)
    assert again == first
    assert identical(dict(same.state_dict()), dict(network.state_dict()))
    other, _, _ = play(supernet, parts, 3, seed=1)
    assert [s.loss for s in other] != [s.loss for s in first]


def test_the_supernet_is_left_as_it_is(supernet, parts, identical):
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    play(supernet, parts, 3)
    assert identical(dict(supernet.state_dict()), before)
    assert supernet.training


def test_all_train_on_the_same_batches_and_each_round_on_new_ones(supernet, parts):
    asked = []

    class Recording(ImageDataset):
        def training_batch(self, *address):
            asked.append(address)
            return super().training_batch(*address)

    play(supernet, (Recording(**vars(parts[0])), parts[1]), 3, seed=7)
    rounds = [[(7, step, 32) for step in steps] for steps in (range(3), range(3, 6))]
    assert asked == 3 * rounds[0] + 2 * rounds[1]


def test_one_contender_trains_for_one_round(supernet, parts, identical):
    ((standing,), network, _) = play(supernet, parts, 1)
    assert (standing.rounds, standing.architecture) == (1, contenders(supernet.space, 1)[0])
    start = supernet.derive(standing.architecture)
    assert not identical(dict(network.state_dict()), dict(start.state_dict()))


def test_a_contender_named_twice_plays_once(supernet, parts):
    (only,) = contenders(supernet.space, 1)
    standings, _ = playoff(supernet, [only, only], *parts, RECIPE, seed=0)
    assert [s.architecture for s in standings] == [only]


def test_nobody_cannot_play(supernet, parts):
    with pytest.raises(ValueError, match="at least one"):
        play(supernet, parts, 0)


def test_a_playoff_stops_when_asked(supernet, parts):
    asked = iter([False, True])
    with pytest.raises(SearchInterrupted, match="round 1"):
        play(supernet, parts, 3, should_stop=lambda: next(asked))


def test_a_network_that_diverged_loses(supernet, parts):
    """Its loss is no number, and compares with none."""
    supernet.layers[1][0].project.bn.weight.data.fill_(torch.nan)
    broken, sound = (supernet.space.architecture((k, 0, 0)) for k in (0, 1))
    for order in ([broken, sound], [sound, broken]):
        standings, network = playoff(supernet, order, *parts, RECIPE, seed=0)
        assert [s.architecture for s in standings] == [sound, broken]
        assert standings[0].loss < standings[1].loss == torch.inf
        assert network.blocks == supernet.space.blocks(sound)


def test_a_playoff_in_which_all_diverge_has_no_winner(supernet, parts):
    absurd = replace(RECIPE, learning_rate=1e30)
    with pytest.raises(NonFiniteLossError, match=r"lower the learning rate of 1e\+30"):
        play(supernet, parts, 3, absurd)


def test_the_held_out_loss_is_the_mean_over_all_images(supernet, parts):
    network = supernet.derive(contenders(supernet.space, 1)[0]).eval()
    _, held_out = parts
    with torch.no_grad():
        scores = network(held_out.normalise(held_out.train_images))
    expected = torch.nn.functional.cross_entropy(scores, held_out.train_labels).item()
    right = (scores.argmax(dim=1) == held_out.train_labels).double().mean().item()
    for batch_size in (7, 96, 512):
        loss, accuracy = held_out_loss(network, held_out, batch_size)
        assert loss == pytest.approx(expected, rel=1e-5)
        assert accuracy == pytest.approx(right)


# who may play


def losses_of(supernet, architectures, held_out, n_images, seed=0):
    batch = held_out.plain_batch(seed, 0, n_images)
    twin = Supernet(supernet.space, stream(0, "weights")).train()  # whose statistics may move
    twin.load_state_dict(supernet.state_dict())
    with torch.no_grad():
        return {a: batch.loss(twin(batch.images, a.choices)).item() for a in architectures}


@pytest.mark.parametrize("n_images", [50, 1000])
def test_the_best_under_the_shared_weights_qualify(supernet, parts, identical, n_images):
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    _, held_out = parts
    every = list(supernet.space)
    found = qualify(supernet, every, held_out, 5, seed=0, n_images=n_images)
    losses = losses_of(supernet, every, held_out, min(n_images, held_out.n_train))
    assert [losses[a] for a in found] == pytest.approx(sorted(losses.values())[:5])
    assert identical(dict(supernet.state_dict()), before)


def test_a_network_whose_loss_is_no_number_qualifies_last(supernet, parts):
    supernet.layers[1][0].project.bn.weight.data.fill_(torch.nan)
    broken, first, second = (supernet.space.architecture((k, 0, 0)) for k in range(3))
    found = qualify(supernet, [first, broken, second], parts[1], 3, seed=0)
    assert found[-1] == broken
    assert set(found[:2]) == {first, second}


def test_networks_that_waste_a_block_are_passed_over_if_there_are_others(parts):
    coloured = replace(
        parts[1],
        train_images=parts[1].train_images.repeat_interleave(3, dim=1),
        mean=parts[1].mean * 3,
        std=parts[1].std * 3,
    )
    cell = nasbench201(channels=4, cells_per_stage=1, resolution_px=8)
    supernet = Supernet(cell, stream(0, "weights"))
    conv = "nor_conv_3x3"
    sound = cell.parse(f"|none~0|+|none~0|none~1|+|{conv}~0|none~1|none~2|")
    wasteful = cell.parse(f"|{conv}~0|+|none~0|none~1|+|{conv}~0|none~1|none~2|")
    assert qualify(supernet, [wasteful, sound], coloured, 2, seed=0) == [sound]
    assert qualify(supernet, [wasteful], coloured, 2, seed=0) == [wasteful]
    twin = cell.parse(f"|skip_connect~0|+|none~0|none~1|+|{conv}~0|none~1|none~2|")
    other = cell.parse(f"|none~0|+|none~0|none~1|+|{conv}~0|skip_connect~1|none~2|")
    assert qualify(supernet, [sound, twin, other], coloured, 3, seed=0) == [sound]
