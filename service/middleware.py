"""ASGI middleware: request ids, headers of every answer, and limits on requests and bodies."""

import asyncio
import json
import re
import zlib
from collections.abc import Mapping, Sequence

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from ulid import ULID

from service.auth.limits import Caller, Limits
from service.errors import (
    BadRequestError,
    NotFoundError,
    PayloadTooLargeError,
    RateLimitedError,
    TailorError,
    UnsupportedEncodingError,
)
from service.redaction import redact
from service.telemetry import logger

_STREAMED = re.compile("/v1/(targets/[^/]+/predictions|datasets/uploads)")
"""Bodies that a route takes in piece by piece, within a limit of its own."""

_LARGE = re.compile("/v1/(measurements|predictions|latency-models/[^/]+/predictions)")
"""Bodies that hold many items."""

_PROBES = ("/healthz", "/readyz")
"""Asked by whoever restarts the process; never refused for what others at his address do."""

_DOCUMENTATION = ("/docs", "/redoc")
"""FastAPI's own pages, which load scripts from elsewhere."""

_DENY_ALL = "default-src 'none'; frame-ancestors 'none'"
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": _DENY_ALL,
}
_PORT = re.compile(r":\d*$")
_HTTPS_ONLY = "max-age=63072000; includeSubDomains"
_log = logger(__name__)


class RequestId:
    """Takes or makes `X-Request-Id`, binds it to the log and sends it back."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = redact(Headers(scope=scope).get("x-request-id", ""))
        usable = given.isascii() and given.isprintable() and given
        request_id = given[:100] if usable else str(ULID())
        scope["state"]["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await self._app(scope, receive, send_with_id)


class SecurityHeaders:
    """Sets what browsers should know of every answer, unless its route knows better.

    Args:
        https: people reach the API by https, so that browsers may forget http.
        hosts: the `Host` headers that are answered; none: every one.
    """

    def __init__(self, app: ASGIApp, *, https: bool, hosts: Sequence[str]) -> None:
        self._app = app
        self._headers = SECURITY_HEADERS | (
            {"Strict-Transport-Security": _HTTPS_ONLY} if https else {}
        )
        self._hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                if scope["path"] in _DOCUMENTATION:
                    headers["Content-Security-Policy"] = "frame-ancestors 'none'"
                is_json = "json" in headers.get("content-type", "")
                if is_json and ("authorization" in given or "cookie" in given):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        host = _PORT.sub("", given.get("host", "")).strip("[]").lower()
        if self._hosts and host not in self._hosts and scope["path"] not in _PROBES:
            wrong = BadRequestError(f"this API does not answer for the host {host[:200]!r}")
            return await refuse(scope, send_with_headers, wrong)
        await self._app(scope, receive, send_with_headers)


class RateLimit:
    """Answers 429 to who asks too often or fails to sign in too often; tells all how they stand."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] in _PROBES:
            return await self._app(scope, receive, send)
        caller = Caller.of(scope)
        try:
            standing = self._limits.admit(caller)
        except RateLimitedError as error:
            _log.warning(
                "refused", status=error.status, detail=error.detail, address=caller.address
            )
            retry = {"Retry-After": str(error.extra["retry_after_seconds"])}
            return await refuse(scope, send, error, retry)

        async def send_with_standing(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] == 401 and caller.may_fail:
                    self._limits.failed(caller)
                    _log.warning("failed sign-in", address=caller.address)
                elif "principal" in scope["state"] or "agent" in scope["state"]:
                    self._limits.succeeded(caller)
                if standing is not None:
                    MutableHeaders(scope=message).update(standing.headers())
            await send(message)

        await self._app(scope, receive, send_with_standing)


