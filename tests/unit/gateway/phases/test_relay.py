"""Relaying responses: framing, interim responses, failures, reuse of connections."""

from __future__ import annotations

import asyncio
import socket

import pytest

from proxy.gateway.upstream.pool import WRITE_HIGH_WATER
from tests.support.sockets import kernel_keeps
from tests.unit.gateway.kit import (
    BackendConnection,
    Client,
    Gateway,
    Handler,
    answering,
    get,
    response,
    serving,
    still,
    until,
)

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
DATE = b"date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"


def once(*pieces: bytes) -> Handler:
    """A handler that answers the first request on a connection with ``pieces`` and closes the connection."""

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        for piece in pieces:
            await connection.send(piece)
            await asyncio.sleep(0)

    return handle


async def test_field_order_case_and_repeats_reach_the_client() -> None:
    fields = (
        b"SET-Cookie: a=1\r\nx-b:  two \r\n" + DATE + b"Set-Cookie: b=2\r\nLocation: //x/../y\r\nServer: s\r\nX-B:\r\n"
    )
    async with serving(answering(response(fields=fields))) as (gateway, _):
        client = await gateway.client()
        answer = await client.ask(get("/open/a"))
        assert answer.head == b"HTTP/1.1 200 OK\r\n" + fields + b"Content-Length: 2\r\n\r\n"


@pytest.mark.parametrize("phrase", [b"200", b"200 ", b"200 Very fine \xe4 indeed", b"299 x"])
async def test_the_reason_phrase_is_kept(phrase: bytes) -> None:
    async with serving(answering(response(status=phrase))) as (gateway, _):
        client = await gateway.client()
        answer = await client.ask(get("/open/a"))
        assert answer.head.split(b"\r\n")[0] == b"HTTP/1.1 " + (phrase if b" " in phrase else phrase + b" ")


async def test_hop_by_hop_and_nominated_fields_of_a_response_are_not_forwarded() -> None:
    fields = (
        b"Connection: x-private, keep-alive\r\nKeep-Alive: timeout=5\r\nX-Private: 1\r\nx-PRIVATE: 2\r\n"
        b"Proxy-Connection: keep-alive\r\nUpgrade: h2c\r\nTrailer: x\r\nTE: trailers\r\nX-Kept: 1\r\n"
        b"Proxy-Authenticate: Basic\r\nProxy-Authentication-Info: x\r\n" + DATE
    )
    async with serving(answering(response(fields=fields))) as (gateway, _):
        client = await gateway.client()
        answer = await client.ask(get("/open/a"))
        assert answer.head == b"HTTP/1.1 200 OK\r\nX-Kept: 1\r\n" + DATE + b"Content-Length: 2\r\n\r\n"


async def test_an_alias_of_a_framing_field_is_dropped_and_has_no_effect() -> None:
    aliases = b"Content_Length: 9\r\nTransfer.Encoding: chunked\r\nCONTENT-Length: 2\r\nConnection_: close\r\n\r\nok"
    async with serving(answering(b"HTTP/1.1 200 OK\r\n" + DATE + aliases)) as (gateway, backend):
        client = await gateway.client()
        for _ in range(2):
            answer = await client.ask(get("/open/a"))
            assert answer.body == b"ok"
            assert answer.head == b"HTTP/1.1 200 OK\r\n" + DATE + b"Connection_: close\r\nContent-Length: 2\r\n\r\n"
        assert len(backend.connections) == 1


