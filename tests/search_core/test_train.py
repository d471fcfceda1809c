"""Training a decided network."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from search_core.checkpoints import load_checkpoint, save_checkpoint
from search_core.data.augmentation import Augmentation
from search_core.data.dataset import ImageDataset
from search_core.errors import CheckpointError, NonFiniteLossError, SearchInterrupted
from search_core.events import CheckpointReady, Notice, Progress
from search_core.nn.network import Network
from search_core.randomness import stream
from search_core.train import (
    WeightRecipe,
    accuracy,
    all_finite,
    fingerprint,
    recalibrate_batch_norm,
    train_network,
)

RECIPE = WeightRecipe(total_steps=30, warmup_steps=5, batch_size=32)  # 22 steps an epoch


@pytest.fixture(scope="module")
def data(data):
    n = 22 * RECIPE.batch_size
    return replace(data, train_images=data.train_images[:n], train_labels=data.train_labels[:n])


@pytest.fixture
def fresh(tiny):
    """Makes the same untrained network each time."""
    blocks = tiny.blocks(tiny.architecture((1, 0, 0)))
    return lambda: Network.initialised(blocks, stream(0, "weights"))


@pytest.fixture(scope="module")
def trained(tiny, data):
    network = Network.initialised(tiny.blocks(tiny.architecture((1, 0, 0))), stream(0, "weights"))
    train_network(network, data, RECIPE, seed=0)
    return network


def recording(data):
    """`data`, and the list of the (seed, step, batch size) it is asked for."""
    asked = []

    class Recording(ImageDataset):
        def training_batch(self, *address):
            asked.append(address)
            return super().training_batch(*address)

    return Recording(**vars(data)), asked


def interrupted_after(n_steps, network, data, path, recipe=RECIPE, **arguments):
    """Train for `n_steps`, then stop; the checkpoint reported last is at `path`."""
    asked = iter(range(1, 10**6))

    def report(event):
        if isinstance(event, CheckpointReady):
            save_checkpoint(event.checkpoint, path)

    with pytest.raises(SearchInterrupted):
        train_network(
            network,
            data,
            recipe,
            seed=0,
            report=report,
            should_stop=lambda: next(asked) == n_steps,
            **arguments,
        )
    return load_checkpoint(path)


def test_training_is_a_function_of_its_seed(fresh, trained, data, identical):
    same, other = fresh(), fresh()
    torch.manual_seed(1234)
    train_network(same, data, RECIPE, seed=0)
    train_network(other, data, RECIPE, seed=1)
    assert identical(dict(same.state_dict()), dict(trained.state_dict()))
    assert not identical(dict(other.state_dict()), dict(trained.state_dict()))


EVERYTHING = replace(
    RECIPE, nesterov=True, dropout=0.2, ema_decay=0.99, gradient_clip=1.0, label_smoothing=0.2
)


def trained_to_the_end(network, data, recipe, resume=None):
    """The final state of the network, and that of the last checkpoint."""
    states = [None]

    def report(event):
        if isinstance(event, CheckpointReady):
            states[0] = copy.deepcopy(event.checkpoint.state)

    train_network(network, data, recipe, seed=0, report=report, resume=resume)
    return dict(network.state_dict()), states[0]


@pytest.fixture(scope="module", params=[RECIPE, EVERYTHING], ids=["plain", "everything"])
def unbroken(request, tiny, data):
    network = Network.initialised(tiny.blocks(tiny.architecture((1, 0, 0))), stream(0, "weights"))
    return request.param, *trained_to_the_end(network, data, request.param)


@pytest.mark.parametrize("n_steps", [1, 22, 26, 29])
def test_a_resumed_training_equals_the_unbroken_one(
    fresh, data, identical, tmp_path, unbroken, n_steps
):
    recipe, weights, state = unbroken
    checkpoint = interrupted_after(n_steps, fresh(), data, tmp_path / "train.ckpt", recipe)
    assert checkpoint.step == n_steps
    resumed, resumed_state = trained_to_the_end(fresh(), data, recipe, checkpoint)
    assert identical(resumed, weights)
    assert identical(resumed_state, state)


def test_a_training_interrupted_at_its_end_still_recalibrates(
    fresh, data, identical, tmp_path, trained
):
    checkpoint = interrupted_after(30, fresh(), data, tmp_path / "train.ckpt")
    assert checkpoint.step == 30
    resumed, _ = trained_to_the_end(fresh(), data, RECIPE, checkpoint)
    assert identical(resumed, dict(trained.state_dict()))


def test_every_step_asks_for_its_own_batch(fresh, data):
    recorded, asked = recording(data)
    train_network(fresh(), recorded, RECIPE, seed=5, start_step=20)
    assert asked == [(5, step, 32) for step in range(20, 30)]


def test_a_child_goes_on_where_its_search_stopped(fresh, data):
    events = []
    train_network(fresh(), data, RECIPE, seed=0, start_step=15, report=events.append)
    seen = [(e.completed, e.total) for e in events if isinstance(e, Progress)]
    assert seen == [(7, 15), (15, 15)]
    steps = [e.checkpoint.step for e in events if isinstance(e, CheckpointReady)]
    assert steps == [22, 30]


LONGER = replace(RECIPE, total_steps=110)  # 5 epochs


def test_training_learns(data, fresh):
    network = fresh()
    before = accuracy(network, data)
    train_network(network, data, LONGER, seed=0)
    assert accuracy(network, data) > before + 0.3


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"start_step": 2},
        {"recipe": replace(RECIPE, learning_rate=0.05)},
        {"data": "relabelled"},
        {"data": "not augmented"},
        {"network": "other"},
    ],
)
def test_a_checkpoint_of_another_training_is_refused(fresh, tiny, data, tmp_path, change):
    checkpoint = interrupted_after(2, fresh(), data, tmp_path / "train.ckpt")
    network = Network(tiny.blocks(tiny.architecture((0, 0, 0)))) if "network" in change else fresh()
    dataset = {
        None: data,
        "relabelled": replace(data, train_labels=data.train_labels.flip(0)),
        "not augmented": data.augmented(Augmentation()),
    }[change.get("data")]
    with pytest.raises(CheckpointError):
        train_network(
            network,
            dataset,
            change.get("recipe", RECIPE),
            seed=change.get("seed", 0),
            start_step=change.get("start_step", 0),
            resume=checkpoint,
        )


# what is not finite


def spoilt(data, pixel, at, times=1):
    """`data` whose batch of step `at` has this pixel the first `times` times it is asked for."""
    left = [times]

    class Spoilt(ImageDataset):
        def training_batch(self, seed, step, batch_size):
            batch = super().training_batch(seed, step, batch_size)
            if step == at and left[0]:
                left[0] -= 1
                batch.images[0, 0, 0, 0] = pixel
            return batch

    return Spoilt(**vars(data))


@pytest.mark.parametrize("recipe", [RECIPE, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize(("at", "back_to"), [(5, 0), (25, 22)])
def test_an_infinite_pixel_sends_training_back_at_half_the_rate(
    fresh, data, identical, recipe, at, back_to
):
    events, network = [], fresh()

    def report(event):
        events.append(copy.deepcopy(event))

    train_network(network, spoilt(data, torch.inf, at), recipe, seed=0, report=report)
    (notice,) = (event for event in events if isinstance(event, Notice))
    assert notice.code == "rollback"
    assert notice.text.endswith(f"back to {back_to}")
    last = [e.checkpoint for e in events if isinstance(e, CheckpointReady)][-1]
    rates = {group["lr"] for group in last.state["optimizer"]["param_groups"]}
    assert rates == {0.5 * recipe.rate_at(29)}
    assert last.state["rollbacks"] == 1
    assert all_finite(network)

    if back_to:  # the same as going on from there at half the rate, with nothing ever spoilt
        first = next(e.checkpoint for e in events if isinstance(e, CheckpointReady))
        again = fresh()
        restart = replace(first, state={**first.state, "rollbacks": 1})
        train_network(again, data, recipe, seed=0, resume=restart)
        assert identical(dict(again.state_dict()), dict(network.state_dict()))


@pytest.mark.parametrize("max_rollbacks", [0, 2])
def test_training_is_given_up_after_the_rollbacks_allowed(fresh, data, max_rollbacks):
    events = []
    recipe = replace(RECIPE, max_rollbacks=max_rollbacks)
    dataset = spoilt(data, torch.inf, 3, times=99)
    with pytest.raises(
        NonFiniteLossError,
        match=f"nan at step 22, after {max_rollbacks} rollbacks .* lower the learning rate of 0.1",
    ):
        train_network(fresh(), dataset, recipe, seed=0, report=events.append)
    assert sum(isinstance(event, Notice) for event in events) == max_rollbacks


def test_a_statistic_that_overflows_does_not_get_into_a_checkpoint(fresh, data):
    """BatchNorm hides the pixel from the loss, and remembers its variance: infinite."""
    events, network = [], fresh()
    train_network(network, spoilt(data, 1e30, 21), RECIPE, seed=0, report=events.append)
    (notice,) = (event for event in events if isinstance(event, Notice))
    assert notice.text == "a weight is not finite at step 22; back to 0"
    assert all_finite(network)


def test_training_stopped_in_a_bad_moment_leaves_its_last_good_checkpoint(
    fresh, data, identical, tmp_path
):
    """The loss is read once an epoch; a stop comes at any step."""
    unbroken, resumed = fresh(), fresh()
    train_network(unbroken, spoilt(data, torch.inf, 25), RECIPE, seed=0)
    twice = spoilt(data, torch.inf, 25, times=2)
    checkpoint = interrupted_after(27, fresh(), twice, tmp_path / "train.ckpt")
    assert checkpoint.step == 22
    train_network(resumed, twice, RECIPE, seed=0, resume=checkpoint)
    assert identical(dict(resumed.state_dict()), dict(unbroken.state_dict()))


def test_a_rate_that_no_halving_mends_is_named(fresh, data):
    absurd = replace(RECIPE, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(NonFiniteLossError, match=r"lower the learning rate of 1e\+30"):
        train_network(fresh(), data, absurd, seed=0)


# the recipe


def weights_after(n_steps, make, data, recipe, tmp_path):
    """The weights after each of the first steps, as the loop itself leaves them."""
    weights, resume = [], None
    for step in range(1, n_steps + 1):
        path = tmp_path / f"{step}.ckpt"
        resume = interrupted_after(1, make(), data, path, recipe, resume=resume)
        weights.append(resume.state["network"])
    return weights


def test_the_network_ends_with_the_moving_average_of_its_weights(fresh, data, tmp_path):
    recipe = replace(RECIPE, total_steps=6, warmup_steps=0, ema_decay=0.35)
    names = dict(fresh().named_parameters())
    trajectory = weights_after(6, fresh, data, replace(recipe, ema_decay=None), tmp_path)
    mean = {name: trajectory[0][name].double() for name in names}
    for updates, weights in enumerate(trajectory[1:], start=1):
        decay = min(0.35, (1 + updates) / (10 + updates))  # 2/11, 3/12, 4/13, then 0.35
        for name in names:
            mean[name] = decay * mean[name] + (1 - decay) * weights[name].double()
    network = fresh()
    train_network(network, data, recipe, seed=0)
    for name, weight in network.named_parameters():
        torch.testing.assert_close(weight.detach().double(), mean[name], rtol=1e-5, atol=1e-7)
    last = trajectory[-1]
    assert any(not torch.allclose(w, last[name], rtol=1e-3) for name, w in names_of(network))


def names_of(network):
    return [(name, weight.detach()) for name, weight in network.named_parameters()]


def test_averaged_weights_have_statistics_of_their_own(fresh, data):
    averaged, again = fresh(), fresh()
    train_network(averaged, data, replace(RECIPE, ema_decay=0.9), seed=0)
    again.load_state_dict(averaged.state_dict())
    recalibrate_batch_norm(again, data, RECIPE.batch_size)
    for name, buffer in averaged.named_buffers():
        torch.testing.assert_close(buffer, dict(again.named_buffers())[name])


def test_dropout_is_a_function_of_seed_and_step_and_takes_nothing_from_torch(
    fresh, data, identical
):
    recipe = replace(RECIPE, total_steps=8, dropout=0.5)
    networks = [fresh(), fresh(), fresh()]
    for network, torch_seed, dropped in zip(networks, (1, 2, 1), (0.5, 0.5, 0.0), strict=True):
        torch.manual_seed(torch_seed)
        before = torch.get_rng_state()
        train_network(network, data, replace(recipe, dropout=dropped), seed=0)
        assert torch.equal(torch.get_rng_state(), before)
        assert {m.p for m in network.modules() if isinstance(m, nn.Dropout)} == {0.0}
    one, same, without = (dict(network.state_dict()) for network in networks)
    assert identical(one, same)
    assert not identical(one, without)


def test_dropout_is_another_draw_at_every_step(fresh, data):
    drawn, network = [], fresh()
    (classifier,) = (m for m in network.modules() if isinstance(m, nn.Dropout))
    classifier.register_forward_hook(lambda _, __, kept: drawn.append((kept == 0).detach()))
    train_network(network, data, replace(RECIPE, total_steps=4, dropout=0.5), seed=0)
    masks = drawn[:4]  # what follows are the batches of the recalibration
    assert not any(torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i])
    assert 0.4 < masks[0].float().mean() < 0.7  # some features are zero already


def test_a_gradient_is_clipped_to_its_norm(fresh, data, tmp_path):
    """From rest and without decay, a step is the rate times the gradient."""
    start = dict(fresh().named_parameters())
    norms = []
    for clip in (None, 1e-3):
        recipe = replace(RECIPE, warmup_steps=0, weight_decay=0.0, gradient_clip=clip)
        (weights,) = weights_after(1, fresh, data, recipe, tmp_path)
        squares = [((weights[n] - p.detach()) ** 2).sum().item() for n, p in start.items()]
        norms.append(math.sqrt(sum(squares)) / recipe.rate_at(0))
    free, clipped = norms
    assert free > 0.1
    assert clipped == pytest.approx(1e-3, rel=0.01)


def test_nesterov_looks_ahead(fresh, data, tmp_path):
    """With momentum m a first step of Nesterov's is 1 + m times as long."""
    start = dict(fresh().named_parameters())
    recipe = replace(RECIPE, warmup_steps=0, weight_decay=0.0)
    (plain,) = weights_after(1, fresh, data, recipe, tmp_path)
    (ahead,) = weights_after(1, fresh, data, replace(recipe, nesterov=True), tmp_path)
    for name, weight in start.items():
        first, second = (moved[name] - weight.detach() for moved in (plain, ahead))
        torch.testing.assert_close(second, 1.9 * first, rtol=1e-3, atol=1e-6)