class BodyLimit:
    """Answers 413 to a body over the limit, announced or not, before any route sees it.

    Most requests are a few lines, and anybody may send them; only those that hold many items
    may be large. A body that does not arrive within `max_seconds` is refused, too: whoever sends
    it byte by byte holds nothing for long.
    """

    def __init__(
        self, app: ASGIApp, *, max_bytes: int, max_small_bytes: int, max_seconds: float = 120.0
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_small_bytes = min(max_small_bytes, max_bytes)
        self._max_seconds = max_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if "\0" in scope["path"]:  # no id has one, and PostgreSQL cannot look for it
            return await refuse(scope, send, NotFoundError("no path contains NUL"))
        if _STREAMED.fullmatch(scope["path"]):
            return await self._app(scope, receive, send)
        is_large = _LARGE.fullmatch(scope["path"]) is not None
        max_bytes = self._max_bytes if is_large else self._max_small_bytes
        too_large = PayloadTooLargeError(f"the body is larger than {max_bytes} bytes")
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced) > max_bytes:
            return await refuse(scope, send, too_large)
        try:
            async with asyncio.timeout(self._max_seconds):
                body = await _read(receive, max_bytes)
        except TimeoutError:
            late = f"the body did not arrive within {self._max_seconds:g} s"
            return await refuse(scope, send, BadRequestError(late))
        if body is None:
            return None  # the client has gone
        if len(body) > max_bytes:
            return await refuse(scope, send, too_large)
        await self._app(scope, _once(body, receive), send)


async def _read(receive: Receive, max_bytes: int) -> bytes | None:
    """The whole body, or as much as shows that it is too large; None when it was cut off.

    Routes need it whole, and it is small.
    """
    parts = []
    n_bytes = 0
    while n_bytes <= max_bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        n_bytes += len(parts[-1])
        if not message.get("more_body", False):
            break
    return b"".join(parts)


class Gunzip:
    """Unpacks bodies sent with `Content-Encoding: gzip`, up to the limit and no further.

    `BodyLimit` stands outside, so a body arrives here whole and in one piece.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        encoding = Headers(scope=scope).get("content-encoding") if scope["type"] == "http" else None
        if encoding is None or encoding.lower() == "identity":
            return await self._app(scope, receive, send)
        if encoding.lower() != "gzip":
            return await refuse(
                scope,
                send,
                UnsupportedEncodingError(f"Content-Encoding {encoding[:50]!r} is not gzip"),
            )
        if _STREAMED.fullmatch(scope["path"]):
            return await refuse(
                scope, send, UnsupportedEncodingError("send this file as it is, without gzip")
            )
        packed = (await receive())["body"]
        try:
            body = self._unpack(packed)
        except TailorError as error:
            return await refuse(scope, send, error)
        headers = MutableHeaders(scope=scope)
        del headers["content-encoding"]
        headers["content-length"] = str(len(body))
        await self._app(scope, _once(body, receive), send)

    def _unpack(self, packed: bytes) -> bytes:
        machine = zlib.decompressobj(wbits=31)
        try:
            body = machine.decompress(packed, self._max_bytes + 1)
        except zlib.error as error:
            raise BadRequestError(f"the body is not gzip: {error}") from error
        if len(body) > self._max_bytes:
            raise PayloadTooLargeError(
                f"the body unpacks to more than {self._max_bytes} bytes; send smaller batches"
            )
        if not machine.eof or machine.unused_data:
            raise BadRequestError("the gzip body is cut short or has something behind its end")
        return body


def _once(body: bytes, receive: Receive) -> Receive:
    """Gives `body` in one piece, then what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


async def refuse(
    scope: Scope, send: Send, error: TailorError, extra: Mapping[str, str] | None = None
) -> None:
    """Answer with a problem document before any route has seen the request."""
    body = json.dumps(
        {
            "type": f"urn:tailor:problem:{error.code}",
            "title": error.title,
            "status": error.status,
            "code": error.code,
            "detail": redact(error.detail),
            "request_id": scope["state"].get("request_id"),
            **error.extra,
        }
    ).encode()
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *((name.encode(), value.encode()) for name, value in (extra or {}).items()),
    ]
    await send(
        {
            "type": "http.response.start",
            "status": error.status,
            "headers": headers,
        }
    )
    await send({"type": "http.response.body", "body": body})
