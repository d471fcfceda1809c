"""Routes of data sets."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response, status
from fastapi.concurrency import run_in_threadpool

from search_core.data.catalogue import DatasetInfo, dataset_info, datasets
from service.audit.record import record
from service.auth.access import User, Viewer
from service.auth.quotas import check_dataset_bytes
from service.datasets import lifecycle, uploads
from service.datasets.models import DatasetRow
from service.datasets.places import allowed
from service.datasets.repository import bytes_of, find_by_name, get_dataset, list_datasets
from service.datasets.schemas import (
    DatasetCreate,
    DatasetDetail,
    DatasetName,
    DatasetRead,
    ResolutionPx,
)
from service.dependencies import (
    Artifacts,
    CurrentDatabase,
    CurrentSettings,
    Cursor,
    Limit,
    ReadSession,
    WriteSession,
)
from service.errors import ConflictError, InvalidRequestError, NotFoundError, PayloadTooLargeError
from service.schemas import Page, next_cursor
from service.spaces.catalogue import spaces_for

router = APIRouter(prefix="/datasets", tags=["data sets"])

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_BUILTIN = "builtin_"
_MAKES: dict[int | str, dict[str, Any]] = {
    200: {"model": DatasetRead, "description": "Registered before."}
}


@router.post("", status_code=status.HTTP_201_CREATED, responses=_MAKES)
def register(
    body: DatasetCreate,
    session: WriteSession,
    settings: CurrentSettings,
    user: User,
    response: Response,
) -> DatasetRead:
    """Register a known set, or a folder or `.npz` file that lies on the workers.

    A worker then reads all of it: `status` goes from `checking` to `ready` or `rejected`.
    200 when the same was registered before; a rejected one is then checked once more.
    """
    if body.builtin is not None:
        if body.builtin not in {info.name for info in datasets()}:
            raise InvalidRequestError(
                f"no set is known as {body.builtin!r}; known: "
                + ", ".join(info.name for info in datasets()),
                field="builtin",
            )
        if body.resolution_px is not None:
            raise InvalidRequestError("a known set is not resized", field="resolution_px")
        source, place = "builtin", body.builtin
    else:
        assert body.path is not None
        source, place = "path", str(allowed(body.path, settings.dataset_roots))
    row, is_new = lifecycle.register(
        session,
        settings,
        user.account,
        body.name,
        source=source,
        place=place,
        resize_px=body.resolution_px,
    )
    session.info["audited"] = row.id
    session.flush()
    return _made(row, is_new, response)


@router.post("/uploads", status_code=status.HTTP_201_CREATED, responses=_MAKES, openapi_extra=_BODY)
async def upload(
    name: Annotated[DatasetName, Query()],
    request: Request,
    database: CurrentDatabase,
    settings: CurrentSettings,
    artifacts: Artifacts,
    user: User,
    response: Response,
    resolution_px: Annotated[ResolutionPx | None, Query()] = None,
    digest: Annotated[str | None, Header(max_length=500)] = None,
    x_content_sha256: Annotated[str | None, Header(max_length=100)] = None,
    content_length: Annotated[int | None, Header(ge=0, include_in_schema=False)] = None,
) -> DatasetRead:
    """Register a data set by its file: an `.npz`, or a `.zip` or `.tar.gz` of folders of images.

    The body is the file, as it is. A worker then looks through it: `status` goes from `checking`
    to `ready` or `rejected`. 200 when the same file was sent under the name before; 409 when the
    name is another data set's; 413 over the limit, 429 over the account's quota. With
    `X-Content-SHA256`, or `Digest`, a body that was damaged on its way is refused.
    """
    expected = uploads.announced_sha256(digest, x_content_sha256)
    if content_length is not None and content_length > settings.max_dataset_bytes:
        raise PayloadTooLargeError(f"the file is larger than {settings.max_dataset_bytes} bytes")

    def refuse_early() -> None:
        lifecycle.check_name(name, "upload", "")
        with database.reading() as session:
            row = find_by_name(session, user.account, name)
            if row is None:
                used = bytes_of(session, user.account)
                check_dataset_bytes(settings, used, content_length or 0)
            elif row.source != "upload":
                raise ConflictError(f"data set {name} is no upload; choose another name")

    def keep(received: uploads.Received) -> DatasetRead:
        with database.transaction() as session:
            row, is_new = lifecycle.register(
                session,
                settings,
                user.account,
                name,
                source="upload",
                place=received.sha256,
                resize_px=resolution_px,
                size_bytes=received.size_bytes,
            )
            session.info["audited"] = row.id
            record(session, request)
            return _made(row, is_new, response)

    await run_in_threadpool(refuse_early)
    received = await uploads.receive(
        request.stream(),
        artifacts,
        max_bytes=settings.max_dataset_bytes,
        expected_sha256=expected,
    )
    return await run_in_threadpool(keep, received)


@router.get("")
def list_all(
    session: ReadSession, viewer: Viewer, cursor: Cursor = None, limit: Limit = 50
) -> Page[DatasetRead]:
    """The account's data sets, newest first, and after them the known ones."""
    items = [_read(row) for row in list_datasets(session, viewer.account, cursor, limit)]
    known = sorted((_read_known(info) for info in datasets()), key=lambda k: k.id, reverse=True)
    items += [k for k in known if cursor is None or k.id < cursor][: limit - len(items)]
    return Page[DatasetRead](items=items, next_cursor=next_cursor(items, limit))


