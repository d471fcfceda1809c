"""ASGI middleware: request ids and the limit on bodies."""

import json
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
    """Answers 413 to a body over the limit, announced or not, before any route sees it."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if "\0" in scope["path"]:  # no id has one, and PostgreSQL cannot look for it
            return await self._refuse(scope, send, NotFoundError("no path contains NUL"))
        too_large = PayloadTooLargeError(f"the body is larger than {self._max_bytes} bytes")
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            return await self._refuse(scope, send, too_large)

        received: list[Message] = []
        n_bytes = 0
        while True:  # read the whole body first: routes need it whole, and it is small
            message = await receive()
            received.append(message)
            n_bytes += len(message.get("body", b""))
            if n_bytes > self._max_bytes:
                return await self._refuse(scope, send, too_large)
            if message["type"] != "http.request" or not message.get("more_body", False):
                break

        async def replay() -> Message:
            return received.pop(0) if received else await receive()

        await self._app(scope, replay, send)

    async def _refuse(self, scope: Scope, send: Send, error: TailorError) -> None:
        await refuse(scope, send, error)


class Gunzip:
    """Unpacks bodies sent with `Content-Encoding: gzip`, up to the limit and no further.

    `BodyLimit` stands outside, so a body arrives here whole and in one piece or in few.
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
        packed = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            packed += message.get("body", b"")
            if not message.get("more_body", False):
                break
        try:
            body = self._unpack(packed)
        except TailorError as error:
            return await refuse(scope, send, error)
        headers = MutableHeaders(scope=scope)
        del headers["content-encoding"]
        headers["content-length"] = str(len(body))
        unpacked: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return unpacked.pop() if unpacked else await receive()

        await self._app(scope, replay, send)

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
