"""Labelled images, and the batch of any step as a pure function of the seed.

`Dataset` is the contract of the search and of training; `ImageDataset` keeps it with images in
memory, `search_core.data.streaming.StreamedDataset` with images that stay in their files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Protocol, Self

import torch
from torch.nn.functional import cross_entropy

from search_core.data.augmentation import Augmentation
from search_core.data.digest import digest, records
from search_core.errors import DatasetError
from search_core.randomness import stream


@dataclass(frozen=True)
class Batch:
    """What one step trains on.

    Attributes:
        images: (B, C, H, W) float32, normalised, channels last in memory.
        labels: (B,) int64.
        mixed_labels: (B,) int64, the other label of images blended by mixup or CutMix.
        mix_weight: share of `labels` in [0, 1]; `mixed_labels` have the rest.
    """

    images: torch.Tensor
    labels: torch.Tensor
    mixed_labels: torch.Tensor | None = None
    mix_weight: float = 1.0

    def loss(self, scores: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
        """Mean cross-entropy of `scores` (B, n_classes), of both labels where images are mixed."""
        loss = cross_entropy(scores, self.labels, label_smoothing=label_smoothing)
        if self.mixed_labels is None:
            return loss
        other = cross_entropy(scores, self.mixed_labels, label_smoothing=label_smoothing)
        return self.mix_weight * loss + (1.0 - self.mix_weight) * other


class Dataset(Protocol):
    """Labelled square images with a training and a test side.

    Guarantees of every implementation:

    - `training_batch` and `plain_batch` are pure functions of (seed, step, batch size): a run
      that resumes at a step draws what the unbroken run would have drawn;
    - an epoch visits no training image twice and each has an order of its own;
    - batches lie on the data set's device and are the same, whatever device that is, up to the
      device's rounding;
    - images and labels were checked when the data set was loaded.
    """

    @property
    def name(self) -> str:
        """What the data set is called."""
        ...

    @property
    def n_classes(self) -> int:
        """Labels are 0 to n_classes - 1."""
        ...

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, of the training pixels, in uint8 units."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, of the training pixels, in uint8 units."""
        ...

    @property
    def augmentation(self) -> Augmentation:
        """What `training_batch` does to its images."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        ...

    @property
    def n_train(self) -> int:
        """Training images."""
        ...

    @property
    def n_test(self) -> int:
        """Test images."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 over pixels and labels, in order; names the data in checkpoints and manifests."""
        ...

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches in one pass; the remainder waits for the next shuffle.

        Raises:
            DatasetError: the batch is empty or larger than the training set.
        """
        ...

    def training_batch(self, seed: int, step: int, batch_size: int) -> Batch:
        """The augmented batch that `step` of a run with this seed trains on.

        Raises:
            DatasetError: as `steps_per_epoch`; a file changed since the data set was loaded.
        """
        ...

    def plain_batch(self, seed: int, step: int, batch_size: int) -> Batch:
        """Training images as they are, in an order of their own: for architecture steps."""
        ...

    def train_batches(self, batch_size: int) -> Iterator[Batch]:
        """All training images once, as they are and in order; the last batch may be smaller."""
        ...

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        """All test images once, in order; the last batch may be smaller."""
        ...

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, C, H, W) -> float32 with zero mean and unit variance per channel."""
        ...

    def augmented(self, augmentation: Augmentation) -> Self:
        """The same images under another augmentation."""
        ...

    def split(self, held_out: int, seed: int = 0) -> tuple[Self, Self]:
        """The training images in two parts, the second with `held_out` of them.

        Each class gives its share of the held-out images, so the same number where classes are
        of equal size (ProxylessNAS's split for architecture steps). Both parts have all test
        images and the statistics of the whole.

        Raises:
            DatasetError: one of the parts would have no image of some class.
        """
        ...

    def to(self, device: torch.device | str) -> Self:
        """The same data set with its batches on `device`."""
        ...


