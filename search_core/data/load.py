"""Loading a data set by name."""

from search_core.data.catalogue import dataset_info
from search_core.data.dataset import ImageDataset
from search_core.data.digits import digits

_LOADERS = {"digits": digits}


def load_dataset(name: str) -> ImageDataset:
    """The images of that data set.

    Raises:
        UnknownDatasetError: listing the known names.
    """
    return _LOADERS[dataset_info(name).name]()
