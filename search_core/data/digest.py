"""Content of a data set as a checksum, an order and statistics, whatever file it came from."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


def records(images: Pixels, labels: Labels) -> NDArray[np.uint8]:
    """The SHA-256 of each labelled image, (N, 32).

    Args:
        images: (N, H, W, C) uint8.
        labels: (N,), in the digest as four bytes, low one first, before the pixels.
    """
    heads = labels.astype("<u4").tobytes()
    digests = b"".join(
        hashlib.sha256(heads[4 * row : 4 * row + 4] + image.tobytes()).digest()
        for row, image in enumerate(images)
    )
    return np.frombuffer(digests, np.uint8).reshape(-1, 32)


def digest(shape: Sequence[int], train: NDArray[np.uint8], test: NDArray[np.uint8]) -> str:
    """SHA-256 over the shape (C, H, W), the sizes and the `records` of both sides, in hex."""
    whole = hashlib.sha256(f"{'x'.join(map(str, shape))} {len(train)} {len(test)}".encode())
    whole.update(train.tobytes())
    whole.update(test.tobytes())
    return whole.hexdigest()


def canonical_order(of: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Rows of the `records` (N, 32) in ascending order: the same whatever order they came in."""
    words = np.ascontiguousarray(of).view(">u8")  # (N, 4)
    return np.lexsort(words.T[::-1])


def histogram(images: Pixels) -> NDArray[np.int64]:
    """How often each channel has each of the 256 values, (C, 256), of images (N, H, W, C)."""
    n_channels = images.shape[3]
    counts = np.zeros((n_channels, 256), np.int64)
    for start in range(0, len(images), 4096):  # bincount widens what it is given
        part = images[start : start + 4096]
        for channel in range(n_channels):
            counts[channel] += np.bincount(part[..., channel].ravel(), minlength=256)
    return counts


def mean_and_std(counts: NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel from a `histogram`, exact up to one rounding.

    A channel of one value, as blue may be, has the deviation 1: what is divided by it stays finite.
    """
    means, stds = [], []
    for channel in counts.tolist():
        n = sum(channel)
        first = sum(value * count for value, count in enumerate(channel))
        second = sum(value * value * count for value, count in enumerate(channel))
        means.append(first / n)
        stds.append(((n * second - first * first) / (n * n)) ** 0.5 or 1.0)
    return tuple(means), tuple(stds)
