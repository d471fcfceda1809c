"""The data sets known by name, in plain Python."""

from dataclasses import dataclass

from search_core.errors import UnknownDatasetError


@dataclass(frozen=True)
class DatasetInfo:
    """What can be said of a data set without loading it."""

    name: str
    channels: int
    resolution_px: int
    n_classes: int
    n_train: int
    n_test: int


_KNOWN = {"digits": DatasetInfo("digits", 1, 8, 10, 1437, 360)}


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
