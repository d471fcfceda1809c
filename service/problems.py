"""Every error as a problem document (RFC 9457), whatever raised it."""

import traceback
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from search_core.errors import SearchCoreError
from service.errors import FieldProblem, TailorError, from_layers_below
from service.telemetry import logger

_log = logger(__name__)
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error of `app` with ``application/problem+json``."""

    @app.exception_handler(TailorError)
    async def tailor_error(request: Request, error: TailorError) -> JSONResponse:
        return problem(
            request,
            error.status,
            error.code,
            error.title,
            error.detail,
            error.fields,
            **error.extra,
        )

    @app.exception_handler(SearchCoreError)
    async def layer_error(request: Request, error: SearchCoreError) -> JSONResponse:
        known = from_layers_below(error)
        if known is None:
            return await unexpected(request, error)
        return await tailor_error(request, known)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        fields = [_field_problem(item) for item in error.errors()]
        detail = "; ".join(f"{f.field}: {f.message}" for f in fields[:5])
        return problem(request, 422, "invalid_request", "Invalid request", detail, fields)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        code = _HTTP_CODES.get(error.status_code, "http_error")
        detail = f"{request.method} {request.url.path}: {error.detail}"
        return problem(
            request, error.status_code, code, str(error.detail), detail, headers=error.headers
        )

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        _log.error("unexpected error", error="".join(traceback.format_exception(error)))
        return problem(
            request,
            500,
            "internal_error",
            "Internal error",
            "The service failed to answer; its log has the cause under this request_id.",
        )


def problem(
    request: Request,
    status: int,
    code: str,
    title: str,
    detail: str,
    fields: list[FieldProblem] | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    **extra: Any,
) -> JSONResponse:
    """One problem document."""
    request_id = request.scope.get("state", {}).get("request_id")
    document = {
        "type": f"urn:tailor:problem:{code}",
        "title": title,
        "status": status,
        "code": code,
        "detail": detail,
        "request_id": request_id,
        **extra,
    }
    if fields:
        document["errors"] = [{"field": f.field, "message": f.message} for f in fields]
    # a 500 is answered outside our middleware, so the header is set here too
    given = {**(headers or {}), **({"X-Request-Id": request_id} if request_id else {})}
    return JSONResponse(document, status, headers=given, media_type="application/problem+json")


def _field_problem(item: Mapping[str, Any]) -> FieldProblem:
    """Name the field as the client wrote it: ``items.0.measurement.latency_ms``."""
    place = [str(part) for part in item["loc"]]
    within = place[1:] if place[0] in ("body", "query", "path", "header") else place
    return FieldProblem(".".join(within) or place[0], str(item["msg"]))
