"""Readers of arrays in files: `.npz`, the CIFAR binary files and the IDX files of MNIST."""

import gzip
import zipfile
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_core.data.decode import Decoder
from search_core.data.raw import RawDataset, RawImages, raw_dataset, raw_images
from search_core.errors import DatasetError

_SIDES = ("x_train", "y_train", "x_test", "y_test")
_WHOLE = ("images", "labels")
_BLOBS = ("blob", "offsets", "labels")

_CIFAR_PX = 32
_CIFAR_PIXELS = 3 * _CIFAR_PX**2

_IDX_BYTES = 8  # of the type code in an IDX header: unsigned bytes


def read_npz(file: Path) -> RawDataset:
    """The arrays `x_train, y_train, x_test, y_test`, or `images, labels` for one side only.

    Raises:
        DatasetError: the file is damaged, has other arrays, or they are no data set.
    """
    arrays = _npz(file)
    if arrays.keys() >= set(_SIDES):
        train = raw_images(arrays["x_train"], arrays["y_train"], f"{file}, training side")
        test = raw_images(arrays["x_test"], arrays["y_test"], f"{file}, test side")
        return raw_dataset(train, test, str(file))
    if arrays.keys() >= set(_WHOLE):
        return raw_dataset(
            raw_images(arrays["images"], arrays["labels"], str(file)), None, str(file)
        )
    raise DatasetError(
        f"{file} has the arrays {', '.join(sorted(arrays))}; "
        f"needed are {', '.join(_SIDES)}, or {', '.join(_WHOLE)}"
    )


def read_npz_blobs(train: Sequence[Path], test: Sequence[Path], decoder: Decoder) -> RawDataset:
    """Encoded images (lossless WebP or PNG) end to end in `blob`, split at `offsets` (N + 1).

    Args:
        train, test: files whose images follow one another.

    Raises:
        DatasetError: a file is damaged, or its arrays are no data set.
    """
    sides = []
    for files in (train, test):
        parts = [_blobs(file, decoder) for file in files]
        for file, part in zip(files, parts, strict=True):
            if part.images.shape[1:] != parts[0].images.shape[1:]:
                raise DatasetError(
                    f"images of {file} have the shape {part.images.shape[1:]}, those of "
                    f"{files[0]} {parts[0].images.shape[1:]} (height, width, channels)"
                )
        images = np.concatenate([part.images for part in parts])
        sides.append(RawImages(images, np.concatenate([part.labels for part in parts])))
    return raw_dataset(sides[0], sides[1], str(train[0].parent))


def read_cifar_binary(
    train: Sequence[Path], test: Sequence[Path], n_label_bytes: int
) -> RawDataset:
    """The public binary files: records of label bytes, then red, green and blue planes.

    Args:
        n_label_bytes: 1 for CIFAR-10, 2 for CIFAR-100 (coarse, then the fine one, which counts).

    Raises:
        DatasetError: a file is missing or cut off.
    """
    sides = []
    for files in (train, test):
        parts = [_cifar_records(file, n_label_bytes) for file in files]
        whole = np.concatenate(parts)  # (N, label bytes + 3072)
        planes = whole[:, n_label_bytes:].reshape(-1, 3, _CIFAR_PX, _CIFAR_PX)
        labels = whole[:, n_label_bytes - 1]
        sides.append(raw_images(planes.transpose(0, 2, 3, 1), labels, str(files[0].parent)))
    return raw_dataset(sides[0], sides[1], str(train[0].parent))


def cifar_binary(raw: RawImages, coarse: NDArray[np.uint8] | None) -> bytes:
    """The public binary file that holds these images, coarse labels (N,) first where given."""
    planes = raw.images.transpose(0, 3, 1, 2).reshape(len(raw.images), -1)
    heads = (
        [raw.labels.astype(np.uint8)] if coarse is None else [coarse, raw.labels.astype(np.uint8)]
    )
    return np.concatenate([np.stack(heads, axis=1), planes], axis=1).tobytes()


def read_idx(train: tuple[Path, Path], test: tuple[Path, Path]) -> RawDataset:
    """IDX files, gzipped or not: images (N, H, W) and labels (N,) of each side.

    Raises:
        DatasetError: a file is missing, cut off, or no IDX file of unsigned bytes.
    """
    sides = [
        raw_images(_idx(images, 3), _idx(labels, 1), str(images))
        for images, labels in (train, test)
    ]
    return raw_dataset(sides[0], sides[1], str(train[0].parent))


def _npz(file: Path) -> dict[str, NDArray[Any]]:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        raise DatasetError(f"{file} cannot be read as an .npz of plain arrays ({error})") from error


def _blobs(file: Path, decoder: Decoder) -> RawImages:
    arrays = _npz(file)
    if not arrays.keys() >= set(_BLOBS):
        raise DatasetError(
            f"{file} has the arrays {', '.join(sorted(arrays))}; needed are {', '.join(_BLOBS)}"
        )
    blob, offsets = arrays["blob"].tobytes(), arrays["offsets"].astype(np.int64)
    if len(offsets) < 2 or offsets[-1] > len(blob) or (np.diff(offsets) <= 0).any():
        raise DatasetError(f"{file}: the offsets do not split the blob of {len(blob)} bytes")
    encoded = [blob[start:stop] for start, stop in pairwise(offsets.tolist())]
    return raw_images(decoder.blobs(encoded, file), arrays["labels"], str(file))


def _cifar_records(file: Path, n_label_bytes: int) -> NDArray[np.uint8]:
    record = n_label_bytes + _CIFAR_PIXELS
    content = np.frombuffer(_bytes(file), np.uint8)
    if not len(content) or len(content) % record:
        raise DatasetError(
            f"{file} has {len(content)} bytes, which are not whole records of {record}; "
            "it was cut off, or is another file"
        )
    return content.reshape(-1, record)


def _idx(file: Path, n_dimensions: int) -> NDArray[np.uint8]:
    content = _bytes(file)
    head = 4 + 4 * n_dimensions
    if content[:4] != bytes((0, 0, _IDX_BYTES, n_dimensions)) or len(content) < head:
        raise DatasetError(f"{file} is no IDX file of unsigned bytes in {n_dimensions} dimensions")
    shape = np.frombuffer(content, ">u4", count=n_dimensions, offset=4).astype(np.int64)
    pixels = np.frombuffer(content, np.uint8, offset=head)
    if len(pixels) != shape.prod():
        raise DatasetError(
            f"{file} announces {shape.prod()} values and has {len(pixels)}; it was cut off"
        )
    return pixels.reshape(shape)


def _bytes(file: Path) -> bytes:
    try:
        return gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except FileNotFoundError as error:
        raise DatasetError(f"{file} is missing") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{file} cannot be read ({error})") from error
