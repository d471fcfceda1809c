"""Which spaces can be searched here: the listed ones whose images a known data set has."""

from search_core.data.catalogue import DatasetInfo, datasets
from search_core.errors import UnknownSpaceError
from search_core.space.presets import get_space, space_names
from search_core.space.space import SearchSpace
from service.errors import InvalidRequestError

_MAX_BLOCKS = 200
"""A kit is built, and stored file by file, within the request that asks for it."""


def searchable_datasets(space: SearchSpace) -> list[str]:
    """The known data sets that `space` can be searched on here: none if it has too many blocks."""
    if len(space.distinct_blocks) > _MAX_BLOCKS:
        return []
    return [info.name for info in datasets() if _shape(info) == _shape(space)]


def listed_space(name: str) -> SearchSpace:
    """The listed space of that name; other variants could be of any size.

    Raises:
        UnknownSpaceError: listing the known names.
    """
    if name not in space_names():
        raise UnknownSpaceError(
            f"no search space is called {name!r}; known: {', '.join(space_names())}"
        )
    return get_space(name)


def searchable_space(name: str) -> SearchSpace:
    """The listed space of that name, if it can be searched here.

    Raises:
        UnknownSpaceError: listing the known names.
        InvalidRequestError: it has too many blocks to be measured, or no known data set has
            its images; naming the spaces that can be searched.
    """
    space = listed_space(name)
    if not searchable_datasets(space):
        channels, side, n_classes = _shape(space)
        reason = (
            f"has {len(space.distinct_blocks)} distinct blocks to measure, more than {_MAX_BLOCKS}"
            if len(space.distinct_blocks) > _MAX_BLOCKS
            else f"takes {channels} x {side} x {side} images of {n_classes} classes, and no data "
            "set known here has them"
        )
        served = [known for known in space_names() if searchable_datasets(get_space(known))]
        raise InvalidRequestError(
            f"{name} {reason}; to search: {', '.join(served)}", field="search_space"
        )
    return space


def _shape(task: SearchSpace | DatasetInfo) -> tuple[int, int, int]:
    if isinstance(task, SearchSpace):
        return task.in_channels, task.resolution_px, task.n_classes
    return task.channels, task.resolution_px, task.n_classes
