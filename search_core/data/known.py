"""Known data sets read from any of their forms, and seen to be what was published."""

import hashlib
from pathlib import Path

import numpy as np

from search_core.data.arrays import (
    cifar_binary,
    read_cifar_binary,
    read_idx,
    read_npz,
    read_npz_blobs,
)
from search_core.data.catalogue import DatasetInfo
from search_core.data.decode import Decoder
from search_core.data.digest import canonical_order, digest, records
from search_core.data.folder import is_split, read_folder
from search_core.data.raw import RawDataset, check_shape, check_sizes
from search_core.errors import DatasetChecksumError, DatasetError

PINNED = {
    "cifar10": "ac5039592dfe393444fb8306684e3a11cc17bf68097c4fe3886354e0d25cfeea",
    "fashion_mnist": "1c7d184fabda95a7037ac7157d9af9ce4eae628ff61c06318cfc5db22abbdb04",
}
"""`Dataset.digest` of each, in canonical order. The images behind the first rebuild the public
binary files to the published MD5 of each. Of CIFAR-100 no copy was to be had."""

PINNED_CIFAR100_FILES = (
    "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29",
    "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a",
)
"""Published SHA-256 of `train.bin` and `test.bin`, which any form that keeps the published order
of the images can be turned back into."""

# the coarse label of each of CIFAR-100's fine ones, as in its binary files
_COARSE = bytes.fromhex(
    "04 01 0e 08 00 06 07 07 12 03 03 0e 09 12 07 0b 03 09 07 0b"
    "06 0b 05 0a 07 06 0d 0f 03 0f 00 0b 01 0a 0c 0e 10 09 0b 05"
    "05 13 08 08 0f 0d 0e 11 12 0a 10 04 11 04 02 00 11 04 12 11"
    "0a 03 02 0c 0c 10 0c 01 09 13 02 0a 00 01 10 0c 09 0d 0f 0d"
    "10 13 02 04 06 13 05 05 08 13 12 01 02 0f 06 00 11 08 0e 0d"
)

# of each set: the folder that its public archive makes, training files, test files
_PUBLIC_FILES = {
    "cifar10": (
        "cifar-10-batches-bin",
        tuple(f"data_batch_{part}.bin" for part in range(1, 6)),
        ("test_batch.bin",),
    ),
    "cifar100": ("cifar-100-binary", ("train.bin",), ("test.bin",)),
    "fashion_mnist": (
        "fashion-mnist",
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    ),
}


def read_known(info: DatasetInfo, root: Path, decoder: Decoder, *, verify: bool) -> RawDataset:
    """The set from the first of its forms at `root`, in the one order that all forms share.

    Args:
        verify: compare sizes and checksum with the published ones.

    Raises:
        DatasetError: no form of it is there, or a file of it is missing or damaged.
        DatasetChecksumError: these are other images or labels.
    """
    raw = _read(info, root, decoder)
    check_shape(
        raw, str(root), (info.resolution_px, info.resolution_px, info.channels), info.n_classes
    )
    if verify:
        check_sizes(raw, str(root), (info.n_train, info.n_test))
        if info.name == "cifar100" and raw.in_order:
            _check_cifar100(info, raw, root)
    train, test = (records(side.images, side.labels) for side in (raw.train, raw.test))
    train_order, test_order = canonical_order(train), canonical_order(test)
    if verify and info.name in PINNED:
        shape = (info.channels, info.resolution_px, info.resolution_px)
        found = digest(shape, train[train_order], test[test_order])
        _compare(info, f"the images and labels in {root}", PINNED[info.name], found)
    return RawDataset(raw.train.take(train_order), raw.test.take(test_order), raw.n_classes)


def how_to_get(info: DatasetInfo) -> str:
    """The end of a sentence that tells of missing files."""
    return f"to get it: {info.obtain}"


def _read(info: DatasetInfo, root: Path, decoder: Decoder) -> RawDataset:
    if root.is_file():
        if root.suffix != ".npz":
            raise DatasetError(f"{root} is no .npz file; of an archive, give the unpacked folder")
        return read_npz(root)
    subfolder, train_names, test_names = _PUBLIC_FILES[info.name]
    for folder in (root, root / subfolder):
        train = [_plain_or_gzipped(folder / name) for name in train_names]
        test = [_plain_or_gzipped(folder / name) for name in test_names]
        if any(file.exists() for file in train + test):
            if info.name == "fashion_mnist":
                return read_idx((train[0], train[1]), (test[0], test[1]))
            return read_cifar_binary(train, test, n_label_bytes=1 + (info.name == "cifar100"))
    if (root / f"{info.name}.npz").exists():
        return read_npz(root / f"{info.name}.npz")
    train = sorted(root.glob(f"{info.name}_train*.npz"))
    test = sorted(root.glob(f"{info.name}_test*.npz"))
    if train and test:
        return read_npz_blobs(train, test, decoder)
    if is_split(root):
        return read_folder(root, decoder, None).decoded(decoder)
    raise DatasetError(
        f"{root} holds no form of {info.name}: neither {train_names[0]} and its companions, "
        f"nor {info.name}.npz, nor {info.name}_train*.npz with {info.name}_test*.npz, nor "
        f"class folders in train and test; {how_to_get(info)}"
    )


def _plain_or_gzipped(file: Path) -> Path:
    zipped = file.with_name(f"{file.name}.gz")
    return zipped if zipped.exists() and not file.exists() else file


def _check_cifar100(info: DatasetInfo, raw: RawDataset, root: Path) -> None:
    coarse = np.frombuffer(_COARSE, np.uint8)
    for side, public, pinned in zip(
        (raw.train, raw.test), ("train.bin", "test.bin"), PINNED_CIFAR100_FILES, strict=True
    ):
        found = hashlib.sha256(cifar_binary(side, coarse[side.labels])).hexdigest()
        _compare(info, f"the images and labels of {public} in {root}", pinned, found)


def _compare(info: DatasetInfo, what: str, pinned: str, found: str) -> None:
    if found != pinned:
        raise DatasetChecksumError(
            f"{what} have the SHA-256 {found}, those of the published {info.name} {pinned}; "
            f"{how_to_get(info)}; or pass verify=False to use these under that name",
            pinned,
            found,
        )
