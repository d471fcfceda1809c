"""A data set whose images stay in their files: for folders too large for memory."""

from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from search_core.data.augmentation import Augmentation
from search_core.data.dataset import (
    Batch,
    augmented_batch,
    normalised,
    rows_of_step,
    steps_per_epoch,
    stratified,
)
from search_core.data.decode import Decoder
from search_core.data.digest import Pixels, digest, mean_and_std
from search_core.data.folder import Folder, LabelledFiles
from search_core.randomness import stream

_STEPS_AHEAD = 3

_Address = tuple[str, int, int, int]  # purpose, seed, step, batch size


@dataclass(frozen=True)
class StreamedSide:
    """Files of one side with what the first reading of them all found.

    Attributes:
        records: (N, 32) uint8, the SHA-256 of each labelled image.
    """

    files: LabelledFiles
    records: NDArray[np.uint8]

    def take(self, rows: torch.Tensor) -> "StreamedSide":
        """These rows (n,) of it."""
        return StreamedSide(self.files.take(rows.numpy()), self.records[rows.numpy()])


class _Ahead:
    """Images of the next steps, being decoded while the present one trains.

    It only saves time: an address that is not here is decoded when it is asked for.
    """

    def __init__(self) -> None:
        self.begun: OrderedDict[_Address, list[Future[Pixels]]] = OrderedDict()
        self.last: dict[tuple[str, int, int], int] = {}


@dataclass(frozen=True)
class StreamedDataset:
    """A `Dataset` that decodes each batch from files, a few steps ahead of the training.

    Bit for bit the batches of an `ImageDataset` with the same images.
    """

    name: str
    train: StreamedSide
    test: StreamedSide
    channels: int
    resolution_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    n_classes: int
    decoder: Decoder
    augmentation: Augmentation = field(default_factory=Augmentation)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _ahead: _Ahead = field(default_factory=_Ahead, init=False, repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        return self.channels, self.resolution_px, self.resolution_px

    @property
    def n_train(self) -> int:
        """Training images."""
        return len(self.train.records)

    @property
    def n_test(self) -> int:
        """Test images."""
        return len(self.test.records)

    @property
    def digest(self) -> str:
        """SHA-256 over pixels and labels, in order, as they were when the folder was loaded."""
        return digest(self.shape, self.train.records, self.test.records)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches in one pass; the remainder waits for the next shuffle."""
        return steps_per_epoch(self, batch_size)

    def training_batch(self, seed: int, step: int, batch_size: int) -> Batch:
        """The augmented batch that `step` of a run with this seed trains on."""
        images, labels = self._step(("order", seed, step, batch_size))
        return augmented_batch(self, images, labels, stream(seed, "augment", step))

    def plain_batch(self, seed: int, step: int, batch_size: int) -> Batch:
        """Training images as they are, in an order of their own."""
        images, labels = self._step(("plain order", seed, step, batch_size))
        return Batch(self.normalise(images), labels)

    def train_batches(self, batch_size: int) -> Iterator[Batch]:
        """All training images once, as they are and in order."""
        return self._batches(self.train, batch_size)

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        """All test images once, in order."""
        return self._batches(self.test, batch_size)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, C, H, W) -> float32 with zero mean and unit variance per channel."""
        return normalised(images, self.mean, self.std)

    def augmented(self, augmentation: Augmentation) -> Self:
        """The same images under another augmentation."""
        return replace(self, augmentation=augmentation)

    def split(self, held_out: int, seed: int = 0) -> tuple[Self, Self]:
        """The training images in two parts, the second with `held_out` of them."""
        kept, held = stratified(torch.from_numpy(self.train.files.labels), held_out, seed)
        return replace(self, train=self.train.take(kept)), replace(
            self, train=self.train.take(held)
        )

    def to(self, device: torch.device | str) -> Self:
        """The same data set with its batches on `device`."""
        return replace(self, device=torch.device(device))

    def _step(self, address: _Address) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (B, C, H, W) uint8 and labels (B,) at an address; begins on the next ones."""
        purpose, seed, step, batch_size = address
        begun, last = self._ahead.begun, self._ahead.last
        futures = begun.pop(address, None) or self._begin(address)
        # architecture steps ask for every fifth step, say: the next are as far away as the last
        series = (purpose, seed, batch_size)
        stride = step - last.get(series, step - 1)
        last[series] = step
        for ahead in range(1, _STEPS_AHEAD + 1) if stride > 0 else ():
            following = (purpose, seed, step + ahead * stride, batch_size)
            if following not in begun:
                begun[following] = self._begin(following)
        while len(begun) > 2 * _STEPS_AHEAD:  # two series; what a jump left behind goes first
            for future in begun.popitem(last=False)[1]:
                future.cancel()
        images = torch.from_numpy(np.stack([future.result() for future in futures]))
        labels = torch.from_numpy(self.train.files.labels)[self._rows(address)]
        images = images.permute(0, 3, 1, 2).to(self.device, non_blocking=True)
        return images, labels.to(self.device, non_blocking=True)

    def _begin(self, address: _Address) -> list[Future[Pixels]]:
        files = self.train.files.files
        return self.decoder.begin(
            [files[row] for row in self._rows(address).tolist()], self.channels, self.resolution_px
        )

    def _rows(self, address: _Address) -> torch.Tensor:
        return rows_of_step(self, *address)

    def _batches(self, side: StreamedSide, batch_size: int) -> Iterator[Batch]:
        files, labels = side.files.files, torch.from_numpy(side.files.labels)
        starts = range(0, len(files), batch_size)
        begun: list[list[Future[Pixels]]] = []
        for at in range(len(starts)):
            for start in starts[at + len(begun) : at + _STEPS_AHEAD]:
                part = files[start : start + batch_size]
                begun.append(self.decoder.begin(part, self.channels, self.resolution_px))
            images = torch.from_numpy(np.stack([future.result() for future in begun.pop(0)]))
            images = images.permute(0, 3, 1, 2).to(self.device)
            of_batch = labels[starts[at] : starts[at] + batch_size].to(self.device)
            yield Batch(self.normalise(images), of_batch)


def stream_folder(name: str, folder: Folder, decoder: Decoder) -> StreamedDataset:
    """`folder` as a data set that stays in its files.

    Every image is decoded once, for the statistics and the digest, and so that a damaged one is
    found now and not in the middle of a search.

    Raises:
        DatasetError: naming the first file that cannot be decoded.
    """
    train, counts = folder.scanned(folder.train, decoder)
    test, _ = folder.scanned(folder.test, decoder)
    mean, std = mean_and_std(counts)
    return StreamedDataset(
        name,
        StreamedSide(folder.train, train),
        StreamedSide(folder.test, test),
        folder.channels,
        folder.resolution_px,
        mean,
        std,
        len(folder.classes),
        decoder,
    )