async def test_a_head_answer_has_no_body_whatever_it_announces() -> None:
    answers = {
        b"/open/length": b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n",
        b"/open/chunked": CHUNKED,
        b"/open/plain": b"HTTP/1.1 200 OK\r\n\r\n",
    }
    async with serving(answering(lambda head: answers[head.split(b" ")[1]])) as (gateway, backend):
        client = await gateway.client()
        for target in answers:
            answer = await client.ask(get(target.decode(), method="HEAD"))
            assert answer.all(b"content-length") == ([b"12345"] if target.endswith(b"length") else [])
        # A backend that announced a body may still send it, so the connection is not reused.
        assert len(backend.connections) == 3


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
@pytest.mark.parametrize("framing", [b"", b"Content-Length: 7\r\n", b"Transfer-Encoding: chunked\r\n"])
async def test_204_and_304_have_no_body_whatever_they_announce(status: bytes, framing: bytes) -> None:
    plain = b"HTTP/1.1 " + status + b"\r\n" + framing + b"\r\n"
    answers = {b"/open/none": plain, b"/open/some": response(b"some")}
    async with serving(answering(lambda head: answers[head.split(b" ")[1]])) as (gateway, backend):
        client = await gateway.client()
        answer = await client.ask(get("/open/none"))
        assert answer.status == int(status[:3])
        assert answer.all(b"transfer-encoding") == []
        assert answer.all(b"content-length") in ([], [b"7"] if answer.status == 304 else [])
        assert (await client.ask(get("/open/some"))).body == b"some"
        assert len(backend.connections) == (2 if framing else 1)


async def test_interim_responses_are_forwarded_in_order() -> None:
    interim = (
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\n",
    )
    async with serving(once(*interim, response())) as (gateway, _):
        client = await gateway.client()
        client.send(get("/open/a"))
        heads = [await client.reader.readuntil(b"\r\n\r\n") for _ in range(4)]
        assert heads[0] == b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        assert heads[1] == b"HTTP/1.1 102 Processing\r\n\r\n"
        assert heads[2] == b"HTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\n"
        assert heads[3].startswith(b"HTTP/1.1 200 ")


async def test_an_http_1_0_client_gets_no_interim_responses() -> None:
    async with serving(once(b"HTTP/1.1 103 Early Hints\r\n\r\n", response())) as (gateway, _):
        client = await gateway.client()
        answer = await client.ask(get("/open/a", version="1.0"))
        assert (answer.status, answer.interim) == (200, [])


@pytest.mark.parametrize("flood", [b"HTTP/1.1 103 Early Hints\r\n\r\n" * 17, b"HTTP/1.1 101 Switching\r\n\r\n"])
async def test_a_flood_of_interim_responses_and_an_unrequested_upgrade_are_refused(flood: bytes) -> None:
    async with serving(once(flood + response())) as (gateway, backend):
        client = await gateway.client()
        answer = await client.ask(get("/open/a"))
        assert (answer.status, answer.reason) == (502, "upstream_protocol")
        assert (await client.ask(get("/open/a"))).status == 502
        assert len(backend.connections) == 2


async def test_an_http_1_0_server_cannot_switch_protocols() -> None:
    """Found by fuzzing: a client without a gateway would not accept such an upgrade either."""
    switch = b"HTTP/1.0 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    async with serving(once(switch)) as (gateway, _):
        client = await gateway.client()
        answer = await client.ask(get("/open/a", "Connection: Upgrade", "Upgrade: websocket"))
        assert (answer.status, answer.reason) == (502, "upstream_protocol")


async def test_a_chunked_answer_is_decoded_for_an_http_1_0_client() -> None:
    head = b"HTTP/1.1 200 OK\r\n" + DATE + b"Transfer-Encoding: chunked\r\n\r\n"
    pieces = (head, b"5;ext=1\r\nhel", b"lo\r\n1\r\n!\r\n0\r\nX-Trailer: t\r\n\r\n")
    async with serving(once(*pieces)) as (gateway, _):
        client = await gateway.client()
        client.send(get("/open/a", "Connection: keep-alive", version="1.0"))
        data = await client.rest()
        assert data == b"HTTP/1.1 200 OK\r\n" + DATE + b"Connection: close\r\n\r\nhello!"


async def test_a_chunked_response_is_rechunked_without_extensions_and_trailers() -> None:
    pieces = (CHUNKED, b"5;ext=1\r\nhel", b"lo\r\n1\r\n!\r\n0\r\nX-Auth-User: t\r\n\r\n")
    async with serving(once(*pieces)) as (gateway, _):
        client = await gateway.client()
        client.send(get("/open/a", "Connection: close"))
        data = await client.rest()
        head, _, body = data.partition(b"\r\n\r\n")
        assert b"Transfer-Encoding: chunked" in head
        assert b"ext" not in data
        assert b"X-Auth-User" not in data
        assert body.endswith(b"\r\n0\r\n\r\n")


