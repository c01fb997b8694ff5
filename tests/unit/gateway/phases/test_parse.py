"""The parse phase: hosts, and the bounds of the parser's memory."""

from __future__ import annotations

import gc
import sys

import pytest

from proxy.core.model import Access
from tests.unit.gateway.ingress import connected
from tests.unit.gateway.kit import Gateway, answering, get, make_route, response, serving


def ask(gateway: Gateway, *heads: bytes) -> bytes:
    """The response to ``heads`` on a new connection."""
    connection, wire = connected(gateway, "192.0.2.1")
    for head in heads:
        connection.data_received(head)
    connection.connection_lost(None)
    return wire.sent


def to(host: bytes, *lines: str) -> bytes:
    return get("/shut/a", *lines).replace(b"Host: gateway", b"Host: " + host)


def remembered(gateway: Gateway) -> int:
    """Bytes in the parser's memos."""
    memos = [each for each in gc.get_referents(gateway.listener.parser) if type(each) is dict]
    # Where the parser is not compiled, one of them is that of its attributes.
    memos += [each for memo in memos for each in memo.values() if type(each) is dict]
    entries = [entry for memo in memos for entry in memo.items() if type(entry[0]) is bytes]
    assert entries
    return sum(sys.getsizeof(part) for entry in entries for part in entry)


async def test_two_thousand_long_hosts_are_refused_and_not_remembered() -> None:
    gateway = Gateway(9)
    assert ask(gateway, to(b"example.com")).startswith(b"HTTP/1.1 403 ")
    before = remembered(gateway)
    for number in range(2000):
        for host in (b"%d" % number + b"a" * 30_000, b"a." * 15_000 + b"%d" % number):
            assert ask(gateway, to(host)).startswith(b"HTTP/1.1 400 ")
    assert remembered(gateway) == before


async def test_the_memory_for_hosts_and_field_names_is_bounded() -> None:
    gateway = Gateway(9)
    tail = b".".join(b"a" * 63 for _ in range(3))
    name = "x-forwarded-host"
    for number in range(20_000):
        spelling = "".join(letter.upper() if number >> at & 1 else letter for at, letter in enumerate(name))
        head = to(b"h%d.%s" % (number, tail), f"{spelling}: x", f"X-{number}-{'y' * 200}: x")
        assert ask(gateway, head).startswith(b"HTTP/1.1 403 ")
    assert remembered(gateway) < 4 * 1024 * 1024


@pytest.mark.parametrize(
    "host",
    [
        b"a..b", b"%61dmin.example.com", b"a" * 64, b"a." * 128, b"a" * 30_000, b"h:99999", b"h:080", b"[:::::::]",
        b"[::1]:65536", b"[fe80::1%25lo]", b"127.1", b"0177.0.0.1",
    ],
)  # fmt: skip
async def test_a_host_that_is_not_a_name_is_refused_and_the_connection_closes(host: bytes) -> None:
    async with serving(answering(response())) as (gateway, backend):
        client = await gateway.client()
        client.send(to(host) + get("/open/b"))
        answer = await client.answer()
        assert (answer.status, answer.closes) == (400, True)
        assert await client.rest() == b""
        assert backend.connections == []


@pytest.mark.parametrize("host", [b"[::1]:80", b"[0:0::1]", b"example.com.", b"localhost", b"a." * 127 + b"a"])
async def test_a_valid_host_is_forwarded_as_received(host: bytes) -> None:
    async with serving(answering(response())) as (gateway, backend):
        client = await gateway.client()
        assert (await client.ask(get("/open/a").replace(b"Host: gateway", b"Host: " + host))).status == 200
        assert b"\r\nHost: " + host + b"\r\n" in backend.connections[0].head


@pytest.mark.parametrize("host", [b"h:99999", b"[:::::::]", b"127.1"])
async def test_an_absolute_form_with_an_invalid_host_is_refused(host: bytes) -> None:
    gateway = Gateway(9)
    data = b"GET http://" + host + b"/shut/a HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"
    assert ask(gateway, data).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("host", [b"[::1]", b"[0:0:0:0:0:0:0:1]", b"[0::01]:80", b"[::0001]"])
async def test_an_address_has_one_form_for_routes_however_it_is_written(host: bytes) -> None:
    """Otherwise a route for an address would not match another spelling of it."""
    routes = [make_route("/**", Access.DENIED, host="[::1]"), make_route("/**", Access.PUBLIC, index=1)]
    async with serving(answering(response()), routes=routes) as (gateway, backend):
        client = await gateway.client()
        assert (await client.ask(to(host))).reason == "route_denied"
        assert (await client.ask(to(b"[::2]"))).status == 200
        assert len(backend.connections) == 1
