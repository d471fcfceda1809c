"""The digits and the catalogue."""

import pytest
import torch

from search_core.data.augmentation import Augmentation
from search_core.data.catalogue import datasets
from search_core.data.digits import digits
from search_core.data.load import load_dataset
from search_core.errors import UnknownDatasetError


def keys(images):
    return {bytes(image.flatten().tolist()) for image in images}


def test_the_split_has_1437_and_360_images(data):
    assert data.train_images.shape == (1437, 1, 8, 8)
    assert data.test_images.shape == (360, 1, 8, 8)
    assert (len(data.train_labels), len(data.test_labels)) == (1437, 360)


def test_no_image_is_on_both_sides(data):
    train, test = keys(data.train_images), keys(data.test_images)
    assert (len(train), len(test)) == (1437, 360)
    assert not train & test


def test_both_sides_have_the_same_mix_of_classes(data):
    shares = [
        torch.bincount(labels, minlength=10) / len(labels)
        for labels in (data.train_labels, data.test_labels)
    ]
    assert torch.allclose(shares[0], shares[1], atol=1.5 / 360)


def test_the_split_is_always_the_same(data):
    again = digits()
    assert torch.equal(again.train_images, data.train_images)
    assert torch.equal(again.test_labels, data.test_labels)


def test_training_batches_hold_training_images_only(data):
    still = data.augmented(Augmentation())
    steps = still.steps_per_epoch(64)
    pixels = torch.cat([still.training_batch(0, step, 64).images for step in range(steps)])
    images = (pixels * still.std[0] + still.mean[0]).round().to(torch.uint8)
    seen = keys(images)
    assert len(seen) == steps * 64
    assert seen <= keys(data.train_images)


def test_statistics_are_of_the_training_pixels(data):
    pixels = data.train_images.float()
    assert data.mean == pytest.approx((pixels.mean().item(),))
    assert data.std == pytest.approx((pixels.std().item(),))


def test_the_catalogue_tells_what_loading_gives():
    bundled = [info for info in datasets() if info.bundled]
    assert [info.name for info in bundled] == ["digits"]
    for info in bundled:
        loaded = load_dataset(info.name)
        side = info.resolution_px
        assert loaded.name == info.name
        assert loaded.shape == (info.channels, side, side)
        assert (len(loaded.train_labels), len(loaded.test_labels)) == (info.n_train, info.n_test)
        assert set(loaded.train_labels.tolist()) == set(range(info.n_classes))
        assert loaded.n_classes == info.n_classes


def test_an_unknown_data_set_is_refused_listing_the_known_ones():
    with pytest.raises(UnknownDatasetError, match=r"'mnist'; known: .*digits"):
        load_dataset("mnist")
