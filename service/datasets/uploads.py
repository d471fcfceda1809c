"""Uploads: taken in piece by piece, straight into the artifact store, and checked by a job."""

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

from fastapi.concurrency import contextmanager_in_threadpool, run_in_threadpool
from starlette.requests import ClientDisconnect

from service.artifacts import ArtifactStore
from service.datasets.archives import container_of
from service.errors import BadRequestError, InvalidRequestError, PayloadTooLargeError

_PIECE_BYTES = 2**20
_QUIET_SECONDS = 60.0
"""A sender that sends nothing for so long is given up."""


@dataclass(frozen=True)
class Received:
    """A file in the artifact store."""

    sha256: str
    size_bytes: int


def announced_sha256(digest: str | None, x_content_sha256: str | None) -> str | None:
    """What the sender says of the body, hexadecimal; None when he says nothing.

    Raises:
        BadRequestError: a header that cannot be read, or two that differ.
    """
    told = set()
    if x_content_sha256 is not None:
        told.add(x_content_sha256.strip().lower())
    for part in (digest or "").split(","):
        name, _, value = part.strip().partition("=")
        if name.lower() == "sha-256":
            try:
                told.add(base64.b64decode(value, validate=True).hex())
            except binascii.Error as error:
                raise BadRequestError(f"Digest is no base64: {error}") from error
    if len(told) > 1 or any(not re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in told):
        raise BadRequestError(
            "send one SHA-256: `X-Content-SHA256: HEX`, or `Digest: sha-256=BASE64`"
        )
    return next(iter(told), None)


async def receive(
    stream: AsyncIterator[bytes],
    artifacts: ArtifactStore,
    *,
    max_bytes: int,
    expected_sha256: str | None,
) -> Received:
    """Store a body as it arrives; whatever goes wrong, nothing of it is kept.

    Raises:
        PayloadTooLargeError: it is longer; no more than that was taken in.
        InvalidRequestError: it is no `.npz`, `.zip` or `.tar.gz`.
        BadRequestError: it was cut off, stands still, or is not what the sender says.
    """
    async with contextmanager_in_threadpool(artifacts.writing()) as incoming:
        async for piece in _pieces(stream):
            if incoming.size_bytes == 0:
                _check_head(piece)
            if incoming.size_bytes + len(piece) > max_bytes:
                raise PayloadTooLargeError(f"the file is larger than {max_bytes} bytes")
            await run_in_threadpool(incoming.write, piece)
        if incoming.size_bytes == 0:
            raise InvalidRequestError("send the file as the body", field="file")
        if expected_sha256 not in (None, incoming.sha256):
            raise BadRequestError(
                f"the body has the SHA-256 {incoming.sha256}, not {expected_sha256} as announced; "
                "it was damaged on its way, send it again"
            )
    return Received(incoming.sha256, incoming.size_bytes)


async def _pieces(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The body in pieces of a size that is worth a thread's while."""
    held = bytearray()
    while True:
        try:
            async with asyncio.timeout(_QUIET_SECONDS):
                held += await anext(stream)
        except StopAsyncIteration:
            break
        except TimeoutError:
            raise BadRequestError(f"nothing has arrived for {_QUIET_SECONDS:g} s") from None
        except ClientDisconnect:
            raise BadRequestError("the file was cut off") from None
        if len(held) >= _PIECE_BYTES:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


def _check_head(piece: bytes) -> None:
    if container_of(piece) is None:
        raise InvalidRequestError(
            "the body is no .npz, .zip or .tar.gz; send the file as it is, not as a form",
            field="file",
        )
