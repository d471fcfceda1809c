"""Which spaces can be searched here, and on which data sets."""

from collections.abc import Mapping
from typing import Any

from search_core.data.catalogue import datasets
from search_core.errors import UnknownSpaceError
from search_core.space.presets import fitted_space, get_space, is_listed, space_names
from search_core.space.space import SearchSpace
from service.datasets.known import DatasetFacts
from service.errors import InvalidRequestError

_MAX_BLOCKS = 200
"""A kit is built, and stored file by file, within the request that asks for it."""

_MAX_PX = 224
"""Nor is a file of a kit larger than those of the published spaces."""


def listed_space(name: str) -> SearchSpace:
    """The listed space of that name, or one of these for other images.

    Other variants could be of any size.

    Raises:
        UnknownSpaceError: listing the known names.
    """
    if not is_listed(name):
        raise UnknownSpaceError(
            f"no search space is called {name!r}; known: {', '.join(space_names())}"
        )
    return get_space(name)


def searchable_space(name: str) -> SearchSpace:
    """The listed space of that name, if it can be searched here.

    Raises:
        UnknownSpaceError: listing the known names.
        InvalidRequestError: it is too large to be measured; naming the spaces that are not.
    """
    space = listed_space(name)
    if _is_searchable(space):
        return space
    served = [known for known in space_names() if _is_searchable(get_space(known))]
    raise InvalidRequestError(
        f"{name} has {len(space.distinct_blocks)} distinct blocks to measure, of images of "
        f"{space.resolution_px} px; at most {_MAX_BLOCKS} and {_MAX_PX} px are. To search: "
        + ", ".join(served),
        field="search_space",
    )


def fitting_space(name: str, data: DatasetFacts) -> SearchSpace:
    """The space for the images of a data set: itself, or its variant for them.

    `micro` for 3 x 32 x 32 images of seven classes is `micro_i3_r32_k7`; it is measured like
    any other space.

    Raises:
        UnknownSpaceError: listing the known names.
        InvalidRequestError: it is too large, or takes no such images; naming those that do.
    """
    searchable_space(name)
    try:
        space = fitted_space(name, *data.shape)
    except UnknownSpaceError as error:
        raise InvalidRequestError(
            f"{error}; data set {data.name} has {data.channels} x {data.resolution_px} x "
            f"{data.resolution_px} images of {data.n_classes} classes. To search on it: "
            f"{', '.join(_fitting(data.shape)) or 'none'}",
            field="dataset",
        ) from error
    return searchable_space(space.name)


def spaces_for(facts: Mapping[str, Any]) -> list[str]:
    """The listed spaces that can be searched on a data set with these facts."""
    return _fitting((facts["channels"], facts["resolution_px"], facts["n_classes"]))


def searchable_datasets(space: SearchSpace) -> list[str]:
    """The known data sets that `space` can be searched on, fitted to them if need be."""
    shapes = {info.name: (info.channels, info.resolution_px, info.n_classes) for info in datasets()}
    return [name for name, shape in shapes.items() if _fits(space.name, shape)]


def _fitting(shape: tuple[int, int, int]) -> list[str]:
    return [name for name in space_names() if _fits(name, shape)]


def _fits(name: str, shape: tuple[int, int, int]) -> bool:
    try:
        return _is_searchable(fitted_space(name, *shape))
    except UnknownSpaceError:
        return False


def _is_searchable(space: SearchSpace) -> bool:
    return len(space.distinct_blocks) <= _MAX_BLOCKS and space.resolution_px <= _MAX_PX
