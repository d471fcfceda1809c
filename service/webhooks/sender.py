"""One attempt to deliver: a POST that is bounded in time and in what it reads."""

import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property

import anyio
import httpcore
import httpx

from service.webhooks.guard import ForbiddenReceiverError, Guard, parse_url, port_of

_MOST_READ_BYTES = 16 * 1024


@dataclass(frozen=True)
class Outcome:
    """What became of an attempt.

    Attributes:
        status: that the receiver answered with; None if it did not answer.
        error: what went wrong; None after a 2xx.
        retry_after_seconds: how long the receiver wants to be left alone.
    """

    status: int | None
    latency_ms: float
    error: str | None
    retry_after_seconds: float = 0.0


class Sender:
    """Posts to receivers; follows no redirect, and reads little of an answer.

    Args:
        ports: as in `parse_url`.
        timeout_seconds: for everything from the look-up of the name to the end of the answer.
    """

    def __init__(self, guard: Guard, ports: tuple[int, ...], timeout_seconds: float) -> None:
        self._guard = guard
        self._ports = ports
        self._timeout_seconds = timeout_seconds

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return httpx.create_ssl_context()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        """Make one attempt; never raises for what the receiver does."""
        began = time.perf_counter()
        status: int | None = None
        error: str | None = None
        retry_after_seconds = 0.0
        try:
            with anyio.fail_after(self._timeout_seconds):
                status, retry_after_seconds = await self._exchange(url, headers, body)
            error = _problem_of(status)
        except TimeoutError:
            error = f"no answer within {self._timeout_seconds:g} s"
        except ForbiddenReceiverError as refused:
            error = str(refused)
        except (OSError, httpcore.NetworkError, httpcore.ProtocolError) as failed:
            error = f"{type(failed).__name__}: {failed}".removesuffix(": ")
        latency_ms = 1e3 * (time.perf_counter() - began)
        return Outcome(status, latency_ms, error, retry_after_seconds)

    async def _exchange(
        self, url: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, float]:
        parsed = parse_url(url, self._ports)
        secure = parsed.scheme == "https"
        async with (
            httpcore.AsyncConnectionPool(
                network_backend=self._guard,
                ssl_context=self._tls if secure else None,
                max_keepalive_connections=0,
            ) as pool,
            pool.stream(
                "POST",
                httpcore.URL(
                    scheme=parsed.raw_scheme,
                    host=parsed.raw_host,
                    port=port_of(parsed),
                    target=parsed.raw_path,
                ),
                headers=[("Host", parsed.netloc), *headers.items()],
                content=body,
            ) as response,
        ):
            n_bytes = 0
            async for part in response.aiter_stream():  # a receiver may mind being cut off
                n_bytes += len(part)
                if n_bytes > _MOST_READ_BYTES:
                    break
        answered = httpx.Headers(response.headers)
        return response.status, retry_after_seconds(answered.get("Retry-After", ""))


def _problem_of(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return f"the receiver answered {status}; redirects are not followed, give its final URL"
    return f"the receiver answered {status}"


def retry_after_seconds(header: str) -> float:
    """What a `Retry-After` asks for, as seconds or as a date; 0 when it says nothing useful."""
    if header.isascii() and header.isdecimal():
        return float(header[:10])
    try:
        asked = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    if asked.tzinfo is None:
        asked = asked.replace(tzinfo=UTC)
    return max(0.0, (asked - datetime.now(UTC)).total_seconds())
