"""Loading a data set by name, from files where it does not come with the software."""

from pathlib import Path

import numpy as np
import torch

from search_core.data.arrays import read_npz
from search_core.data.augmentation import Augmentation
from search_core.data.catalogue import datasets
from search_core.data.dataset import Dataset, ImageDataset
from search_core.data.decode import Decoder
from search_core.data.digest import histogram, mean_and_std
from search_core.data.digits import digits
from search_core.data.folder import read_folder
from search_core.data.known import how_to_get, read_known
from search_core.data.raw import RawDataset, RawImages
from search_core.data.streaming import stream_folder
from search_core.errors import DatasetError, UnknownDatasetError

MAX_RESIDENT_BYTES = 4 * 2**30

_AUGMENTATIONS = {
    "cifar10": Augmentation(shift_px=4, flip=True),
    "cifar100": Augmentation(shift_px=4, flip=True),
    "fashion_mnist": Augmentation(shift_px=2, flip=True),
}


def load_dataset(
    name: str,
    root: Path | str | None = None,
    *,
    resolution_px: int | None = None,
    max_resident_bytes: int = MAX_RESIDENT_BYTES,
    verify: bool = True,
) -> Dataset:
    """The data set of that name, checked.

    A known set (`search_core.data.catalogue`) is read from any of its forms at `root` and put
    into one order, so that every form gives the same images in the same rows. Any other name
    is the caller's own, for the `.npz` file or the folder of images at `root`; these are not
    augmented until `Dataset.augmented` says how. ``docs/howto/datasets.md`` lists the forms and
    how to get the files.

    Args:
        name: of a known set, or any other together with `root`.
        root: a file or a folder; the digits need none.
        resolution_px: side to which a folder's images are resized; None takes them as they are.
        max_resident_bytes: a folder with more bytes of pixels than this streams from its files.
        verify: compare a known set's sizes and checksum with the published ones. Without, the
            name may stand for a part of the set, or for other images in one of its forms.

    Raises:
        UnknownDatasetError: no known set has the name, and no `root` is given.
        DatasetError: files that are missing or damaged, or that are no classification set; the
            message names the file and says what to do.
        DatasetChecksumError: a known set's files hold other images or labels.
    """
    known = {info.name: info for info in datasets()}
    info = known.get(name)
    if info is not None and info.bundled:
        return digits()
    if root is None and info is None:
        raise UnknownDatasetError(
            f"no data set is called {name!r}; known: {', '.join(known)}. "
            "A data set of your own needs a root, its folder or .npz file"
        )
    if root is None or not Path(root).exists():
        place = (
            f"{name} needs a root, the place of its files" if root is None else f"{root} is missing"
        )
        raise DatasetError(place if info is None else f"{place}; {how_to_get(info)}")
    root, decoder = Path(root), Decoder()
    if resolution_px is not None and (info is not None or root.is_file()):
        raise DatasetError(f"resolution_px resizes a folder of images, not {name} from {root}")
    if info is not None:
        raw = read_known(info, root, decoder, verify=verify)
        return resident(name, raw).augmented(_AUGMENTATIONS[name])
    if root.is_file():
        return resident(name, read_npz(root))
    folder = read_folder(root, decoder, resolution_px)
    if folder.n_bytes > max_resident_bytes:
        return stream_folder(name, folder, decoder)
    return resident(name, folder.decoded(decoder))


def resident(name: str, raw: RawDataset) -> ImageDataset:
    """Checked arrays as a data set in memory, not augmented."""
    mean, std = mean_and_std(histogram(raw.train.images))
    return ImageDataset(name, *_tensors(raw.train), *_tensors(raw.test), mean, std, raw.n_classes)


def _tensors(side: RawImages) -> tuple[torch.Tensor, torch.Tensor]:
    images = np.require(side.images, requirements=["C", "W"])
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(side.labels)
