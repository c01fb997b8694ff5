"""Forwarding requests: bodies, limits, early responses, lost connections, deadlines."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import cast

import pytest

from tests.support.process import HANGS_SECONDS
from tests.unit.gateway.kit import (
    HOST,
    Backend,
    BackendConnection,
    Gateway,
    answering,
    field_lines,
    get,
    response,
    serving,
    still,
    until,
)
from tests.unit.gateway.ports import full_backlog, full_listener, gateway_to


def post(body: bytes, *lines: str, target: str = "/open/a", length: int | None = None) -> bytes:
    head = (
        f"POST {target} HTTP/1.1",
        "Host: gateway",
        *lines,
        f"Content-Length: {len(body) if length is None else length}",
        "",
        "",
    )
    return "\r\n".join(head).encode() + body


def post_chunked(*lines: str, target: str = "/open/a") -> bytes:
    head = (f"POST {target} HTTP/1.1", "Host: gateway", *lines, "Transfer-Encoding: chunked", "", "")
    return "\r\n".join(head).encode()


async def reading_length(connection: BackendConnection) -> None:
    while True:
        (length,) = field_lines(await connection.request(), "content-length")
        await connection.send(response(await connection.exactly(int(length))))


async def reading_chunks(connection: BackendConnection) -> None:
    while True:
        head = await connection.request()
        assert field_lines(head, "transfer-encoding") == [b"chunked"]
        assert field_lines(head, "content-length") == []
        await connection.send(response(await connection.chunked()))


async def test_a_body_is_forwarded_as_it_arrives_and_the_connections_are_kept() -> None:
    async with serving(reading_length) as (gateway, backend):
        client = await gateway.client()
        for body in (b"x", b"y" * 300_000, b"z" * 17):
            assert (await client.ask(post(body))).body == body
        assert len(backend.connections) == 1


async def test_a_body_may_be_cut_anywhere_and_requests_may_follow_it_at_once() -> None:
    async with serving(reading_length) as (gateway, _):
        client = await gateway.client()
        data = post(b"first") + post(b"second")
        for cut in range(len(data) - 30, len(data)):
            client.send(data[:cut])
            await asyncio.sleep(0.001)
            client.send(data[cut:])
            assert (await client.answer()).body == b"first"
            assert (await client.answer()).body == b"second"


async def test_a_body_that_looks_like_a_request_is_not_read_as_one() -> None:
    async with serving(reading_length) as (gateway, backend):
        client = await gateway.client()
        inner = get("/open/smuggled")
        assert (await client.ask(post(inner))).body == inner
        assert (await client.ask(post(b"next"))).body == b"next"
        assert backend.connections[0].received.count(b"POST /open/a") == 2


async def test_a_chunked_upload_is_rechunked_without_extensions_and_trailers() -> None:
    async with serving(reading_chunks) as (gateway, _):
        client = await gateway.client()
        client.send(post_chunked() + b"5;name=value\r\nhello\r\n00003\r\nyou")
        await asyncio.sleep(0.02)
        client.send(b"\r\n0\r\nX-Auth-User: root\r\nX-Trailer: t\r\n\r\n")
        raw = (await client.answer()).body
        assert b"name" not in raw
        assert b"X-" not in raw
        assert raw.endswith(b"\r\n0\r\n\r\n")
        assert b"".join(line for line in raw.split(b"\r\n")[1::2]) == b"helloyou"


async def test_an_empty_chunked_upload_is_one_last_chunk() -> None:
    async with serving(reading_chunks) as (gateway, _):
        client = await gateway.client()
        assert (await client.ask(post_chunked() + b"0\r\n\r\n")).body == b"0\r\n\r\n"


@pytest.mark.parametrize(
    "body",
    [
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b"\r\nhello\r\n0\r\n\r\n",
        b"10000000000000005\r\nhello\r\n0\r\n\r\n",
        b"5;" + b"e" * 257 + b"\r\nhello\r\n0\r\n\r\n",
        b"5;a\rb\r\nhello\r\n0\r\n\r\n",
        b"5;a\nb\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\r\nno colon\r\n\r\n",
        b"5\r\nhello\r\n0\r\nX-Bad : a\r\n\r\n",
    ],
)
async def test_a_malformed_chunk_is_refused_and_the_backend_never_sees_an_end(body: bytes) -> None:
    ends: list[bytes] = []

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        ends.append(await connection.reader.read())

    async with serving(handle) as (gateway, backend):
        client = await gateway.client()
        answer = await client.ask(post_chunked() + body + get("/open/smuggled"))
        assert (answer.status, answer.closes) == (400, True)
        assert await client.rest() == b""
        await until(lambda: len(ends) == len(backend.connections))
        assert not any(end.endswith(b"0\r\n\r\n") for end in ends)


@pytest.mark.parametrize(("size", "status"), [(999, 200), (1000, 200), (1001, 413)])
@pytest.mark.parametrize("chunked", [False, True])
async def test_the_body_limit_is_exact(size: int, status: int, chunked: bool) -> None:
    async with serving(reading_chunks if chunked else reading_length, max_body=1000) as (gateway, _):
        client = await gateway.client()
        body = b"b" * size
        whole = post_chunked() + b"%x\r\n%s\r\n0\r\n\r\n" % (size, body) if chunked else post(body)
        answer = await client.ask(whole)
        assert answer.status == status
        assert answer.closes is (status == 413)


async def test_a_chunked_body_that_passes_its_limit_late_is_refused_then() -> None:
    seen: list[bytes] = []

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        seen.append(await connection.reader.read())

    async with serving(handle, max_body=1000) as (gateway, backend):
        client = await gateway.client()
        client.send(post_chunked() + b"3e8\r\n" + b"b" * 1000 + b"\r\n")
        await until(lambda: backend.connections and backend.connections[0].head)
        client.send(b"1\r\nb\r\n")
        answer = await client.answer()
        assert (answer.status, answer.closes) == (413, True)
        await until(lambda: seen)
        assert not seen[0].endswith(b"0\r\n\r\n")
        assert gateway.active == gateway.idle == 0


async def test_an_expectation_and_its_interim_response_are_forwarded() -> None:
    async def handle(connection: BackendConnection) -> None:
        assert field_lines(await connection.request(), "expect") == [b"100-continue"]
        await connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await connection.send(response(await connection.exactly(4)))

    async with serving(handle) as (gateway, _):
        client = await gateway.client()
        client.send(post(b"", "Expect: 100-Continue", length=4))
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"body")
        assert (await client.answer()).body == b"body"


async def test_a_refused_expectation_never_turns_the_body_into_a_request() -> None:
    async with serving(reading_length) as (gateway, backend):
        client = await gateway.client()
        inner = get("/open/smuggled")
        client.send(post(b"", "Expect: 100-continue", target="/v1/things", length=len(inner)))
        answer = await client.answer()
        assert (answer.status, answer.closes, answer.interim) == (401, True, [])
        client.send(inner)
        assert await client.rest() == b""
        assert backend.connections == []


@pytest.mark.parametrize("lines", [("Expect: 200-ok",), ("Expect: 100-continue",) * 2, ("Expect: 100-continue, x",)])
async def test_an_expectation_that_cannot_be_met_is_refused(lines: tuple[str, ...]) -> None:
    async with serving(reading_length) as (gateway, backend):
        client = await gateway.client()
        answer = await client.ask(post(b"body", *lines))
        assert (answer.status, answer.closes) == (417, True)
        assert backend.connections == []


async def test_a_refused_request_with_an_unread_body_closes_the_connection() -> None:
    async with serving(reading_length) as (gateway, backend):
        client = await gateway.client()
        inner = get("/open/smuggled")
        client.send(post(inner[:5], target="/shut/a", length=len(inner)))
        assert (await client.answer()).closes
        client.send(inner[5:] + get("/open/next"))
        assert await client.rest() == b""
        assert backend.connections == []


async def test_an_early_answer_closes_both_connections() -> None:
    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(response(b"enough", status=b"413 Content Too Large"))
        assert await connection.gone()

    async with serving(handle) as (gateway, backend):
        client = await gateway.client()
        for number in (1, 2):
            client = await gateway.client()
            client.send(post(b"", length=1000))
            answer = await client.answer()
            assert (answer.status, answer.body, answer.closes) == (413, b"enough", True)
            client.send(get("/open/smuggled"))
            assert await client.rest() == b""
            assert (len(backend.connections), gateway.idle, gateway.active) == (number, 0, 0)


async def test_an_answer_before_the_gateway_has_sent_the_whole_body_ends_the_upstream_connection() -> None:
    """The client has sent its body; a part of it still waits in the gateway when the backend responds."""
    answer_now = asyncio.Event()

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        transport = cast(asyncio.Transport, connection.writer.transport)
        transport.pause_reading()
        await answer_now.wait()
        await connection.send(response(b"early"))
        await connection.taken()
        transport.resume_reading()
        await connection.reader.read()

    async with serving(handle) as (gateway, backend):
        client = await gateway.client()
        client.send(post_chunked())
        await until(lambda: backend.connections and backend.connections[0].head)
        chunk = b"10000\r\n" + b"b" * 65536 + b"\r\n"
        # Fill the buffers between gateway and backend, then end the body before the gateway pauses the client.
        async with asyncio.timeout(HANGS_SECONDS):
            while not upstream_unsent(gateway):
                client.send(chunk)
                await asyncio.sleep(0.001)
        client.send(b"0\r\n\r\n")
        (connection,) = gateway.listener.connections
        await until(lambda: connection.exchange is not None and connection.exchange.body_done)
        assert upstream_unsent(gateway)
        answer_now.set()
        assert (await client.answer()).body == b"early"
        assert gateway.idle == 0


async def test_a_dead_idle_connection_is_replaced_for_a_get_and_not_for_a_post() -> None:
    dying = asyncio.Event()

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(response(b"%d" % connection.number))
        # The next request is read, so the connection is alive when it is sent, and dies with it.
        await connection.request()
        dying.set()

    async with serving(handle) as (gateway, backend):
        client = await gateway.client()
        assert (await client.ask(get("/open/a"))).body == b"0"
        assert (await client.ask(get("/open/a"))).body == b"1"
        assert len(backend.connections) == 2
        answer = await client.ask(post(b"x"))
        assert (answer.status, answer.reason) == (502, "upstream_reset")
        assert len(backend.connections) == 2
        assert (await client.ask(get("/open/a", method="POST"))).body == b"2"
        answer = await client.ask(get("/open/a", method="POST"))
        assert (answer.status, answer.reason) == (502, "upstream_reset")
        assert len(backend.connections) == 3
        assert gateway.active == 0


async def test_a_request_is_retried_once_at_most_and_never_on_a_new_connection() -> None:
    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        if connection.number == 0:
            await connection.send(response())
            await connection.request()

    async with serving(handle) as (gateway, backend):
        client = await gateway.client()
        assert (await client.ask(get("/open/a"))).status == 200
        assert (await client.ask(get("/open/a"))).reason == "upstream_reset"
        assert len(backend.connections) == 2
        assert (await client.ask(get("/open/a"))).reason == "upstream_reset"
        assert len(backend.connections) == 3
        assert gateway.active == 0


async def test_an_idle_connection_that_the_backend_closed_is_not_used() -> None:
    close = asyncio.Event()

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(response(b"%d" % connection.number))
        await close.wait()

    async with serving(handle) as (gateway, _):
        client = await gateway.client()
        assert (await client.ask(post(b""))).body == b"0"
        close.set()
        await until(lambda: gateway.idle == 0)
        assert (await client.ask(get("/open/a", method="POST"))).body == b"1"


async def test_no_more_idle_connections_are_kept_than_allowed() -> None:
    async with serving(answering(response()), max_idle=2) as (gateway, backend):
        clients = [await gateway.client() for _ in range(6)]
        await asyncio.gather(*(client.ask(get("/open/a")) for client in clients))
        assert gateway.idle <= 2
        assert len(backend.connections) >= gateway.idle


async def test_a_backend_that_refuses_connections_is_a_502() -> None:
    async with serving(answering(response())) as (gateway, backend):
        client = await gateway.client()
        backend.refuse()
        answer = await client.ask(get("/open/a"))
        assert (answer.status, answer.reason) == (502, "upstream_refused")
        assert (await client.ask(get("/open/a"))).status == 502


async def test_a_backend_that_accepts_nothing_is_a_504() -> None:
    with full_backlog() as port:
        async with gateway_to(port, connect_timeout=0.2) as gateway:
            client = await gateway.client()
            answer = await client.ask(get("/open/a"))
            assert (answer.status, answer.reason) == (504, "upstream_connect_timeout")


@pytest.mark.parametrize("beginning", [b"", b"HTTP/1.1 200 OK\r\nContent-Le"])
async def test_a_backend_that_does_not_answer_is_a_504(beginning: bytes) -> None:
    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(beginning)
        assert await connection.gone()

    async with serving(handle, response_timeout=0.2) as (gateway, _):
        client = await gateway.client()
        answer = await client.ask(get("/open/a"))
        assert (answer.status, answer.reason) == (504, "upstream_timeout")
        assert gateway.active == gateway.idle == 0
        assert (await client.ask(get("/shut/a"))).status == 403


async def test_a_backend_that_falls_silent_in_its_answer_breaks_the_connection() -> None:
    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart")
        assert await connection.gone()

    async with serving(handle, response_timeout=0.2) as (gateway, _):
        client = await gateway.client()
        gateway.stop_sweeping()
        client.send(get("/open/a"))
        assert (await client.reader.readuntil(b"part")).startswith(b"HTTP/1.1 200 ")
        gateway.sweep_on()
        with suppress(ConnectionResetError):
            assert await client.rest() == b""


async def test_a_slow_body_is_refused_at_its_deadline() -> None:
    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        assert await connection.reader.read() == b"par"

    async with serving(handle, body_idle_seconds=0.2) as (gateway, _):
        client = await gateway.client()
        answer = await client.ask(post(b"par", length=9))
        assert (answer.status, answer.reason, answer.closes) == (408, "request_timeout", True)


async def test_a_body_that_never_arrives_is_refused_at_its_deadline() -> None:
    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        assert await connection.gone()

    async with serving(handle, body_idle_seconds=0.2) as (gateway, _):
        client = await gateway.client()
        client.send(post(b"", length=9))
        assert (await client.answer()).status == 408


async def test_a_backend_that_reads_slowly_pauses_the_client_and_memory_stays_bounded() -> None:
    go = asyncio.Event()
    size = 24 * 1024 * 1024

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        transport = cast(asyncio.Transport, connection.writer.transport)
        transport.pause_reading()
        await go.wait()
        transport.resume_reading()
        left = size
        while left:
            left -= len(await connection.reader.read(left))
        await connection.send(response())

    async with serving(handle) as (gateway, backend):
        client = await gateway.client()
        client.send(post(b"", length=size))
        await until(lambda: backend.connections and backend.connections[0].head)
        block = b"b" * 262_144
        for _ in range(size // len(block)):
            client.send(block)
        await until(lambda: all(connection.paused for connection in gateway.listener.connections))
        assert upstream_unsent(gateway) < 1024 * 1024
        go.set()
        assert (await client.answer()).status == 200


async def test_a_backend_that_never_reads_a_body_is_a_504_and_not_the_clients_fault() -> None:
    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        cast(asyncio.Transport, connection.writer.transport).pause_reading()
        await asyncio.Event().wait()

    async with serving(handle, body_idle_seconds=0.5, response_timeout=1.0) as (gateway, _):
        client = await gateway.client()
        gateway.stop_sweeping()
        client.send(post(b"b" * 16_000_000))
        await until(lambda: [connection.paused for connection in gateway.listener.connections] == [True])
        # The kernel still takes some, and then the client is read again.
        await still(lambda: [each.exchange and each.exchange.bytes_in for each in gateway.listener.connections])
        gateway.sweep_on()
        answer = await client.answer()
        assert (answer.status, answer.reason) == (504, "upstream_timeout")


async def test_a_body_without_an_upstream_connection_is_read_only_up_to_the_read_ahead() -> None:
    """The client is paused while the upstream connection is being opened."""
    with full_listener() as full:
        async with gateway_to(full.getsockname()[1]) as gateway:
            client = await gateway.client()
            client.send(post(b"b" * 8_000_000))
            await until(lambda: all(c.paused for c in gateway.listener.connections) and gateway.listener.connections)
            (connection,) = gateway.listener.connections
            assert connection.exchange is not None
            assert connection.exchange.bytes_in < 1024 * 1024
            # The kernel refuses when it tries again.
            full.close()
            assert (await client.answer()).reason == "upstream_refused"


def upstream_unsent(gateway: Gateway) -> int:
    """Bytes that wait in the gateway to be sent to the backend."""
    exchanges = [connection.exchange for connection in gateway.listener.connections]
    connections = [x.upstream_connection for x in exchanges if x is not None]
    transports = [connection.transport for connection in connections if connection is not None]
    return sum(transport.get_write_buffer_size() for transport in transports if transport is not None)


async def test_backend_kit_reports_a_handler_that_fails() -> None:
    async def handle(connection: BackendConnection) -> None:
        raise AssertionError("noticed")

    backend = Backend(handle)
    await backend.start()
    _, writer = await asyncio.open_connection(HOST, backend.port)
    await until(lambda: backend.errors)
    writer.close()
    with pytest.raises(AssertionError, match="noticed"):
        await backend.close()