def test_smoothed_labels_raise_the_loss_of_a_sure_network(fresh, data):
    def last_loss(label_smoothing):
        events = []
        recipe = replace(RECIPE, label_smoothing=label_smoothing)
        train_network(fresh(), data, recipe, seed=0, report=events.append)
        return [e for e in events if isinstance(e, Progress)][-1].metrics["train_loss"]

    assert last_loss(0.0) < last_loss(0.3) - 0.1


@pytest.mark.parametrize(
    "augmentation",
    [Augmentation(mixup_alpha=0.4), Augmentation(cutmix_alpha=1.0)],
    ids=["mixup", "cutmix"],
)
def test_blended_images_train_a_network(fresh, data, augmentation):
    network, untrained = fresh(), fresh()
    train_network(network, data.augmented(augmentation), LONGER, seed=0)
    assert accuracy(network, data) > accuracy(untrained, data) + 0.2


def test_the_proxyless_recipe_is_the_published_one_at_any_length():
    published = WeightRecipe.proxyless(epochs=300, epoch_steps=5_000)
    assert (published.total_steps, published.warmup_steps) == (1_500_000, 25_000)  # 5 epochs
    assert (published.batch_size, published.learning_rate) == (256, 0.05)
    assert (published.momentum, published.nesterov) == (0.9, True)
    assert (published.weight_decay, published.label_smoothing) == (4e-5, 0.1)
    assert (published.dropout, published.ema_decay) == (0.1, 0.9999)
    scaled = WeightRecipe.proxyless(epochs=2, epoch_steps=10, batch_size=64)
    assert (scaled.total_steps, scaled.warmup_steps, scaled.learning_rate) == (20, 1, 0.0125)


