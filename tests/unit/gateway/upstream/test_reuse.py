"""Upstream connections that must not be reused: after early responses and unsolicited bytes. Retries."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from tests.support.process import HANGS_SECONDS
from tests.unit.gateway.kit import BackendConnection, answering, get, response, serving, until

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_a_response_that_begins_before_the_body_is_read_closes_its_connection() -> None:
    """A backend that never reads the body would read it as the next request, and respond to that."""
    smuggled = get("/open/smuggled")

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        if connection.number:
            await connection.send(response(b"own"))
            return
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
        assert await connection.request() == smuggled
        await connection.send(b"def")
        await connection.taken()
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


async def test_a_response_that_begins_before_the_whole_body_is_sent_closes_its_connection() -> None:
    """The client has sent everything; the end of the body is still in the gateway when the response begins."""
    answer_now = asyncio.Event()

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        transport = cast(asyncio.Transport, connection.writer.transport)
        transport.pause_reading()
        await answer_now.wait()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
        await connection.taken()
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
        async with asyncio.timeout(HANGS_SECONDS):
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
async def test_a_late_body_where_none_is_allowed_is_never_a_response(method: str, answer: bytes) -> None:
    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        if connection.number:
            await connection.send(response(b"own"))
            return
        await connection.send(answer)
        await connection.taken()
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
async def test_a_response_without_a_body_leaves_its_connection_reusable(method: str, answer: bytes) -> None:
    async with serving(answering(answer)) as (gateway, backend):
        client = await gateway.client()
        for _ in range(3):
            assert (await client.ask(get("/open/a", method=method))).body == b""
        assert len(backend.connections) == 1


async def test_a_request_with_an_interim_response_is_not_retried() -> None:
    """The backend has started on the request; only requests that it cannot have seen are retried."""

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(response(b"%d" % connection.number))
        await connection.request()
        await connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")

    async with serving(handle) as (gateway, backend):
        client = await gateway.client()
        assert (await client.ask(get("/open/a"))).body == b"0"
        answer = await client.ask(get("/open/a"))
        assert (answer.status, answer.reason, answer.interim) == (502, "upstream_reset", [103])
        assert len(backend.connections) == 1
        assert gateway.active == 0


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "POST", "PATCH"])
async def test_only_idempotent_requests_are_retried(method: str) -> None:
    """RFC 9110 section 9.2.2: only the backend knows what a second POST would do."""

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(response(b"" if connection.head.startswith(b"HEAD") else b"%d" % connection.number))
        if connection.number == 0:
            await connection.request()
        else:
            await connection.gone()

    async with serving(handle) as (gateway, backend):
        client = await gateway.client()
        assert (await client.ask(get("/open/a"))).body == b"0"
        again = (await client.ask(get("/open/a", method=method))).status
        assert again == (502 if method in ("POST", "PATCH") else 200)
        assert len(backend.connections) == (1 if again == 502 else 2)
        assert gateway.active == 0


async def test_a_request_whose_body_was_sent_is_not_retried() -> None:
    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(response(b"%d" % connection.number))
        await connection.request()
        await connection.exactly(4)

    async with serving(handle) as (gateway, backend):
        client = await gateway.client()
        assert (await client.ask(get("/open/a"))).body == b"0"
        answer = await client.ask(b"PUT /open/a HTTP/1.1\r\nHost: gateway\r\nContent-Length: 4\r\n\r\nbody")
        assert (answer.status, answer.reason) == (502, "upstream_reset")
        assert len(backend.connections) == 1


async def test_bytes_that_arrive_before_the_next_request_close_the_connection() -> None:
    """Without a pause: bytes that were read before a request are never its response."""
    stray = asyncio.Event()

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(response(b"%d" % connection.number))
        if connection.number == 0:
            await stray.wait()
            await connection.send(response(b"poison"))
            await connection.gone()
        else:
            await connection.gone()

    async with serving(handle) as (gateway, backend):
        client = await gateway.client()
        assert (await client.ask(get("/open/a"))).body == b"0"
        stray.set()
        await until(lambda: not gateway.idle)
        assert (await client.ask(get("/open/a"))).body == b"1"
        assert len(backend.connections) == 2
