"""Routes of what searches found: networks, files, where they come from, the front."""

import re
from base64 import b64encode
from typing import Annotated, Any

from fastapi import APIRouter, Header, HTTPException, Response

from search_core.space.presets import get_space
from service.auth.access import Viewer
from service.dependencies import Artifacts, ReadSession
from service.errors import ConflictError
from service.latency_models.documents import parsed
from service.latency_models.repository import get_model
from service.searches.front import front_of
from service.searches.lineage import lineage_of
from service.searches.repository import get_artifact, get_seen, list_artifacts
from service.searches.schemas import (
    TERMINAL,
    ArchitectureRead,
    ArtifactList,
    ArtifactRead,
    Front,
    Lineage,
    SearchCreate,
)

router = APIRouter(prefix="/searches/{search_id}", tags=["searches"])


@router.get("/architecture", responses={409: {"description": "It has found none."}})
def architecture(search_id: str, session: ReadSession, viewer: Viewer) -> ArchitectureRead:
    """The network that was found: predicted, measured, and where its time goes."""
    search = get_seen(session, search_id, viewer)
    if search.result is None or search.latency_model_id is None:
        raise ConflictError(
            f"search {search.id} is {search.status} and has no architecture"
            + ("" if search.status in TERMINAL else " yet")
        )
    network: dict[str, Any] = search.result["network"]
    spec = SearchCreate.model_validate(search.spec)
    space = get_space(spec.search_space)
    decided = space.parse(network["architecture"])
    model = parsed(get_model(session, search.latency_model_id))
    rows = zip(model.table_ms, decided.choices, strict=True)
    return ArchitectureRead(
        **network,
        search=search.id,
        search_space=spec.search_space,
        latency_budget_ms=spec.budgets[0].latency_budget_ms,
        within_budget=search.status == "succeeded",
        layers=[str(block) for block in space.blocks(decided)],
        layer_ms=[row[choice] for row, choice in rows],
        seconds_by_phase=search.seconds_by_phase,
    )


@router.get("/lineage")
def lineage(search_id: str, session: ReadSession, viewer: Viewer) -> Lineage:
    """What a search comes from: searches, latency models, measurements, agents, devices."""
    return lineage_of(session, get_seen(session, search_id, viewer), viewer)


@router.get("/front")
def front(search_id: str, session: ReadSession, viewer: Viewer) -> Front:
    """Accuracy against latency of every network of the search and of what was derived from it."""
    return front_of(session, get_seen(session, search_id, viewer))


@router.get("/artifacts")
def artifacts_of(search_id: str, session: ReadSession, viewer: Viewer) -> ArtifactList:
    """The files of a search."""
    get_seen(session, search_id, viewer)
    items = [
        ArtifactRead(
            name=row.name,
            sha256=row.sha256,
            size_bytes=row.size_bytes,
            media_type=row.media_type,
            url=f"/v1/searches/{search_id}/artifacts/{row.name}",
        )
        for row in list_artifacts(session, search_id)
    ]
    return ArtifactList(items=items)


_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@router.get(
    "/artifacts/{name}",
    response_class=Response,
    responses={
        200: {"content": {"application/octet-stream": {}}, "description": "The file."},
        206: {"content": {"application/octet-stream": {}}, "description": "A part of it."},
        304: {"description": "It is the one you have."},
        416: {"description": "It is not that long."},
    },
)
def download(
    search_id: str,
    name: str,
    session: ReadSession,
    artifacts: Artifacts,
    viewer: Viewer,
    range: Annotated[str | None, Header(max_length=100)] = None,  # noqa: A002 - the header's name
    if_none_match: Annotated[str | None, Header(max_length=200)] = None,
) -> Response:
    """One file, or a part of it; its ETag is the sha256 of its content."""
    get_seen(session, search_id, viewer)
    row = get_artifact(session, search_id, name)
    headers = {
        "ETag": f'"{row.sha256}"',
        "Digest": f"sha-256={b64encode(bytes.fromhex(row.sha256)).decode()}",
        "Content-Disposition": f'attachment; filename="{row.name}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
    }
    if if_none_match is not None and headers["ETag"] in if_none_match:
        return Response(status_code=304, headers=headers)
    content, status = artifacts.get(row.sha256), 200
    asked = _RANGE.fullmatch(range or "")
    if asked is not None and any(asked.groups()):
        first, last = _part(asked[1], asked[2], len(content))
        if first > last:
            raise HTTPException(
                status_code=416,
                detail=f"the file has {len(content)} bytes",
                headers={"Content-Range": f"bytes */{len(content)}"},
            )
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        content, status = content[first : last + 1], 206
    return Response(content, status, media_type=row.media_type, headers=headers)


def _part(first: str, last: str, size: int) -> tuple[int, int]:
    """The first and last byte that a range asks for, of `size`."""
    if not first:  # the last so many bytes
        return max(0, size - int(last)), size - 1 if int(last) else -1
    return int(first), min(size - 1, int(last) if last else size - 1)
