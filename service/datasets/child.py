"""The process that looks at one data set of a stranger: ``python -m service.datasets.child``.

Unpacking and decoding run native code on bytes that anybody sent, so they happen here, under
limits, with an environment that holds no secrets. The request arrives on standard input; on
standard output leaves one JSON document: the facts of the data set, or why it is none.
"""

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from search_core.data.arrays import read_npz
from search_core.data.decode import Decoder
from search_core.data.digest import Labels, digest, histogram, mean_and_std, records
from search_core.data.folder import read_folder
from search_core.errors import DatasetError
from service.confined import answer, limit_resources, take_request
from service.datasets.archives import Limits, check_npz, form_of, unpack

_BASE_BYTES = 16 * 2**30  # of addresses: libraries and threads reserve more than they use
_MOST_PIXELS = 64 * 10**6  # of one image
_MOST_PX = 1024
_MOST_CLASSES = 9999  # as the name of a fitted space can say
_FREE_BYTES = 2**20  # of files, beside what the archive unpacks to


def main() -> None:
    """Answer and leave."""
    request = take_request()
    most_bytes = int(request["most_bytes"])
    limit_resources(
        memory_bytes=_BASE_BYTES + 3 * most_bytes,
        cpu_seconds=math.ceil(request["seconds"]) * (os.cpu_count() or 1),
        file_bytes=most_bytes + _FREE_BYTES,
    )
    Image.MAX_IMAGE_PIXELS = _MOST_PIXELS
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    os.chdir(request["folder"])  # so that messages speak of members, not of our folders
    answer(look(request))


def look(request: dict[str, Any]) -> dict[str, Any]:
    """The facts of a data set, or under `rejected` what is wrong with it.

    What is unpacked lies in the working folder afterwards.
    """
    try:
        return _facts(request)
    except DatasetError as error:
        return {"rejected": _shown(str(error))}
    except MemoryError:
        return {"rejected": f"it takes more memory than {request['most_bytes']} bytes of images do"}


def _facts(request: dict[str, Any]) -> dict[str, Any]:
    """What is to be known of a data set, having read all of it.

    Raises:
        DatasetError: saying what is wrong with it, and with which member.
    """
    name, place = request["name"], Path(request["place"])
    if request["source"] == "builtin":
        return _facts_of_known(request["builtin"], place)
    if place.is_dir():
        return {"form": None, **_facts_of_folder(place, request["resize_px"])}
    form, limits = form_of(place), Limits(request["most_bytes"], request["most_files"])
    if form == "npz":
        if request["resize_px"] is not None:
            raise DatasetError("resolution_px resizes images of a folder, not arrays")
        check_npz(place, limits)
        file = place if request["source"] == "path" else _linked(place, f"{name}.npz")
        return {"form": form, **_facts_of_arrays(file)}
    if request["source"] == "path":
        raise DatasetError(f"{place} is an archive; upload it, or give the unpacked folder")
    root = unpack(place, form, Path(name), limits)
    return {"form": form, **_facts_of_folder(root, request["resize_px"])}


def _facts_of_known(name: str, place: Path) -> dict[str, Any]:
    import torch

    from search_core.data.load import load_dataset

    data = load_dataset(name, place)
    sides = (data.train_batches(1024), data.test_batches(1024))
    train, test = (torch.cat([batch.labels for batch in side]).numpy() for side in sides)
    names = [str(label) for label in range(data.n_classes)]
    return {
        **_described(data.shape[0], data.shape[1], names, train, test),
        "mean": list(data.mean),
        "std": list(data.std),
        "digest": data.digest,
    }


def _facts_of_arrays(file: Path) -> dict[str, Any]:
    raw = read_npz(file)
    _, side_px, _, channels = raw.train.images.shape
    _check_shape(side_px, raw.n_classes)
    train, test = (records(side.images, side.labels) for side in (raw.train, raw.test))
    names = [str(label) for label in range(raw.n_classes)]
    return {
        **_described(channels, side_px, names, raw.train.labels, raw.test.labels),
        **_content(channels, side_px, train, test, histogram(raw.train.images)),
    }


def _facts_of_folder(root: Path, resize_px: int | None) -> dict[str, Any]:
    decoder = Decoder()
    folder = read_folder(root, decoder, resize_px)
    _check_shape(folder.resolution_px, len(folder.classes))
    train, counts = folder.scanned(folder.train, decoder)
    test, _ = folder.scanned(folder.test, decoder)
    channels, side_px = folder.channels, folder.resolution_px
    return {
        **_described(channels, side_px, folder.classes, folder.train.labels, folder.test.labels),
        **_content(channels, side_px, train, test, counts),
    }


def _linked(file: Path, name: str) -> Path:
    """The file under a name that its sender knows."""
    Path(name).symlink_to(file)
    return Path(name)


def _check_shape(side_px: int, n_classes: int) -> None:
    if side_px > _MOST_PX:
        raise DatasetError(
            f"images have {side_px} x {side_px} pixels, more than {_MOST_PX} x {_MOST_PX}; resize "
            "them, or give resolution_px for a folder"
        )
    if n_classes > _MOST_CLASSES:
        raise DatasetError(f"there are {n_classes} classes, more than {_MOST_CLASSES}")


def _described(
    channels: int, side_px: int, names: Sequence[str], train: Labels, test: Labels
) -> dict[str, Any]:
    counts = (np.bincount(side, minlength=len(names)).tolist() for side in (train, test))
    return {
        "channels": channels,
        "resolution_px": side_px,
        "n_classes": len(names),
        "n_train": len(train),
        "n_test": len(test),
        "classes": [
            {"name": _shown(name), "n_train": n_train, "n_test": n_test}
            for name, n_train, n_test in zip(names, *counts, strict=True)
        ],
    }


def _content(
    channels: int,
    side_px: int,
    train: NDArray[np.uint8],
    test: NDArray[np.uint8],
    counts: NDArray[np.int64],
) -> dict[str, Any]:
    """What `Dataset` would say of images with these `records` and this `histogram`."""
    mean, std = mean_and_std(counts)
    shape = (channels, side_px, side_px)
    return {"mean": list(mean), "std": list(std), "digest": digest(shape, train, test)}


def _shown(text: str) -> str:
    """As a store and a terminal can take it: names of files may hold anything."""
    return ascii(text)[1:-1] if not text.isprintable() else text


if __name__ == "__main__":
    main()
