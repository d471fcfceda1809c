"""Folders of images: one folder a class, with or without a training and a test side."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search_core.data.catalogue import IMAGE_SUFFIXES
from search_core.data.decode import Decoder
from search_core.data.digest import Labels, histogram, records
from search_core.data.raw import RawDataset, RawImages, check_labels, hold_out
from search_core.errors import DatasetError

_SCAN_IMAGES = 256
_TEST_NAMES = ("test", "val", "valid", "validation")


@dataclass(frozen=True)
class LabelledFiles:
    """Image files of one side, by class and then by name.

    Attributes:
        labels: (N,) int64.
    """

    files: tuple[Path, ...]
    labels: Labels

    def take(self, rows: Labels) -> "LabelledFiles":
        """These rows (n,) of it."""
        return LabelledFiles(tuple(self.files[row] for row in rows.tolist()), self.labels[rows])


@dataclass(frozen=True)
class Folder:
    """A folder of images, seen but not decoded."""

    train: LabelledFiles
    test: LabelledFiles
    classes: tuple[str, ...]
    channels: int
    resolution_px: int

    @property
    def n_bytes(self) -> int:
        """What the decoded pixels of both sides take."""
        n_images = len(self.train.files) + len(self.test.files)
        return n_images * self.channels * self.resolution_px**2

    def scanned(
        self, side: LabelledFiles, decoder: Decoder
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The `records` and the `histogram` of one side, without holding its images in memory.

        Raises:
            DatasetError: naming the first file that cannot be decoded.
        """
        counts = np.zeros((self.channels, 256), np.int64)
        digests = []
        for start in range(0, len(side.files), _SCAN_IMAGES):
            part = slice(start, start + _SCAN_IMAGES)
            images = decoder.images(side.files[part], self.channels, self.resolution_px)
            counts += histogram(images)
            digests.append(records(images, side.labels[part]))
        return np.concatenate(digests), counts

    def decoded(self, decoder: Decoder) -> RawDataset:
        """All images in memory.

        Raises:
            DatasetError: naming the first file that cannot be decoded.
        """
        train, test = (
            RawImages(decoder.images(s.files, self.channels, self.resolution_px), s.labels)
            for s in (self.train, self.test)
        )
        return RawDataset(train, test, len(self.classes), in_order=False)


def is_split(root: Path) -> bool:
    """Whether the folder has a training side and a test side."""
    return _side(root, ("train",)) is not None and _side(root, _TEST_NAMES) is not None


def read_folder(root: Path, decoder: Decoder, resolution_px: int | None) -> Folder:
    """`root/train/CLASS/*` with `root/test/CLASS/*`, or `root/CLASS/*` with a share held out.

    Classes are numbered in the order of their folders' names, as numbers where all are.

    Args:
        resolution_px: side that images are resized to; None needs square images of one size.

    Raises:
        DatasetError: no class folders, other classes on the test side, an image that cannot be
            read, sizes that differ.
    """
    train_root, test_root = _side(root, ("train",)) or root, _side(root, _TEST_NAMES)
    classes = _class_names(train_root)
    train = _listed(train_root, classes)
    if train_root != root and test_root is not None:
        others = sorted(set(_class_names(test_root)) - set(classes))
        if others:
            raise DatasetError(f"{test_root / others[0]} has no counterpart in {train_root}")
        test = _listed(test_root, classes)
        check_labels(train.labels, test.labels, str(root))
    else:
        check_labels(train.labels, None, str(root))
        kept, held = hold_out(train.labels, str(root))
        train, test = train.take(kept), train.take(held)
    channels, side = _common_shape(train.files + test.files, decoder, resolution_px)
    return Folder(train, test, classes, channels, side)


def _side(root: Path, names: tuple[str, ...]) -> Path | None:
    """The folder of class folders of one of these names; a class may be called "train"."""
    for name in names:
        if (root / name).is_dir() and any(entry.is_dir() for entry in (root / name).iterdir()):
            return root / name
    return None


def _class_names(root: Path) -> tuple[str, ...]:
    names = [entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] != "."]
    if not names:
        raise DatasetError(f"{root} has no folders; put the images of each class into one")
    if all(re.fullmatch("[0-9]+", name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def _listed(root: Path, classes: tuple[str, ...]) -> LabelledFiles:
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        folder = root / name
        if not folder.is_dir():
            continue
        members = sorted(
            file
            for file in folder.rglob("*")
            if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
        )
        if not members:
            raise DatasetError(f"{folder} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        files += members
        labels += [label] * len(members)
    return LabelledFiles(tuple(files), np.array(labels, np.int64))


def _common_shape(
    files: tuple[Path, ...], decoder: Decoder, resolution_px: int | None
) -> tuple[int, int]:
    headers = decoder.headers(files)
    channels = 1 if all(header.grey for header in headers) else 3
    if resolution_px is not None:
        return channels, resolution_px
    first = headers[0]
    for file, header in zip(files, headers, strict=True):
        if header.width_px != header.height_px or header.width_px != first.width_px:
            raise DatasetError(
                f"{file} has {header.width_px} x {header.height_px} pixels, "
                f"{files[0]} {first.width_px} x {first.height_px}; "
                "give resolution_px to resize all images to one square size"
            )
    return channels, first.width_px