@router.get("/{dataset_id}")
def get(
    dataset_id: str,
    session: ReadSession,
    viewer: Viewer,
    response: Response,
    if_none_match: Annotated[str | None, Header(max_length=200)] = None,
) -> DatasetDetail:
    """One data set, by its id or its name, with its classes; 304 when its `ETag` is known."""
    known = {_BUILTIN + info.name: info for info in datasets()}
    if dataset_id in known:
        return _known_detail(known[dataset_id])
    try:
        row = get_dataset(session, viewer, dataset_id)
    except NotFoundError:
        if _BUILTIN + dataset_id not in known:
            raise
        return _known_detail(dataset_info(dataset_id))
    etag = f'W/"{row.version}"'
    if if_none_match is not None and etag in [tag.strip() for tag in if_none_match.split(",")]:
        headers = {"ETag": etag}
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)  # type: ignore[return-value]
    response.headers["ETag"] = etag
    facts = row.facts or {}
    return DatasetDetail(
        **_read(row).model_dump(),
        mean=facts.get("mean"),
        std=facts.get("std"),
        digest=facts.get("digest"),
        classes=facts.get("classes"),
        search_spaces=spaces_for(facts) if row.status == "ready" else [],
    )


@router.delete("/{dataset_id}", status_code=status.HTTP_204_NO_CONTENT)
def delete(dataset_id: str, session: WriteSession, user: User) -> None:
    """Delete a data set; 409 while a search that has not ended uses it."""
    row = get_dataset(session, user, dataset_id, lock=True)
    session.info["audited"] = row.id
    lifecycle.delete(session, row)


def _made(row: DatasetRow, is_new: bool, response: Response) -> DatasetRead:
    response.status_code = status.HTTP_201_CREATED if is_new else status.HTTP_200_OK
    response.headers["Location"] = f"/v1/datasets/{row.id}"
    response.headers["ETag"] = f'W/"{row.version}"'
    return _read(row)


def _read(row: DatasetRow) -> DatasetRead:
    facts = row.facts or {}
    return DatasetRead(
        id=row.id,
        name=row.name,
        source=row.source,
        status=row.status,
        reason=row.reason,
        place=row.place,
        size_bytes=row.size_bytes,
        resize_px=row.resize_px,
        channels=facts.get("channels"),
        resolution_px=facts.get("resolution_px"),
        n_classes=facts.get("n_classes"),
        n_train=facts.get("n_train"),
        n_test=facts.get("n_test"),
        version=row.version,
        created_at=row.created_at,
        checked_at=row.checked_at,
    )


def _read_known(info: DatasetInfo) -> DatasetRead:
    return DatasetRead(
        id=_BUILTIN + info.name,
        name=info.name,
        source="builtin",
        status="ready" if info.bundled else "unchecked",
        reason=None,
        place=info.name,
        size_bytes=0,
        resize_px=None,
        channels=info.channels,
        resolution_px=info.resolution_px,
        n_classes=info.n_classes,
        n_train=info.n_train,
        n_test=info.n_test,
        version=1,
        created_at=None,
        checked_at=None,
    )


def _known_detail(info: DatasetInfo) -> DatasetDetail:
    known = _read_known(info)
    return DatasetDetail(
        **known.model_dump(),
        mean=None,
        std=None,
        digest=None,
        classes=None,
        search_spaces=spaces_for(known.model_dump()),
    )
