"""Routes of predictions."""

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from service.auth.access import User, Viewer
from service.dependencies import CurrentDatabase, CurrentSettings, FileReaders, ReadSession
from service.errors import BadRequestError
from service.latency_models.repository import get_model
from service.predictions import files, known
from service.predictions.schemas import (
    FilePredictionRead,
    PredictionCreate,
    PredictionList,
    TargetPredictionCreate,
    WhatIfCreate,
    WhatIfRead,
)

router = APIRouter(tags=["predictions"])

_UPLOAD_SECONDS = 120.0
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post("/predictions")
def predict(body: TargetPredictionCreate, session: ReadSession, _: Viewer) -> PredictionList:
    """Price networks of a space on a target with the active latency model.

    Nothing is measured and nothing stored. 404: no such target or space; 409
    `no_latency_model`: the target has to be measured first; 422 names each string that does not
    parse, and what its slot accepts.
    """
    return known.price(known.model_of(session, body.target, body.search_space), body)


@router.post("/latency-models/{model_id}/predictions")
def predict_with(
    model_id: str, body: PredictionCreate, session: ReadSession, _: Viewer
) -> PredictionList:
    """Price networks with one latency model, whichever version is active.

    A stale model, or one of an older measuring protocol, answers and says so in `warnings`.
    """
    return known.price(get_model(session, model_id), body)


@router.post("/latency-models/{model_id}/what-if")
def what_if(model_id: str, body: WhatIfCreate, session: ReadSession, _: Viewer) -> WhatIfRead:
    """What the latency becomes when one slot alone is decided otherwise."""
    return known.exchange(get_model(session, model_id), body)


@router.post("/targets/{target_id}/predictions", openapi_extra=_BODY)
async def predict_file(
    target_id: str,
    request: Request,
    database: CurrentDatabase,
    settings: CurrentSettings,
    readers: FileReaders,
    _: User,
) -> FilePredictionRead:
    """Price any ONNX file on a target, kernel by kernel; the body is the file.

    The file is not run. Shapes must be fixed; a batch that is left open is taken for 1, and data
    must lie inside the file. Operators that were never measured are listed and priced by their
    size, never as nothing.
    """

    def look() -> files.Prices:
        with database.reading() as session:
            return files.prices_of(session, target_id)

    prices = await run_in_threadpool(look)
    with TemporaryDirectory(prefix="tailor-file-") as folder:
        path = Path(folder) / "model.onnx"
        try:
            async with asyncio.timeout(_UPLOAD_SECONDS):
                sha256 = await files.receive(request.stream(), path, settings.max_model_bytes)
        except TimeoutError:
            raise BadRequestError(f"the file did not arrive in {_UPLOAD_SECONDS:g} s") from None
        except ClientDisconnect:
            raise BadRequestError("the file was cut off") from None
        return await to_thread.run_sync(files.price_file, path, sha256, prices, limiter=readers)
