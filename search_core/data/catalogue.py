"""The data sets known by name, in plain Python."""

from dataclasses import dataclass

from search_core.errors import UnknownDatasetError


@dataclass(frozen=True)
class DatasetInfo:
    """What can be said of a data set without loading it.

    Attributes:
        obtain: a command that gets the files; empty where they come with the software.
    """

    name: str
    channels: int
    resolution_px: int
    n_classes: int
    n_train: int
    n_test: int
    obtain: str = ""

    @property
    def bundled(self) -> bool:
        """Whether it loads without files of its own."""
        return not self.obtain


IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
)
"""Of the files in a folder of images that are read."""

_CIFAR = "curl -O https://www.cs.toronto.edu/~kriz/{0}.tar.gz && tar -xzf {0}.tar.gz"

_KNOWN = {
    info.name: info
    for info in (
        DatasetInfo("cifar10", 3, 32, 10, 50_000, 10_000, _CIFAR.format("cifar-10-binary")),
        DatasetInfo("cifar100", 3, 32, 100, 50_000, 10_000, _CIFAR.format("cifar-100-binary")),
        DatasetInfo("digits", 1, 8, 10, 1_437, 360),
        DatasetInfo(
            "fashion_mnist", 1, 28, 10, 60_000, 10_000, "apt-get install dataset-fashion-mnist"
        ),
    )
}


def datasets() -> tuple[DatasetInfo, ...]:
    """Every known data set, by name."""
    return tuple(_KNOWN[name] for name in sorted(_KNOWN))


def dataset_info(name: str) -> DatasetInfo:
    """The facts of the data set of that name.

    Raises:
        UnknownDatasetError: listing the known names.
    """
    if name not in _KNOWN:
        raise UnknownDatasetError(
            f"no data set is called {name!r}; known: {', '.join(sorted(_KNOWN))}"
        )
    return _KNOWN[name]
