"""Where deliveries may go: never to an address inside, unless the operator allows its network.

A name is resolved once a connection, every address it has is checked, and the connection is
made to an address that was checked; so a name that changes its mind in between gains nothing.
"""

import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import anyio
import httpcore
import httpx
from anyio import CapacityLimiter, to_thread

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

_LONGEST_URL = 2000
_HIGHEST_PORT = 65_535
_LOOKUPS_AT_ONCE = 16
_EMBEDDING_IPV4 = tuple(
    ip_network(text)
    for text in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96")
)
"""IPv6 networks whose addresses lead to an IPv4 address: NAT64, 6to4, Teredo, compatible."""


class ForbiddenReceiverError(Exception):
    """The URL, or an address it leads to, is not one that deliveries may go to."""


def parse_url(url: str, ports: Sequence[int] = ()) -> httpx.URL:
    """The URL of a receiver, if its form is one that deliveries may go to.

    Args:
        ports: those allowed; none allows every port.

    Raises:
        ForbiddenReceiverError: saying what is wrong with it.
    """
    if len(url) > _LONGEST_URL:
        raise ForbiddenReceiverError(f"a URL has at most {_LONGEST_URL} characters")
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise ForbiddenReceiverError(f"this is not a URL: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ForbiddenReceiverError("a receiver's URL begins with https:// or http:// and a host")
    if parsed.userinfo:
        raise ForbiddenReceiverError(
            "a receiver's URL holds no user name or password; deliveries are signed instead"
        )
    if parsed.fragment:
        raise ForbiddenReceiverError("a receiver's URL has no fragment (#...)")
    if not 1 <= port_of(parsed) <= _HIGHEST_PORT:
        raise ForbiddenReceiverError(f"a port lies between 1 and {_HIGHEST_PORT}")
    if ports and port_of(parsed) not in ports:
        allowed = ", ".join(map(str, ports))
        raise ForbiddenReceiverError(f"port {port_of(parsed)} is not one of: {allowed}")
    return parsed


def port_of(url: httpx.URL) -> int:
    """The port that a URL leads to, given or its scheme's."""
    return url.port if url.port is not None else 443 if url.scheme == "https" else 80


def is_public(address: Address) -> bool:
    """Whether an address is one of the internet's, and hides none of another kind."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address.is_site_local or any(address in network for network in _EMBEDDING_IPV4):
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


class Guard(httpcore.AsyncNetworkBackend):
    """Connects to public addresses and to those in the networks allowed, and to no other.

    Args:
        allowed: networks inside that deliveries may go to all the same.
        resolve: the addresses of a name and port; the system's resolver if None.
    """

    def __init__(self, allowed: Iterable[Network] = (), resolve: Resolve | None = None) -> None:
        self._allowed = tuple(allowed)
        self._lookups = CapacityLimiter(_LOOKUPS_AT_ONCE)
        self._resolve = resolve or self._ask_system
        self._tcp = httpcore.AnyIOBackend()

    async def addresses(self, host: str, port: int) -> list[str]:
        """Every address of a host, checked.

        Raises:
            ForbiddenReceiverError: one of them may not be connected to.
            OSError: the name has none.
        """
        found = [ip_address(text) for text in await self._resolve(host, port)]
        for address in found:
            if not self._allows(address):
                raise ForbiddenReceiverError(
                    f"{host} leads to {address}, which is not a public address; whoever runs this "
                    "service can allow its network in TAILOR_WEBHOOK_ALLOWED_NETWORKS"
                )
        return [str(address) for address in found]

    def _allows(self, address: Address) -> bool:
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return is_public(address) or any(address in network for network in self._allowed)

    async def _ask_system(self, host: str, port: int) -> list[str]:
        try:
            found = await to_thread.run_sync(
                lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM),
                abandon_on_cancel=True,
                limiter=self._lookups,
            )
        except UnicodeError as error:  # a label that is empty, or longer than names allow
            raise OSError(f"{host[:100]} is not a host name: {error}") from error
        return list(dict.fromkeys(str(place[0]) for *_, place in found))

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first address of `host` that answers."""
        addresses = await self.addresses(host, port)
        for i, address in enumerate(addresses):
            try:
                return await self._tcp.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if i == len(addresses) - 1:
                    raise
        raise httpcore.ConnectError(f"{host} has no address")

    async def sleep(self, seconds: float) -> None:
        """Wait between two tries of a connection."""
        await anyio.sleep(seconds)