def test_the_time_left_falls_to_nothing(fresh, data):
    events = []
    train_network(fresh(), data, RECIPE, seed=0, report=events.append)
    left = [e.remaining_seconds for e in events if isinstance(e, Progress)]
    assert len(left) == 2
    assert left[0] > 0.0 == left[1]


def test_the_rate_rises_linearly_and_falls_by_a_cosine_to_nothing():
    recipe = WeightRecipe(total_steps=110, warmup_steps=10, learning_rate=0.2)
    rates = [recipe.rate_at(step) for step in range(111)]
    assert rates[:10] == pytest.approx([0.02 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(0.2)
    assert rates[60] == pytest.approx(0.1)
    assert rates[110] == pytest.approx(0.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_only_matrices_and_kernels_decay(fresh):
    network = fresh()
    decayed, plain = WeightRecipe(10, 0, weight_decay=0.3).optimizer(network).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert {p.ndim for p in plain["params"]} == {1}
    assert len(decayed["params"]) + len(plain["params"]) == len(list(network.parameters()))


def test_recalibration_averages_the_statistics_of_the_batches(data):
    norm = nn.BatchNorm2d(1)
    norm.running_mean.fill_(50.0)
    batches = [data.normalise(images) for images in torch.split(data.train_images, 256)]
    recalibrate_batch_norm(nn.Sequential(norm), data)
    means = torch.stack([batch.mean() for batch in batches])
    variances = torch.stack([batch.var() for batch in batches])
    torch.testing.assert_close(norm.running_mean[0], means.mean(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(norm.running_var[0], variances.mean(), rtol=1e-4, atol=1e-6)


def test_recalibration_changes_nothing_but_statistics_and_ends_in_evaluation_mode(fresh, data):
    network = fresh()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    recalibrate_batch_norm(network, data)
    assert not network.training
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    assert {m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_accuracy_is_the_share_of_test_images_labelled_rightly(data):
    class AlwaysThree(nn.Module):
        def forward(self, images):
            return torch.eye(10)[3].expand(len(images), 10)

    share = (data.test_labels == 3).double().mean().item()
    assert accuracy(AlwaysThree(), data) == pytest.approx(share)
    assert accuracy(AlwaysThree(), data, batch_size=7) == pytest.approx(share)


def test_accuracy_judges_in_evaluation_mode_and_leaves_the_network_as_it_is(
    trained, data, identical
):
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    first = accuracy(trained.train(), data)
    assert identical(before, dict(trained.state_dict()))
    assert accuracy(trained.eval(), data) == first
    assert 0.0 <= first <= 1.0


def test_a_fingerprint_tells_settings_apart():
    assert fingerprint("a", {"b": 1, "c": 2}) == fingerprint("a", {"c": 2, "b": 1})
    assert fingerprint("a", {"b": 1}) != fingerprint("a", {"b": 2})
    assert fingerprint("a", "b") != fingerprint("ab")


def test_one_image_left_over_does_not_stop_the_recalibration(data):
    n = 65  # a batch of 64, and one image whose single pixel has no variance
    few = replace(data, train_images=data.train_images[:n], train_labels=data.train_labels[:n])
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(1))
    recalibrate_batch_norm(network, few, batch_size=64)
    mean = data.normalise(data.train_images[:64]).mean()
    torch.testing.assert_close(network[1].running_mean[0], mean, rtol=1e-4, atol=1e-6)
