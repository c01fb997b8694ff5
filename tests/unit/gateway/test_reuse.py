"""Upstream connections that must not be used again: whose answer came too early, or brought what nobody asked for."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from tests.unit.gateway.kit import BackendConnection, answering, get, response, serving, until

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_an_answer_that_begins_before_the_body_is_read_ends_its_connection_however_it_ends() -> None:
    """A backend that never reads the body takes it for the next request, and answers that."""
    smuggled = get("/open/smuggled")

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        if connection.number:
            await connection.send(response(b"own"))
            return
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
        assert await connection.request() == smuggled
        await connection.send(b"def")
        await asyncio.sleep(0.05)
        await connection.send(response(b"poison"))

    async with serving(handle) as (gateway, backend):
        client = await gateway.client()
        client.send(b"POST /open/a HTTP/1.1\r\nHost: gateway\r\nContent-Length: %d\r\n\r\n" % len(smuggled))
        await client.reader.readuntil(b"\r\n\r\nabc")
        client.send(smuggled)
        assert await client.rest() == b"def"
        assert gateway.idle == gateway.active == 0
        following = await gateway.client()
        assert (await following.ask(get("/open/a"))).body == b"own"
        assert len(backend.connections) == 2


async def test_an_answer_that_begins_before_the_whole_body_is_sent_ends_its_connection_too() -> None:
    """The client has done its part; the end of the body lies in the gateway when the answer begins."""
    answer_now = asyncio.Event()

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        transport = cast(asyncio.Transport, connection.writer.transport)
        transport.pause_reading()
        await answer_now.wait()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
        await asyncio.sleep(0.05)
        transport.resume_reading()
        while not connection.received.endswith(b"\r\n0\r\n\r\n"):
            connection.received += await connection.reader.read(2**20)
        await connection.send(b"def")
        assert await connection.gone()

    async with serving(handle) as (gateway, backend):
        client = await gateway.client()
        client.send(b"POST /open/a HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n")
        await until(lambda: backend.connections and backend.connections[0].head)
        (connection,) = gateway.listener.connections
        x = connection.exchange
        assert x is not None and x.upstream_connection is not None and x.upstream_connection.transport is not None
        waiting = x.upstream_connection.transport.get_write_buffer_size
        async with asyncio.timeout(10):
            while not waiting():
                client.send(b"10000\r\n" + b"b" * 65536 + b"\r\n")
                await asyncio.sleep(0.001)
        client.send(b"0\r\n\r\n")
        await until(lambda: x.body_done)
        assert waiting()
        answer_now.set()
        assert (await client.answer()).body == b"abcdef"
        assert gateway.idle == gateway.active == 0


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 44\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 404 Not Found\r\nContent-Length: 44\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"),
        ("HEAD", CHUNKED),
        ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 44\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 44\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ],
)
async def test_a_body_that_comes_late_where_none_may_come_is_nobodys_answer(method: str, answer: bytes) -> None:
    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        if connection.number:
            await connection.send(response(b"own"))
            return
        await connection.send(answer)
        await asyncio.sleep(0.05)
        await connection.send(response(b"poison"))
        await connection.gone()

    async with serving(handle) as (gateway, backend):
        client, following = await gateway.client(), await gateway.client()
        assert (await client.ask(get("/open/a", method=method))).body == b""
        assert (await following.ask(get("/open/a"))).body == b"own"
        assert len(backend.connections) == 2
        assert gateway.active == 0


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\n\r\n"),
    ],
)
async def test_an_answer_that_announces_no_body_leaves_its_connection_for_the_next(method: str, answer: bytes) -> None:
    async with serving(answering(answer)) as (gateway, backend):
        client = await gateway.client()
        for _ in range(3):
            assert (await client.ask(get("/open/a", method=method))).body == b""
        assert len(backend.connections) == 1
