"""One log line and one observation a request, by the template of its route."""

import re
import time

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.operations.metrics import Instruments
from service.routing import route_template
from service.telemetry import logger

_TRACEPARENT = re.compile("[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_QUIET = ("/healthz", "/readyz", "/metrics")
"""Asked every few seconds by machines; logged when they fail."""

_log = logger(__name__)


class RequestLog:
    """Logs method, route, status, milliseconds and who asked; never a query, header or body.

    A W3C `traceparent` that comes in is bound to every line of the request, so that they can
    be found from the trace that they belong to.
    """

    def __init__(self, app: ASGIApp, instruments: Instruments) -> None:
        self._app = app
        self._instruments = instruments

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status = 500  # unless an answer begins
        began = time.perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with structlog.contextvars.bound_contextvars(**_trace(scope)):
            try:
                await self._app(scope, receive, noted)
            finally:
                self._note(scope, status, time.perf_counter() - began)
        return None

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = route_template(scope)
        self._instruments.request(method, route, status, seconds)
        if status < 400 and route in _QUIET:
            return
        principal = scope["state"].get("principal")
        _log.info(
            "request",
            method=method,
            route=route,
            status=status,
            ms=round(1e3 * seconds, 1),
            key=principal.id if principal is not None else None,
            **_subjects(scope),
        )


def _trace(scope: Scope) -> dict[str, str]:
    """The trace and the span that a request belongs to, when it says so."""
    given = _TRACEPARENT.fullmatch(Headers(scope=scope).get("traceparent", ""))
    return {"trace_id": given[1], "parent_span_id": given[2]} if given else {}


def _subjects(scope: Scope) -> dict[str, str]:
    """The ids in the path, under their names; what else a path holds may be a secret."""
    given = scope.get("path_params", {}).items()
    return {name: str(value)[:100] for name, value in given if name.endswith("_id")}
