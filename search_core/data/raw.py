"""Images and labels as they come out of files, and what must hold before anything trains."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_core.data.digest import Labels, Pixels
from search_core.errors import DatasetError

TEST_SHARE = 0.2
"""Held out, stratified by class, from images that come without a test side."""

_SPLIT_SEED = 0


@dataclass(frozen=True)
class RawImages:
    """Checked images of one side.

    Attributes:
        images: (N, H, W, C) uint8, square.
        labels: (N,) int64.
    """

    images: Pixels
    labels: Labels

    def take(self, rows: NDArray[np.int64]) -> "RawImages":
        """These rows (n,) of it."""
        return RawImages(self.images[rows], self.labels[rows])


@dataclass(frozen=True)
class RawDataset:
    """Both sides.

    Attributes:
        in_order: the files keep the published order of the images, as folders do not.
    """

    train: RawImages
    test: RawImages
    n_classes: int
    in_order: bool = True


def raw_images(images: NDArray[Any], labels: NDArray[Any], source: str) -> RawImages:
    """Arrays from a file, checked.

    Args:
        images: (N, H, W) or (N, H, W, C) uint8, with one channel or three.
        labels: (N,) or (N, 1) integers.
        source: names the arrays in errors.

    Raises:
        DatasetError: saying which array is wrong, and how.
    """
    for what, array in (("images", images), ("labels", labels)):
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise DatasetError(f"{source}: the {what} contain NaN")
    if images.dtype != np.uint8:
        raise DatasetError(
            f"{source}: the images are {images.dtype}; store them as uint8, 0 to 255"
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3) or images.shape[1] != images.shape[2]:
        raise DatasetError(
            f"{source}: the images have the shape {images.shape}; "
            "square ones are needed, as (N, H, W), (N, H, W, 1) or (N, H, W, 3)"
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DatasetError(
            f"{source}: the labels are {labels.dtype} of the shape {labels.shape}; "
            "integers of the shape (N,) are needed"
        )
    if len(images) != len(labels):
        raise DatasetError(f"{source}: {len(images)} images, but {len(labels)} labels")
    if not len(images) or not images.shape[1]:
        raise DatasetError(f"{source}: there are no images")
    return RawImages(np.ascontiguousarray(images), labels.astype(np.int64))


def raw_dataset(train: RawImages, test: RawImages | None, source: str) -> RawDataset:
    """Both sides, checked together; without `test`, a share of `train` is held out for it.

    Raises:
        DatasetError: the sides differ in shape, or their labels are not 0, 1, ..., n - 1 with
            every class among the training images, two classes at the least.
    """
    n_classes = check_labels(train.labels, None if test is None else test.labels, source)
    if test is None:
        kept, held = hold_out(train.labels, source)
        train, test = train.take(kept), train.take(held)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DatasetError(
            f"{source}: training images are {train.images.shape[1:]}, test images "
            f"{test.images.shape[1:]} (height, width, channels)"
        )
    return RawDataset(train, test, n_classes)


def check_labels(train: Labels, test: Labels | None, source: str) -> int:
    """How many classes there are.

    Raises:
        DatasetError: as `raw_dataset` says of labels.
    """
    if train.min() < 0:
        raise DatasetError(f"{source}: label {train.min()} is negative; labels count from 0")
    n_classes = int(train.max()) + 1
    present = np.unique(train)
    if len(present) < 2:
        raise DatasetError(
            f"{source}: every training image has the label {present[0]}; "
            "at least two classes are needed"
        )
    if len(present) < n_classes:
        missing = int(np.setdiff1d(np.arange(n_classes), present)[0])
        raise DatasetError(
            f"{source}: labels run to {n_classes - 1}, but no training image has "
            f"the label {missing}; number the classes 0 to n - 1"
        )
    if test is not None and (test.min() < 0 or test.max() >= n_classes):
        wrong = test.min() if test.min() < 0 else test.max()
        raise DatasetError(
            f"{source}: a test image has the label {wrong}; training labels are 0 to "
            f"{n_classes - 1}"
        )
    return n_classes


def hold_out(labels: Labels, source: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on and rows to test on, always the same.

    Raises:
        DatasetError: a class is too small to be on both sides.
    """
    import torch  # loaded for this alone: files of strangers are looked at without

    from search_core.data.dataset import stratified

    try:
        kept, held = stratified(
            torch.from_numpy(labels), round(TEST_SHARE * len(labels)), _SPLIT_SEED
        )
    except DatasetError as error:
        raise DatasetError(f"{source} has no test side, and {error}") from error
    return kept.numpy(), held.numpy()


def check_shape(data: RawDataset, source: str, shape: tuple[int, int, int], n_classes: int) -> None:
    """Raises DatasetError unless images have this shape (H, W, C) and this many classes."""
    found = data.train.images.shape[1:]
    if (found, data.n_classes) != (shape, n_classes):
        raise DatasetError(
            f"{source}: images are {found} (height, width, channels) of {data.n_classes} "
            f"classes, not {shape} of {n_classes}"
        )


def check_sizes(data: RawDataset, source: str, sizes: tuple[int, int]) -> None:
    """Raises DatasetError unless the sides have these sizes, evenly over the classes."""
    sides = (("training", data.train), ("test", data.test))
    for (side, raw), size in zip(sides, sizes, strict=True):
        share = size // data.n_classes
        counts = np.bincount(raw.labels, minlength=data.n_classes).tolist()
        wrong = [label for label, count in enumerate(counts) if count != share]
        if wrong:
            raise DatasetError(
                f"{source}: {len(raw.labels)} of {size} {side} images were found; class "
                f"{wrong[0]} has {counts[wrong[0]]}, not {share}"
            )
