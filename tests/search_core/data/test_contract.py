"""What every `Dataset` promises, held against both implementations."""

from collections import Counter

import pytest
import torch
from torch import nn

from search_core.data.augmentation import Augmentation
from search_core.data.dataset import ImageDataset
from search_core.data.load import load_dataset
from search_core.data.streaming import StreamedDataset
from search_core.errors import DatasetError
from search_core.train import accuracy, recalibrate_batch_norm

STRONG = Augmentation(
    shift_px=2,
    flip=True,
    crop_scale=(0.3, 1.0),
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    cutout_px=6,
    mixup_alpha=0.2,
    cutmix_alpha=1.0,
)


@pytest.fixture(scope="module")
def resident(photographs):
    data = load_dataset("photographs", photographs, resolution_px=16)
    assert isinstance(data, ImageDataset)
    return data


@pytest.fixture(scope="module")
def streamed(photographs):
    data = load_dataset("photographs", photographs, resolution_px=16, max_resident_bytes=0)
    assert isinstance(data, StreamedDataset)
    return data


@pytest.fixture(scope="module", params=["resident", "streamed"])
def dataset(request):
    return request.getfixturevalue(request.param)


def keys(images):
    return [image.numpy().tobytes() for image in images]


def same(a, b):
    """Whether two batches are equal to the last bit."""
    mixed = (a.mixed_labels, b.mixed_labels)
    return (
        torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and (mixed == (None, None) or torch.equal(*mixed))
        and a.mix_weight == b.mix_weight
    )


def test_it_says_what_it_holds(dataset):
    assert dataset.name == "photographs"
    assert dataset.shape == (3, 16, 16)
    assert (dataset.n_classes, dataset.n_train, dataset.n_test) == (3, 36, 12)
    assert dataset.steps_per_epoch(10) == 3


def test_a_batch_is_a_function_of_seed_and_step(dataset):
    data = dataset.augmented(STRONG)
    for draw in (data.training_batch, data.plain_batch):
        first = draw(3, 11, 8)
        for step in (12, 0, 40):
            draw(3, step, 8)
        draw(4, 11, 8)
        torch.rand(5)
        assert same(draw(3, 11, 8), first)
        assert not torch.equal(draw(3, 12, 8).images, first.images)
        assert not torch.equal(draw(4, 11, 8).images, first.images)


@pytest.mark.parametrize("kind", ["training_batch", "plain_batch"])
def test_an_epoch_visits_no_image_twice_and_has_an_order_of_its_own(dataset, kind):
    draw = getattr(dataset.augmented(Augmentation()), kind)
    steps = dataset.steps_per_epoch(10)
    orders = [
        [key for step in range(steps) for key in keys(draw(0, epoch * steps + step, 10).images)]
        for epoch in range(2)
    ]
    known = {k for b in dataset.train_batches(9) for k in keys(b.images)}
    for order in orders:
        assert len(order) == len(set(order)) == 30
        assert set(order) <= known
    assert orders[0] != orders[1]


def test_plain_batches_are_not_augmented_and_have_another_order(dataset):
    data = dataset.augmented(STRONG)
    plain = data.plain_batch(0, 0, 12)
    known = {k for b in data.train_batches(9) for k in keys(b.images)}
    assert set(keys(plain.images)) <= known
    assert plain.mixed_labels is None
    still = dataset.augmented(Augmentation()).training_batch(0, 0, 12)
    assert not torch.equal(plain.images, still.images)


def test_labels_stay_with_their_images(dataset):
    label_of = {}
    for batch in dataset.train_batches(36):
        label_of.update(zip(keys(batch.images), batch.labels.tolist(), strict=True))
    for draw in (dataset.augmented(Augmentation()).training_batch, dataset.plain_batch):
        batch = draw(0, 2, 12)
        assert batch.labels.tolist() == [label_of[key] for key in keys(batch.images)]