@dataclass(frozen=True)
class ImageDataset:
    """A `Dataset` in memory, as uint8 on the device that trains.

    Attributes:
        train_images, test_images: (N, C, H, W) uint8.
        train_labels, test_labels: (N,) int64.
        mean, std: per channel, of the training pixels, in uint8 units.
    """

    name: str
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    n_classes: int
    augmentation: Augmentation = field(default_factory=Augmentation)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.train_images.shape[1:]
        return int(channels), int(height), int(width)

    @property
    def n_train(self) -> int:
        """Training images."""
        return len(self.train_images)

    @property
    def n_test(self) -> int:
        """Test images."""
        return len(self.test_images)

    @property
    def digest(self) -> str:
        """SHA-256 over pixels and labels, in order."""
        sides = [(self.train_images, self.train_labels), (self.test_images, self.test_labels)]
        train, test = (
            records(images.permute(0, 2, 3, 1).cpu().numpy(), labels.cpu().numpy())
            for images, labels in sides
        )
        return digest(self.shape, train, test)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches in one pass; the remainder waits for the next shuffle."""
        return steps_per_epoch(self, batch_size)

    def training_batch(self, seed: int, step: int, batch_size: int) -> Batch:
        """The augmented batch that `step` of a run with this seed trains on."""
        rows = self._rows("order", seed, step, batch_size)
        images, labels = self.train_images[rows], self.train_labels[rows]
        return augmented_batch(self, images, labels, stream(seed, "augment", step))

    def plain_batch(self, seed: int, step: int, batch_size: int) -> Batch:
        """Training images as they are, in an order of their own."""
        rows = self._rows("plain order", seed, step, batch_size)
        return Batch(self.normalise(self.train_images[rows]), self.train_labels[rows])

    def train_batches(self, batch_size: int) -> Iterator[Batch]:
        """All training images once, as they are and in order."""
        return self._batches(self.train_images, self.train_labels, batch_size)

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        """All test images once, in order."""
        return self._batches(self.test_images, self.test_labels, batch_size)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, C, H, W) -> float32 with zero mean and unit variance per channel."""
        return normalised(images, self.mean, self.std)

    def augmented(self, augmentation: Augmentation) -> Self:
        """The same images under another augmentation."""
        return replace(self, augmentation=augmentation)

    def split(self, held_out: int, seed: int = 0) -> tuple[Self, Self]:
        """The training images in two parts, the second with `held_out` of them."""
        kept, held = stratified(self.train_labels.cpu(), held_out, seed)
        first, second = (
            replace(
                self, train_images=self.train_images[rows], train_labels=self.train_labels[rows]
            )
            for rows in (kept.to(self.train_labels.device), held.to(self.train_labels.device))
        )
        return first, second

    def to(self, device: torch.device | str) -> Self:
        """The same data set with its images on `device`."""
        return replace(
            self,
            train_images=self.train_images.to(device),
            train_labels=self.train_labels.to(device),
            test_images=self.test_images.to(device),
            test_labels=self.test_labels.to(device),
        )

    def _rows(self, purpose: str, seed: int, step: int, batch_size: int) -> torch.Tensor:
        rows = rows_of_step(self, purpose, seed, step, batch_size)
        return rows.to(self.train_labels.device, non_blocking=True)

    def _batches(
        self, images: torch.Tensor, labels: torch.Tensor, batch_size: int
    ) -> Iterator[Batch]:
        for start in range(0, len(images), batch_size):
            stop = start + batch_size
            yield Batch(self.normalise(images[start:stop]), labels[start:stop])


def steps_per_epoch(data: Dataset, batch_size: int) -> int:
    """What every `Dataset.steps_per_epoch` answers."""
    if not 0 < batch_size <= data.n_train:
        raise DatasetError(
            f"{data.name} has {data.n_train} training images; "
            f"a batch of {batch_size} cannot be drawn"
        )
    return data.n_train // batch_size


def rows_of_step(
    data: Dataset, purpose: str, seed: int, step: int, batch_size: int
) -> torch.Tensor:
    """The training rows (B,) of a step, on the CPU."""
    epoch, position = divmod(step, data.steps_per_epoch(batch_size))
    order = _epoch_order(data.n_train, purpose, seed, epoch)
    return order[position * batch_size : (position + 1) * batch_size]


@lru_cache(maxsize=8)
def _epoch_order(n_images: int, purpose: str, seed: int, epoch: int) -> torch.Tensor:
    return torch.randperm(n_images, generator=stream(seed, purpose, epoch))


def augmented_batch(
    data: Dataset, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
) -> Batch:
    """The batch of uint8 images (B, C, H, W) under the data set's augmentation."""
    augmentation = data.augmentation
    pixels = data.normalise(augmentation.pixels(images, generator))
    pixels = augmentation.cut(pixels, generator)
    mix = augmentation.mix(pixels, generator)
    if mix is None:
        return Batch(pixels, labels)
    return Batch(mix.images, labels, labels[mix.partners], mix.weight)


def normalised(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Pixels (B, C, H, W) as float32, less `mean` and over `std`, channels last in memory."""
    batch, channels, height, width = images.shape
    # one long row a line of pixels: broadcasting over three channels is ten times slower
    rows = images.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
    offset, scale = (_row(tuple(values), width, images.device) for values in (mean, std))
    pixels = (rows.float() if rows.dtype == torch.uint8 else rows.clone()).sub_(offset).div_(scale)
    return pixels.view(batch, height, width, channels).permute(0, 3, 1, 2)


@lru_cache(maxsize=32)
def _row(values: tuple[float, ...], width: int, device: torch.device) -> torch.Tensor:
    """One value a channel, for a line of pixels; kept, since moving it makes the host wait."""
    return torch.tensor(values, device=device).repeat(width)


def stratified(labels: torch.Tensor, held_out: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows kept and rows held out, each ascending; every class gives its share.

    Shares are rounded down, and what is then missing is given by the classes with the largest
    remainders, the lower label first.

    Args:
        labels: (N,) int64, every class present.
        held_out: how many rows to hold out.

    Raises:
        DatasetError: one of the two sides would have no image of some class.
    """
    sizes = torch.bincount(labels).tolist()
    shares = [held_out * size / len(labels) for size in sizes]
    quotas = [int(share) for share in shares]
    by_remainder = sorted(range(len(sizes)), key=lambda label: quotas[label] - shares[label])
    for label in by_remainder[: held_out - sum(quotas)]:
        quotas[label] += 1
    for label, (size, quota) in enumerate(zip(sizes, quotas, strict=True)):
        if not 0 < quota < size:
            raise DatasetError(
                f"holding out {held_out} of {len(labels)} images takes {quota} of the {size} "
                f"of class {label}; both sides need at least one"
            )
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label, quota in enumerate(quotas):
        members = (labels == label).nonzero()[:, 0]
        chosen = torch.randperm(len(members), generator=stream(seed, "held out", label))[:quota]
        held[members[chosen]] = True
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]
