"""ASGI middleware: request ids and the limit on bodies."""

import asyncio
import json
import re
import zlib

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from ulid import ULID

from service.errors import (
    BadRequestError,
    NotFoundError,
    PayloadTooLargeError,
    TailorError,
    UnsupportedEncodingError,
)

_STREAMED = re.compile("/v1/targets/[^/]+/predictions")
"""Bodies that a route takes in piece by piece, within a limit of its own."""


class RequestId:
    """Takes or makes `X-Request-Id`, binds it to the log and sends it back."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if given.isascii() and given.isprintable() and given else str(ULID())
        scope["state"]["request_id"] = request_id[:100]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id[:100]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id[:100]):
            await self._app(scope, receive, send_with_id)


class BodyLimit:
    """Answers 413 to a body over the limit, announced or not, before any route sees it.

    A body that does not arrive within `max_seconds` is refused, too: whoever sends it byte by
    byte holds nothing for long.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_seconds: float = 120.0) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if "\0" in scope["path"]:  # no id has one, and PostgreSQL cannot look for it
            return await refuse(scope, send, NotFoundError("no path contains NUL"))
        if _STREAMED.fullmatch(scope["path"]):
            return await self._app(scope, receive, send)
        too_large = PayloadTooLargeError(f"the body is larger than {self._max_bytes} bytes")
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            return await refuse(scope, send, too_large)
        try:
            async with asyncio.timeout(self._max_seconds):
                body = await self._read(receive)
        except TimeoutError:
            late = f"the body did not arrive within {self._max_seconds:g} s"
            return await refuse(scope, send, BadRequestError(late))
        if body is None:
            return None  # the client has gone
        if len(body) > self._max_bytes:
            return await refuse(scope, send, too_large)
        await self._app(scope, _once(body, receive), send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body, or as much as shows that it is too large; None when it was cut off.

        Routes need it whole, and it is small.
        """
        parts = []
        n_bytes = 0
        while n_bytes <= self._max_bytes:
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


async def refuse(scope: Scope, send: Send, error: TailorError) -> None:
    """Answer with a problem document before any route has seen the request."""
    body = json.dumps(
        {
            "type": f"urn:tailor:problem:{error.code}",
            "title": error.title,
            "status": error.status,
            "code": error.code,
            "detail": error.detail,
            "request_id": scope["state"].get("request_id"),
        }
    ).encode()
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send(
        {
            "type": "http.response.start",
            "status": error.status,
            "headers": headers,
        }
    )
    await send({"type": "http.response.body", "body": body})
