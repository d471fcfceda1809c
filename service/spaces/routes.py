"""Routes of search spaces."""

from fastapi import APIRouter

from search_core.errors import UnknownSpaceError
from search_core.space.presets import get_space, space_names
from search_core.space.space import SearchSpace
from service.auth.access import Viewer
from service.errors import NotFoundError
from service.spaces.catalogue import listed_space, searchable_datasets
from service.spaces.schemas import SlotRead, SpaceList, SpaceRead

router = APIRouter(tags=["search spaces"])


@router.get("/search-spaces")
def list_spaces(_: Viewer) -> SpaceList:
    """Every search space."""
    return SpaceList(items=[_read(get_space(name)) for name in space_names()])


@router.get("/search-spaces/{name}")
def get(name: str, _: Viewer) -> SpaceRead:
    """One search space."""
    try:
        return _read(listed_space(name))
    except UnknownSpaceError as error:
        raise NotFoundError(str(error)) from error


def _read(space: SearchSpace) -> SpaceRead:
    return SpaceRead(
        name=space.name,
        version=space.version,
        digest=space.digest,
        size=space.size,
        in_channels=space.in_channels,
        resolution_px=space.resolution_px,
        n_classes=space.n_classes,
        n_distinct_blocks=len(space.distinct_blocks),
        datasets=searchable_datasets(space),
        slots=[SlotRead(name=s.name, candidates=s.candidates) for s in space.slots],
    )