def test_each_side_is_visited_once_and_in_order(dataset):
    for batches, n in ((dataset.train_batches, 36), (dataset.test_batches, 12)):
        parts = list(batches(7))
        assert [len(part.labels) for part in parts] == [7] * (n // 7) + [n % 7]
        (whole,) = batches(n)
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
        assert whole.labels.tolist() == sorted(whole.labels.tolist())  # by class, as in the folder
    train, test = (
        set(keys(next(side(36)).images)) for side in (dataset.train_batches, dataset.test_batches)
    )
    assert not train & test


def test_training_pixels_are_normalised_per_channel(dataset):
    (whole,) = dataset.train_batches(36)
    assert whole.images.dtype == torch.float32
    assert whole.images.is_contiguous(memory_format=torch.channels_last)
    for channel in whole.images.unbind(dim=1):
        assert channel.mean().item() == pytest.approx(0.0, abs=1e-5)
        assert channel.std(correction=0).item() == pytest.approx(1.0, abs=1e-5)


def test_a_split_shares_out_the_training_images_evenly_by_class(dataset):
    rest, held = dataset.split(9, seed=1)
    assert (rest.n_train, held.n_train, rest.n_test, held.n_test) == (27, 9, 12, 12)
    sides = [next(part.train_batches(36)) for part in (rest, held)]
    assert [Counter(side.labels.tolist()) for side in sides] == [
        Counter({0: n, 1: n, 2: n}) for n in (9, 3)
    ]
    (whole,) = dataset.train_batches(36)
    pieces = [set(keys(side.images)) for side in sides]
    assert not pieces[0] & pieces[1]
    assert pieces[0] | pieces[1] == set(keys(whole.images))  # the same statistics, too
    drawn = keys(held.plain_batch(0, 5, 9).images)
    assert set(drawn) == pieces[1]


def test_a_split_is_a_function_of_its_seed(dataset):
    digests = [dataset.split(9, seed)[1].digest for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_the_digest_tells_the_parts_from_the_whole(dataset):
    rest, held = dataset.split(9)
    assert len({dataset.digest, rest.digest, held.digest}) == 3
    assert dataset.augmented(STRONG).digest == dataset.digest


@pytest.mark.parametrize("held_out", [0, 2, 34, 36])
def test_a_split_that_leaves_a_class_out_is_refused(dataset, held_out):
    with pytest.raises(DatasetError, match=rf"holding out {held_out} of 36 .* at least one"):
        dataset.split(held_out)


@pytest.mark.parametrize("batch_size", [0, -1, 37])
def test_a_batch_that_cannot_be_drawn_is_refused(dataset, batch_size):
    message = f"photographs has 36 training images; a batch of {batch_size} cannot"
    for draw in (dataset.training_batch, dataset.plain_batch):
        with pytest.raises(DatasetError, match=message):
            draw(0, 0, batch_size)
    with pytest.raises(DatasetError, match=message):
        dataset.steps_per_epoch(batch_size)


# streaming equals memory


def test_both_hold_the_same(resident, streamed):
    assert streamed.digest == resident.digest
    assert (streamed.mean, streamed.std) == (resident.mean, resident.std)
    for kind in ("train_batches", "test_batches"):
        pairs = zip(getattr(streamed, kind)(7), getattr(resident, kind)(7), strict=True)
        assert all(same(a, b) for a, b in pairs)


@pytest.mark.parametrize("augmentation", [Augmentation(), STRONG], ids=["still", "strong"])
def test_streamed_batches_are_those_of_memory_bit_for_bit(resident, streamed, augmentation):
    a, b = streamed.augmented(augmentation), resident.augmented(augmentation)
    for step in (0, 1, 2, 3, 9, 4, 40, 5):  # on, ahead and back
        assert same(a.training_batch(7, step, 8), b.training_batch(7, step, 8))
    for step in range(10, 40, 5):  # architecture steps, between weight steps
        assert same(a.plain_batch(7, step, 8), b.plain_batch(7, step, 8))
        assert same(a.training_batch(7, step, 8), b.training_batch(7, step, 8))


def test_a_run_resumes_in_the_middle_of_an_epoch(photographs, resident):
    def fresh():
        return load_dataset("photographs", photographs, resolution_px=16, max_resident_bytes=0)

    unbroken = fresh()
    drawn = [unbroken.training_batch(0, step, 8) for step in range(12)]
    resumed = fresh()
    assert all(same(resumed.training_batch(0, step, 8), drawn[step]) for step in range(6, 12))
    assert same(drawn[11], resident.training_batch(0, 11, 8))


def test_both_split_alike(resident, streamed):
    for a, b in zip(streamed.split(9, 3), resident.split(9, 3), strict=True):
        assert a.digest == b.digest
        assert same(a.training_batch(0, 1, 8), b.training_batch(0, 1, 8))


def test_networks_are_recalibrated_and_judged_alike(resident, streamed):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 14 * 14, 3)
    )
    outcomes = []
    for data in (resident, streamed):
        recalibrate_batch_norm(network, data, batch_size=10)
        outcomes.append((network[1].running_mean.tolist(), accuracy(network, data, batch_size=5)))
    assert outcomes[0] == outcomes[1]


def test_an_image_that_vanishes_during_a_run_is_named(photographs, tmp_path):
    root = tmp_path / "photographs"
    for file in photographs.rglob("*.*"):
        copy = root / file.relative_to(photographs)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    data = load_dataset("mine", root, resolution_px=16, max_resident_bytes=0)
    (root / "train" / "birch" / "3.jpg").unlink()
    with pytest.raises(DatasetError, match=r"birch.3\.jpg is gone"):
        list(data.train_batches(8))


# devices


def test_batches_are_made_where_the_images_lie(dataset):
    """Tensors on "meta" meet none of another device without an error."""
    data = dataset.augmented(STRONG).to("meta")
    for step in range(4):  # mixup and CutMix
        batch = data.training_batch(0, step, 8)
        assert batch.images.shape == (8, 3, 16, 16)
        assert batch.mixed_labels.device == batch.images.device == batch.labels.device
        assert batch.images.device.type == "meta"
    assert data.plain_batch(0, 0, 8).images.device.type == "meta"
    assert next(data.test_batches(8)).labels.device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_are_the_same_on_every_device(dataset):
    here = dataset.augmented(STRONG)
    there = here.to("cuda")
    for step in range(4):
        a, b = here.training_batch(0, step, 8), there.training_batch(0, step, 8)
        assert torch.equal(a.labels, b.labels.cpu())
        torch.testing.assert_close(a.images, b.images.cpu(), rtol=1e-4, atol=1e-4)
