"""Training a decided network."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from search_core.checkpoints import load_checkpoint, save_checkpoint
from search_core.data.dataset import ImageDataset
from search_core.errors import CheckpointError, NonFiniteLossError, SearchInterrupted
from search_core.events import CheckpointReady, Progress
from search_core.nn.network import Network
from search_core.randomness import stream
from search_core.train import (
    WeightRecipe,
    accuracy,
    fingerprint,
    recalibrate_batch_norm,
    train_network,
)

RECIPE = WeightRecipe(total_steps=30, warmup_steps=5, batch_size=64)  # 22 steps an epoch


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


def interrupted_after(n_steps, network, data, path, **arguments):
    """Train for `n_steps`, then stop; the checkpoint reported last is at `path`."""
    asked = iter(range(1, 10**6))

    def report(event):
        if isinstance(event, CheckpointReady):
            save_checkpoint(event.checkpoint, path)

    with pytest.raises(SearchInterrupted):
        train_network(
            network,
            data,
            RECIPE,
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


@pytest.mark.parametrize("n_steps", [1, 22, 26, 30])
def test_a_resumed_training_equals_the_unbroken_one(
    fresh, trained, data, identical, tmp_path, n_steps
):
    checkpoint = interrupted_after(n_steps, fresh(), data, tmp_path / "train.ckpt")
    assert checkpoint.step == n_steps
    network = fresh()
    train_network(network, data, RECIPE, seed=0, resume=checkpoint)
    assert identical(dict(network.state_dict()), dict(trained.state_dict()))


def test_every_step_asks_for_its_own_batch(fresh, data):
    recorded, asked = recording(data)
    train_network(fresh(), recorded, RECIPE, seed=5, start_step=20)
    assert asked == [(5, step, 64) for step in range(20, 30)]


def test_a_child_goes_on_where_its_search_stopped(fresh, data):
    events = []
    train_network(fresh(), data, RECIPE, seed=0, start_step=15, report=events.append)
    seen = [(e.completed, e.total) for e in events if isinstance(e, Progress)]
    assert seen == [(7, 15), (15, 15)]
    steps = [e.checkpoint.step for e in events if isinstance(e, CheckpointReady)]
    assert steps == [22, 30]


def test_training_learns(trained, data, fresh):
    before, after = accuracy(fresh(), data), accuracy(trained, data)
    assert after > before + 0.15


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"start_step": 2},
        {"recipe": replace(RECIPE, learning_rate=0.05)},
        {"data": "renamed"},
        {"network": "other"},
    ],
)
def test_a_checkpoint_of_another_training_is_refused(fresh, tiny, data, tmp_path, change):
    checkpoint = interrupted_after(2, fresh(), data, tmp_path / "train.ckpt")
    network = Network(tiny.blocks(tiny.architecture((0, 0, 0)))) if "network" in change else fresh()
    dataset = replace(data, name="renamed") if "data" in change else data
    with pytest.raises(CheckpointError):
        train_network(
            network,
            dataset,
            change.get("recipe", RECIPE),
            seed=change.get("seed", 0),
            start_step=change.get("start_step", 0),
            resume=checkpoint,
        )


def test_a_loss_that_is_no_number_is_an_error(fresh, data):
    absurd = replace(RECIPE, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(NonFiniteLossError, match="lower the learning rate"):
        train_network(fresh(), data, absurd, seed=0)


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
