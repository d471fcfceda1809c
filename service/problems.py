"""Every error as a problem document (RFC 9457), whatever raised it."""

import errno
import json
import traceback
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

from search_core.errors import SearchCoreError
from service.db.database import STORE_ERRORS
from service.errors import FieldProblem, StoreUnavailableError, TailorError, from_layers_below
from service.middleware import SECURITY_HEADERS
from service.redaction import redact
from service.telemetry import logger

MEDIA_TYPE = "application/problem+json"

_log = logger(__name__)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RETRY_SECONDS = 2
_HTTP_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    416: "range_not_satisfiable",
}
# a body may hold 100,000 mistakes, and a field's name be as long as the body
_MOST_FIELDS = 100
_TOLD_FIELDS = 5
_LONGEST_TEXT = 200


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error of `app` with ``application/problem+json``."""

    @app.exception_handler(TailorError)
    async def tailor_error(request: Request, error: TailorError) -> JSONResponse:
        again = error.extra.get("retry_after_seconds")
        return problem(
            request,
            error.status,
            error.code,
            error.title,
            error.detail,
            error.fields,
            headers={} if again is None else {"Retry-After": str(again)},
            **error.extra,
        )

    async def store_error(request: Request, error: Exception) -> JSONResponse:
        _log.error("the store does not answer", error=str(error))
        what = "does not answer"
        if str(getattr(error, "orig", "")).startswith("no such"):  # SQLite: a table or a column
            return await unexpected(request, error)
        if isinstance(error, OSError):
            if error.errno not in _FULL:
                return await unexpected(request, error)
            what = "has no room left"
        return await tailor_error(
            request,
            StoreUnavailableError(
                f"the store {what}; send the same request again, with its Idempotency-Key if it "
                "makes something",
                retry_after_seconds=_RETRY_SECONDS,
            ),
        )

    for kind in (*STORE_ERRORS, PoolTimeoutError, OSError):
        app.add_exception_handler(kind, store_error)

    @app.exception_handler(SearchCoreError)
    async def layer_error(request: Request, error: SearchCoreError) -> JSONResponse:
        known = from_layers_below(error)
        if known is None:
            return await unexpected(request, error)
        return await tailor_error(request, known)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = error.errors()
        fields = [_field_problem(item) for item in errors[:_MOST_FIELDS]]
        told = [f"{f.field}: {f.message}" for f in fields[:_TOLD_FIELDS]]
        if len(errors) > len(told):
            told.append(f"and {len(errors) - len(told)} more")
        detail = "; ".join(told)
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


class _ProblemResponse(JSONResponse):
    """JSON that is always valid UTF-8: a name that comes back may hold half a character."""

    media_type = MEDIA_TYPE

    def render(self, content: Any) -> bytes:
        """As text, with what cannot be written replaced."""
        return json.dumps(content, ensure_ascii=False, allow_nan=False).encode(errors="replace")


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
        "detail": redact(detail),
        "request_id": request_id,
        **extra,
    }
    if fields:
        document["errors"] = [
            {"field": redact(f.field), "message": redact(f.message)} for f in fields
        ]
    # a 500 is answered outside our middleware, so its headers are set here too
    given = {**SECURITY_HEADERS, **(headers or {})}
    if request_id:
        given["X-Request-Id"] = request_id
    return _ProblemResponse(document, status, headers=given)


def _field_problem(item: Mapping[str, Any]) -> FieldProblem:
    """Name the field as the client wrote it: ``items.0.measurement.latency_ms``."""
    place = [str(part) for part in item["loc"]]
    within = place[1:] if place[0] in ("body", "query", "path", "header") else place
    name = ".".join(within) or place[0]
    return FieldProblem(_short(name), _short(str(item["msg"])))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."