async def test_a_response_delimited_by_the_connections_end_is_chunked_for_an_http_1_1_client() -> None:
    async with serving(once(b"HTTP/1.1 200 OK\r\n\r\nall ", b"of ", b"it")) as (gateway, backend):
        client = await gateway.client()
        for _ in range(2):
            answer = await client.ask(get("/open/a"))
            assert (answer.body, answer.all(b"transfer-encoding")) == (b"all of it", [b"chunked"])
        assert len(backend.connections) == 2


@pytest.mark.parametrize(
    "pieces",
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",),
        (CHUNKED, b"5\r\nhello\r\n"),
        (CHUNKED, b"5\r\nhel"),
        (CHUNKED, b"5\r\nhello\r\n", b"0\r\n"),
        (CHUNKED, b"5\r\nhello\r\n", b"xyz\r\n\r\n"),
    ],
)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_response_that_breaks_off_never_looks_complete(pieces: tuple[bytes, ...], version: str) -> None:
    """Reading it fails: it is shorter than its length, lacks its last chunk, or (HTTP/1.0) the connection is reset."""

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        for piece in pieces:
            await connection.send(piece)
            # What is broken off before the gateway has sent anything is a 502.
            await connection.taken()

    async with serving(handle) as (gateway, _):
        client = await gateway.client()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await client.ask(get("/open/a", version=version))


async def test_a_reset_does_not_complete_a_response_delimited_by_the_connections_end() -> None:
    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\npart")
        await connection.taken()
        connection.reset()

    async with serving(handle) as (gateway, _):
        client = await gateway.client()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await client.ask(get("/open/a"))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: a\nY: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX : a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: \0\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"hello\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
    ],
)
async def test_an_ambiguous_or_malformed_response_is_a_502(answer: bytes) -> None:
    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(answer)
        assert await connection.gone()

    async with serving(handle) as (gateway, _):
        client = await gateway.client()
        refusal = await client.ask(get("/open/a"))
        assert (refusal.status, refusal.reason) == (502, "upstream_protocol")
        assert gateway.idle == gateway.active == 0


async def test_an_upstream_connection_is_reused_only_after_a_clean_response() -> None:
    behind = {
        b"/open/clean": b"",
        b"/open/more": b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        b"/open/close": b"",
    }

    def answer(head: bytes) -> bytes:
        target = head.split(b" ")[1]
        close = b"Connection: close\r\n" if target.endswith(b"close") else b""
        return response(target, fields=close) + behind[target]

    async with serving(answering(answer)) as (gateway, backend):
        client = await gateway.client()
        for target, connections in (("clean", 1), ("clean", 1), ("more", 1), ("clean", 2), ("close", 2), ("clean", 3)):
            assert (await client.ask(get(f"/open/{target}"))).body == b"/open/" + target.encode()
            assert len(backend.connections) == connections


async def test_bytes_on_an_idle_upstream_connection_close_it() -> None:
    poisoned = asyncio.Event()

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(response(b"%d" % connection.number))
        await poisoned.wait()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        await connection.gone()

    async with serving(handle) as (gateway, backend):
        client = await gateway.client()
        assert (await client.ask(get("/open/a"))).body == b"0"
        await until(lambda: gateway.idle == 1)
        poisoned.set()
        await until(lambda: gateway.idle == 0)
        poisoned.clear()
        assert (await client.ask(get("/open/a"))).body == b"1"
        assert len(backend.connections) == 2


async def test_a_slow_reader_pauses_the_backend_and_memory_stays_bounded() -> None:
    size = kernel_keeps() + 8 * 1024 * 1024
    sent = 0

    async def handle(connection: BackendConnection) -> None:
        nonlocal sent
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        block = b"x" * 65536
        while sent < size:
            await connection.send(block)
            sent += len(block)

    async with serving(handle) as (gateway, _):
        client = await gateway.client(receive_buffer=4096)
        shrink(gateway)
        client.send(get("/open/a"))
        await still(lambda: sent)
        assert 0 < sent < size
        for connection in gateway.listener.connections:
            assert connection.transport is not None
            assert connection.transport.get_write_buffer_size() < 1024 * 1024
        widen(client)
        answer = await client.answer()
        assert len(answer.body) == size


