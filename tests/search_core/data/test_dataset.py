"""Image data sets in memory: batches as a pure function of seed and step."""

import pytest
import torch

from search_core.data.dataset import ImageDataset
from search_core.data.load import load_dataset


def numbered(n_train, *, shift_px=0, flip=False):
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
        shift_px,
        flip,
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
    with pytest.raises(ValueError, match="1437 training images"):
        data.training_batch(seed=0, step=0, batch_size=2000)
