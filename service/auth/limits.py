"""How many requests are answered: token buckets, in the memory of each process.

Several API processes keep a bucket each, so that together they answer more. A proxy in front
must be trusted (`FORWARDED_ALLOW_IPS`, as uvicorn reads it), or all its clients share an address.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Self

from cachetools import LRUCache
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import Scope

from service.auth.tokens import token_hash
from service.errors import RateLimitedError
from service.sessions.csrf import COOKIE
from service.settings import Settings

_BUCKETS = 20_000
_MINUTE = 60.0
_REDEEMS = ("/v1/agents",)
"""Where a secret, an enrolment code, comes in the body."""


@dataclass(frozen=True)
class Standing:
    """What a bucket holds after a request.

    Attributes:
        reset_seconds: until it is full again.
        retry_seconds: until it holds a token; 0 when the request had one.
    """

    limit: int
    remaining: int
    reset_seconds: float
    retry_seconds: float

    def headers(self) -> dict[str, str]:
        """As an answer tells it."""
        return {
            "RateLimit-Limit": str(self.limit),
            "RateLimit-Remaining": str(self.remaining),
            "RateLimit-Reset": str(math.ceil(self.reset_seconds)),
        }


@dataclass(frozen=True)
class Caller:
    """Who sends a request, as far as can be told before anything is looked up.

    Attributes:
        secret: hash of the key, token or cookie it came with; None: of none.
        address: of the client; of IPv6 the /64, which is all one client's.
        may_fail: it came with a secret, and that may be wrong.
    """

    secret: str | None
    address: str
    is_agent: bool
    may_fail: bool

    @classmethod
    def of(cls, scope: Scope) -> Self:
        """The sender of an HTTP request."""
        headers = Headers(scope=scope)
        secret = headers.get("authorization") or cookie_parser(headers.get("cookie", "")).get(
            COOKIE
        )
        client = scope.get("client")
        return cls(
            secret=token_hash(secret) if secret else None,
            address=_network(client[0]) if client else "",
            is_agent=secret is not None and "tla_" in secret,
            may_fail=secret is not None or scope["path"] in _REDEEMS,
        )


class TokenBuckets:
    """Buckets of `per_minute` tokens by name, each refilled evenly.

    A bucket is one number, the moment at which it would be full again (the generic cell rate
    algorithm, ITU-T I.371). Those used longest ago are forgotten first, and so are full.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._full_at: LRUCache[str, float] = LRUCache(_BUCKETS)

    def look(self, name: str) -> Standing:
        """How the bucket stands; nothing is taken."""
        return self._standing(max(self._full_at.get(name, 0.0) - self._clock(), 0.0))

    def take(self, name: str) -> Standing:
        """Take a token if there is one."""
        before = self.look(name)
        if before.retry_seconds > 0:
            return before
        missing_seconds = before.reset_seconds + _MINUTE / self.per_minute
        self._full_at[name] = self._clock() + missing_seconds
        after = self._standing(missing_seconds)
        return Standing(after.limit, after.remaining, missing_seconds, 0.0)

    def _standing(self, missing_seconds: float) -> Standing:
        each = _MINUTE / self.per_minute
        # a microsecond, lest a sum of shares of a minute count as more than a minute
        remaining = int((_MINUTE - missing_seconds + 1e-6) / each)
        retry = 0.0 if remaining else missing_seconds + each - _MINUTE
        return Standing(self.per_minute, remaining, missing_seconds, retry)


class Limits:
    """Who may ask how often; used by one thread, the event loop's.

    A key, an agent or a session has a bucket of its own once it was found good; whoever was not
    shares that of his address, so that guessing tokens opens no new buckets. Failed sign-ins have
    a strict one: when it is empty, no unknown secret is even looked up.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._people = TokenBuckets(settings.requests_per_minute, clock)
        self._agents = TokenBuckets(settings.agent_requests_per_minute, clock)
        self._failures = TokenBuckets(settings.failed_sign_ins_per_minute, clock)
        self._good: LRUCache[str | None, bool] = LRUCache(_BUCKETS)

    def admit(self, caller: Caller) -> Standing | None:
        """Count one request; None where nothing limits it.

        Raises:
            RateLimitedError: too many, or too many failed sign-ins of the address.
        """
        is_good = caller.secret in self._good
        if caller.may_fail and not is_good and self._failures.per_minute:
            failed = self._failures.look(caller.address)
            if failed.retry_seconds:
                raise _refused(failed, "too many failed sign-ins of this address")
        buckets = self._agents if is_good and caller.is_agent else self._people
        if not buckets.per_minute:
            return None
        standing = buckets.take(caller.secret if is_good and caller.secret else caller.address)
        if standing.retry_seconds:
            whose = "this key" if is_good else "this address without a valid key"
            raise _refused(standing, f"more than {standing.limit} requests a minute of {whose}")
        return standing

    def succeeded(self, caller: Caller) -> None:
        """What the caller sent was somebody's."""
        if caller.secret is not None:
            self._good[caller.secret] = True

    def failed(self, caller: Caller) -> None:
        """What the caller sent was nobody's."""
        self._good.pop(caller.secret, None)
        if self._failures.per_minute:
            self._failures.take(caller.address)


def _network(address: str) -> str:
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    return str(IPv6Address(int(parsed) >> 64 << 64)) if parsed.version == 6 else address


def _refused(standing: Standing, why: str) -> RateLimitedError:
    seconds = math.ceil(standing.retry_seconds)
    return RateLimitedError(f"{why}; come again in {seconds} s", retry_after_seconds=seconds)
