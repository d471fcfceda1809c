"""Image data sets in memory: batches as a pure function of seed and step."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from search_core.data.augmentation import Augmentation
from search_core.data.dataset import Batch, ImageDataset, stratified
from search_core.data.load import load_dataset
from search_core.errors import DatasetError


def numbered(n_train, **augmentation):
    """Images of 4 x 4 whose first pixel is their row, so that a batch tells what is in it."""
    images = torch.zeros(n_train, 2, 4, 4, dtype=torch.uint8)
    images[:, :, 0, 0] = torch.arange(n_train, dtype=torch.uint8)[:, None]
    labels = torch.arange(n_train) % 3
    return ImageDataset(
        "numbered",
        images,
        labels,
        images[:0],
        labels[:0],
        (0.0, 0.0),
        (1.0, 1.0),
        3,
        Augmentation(**augmentation),
    )


def rows(batch):
    return batch.images[:, 0, 0, 0].int().tolist()


def test_a_batch_is_a_function_of_seed_and_step(data):
    first = data.training_batch(3, 31, 64)
    data.training_batch(3, 32, 64)
    torch.rand(5)
    again = data.training_batch(3, 31, 64)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)


def test_batches_differ_between_steps_and_between_seeds(data):
    batches = [data.training_batch(*address, 64).images for address in ((0, 0), (0, 1), (1, 0))]
    assert not torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_an_epoch_visits_no_image_twice(epoch):
    dataset = numbered(50)
    steps = dataset.steps_per_epoch(8)
    seen = [r for s in range(steps) for r in rows(dataset.training_batch(0, epoch * steps + s, 8))]
    assert steps == 6
    assert len(seen) == len(set(seen)) == 48


def test_every_epoch_has_an_order_of_its_own():
    dataset = numbered(50)
    orders = [
        [r for s in range(6) for r in rows(dataset.training_batch(0, epoch * 6 + s, 8))]
        for epoch in range(2)
    ]
    assert orders[0] != orders[1]


def test_labels_stay_with_their_images():
    batch = numbered(50).training_batch(0, 2, 8)
    assert batch.labels.tolist() == [row % 3 for row in rows(batch)]


def test_images_shift_by_at_most_the_reach_and_are_padded_with_zeros():
    dataset = numbered(8, shift_px=1)
    dataset.train_images[:] = 0
    dataset.train_images[:, :, 1, 2] = 9
    places = set()
    for step in range(30):
        for image in dataset.training_batch(0, step, 8).images:
            (place,) = (image[0] == 9).nonzero().tolist()
            places.add(tuple(place))
            assert torch.equal(image[0], image[1])  # channels move together
            assert image.sum() == 18.0
    assert places == {(row, column) for row in (0, 1, 2) for column in (1, 2, 3)}


def test_half_of_the_images_are_mirrored_where_that_is_asked_for():
    dataset = numbered(8, flip=True)
    dataset.train_images[:] = 0
    dataset.train_images[:, :, :, 0] = 9
    images = torch.cat([dataset.training_batch(0, step, 8).images for step in range(50)])
    left, right = images[:, 0, 0, 0] == 9, images[:, 0, 0, 3] == 9
    assert (left ^ right).all()
    assert 0.35 < right.float().mean() < 0.65


def test_without_augmentation_images_are_as_they_were():
    dataset = numbered(8)
    batch = dataset.training_batch(0, 0, 8)
    assert torch.equal(batch.images, dataset.train_images[rows(batch)].float())


def test_normalised_training_images_have_mean_zero_and_variance_one(data):
    normalised = data.normalise(data.train_images)
    assert normalised.dtype == torch.float32
    assert normalised.mean().item() == pytest.approx(0.0, abs=1e-4)
    assert normalised.std().item() == pytest.approx(1.0, abs=1e-4)


def test_each_channel_is_normalised_by_its_own_mean_and_deviation():
    dataset = numbered(4)
    other = ImageDataset(**{**vars(dataset), "mean": (1.0, 2.0), "std": (2.0, 4.0)})
    images = torch.full((1, 2, 4, 4), 6, dtype=torch.uint8)
    assert other.normalise(images)[0, :, 0, 0].tolist() == [2.5, 1.0]


def test_the_shape_is_that_of_one_image(data):
    assert data.shape == (1, 8, 8)


def test_a_batch_larger_than_the_data_set_is_refused():
    data = load_dataset("digits")
    with pytest.raises(DatasetError, match="1437 training images"):
        data.training_batch(seed=0, step=0, batch_size=2000)


def test_one_changed_pixel_or_label_changes_the_digest():
    dataset = numbered(8)
    digests = {dataset.digest}
    for name in ("train_images", "train_labels"):
        changed = getattr(dataset, name).clone()
        changed.flatten()[-1] += 1
        digests.add(replace(dataset, **{name: changed}).digest)
    digests.add(replace(dataset, train_labels=dataset.train_labels.flip(0)).digest)
    moved = replace(dataset, test_images=dataset.train_images, test_labels=dataset.train_labels)
    digests.add(moved.digest)
    assert len(digests) == 5


def test_the_digest_is_of_the_content_and_not_of_its_layout_or_name(data):
    copy = replace(
        data,
        name="copy",
        train_images=data.train_images.contiguous(memory_format=torch.channels_last),
    ).augmented(Augmentation(flip=True))
    assert copy.digest == data.digest


# the loss of a batch


def test_the_loss_of_an_ordinary_batch_is_the_smoothed_cross_entropy():
    scores, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    batch = Batch(torch.zeros(6, 1, 2, 2), labels)
    assert torch.equal(batch.loss(scores), cross_entropy(scores, labels))
    smoothed = cross_entropy(scores, labels, label_smoothing=0.1)
    assert torch.equal(batch.loss(scores, 0.1), smoothed)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_loss_of_a_mixed_batch_is_that_of_soft_labels(weight):
    scores = torch.randn(6, 4, dtype=torch.float64)
    labels, others = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([1, 1, 0, 2, 3, 0])
    batch = Batch(torch.zeros(6, 1, 2, 2), labels, others, weight)
    one_hot = torch.eye(4, dtype=torch.float64)
    soft = weight * one_hot[labels] + (1.0 - weight) * one_hot[others]
    expected = cross_entropy(scores, soft, label_smoothing=0.1)
    torch.testing.assert_close(batch.loss(scores, 0.1), expected)


# stratified rows


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(2, 30), min_size=2, max_size=6), st.integers(1, 60), st.integers(0, 5))
def test_every_class_gives_its_share_of_what_is_held_out(sizes, held_out, seed):
    labels = torch.tensor([label for label, n in enumerate(sizes) for _ in range(n)])
    labels = labels[torch.randperm(len(labels))]
    try:
        kept, held = stratified(labels, held_out, seed)
    except DatasetError:
        shares = [held_out * n / len(labels) for n in sizes]
        assert min(shares) < 1 or any(s > n - 1 for s, n in zip(shares, sizes, strict=True))
        return
    assert len(held) == held_out
    assert sorted(kept.tolist() + held.tolist()) == list(range(len(labels)))
    counts = Counter(labels[held].tolist())
    for label, n in enumerate(sizes):
        assert abs(counts[label] - held_out * n / len(labels)) < 1
        assert 0 < counts[label] < n


def test_rows_are_drawn_within_each_class():
    labels = torch.arange(40) % 2
    draws = {tuple(stratified(labels, 10, seed)[1].tolist()) for seed in range(5)}
    assert len(draws) == 5
    held = stratified(labels, 10, 0)[1]
    assert (held[held % 2 == 0] + 1).tolist() != held[held % 2 == 1].tolist()
