"""Image files to pixels, by several threads at once: Pillow decodes outside Python's lock."""

import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from search_core.data.digest import Pixels
from search_core.errors import DatasetError

_GREY_MODES = frozenset({"1", "L", "LA"})
_DEEP_MODES = ("I", "F")  # 16 bits and more; reading them as 8 would clip
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow runs a program for others


@dataclass(frozen=True)
class Header:
    """What an image file says of itself before it is decoded."""

    grey: bool
    width_px: int
    height_px: int


class Decoder:
    """Threads that turn image files into arrays of one shape.

    Args:
        n_threads: how many files are decoded at once; None is one a core, eight at most.
    """

    def __init__(self, n_threads: int | None = None) -> None:
        self._pool = ThreadPoolExecutor(
            n_threads or min(8, os.cpu_count() or 1), thread_name_prefix="decode"
        )

    def headers(self, files: Iterable[Path]) -> list[Header]:
        """What each file says of itself.

        Raises:
            DatasetError: naming the first file that is no image, or holds more than 8 bits.
        """
        return list(self._pool.map(_header, files))

    def begin(
        self, files: Sequence[Path], channels: int, resolution_px: int
    ) -> list[Future[Pixels]]:
        """Start decoding; each future holds one image (H, W, C), or raises DatasetError."""
        return [self._pool.submit(_decoded, file, channels, resolution_px) for file in files]

    def images(self, files: Sequence[Path], channels: int, resolution_px: int) -> Pixels:
        """All files as (N, H, W, C) uint8.

        An image of another size is cut to its central square and resized (bilinear).

        Raises:
            DatasetError: naming the first file that cannot be decoded.
        """
        whole = np.empty((len(files), resolution_px, resolution_px, channels), np.uint8)
        one = partial(_decoded, channels=channels, resolution_px=resolution_px)
        for row, image in enumerate(self._pool.map(one, files)):
            whole[row] = image
        return whole

    def blobs(self, encoded: Sequence[bytes], source: Path) -> Pixels:
        """Encoded images of one size, colour unless the first is grey, as (N, H, W, C) uint8.

        Raises:
            DatasetError: naming the first image that cannot be decoded or has another size.
        """
        names = [f"image {row} of {source}" for row in range(len(encoded))]
        grey = _read_header(encoded[0], names[0]).grey
        decoded = list(self._pool.map(partial(_pixels, channels=1 if grey else 3), encoded, names))
        for image, name in zip(decoded, names, strict=True):
            if image.shape != decoded[0].shape:
                raise DatasetError(
                    f"{name} has {_size(image)} pixels, the first image {_size(decoded[0])}"
                )
        return np.stack(decoded)


def _size(image: Pixels) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


def _header(file: Path) -> Header:
    return _read_header(file, str(file))


def _read_header(source: Path | bytes, name: str) -> Header:
    with _opened(source, name) as image:
        if image.mode.startswith(_DEEP_MODES):
            raise DatasetError(f"{name} has more than 8 bits a channel; convert it to 8")
        return Header(image.mode in _GREY_MODES, image.width, image.height)


def _decoded(file: Path, channels: int, resolution_px: int) -> Pixels:
    return _pixels(file, str(file), channels, resolution_px)


def _pixels(
    source: Path | bytes, name: str, channels: int, resolution_px: int | None = None
) -> Pixels:
    with _opened(source, name) as image:
        try:
            converted = image.convert("L" if channels == 1 else "RGB")
        except Exception as error:  # whatever a damaged file makes its decoder raise
            raise _unreadable(name, error) from error
    if resolution_px is not None and converted.size != (resolution_px, resolution_px):
        width, height = converted.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        # not resize's own box: its filter would reach over the edges
        square = converted.crop((left, top, left + side, top + side))
        converted = square.resize((resolution_px, resolution_px), Image.Resampling.BILINEAR)
    pixels = np.asarray(converted, np.uint8)
    return pixels[:, :, None] if channels == 1 else pixels


def _opened(source: Path | bytes, name: str) -> Image.Image:
    try:
        opened = io.BytesIO(source) if isinstance(source, bytes) else source
        return Image.open(opened, formats=_FORMATS)
    except FileNotFoundError as error:
        raise DatasetError(f"{name} is gone") from error
    except Exception as error:  # whatever a damaged file makes its decoder raise
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> DatasetError:
    return DatasetError(f"{name} cannot be read as an image ({error}); replace or remove it")
