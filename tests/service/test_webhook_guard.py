"""Where deliveries may go, and where not, whatever the address is written like."""

import socket
import threading
from ipaddress import ip_address, ip_network

import anyio
import httpcore
import pytest

from service.webhooks.guard import ForbiddenReceiverError, Guard, is_public, parse_url
from service.webhooks.sender import Sender, retry_after_seconds

INSIDE = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:a9fe:a9fe",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a00:1",
    "2002:7f00:1::",
    "2001:0:7f00:1::",
    "2001:db8::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("text", INSIDE)
def test_an_address_inside_is_not_public(text):
    assert not is_public(ip_address(text))


@pytest.mark.parametrize("text", ["1.1.1.1", "93.184.215.14", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_an_address_of_the_internet_is_public(text):
    assert is_public(ip_address(text))


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.1",
        "2130706433",
        "0x7f000001",
        "017700000001",
        "0177.0.0.1",
        "0x7f.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[0:0:0:0:0:ffff:7f00:1]",
    ],
)
def test_however_this_machine_is_written_it_is_refused(host):
    sender = Sender(Guard(), (), timeout_seconds=20)
    with socket.create_server(("127.0.0.1", 0)) as inside:
        url = f"http://{host}:{inside.getsockname()[1]}/"
        outcome = anyio.run(sender.post, url, {}, b"{}")
        inside.settimeout(0.05)
        with pytest.raises(TimeoutError):
            inside.accept()
    assert outcome.status is None
    assert "not a public address" in outcome.error or "not a URL" in outcome.error


def test_one_inner_address_among_public_ones_is_enough_to_refuse():
    async def resolve(_host: str, _port: int) -> list[str]:
        return ["1.1.1.1", "10.0.0.1"]

    with pytest.raises(ForbiddenReceiverError, match=r"10\.0\.0\.1"):
        anyio.run(Guard(resolve=resolve).addresses, "example.org", 443)


def test_a_name_that_changes_its_mind_is_asked_once_and_gains_nothing():
    asked = []

    async def resolve(host: str, _port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.2" if len(asked) == 1 else "127.0.0.1"]

    guard = Guard([ip_network("127.0.0.2/32")], resolve)
    sender = Sender(guard, (), timeout_seconds=20)
    hosts = []

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            hosts.append(connection.recv(65536).split(b"\r\n")[1])
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.2", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        first = anyio.run(sender.post, f"http://changes.test:{port}/", {}, b"{}")
        thread.join()
        second = anyio.run(sender.post, f"http://changes.test:{port}/", {}, b"{}")
    assert (first.status, first.error) == (200, None)
    assert hosts == [f"Host: changes.test:{port}".encode()]
    assert "127.0.0.1" in second.error
    assert len(asked) == 2


def test_networks_that_the_operator_allows_are_allowed_and_no_others():
    guard = Guard([ip_network("10.1.0.0/16"), ip_network("fd00::/8")])
    for host in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::1"):
        assert anyio.run(guard.addresses, host, 80)
    with pytest.raises(ForbiddenReceiverError):
        anyio.run(guard.addresses, "10.2.0.1", 80)


def test_the_next_address_is_tried_when_one_does_not_answer():
    async def resolve(_host: str, _port: int) -> list[str]:
        return ["127.0.0.9", "127.0.0.1"]  # nobody listens on the first

    async def connect(port: int) -> None:
        guard = Guard([ip_network("127.0.0.0/8")], resolve)
        stream = await guard.connect_tcp("two.test", port, timeout=20)
        await stream.aclose()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        anyio.run(connect, port)
    with pytest.raises(httpcore.ConnectError):
        anyio.run(connect, port)


def test_only_the_ports_set_are_allowed():
    assert parse_url("https://example.org/", (443,)).host == "example.org"
    with pytest.raises(ForbiddenReceiverError, match="443"):
        parse_url("https://example.org:22/", (443,))


def test_nobody_there_and_nonsense_are_outcomes_and_not_errors():
    guard = Guard([ip_network("127.0.0.0/8")])
    sender = Sender(guard, (), timeout_seconds=20)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    outcome = anyio.run(sender.post, f"http://127.0.0.1:{port}/", {}, b"{}")
    assert "ConnectError" in outcome.error
    assert "ftp" not in (anyio.run(sender.post, "ftp://127.0.0.1/", {}, b"{}").error or "ftp")

    def babble(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"this is no HTTP\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=babble, args=(listener,))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        assert "RemoteProtocolError" in anyio.run(sender.post, url, {}, b"{}").error
        thread.join()


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("", 0, 0),
        ("120", 120, 120),
        ("-5", 0, 0),
        ("soon", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("Wed, 21 Oct 2099 07:28:00 GMT", 1e9, 1e10),
        ("9" * 5000, 1e9, 1e10),
        ("Wed, 99 Oct 9999 99:99:99 GMT", 0, 0),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(header, low, high):
    assert low <= retry_after_seconds(header) <= high
