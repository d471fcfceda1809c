"""Image data sets in memory, and the batch of any step as a pure function of the seed."""

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from search_core.randomness import stream


@dataclass(frozen=True)
class Batch:
    """Normalised images (B, C, H, W) float32 and labels (B,) int64."""

    images: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class ImageDataset:
    """Labelled square images held as uint8.

    Attributes:
        train_images, test_images: (N, C, H, W) uint8.
        train_labels, test_labels: (N,) int64.
        mean, std: per channel, of the training pixels, in uint8 units.
        shift_px: training images are shifted by up to this many pixels each way.
        flip: training images are mirrored at random.
    """

    name: str
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    n_classes: int
    shift_px: int
    flip: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.train_images.shape[1:]
        return int(channels), int(height), int(width)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches in one pass; the remainder waits for the next shuffle."""
        if not 0 < batch_size <= len(self.train_images):
            raise ValueError(
                f"{self.name} has {len(self.train_images)} training images; "
                f"a batch of {batch_size} cannot be drawn"
            )
        return len(self.train_images) // batch_size

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, C, H, W) -> float32 with zero mean and unit variance per channel."""
        mean = torch.tensor(self.mean).view(1, -1, 1, 1)
        std = torch.tensor(self.std).view(1, -1, 1, 1)
        normalised = (images.float() - mean) / std
        return normalised.contiguous(memory_format=torch.channels_last)

    def training_batch(self, seed: int, step: int, batch_size: int) -> Batch:
        """The augmented batch that `step` of a run with this seed trains on."""
        epoch, position = divmod(step, self.steps_per_epoch(batch_size))
        order = torch.randperm(len(self.train_images), generator=stream(seed, "order", epoch))
        rows = order[position * batch_size : (position + 1) * batch_size]
        images = self._augment(self.train_images[rows], stream(seed, "augment", step))
        return Batch(self.normalise(images), self.train_labels[rows])

    def _augment(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        batch, _, height, width = images.shape
        if self.shift_px:
            reach = self.shift_px
            padded = pad(images, (reach, reach, reach, reach))
            shifts = torch.randint(0, 2 * reach + 1, (2, batch, 1), generator=generator)
            rows = shifts[0] + torch.arange(height)  # (B, H)
            columns = shifts[1] + torch.arange(width)  # (B, W)
            which = torch.arange(batch)[:, None, None]
            images = padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
            images = images.permute(0, 3, 1, 2)
        if self.flip:
            mirrored = torch.rand(batch, generator=generator) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return images