async def test_a_client_that_never_reads_is_disconnected_at_the_deadline() -> None:
    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(response(b"x" * 16_000_000))
        await connection.gone()

    async with serving(handle, response_timeout=0.2) as (gateway, _):
        client = await gateway.client(receive_buffer=4096)
        client.send(get("/open/a"))
        await until(lambda: gateway.listener.connections)
        await until(lambda: not gateway.listener.connections)
        assert gateway.active == 0


async def test_a_client_that_leaves_the_last_bytes_unread_is_disconnected_at_the_deadline() -> None:
    """The backend has finished; the rest waits in the gateway, and a final check finds that it is not read."""
    times = {"keepalive_seconds": 0.2, "answer_seconds": 0.4}
    async with serving(answering(response(b"x" * 200_000)), **times) as (gateway, _):
        client = await gateway.client(receive_buffer=4096)
        await until(lambda: gateway.listener.connections)
        shrink(gateway)
        client.stop_reading()
        gateway.stop_sweeping()
        client.send(get("/open/a"))
        await until(lambda: unsent(gateway) and gateway.idle)
        gateway.sweep_on()
        await until(lambda: not gateway.listener.connections)


async def test_a_slow_reader_of_one_response_pauses_the_next_one_too() -> None:
    """Two pipelined requests: the second response is paused as the first one was."""
    size = 32 * 1024 * 1024
    sent = 0

    async def handle(connection: BackendConnection) -> None:
        nonlocal sent
        while True:
            head = await connection.request()
            if head.startswith(b"GET /open/small"):
                await fill(connection)
                continue
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            block = b"x" * 65536
            while sent < size:
                await connection.send(block)
                sent += len(block)

    async with serving(handle) as (gateway, _):
        client = await gateway.client(receive_buffer=4096)
        await until(lambda: gateway.listener.connections)
        shrink(gateway)
        client.stop_reading()
        client.send(get("/open/small") + get("/open/large"))
        await still(lambda: sent)
        for connection in gateway.listener.connections:
            assert connection.transport is not None
            assert connection.transport.get_write_buffer_size() < 2 * 1024 * 1024
        widen(client)
        client.read_on()
        assert len((await client.answer()).body) == FILLING
        assert len((await client.answer()).body) == size


async def test_an_upstream_connection_that_a_slow_reader_paused_serves_the_next_client() -> None:
    async def handle(connection: BackendConnection) -> None:
        while True:
            await connection.request()
            await fill(connection)

    async with serving(handle) as (gateway, backend):
        slow = await gateway.client(receive_buffer=4096)
        await until(lambda: gateway.listener.connections)
        shrink(gateway)
        slow.stop_reading()
        slow.send(get("/open/a"))
        await until(lambda: gateway.idle)
        assert unsent(gateway) > WRITE_HIGH_WATER
        quick = await gateway.client()
        for _ in range(3):
            assert len((await quick.ask(get("/open/a"))).body) == FILLING
        assert len(backend.connections) == 1
        slow.read_on()
        assert len((await slow.answer()).body) == FILLING


FILLING = WRITE_HIGH_WATER + 60_000
"""A response that ends just when the gateway's buffer is full."""


async def fill(connection: BackendConnection) -> None:
    """Respond so that the last piece fills the buffer of a gateway whose client does not read."""
    first = WRITE_HIGH_WATER - 40_000
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % FILLING)
    await connection.send(b"s" * first)
    await connection.taken()
    await connection.send(b"s" * (FILLING - first))


def unsent(gateway: Gateway) -> int:
    """Bytes that wait in the gateway to be sent to its clients."""
    transports = [connection.transport for connection in gateway.listener.connections]
    return sum(transport.get_write_buffer_size() for transport in transports if transport is not None)


def widen(client: Client) -> None:
    """Let the client read much at a time: many megabytes in small pieces take long on a busy machine."""
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)


def shrink(gateway: Gateway) -> None:
    """Shrink the kernel's send buffers, so that data stays in the gateway."""
    for connection in gateway.listener.connections:
        assert connection.transport is not None
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
