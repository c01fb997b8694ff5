"""Client connections: the order of answers, the limits of heads, deadlines, and how connections end."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import suppress

import pytest

from proxy.gateway.downstream.connection import ClientConnection
from proxy.gateway.downstream.connection_state import ConnectionState
from tests.support.process import HANGS_SECONDS
from tests.unit.gateway.kit import (
    BackendConnection,
    Client,
    Gateway,
    answering,
    get,
    response,
    serving,
    until,
)


def echo_target(head: bytes) -> bytes:
    return response(head.split(b" ")[1])


async def test_a_head_may_be_split_anywhere() -> None:
    async with serving(answering(echo_target)) as (gateway, _):
        data = get("/open/a", "X-Some: thing")
        client = await gateway.client()
        for cut in range(1, len(data)):
            client.send(data[:cut])
            await asyncio.sleep(0)
            await until(lambda: connection_of(gateway).buffer)
            client.send(data[cut:])
            assert (await client.answer()).body == b"/open/a"


async def test_pipelined_requests_are_answered_in_their_order() -> None:
    async def handle(connection: BackendConnection) -> None:
        while True:
            target = (await connection.request()).split(b" ")[1]
            # The first ones take longest, so an answer out of order would overtake.
            await asyncio.sleep(0.02 if target.endswith(b"0") else 0)
            await connection.send(response(target))

    async with serving(handle) as (gateway, _):
        client = await gateway.client()
        client.send(b"".join(get(f"/open/{n}") if n % 3 else get(f"/shut/{n}") for n in range(9)))
        for n in range(9):
            answer = await client.answer()
            assert (answer.status, answer.body) == (200, b"/open/%d" % n) if n % 3 else answer.status == 403


async def test_a_refusal_leaves_the_connection_usable() -> None:
    async with serving(answering(echo_target)) as (gateway, _):
        client = await gateway.client()
        assert (await client.ask(get("/v1/things"))).reason == "no_credential"
        assert (await client.ask(get("/nowhere"))).reason == "no_route"
        assert (await client.ask(get("/open/a"))).body == b"/open/a"


async def test_empty_lines_before_a_request_are_ignored_and_cost_little() -> None:
    async with serving(answering(echo_target)) as (gateway, _):
        client = await gateway.client()
        client.send(b"\r\n" * 100_000 + get("/open/a") + b"\r\n" * 1000 + get("/open/b"))
        assert (await client.answer()).body == b"/open/a"
        assert (await client.answer()).body == b"/open/b"


MALFORMED = [
    b"GET /open/a HTTP/1.1\nHost: gateway\n\n",
    b"GET /open/a HTTP/1.1\r\nHost: gateway\nX: y\r\n\r\n",
    b"GET /open/a HTTP/1.1\r\nHost: gate\rway\r\n\r\n",
    b"GET /open/a HTTP/1.1\r\nHost: gateway\r\nX: a\0b\r\n\r\n",
    b"GET /open/a HTTP/1.1\r\nHost: gateway\r\nX: a\r\n folded\r\n\r\n",
    b"GET /open/a HTTP/1.1\r\nHost : gateway\r\n\r\n",
    b"GET /open/a HTTP/1.1\r\nHost: gateway\r\n: empty\r\n\r\n",
    b"GET /open/a HTTP/1.1\r\nHost: gateway\r\nno colon\r\n\r\n",
    b"GET /open/a HTTP/1.1\r\n Host: gateway\r\n\r\n",
    b"GET  /open/a HTTP/1.1\r\nHost: gateway\r\n\r\n",
    b"GET /open/a  HTTP/1.1\r\nHost: gateway\r\n\r\n",
    b"GET /open/a\tHTTP/1.1\r\nHost: gateway\r\n\r\n",
    b"GET /open/a HTTP/2.0\r\nHost: gateway\r\n\r\n",
    b"GET /open/a HTTP/1.2\r\nHost: gateway\r\n\r\n",
    b"GET /open/a http/1.1\r\nHost: gateway\r\n\r\n",
    b"GET /open/a\r\nHost: gateway\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"POST /open/a HTTP/1.1\r\nHost: gateway\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
    b"POST /open/a HTTP/1.1\r\nHost: gateway\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /open/a HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"POST /open/a HTTP/1.0\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET /open/a HTTP/1.1\r\n\r\n",
    b"GET /open/a HTTP/1.1\r\nHost: gateway\r\nHost: gateway\r\n\r\n",
    b"GET /open/a HTTP/1.1\r\nHost: a/b@c\r\n\r\n",
    b"GET http://other/open/a HTTP/1.1\r\nHost: gateway\r\n\r\n",
    b"GET http://gateway@other/open/a HTTP/1.1\r\nHost: gateway\r\n\r\n",
    b"GET gateway:80 HTTP/1.1\r\nHost: gateway\r\n\r\n",
    b"GET * HTTP/1.1\r\nHost: gateway\r\n\r\n",
]


@pytest.mark.parametrize("data", MALFORMED)
async def test_a_malformed_request_is_refused_and_nothing_behind_it_is_read(data: bytes) -> None:
    async with serving(answering(echo_target)) as (gateway, backend):
        client = await gateway.client()
        client.send(data + get("/open/smuggled"))
        answer = await client.answer("GET")
        assert answer.status == 400
        assert answer.closes
        assert await client.rest() == b""
        assert backend.connections == []


@pytest.mark.parametrize("data", [b"GET /open/a HTTP/1.1\nH", b"GET /open/a HTTP/1.1\r\nX: \0", b"GET /\rx"])
async def test_a_head_that_cannot_become_valid_is_refused_before_its_end(data: bytes) -> None:
    async with serving(answering(echo_target)) as (gateway, _):
        client = await gateway.client()
        assert (await client.ask(data)).status == 400


CONNECTS = [
    b"CONNECT gateway:443 HTTP/1.1\r\nHost: gateway:443\r\n\r\n",
    b"CONNECT /open/a HTTP/1.1\r\nHost: gateway\r\n\r\n",
    b"CONNECT / HTTP/1.1\r\nHost: gateway\r\n\r\n",
    b"CONNECT * HTTP/1.1\r\nHost: gateway\r\n\r\n",
    b"CONNECT http://gateway/open/a HTTP/1.1\r\nHost: gateway\r\n\r\n",
    b"CONNECT [::1]:22 HTTP/1.1\r\nHost: [::1]:22\r\n\r\n",
    b"CONNECT gateway:99999 HTTP/1.1\r\nHost: gateway:99999\r\n\r\n",
    b"CONNECT gateway:443 HTTP/1.1\r\n\r\n",
    b"CONNECT gateway:443 HTTP/1.0\r\nHost: gateway\r\nConnection: keep-alive\r\n\r\n",
    b"CONNECT / HTTP/1.1\r\nHost: gateway\r\nContent-Length: 4\r\n\r\nbody",
    b"CONNECT / HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"connect / HTTP/1.1\r\nHost: gateway\r\n\r\n",
    b"Connect gateway:443 HTTP/1.1\r\nHost: gateway\r\n\r\n",
]


@pytest.mark.parametrize("data", CONNECTS)
async def test_a_connect_of_any_form_is_refused_and_nothing_behind_it_is_read(data: bytes) -> None:
    async with serving(answering(echo_target)) as (gateway, backend):
        client = await gateway.client()
        client.send(data + get("/open/smuggled"))
        answer = await client.answer()
        assert (answer.status, answer.reason, answer.closes) == (405, "method_refused", True)
        assert answer.all(b"allow") and b"CONNECT" not in answer.all(b"allow")[0]
        assert await client.rest() == b""
        assert backend.connections == []


@pytest.mark.parametrize("method", ["TRACE", "trace"])
async def test_a_trace_is_refused_and_the_connection_stays(method: str) -> None:
    async with serving(answering(echo_target)) as (gateway, backend):
        client = await gateway.client()
        answer = await client.ask(get("/open/a", "Max-Forwards: 0", method=method))
        assert (answer.status, answer.reason, answer.closes) == (405, "method_refused", False)
        assert (await client.ask(get("/open/b"))).body == b"/open/b"
        assert len(backend.heads) <= 1


@pytest.mark.parametrize(("size", "status"), [(300, 200), (301, 414)])
async def test_the_request_line_limit_is_exact(size: int, status: int) -> None:
    async with serving(answering(echo_target), max_request_line=300) as (gateway, _):
        client = await gateway.client()
        target = "/open/" + "a" * (size - len("GET /open/ HTTP/1.1"))
        assert len(get(target).split(b"\r\n")[0]) == size
        assert (await client.ask(get(target))).status == status


@pytest.mark.parametrize("cut", [299, 300, 301, 302])
async def test_the_request_line_limit_does_not_depend_on_segmentation(cut: int) -> None:
    async with serving(answering(echo_target), max_request_line=300) as (gateway, _):
        client = await gateway.client()
        data = get("/open/" + "a" * (300 - len("GET /open/ HTTP/1.1")))
        client.send(data[:cut])
        await until(lambda: connection_of(gateway).buffer or connection_of(gateway).closing)
        client.send(data[cut:])
        assert (await client.answer()).status == 200


async def test_a_request_line_without_end_is_refused_at_its_limit() -> None:
    async with serving(answering(echo_target), max_request_line=300) as (gateway, _):
        client = await gateway.client()
        assert (await client.ask(b"GET /" + b"a" * 400)).status == 414


@pytest.mark.parametrize(("size", "status"), [(2000, 200), (2001, 431)])
async def test_the_head_limit_is_exact(size: int, status: int) -> None:
    async with serving(answering(echo_target), max_head=2000) as (gateway, _):
        client = await gateway.client()
        filler = "a" * (size - len(get("/open/a", "X-Fill: ")))
        data = get("/open/a", f"X-Fill: {filler}")
        assert len(data) == size
        assert (await client.ask(data)).status == status


@pytest.mark.parametrize("cut", [1500, 1996, 1998, 1999])
async def test_the_head_limit_does_not_depend_on_segmentation(cut: int) -> None:
    async with serving(answering(echo_target), max_head=2000) as (gateway, _):
        client = await gateway.client()
        data = get("/open/a", "X-Fill: " + "a" * (2000 - len(get("/open/a", "X-Fill: "))))
        client.send(data[:cut])
        await until(lambda: connection_of(gateway).buffer)
        # A request that is pipelined behind the head does not count for it.
        client.send(data[cut:] + get("/open/b"))
        assert (await client.answer()).status == 200
        assert (await client.answer()).body == b"/open/b"


async def test_a_head_without_end_is_refused_at_its_limit() -> None:
    async with serving(answering(echo_target), max_head=2000) as (gateway, _):
        client = await gateway.client()
        assert (await client.ask(b"GET /open/a HTTP/1.1\r\n" + b"X: y\r\n" * 500)).status == 431


@pytest.mark.parametrize(("count", "status"), [(10, 200), (11, 431)])
async def test_the_field_limit_is_exact(count: int, status: int) -> None:
    async with serving(answering(echo_target), max_headers=10) as (gateway, _):
        client = await gateway.client()
        answer = await client.ask(get("/open/a", *(f"X-{n}: y" for n in range(count - 1))))
        assert answer.status == status


async def test_a_slow_head_is_refused_at_its_deadline() -> None:
    async with serving(answering(echo_target), head_seconds=0.1) as (gateway, _):
        client = await gateway.client()
        answer = await client.ask(b"GET /open/a HTTP/1.1\r\nHost: gat")
        assert (answer.status, answer.closes) == (408, True)
        assert await client.rest() == b""


async def test_a_slow_head_gets_no_more_time_by_sending_single_bytes() -> None:
    async with serving(answering(echo_target), head_seconds=0.2) as (gateway, _):
        client = await gateway.client()
        trickle = asyncio.create_task(trickling(client), name="trickle")
        assert (await client.answer()).status == 408
        trickle.cancel()
        await asyncio.gather(trickle, return_exceptions=True)


async def trickling(client: Client) -> None:
    client.send(b"GET /open/a HTTP/1.1\r\nX: ")
    while True:
        client.send(b"a")
        await asyncio.sleep(0.01)


@pytest.mark.alone
@pytest.mark.parametrize(
    ("first", "again"), [(b"\r", b"\n\r"), (b"\r\n", b"\r\n"), (b"\r\n\r", b"\n"), (b"\r\n\r\nG", b"E")]
)
@pytest.mark.parametrize("used", [False, True])
async def test_empty_lines_and_halves_of_them_do_not_extend_the_deadline(
    first: bytes, again: bytes, used: bool
) -> None:
    async with serving(answering(echo_target), head_seconds=0.5, keepalive_seconds=0.5) as (gateway, _):
        client = await gateway.client()
        if used:
            assert (await client.ask(get("/open/a"))).status == 200
        begun = time.monotonic()
        client.send(first)
        ending = asyncio.create_task(client.rest(), name="ending")
        while not ending.done():
            await asyncio.wait([ending], timeout=0.1)
            client.send(again)
        # A write to a connection that has ended may reset it before the client reads its end.
        with suppress(ConnectionResetError):
            assert (await ending)[:13] in (b"", b"HTTP/1.1 408 ", b"HTTP/1.1 400 ")
        # The time between requests, the time for a head, and some for a busy machine. If these bytes extended a
        # deadline, the connection would stay open.
        assert time.monotonic() - begun < 3.0


async def test_the_second_head_on_a_connection_has_its_own_deadline() -> None:
    async with serving(answering(echo_target), head_seconds=0.5) as (gateway, _):
        client = await gateway.client()
        gateway.stop_sweeping()
        assert (await client.ask(get("/open/a"))).status == 200
        gateway.sweep_on()
        assert (await client.ask(b"GET /op")).status == 408


async def test_a_silent_new_connection_is_closed() -> None:
    async with serving(answering(echo_target), head_seconds=0.05) as (gateway, _):
        client = await gateway.client()
        assert await client.rest() == b""


async def test_an_idle_connection_is_closed_after_the_keepalive_time() -> None:
    async with serving(answering(echo_target), keepalive_seconds=0.1) as (gateway, _):
        client = await gateway.client()
        assert (await client.ask(get("/open/a"))).status == 200
        assert await client.rest() == b""
        await until(lambda: not gateway.listener.connections)


async def test_a_client_that_pipelines_and_half_closes_gets_every_answer() -> None:
    async with serving(answering(echo_target), half_close=True) as (gateway, _):
        client = await gateway.client()
        client.send(get("/open/a") + get("/shut/b") + get("/open/c") + b"GET /open/unfin")
        client.writer.write_eof()
        assert (await client.answer()).body == b"/open/a"
        assert (await client.answer()).status == 403
        assert (await client.answer()).body == b"/open/c"
        assert await client.rest() == b""


async def test_a_client_that_pipelines_refused_requests_does_not_delay_others() -> None:
    async with serving(answering(echo_target)) as (gateway, _):
        greedy, other = await gateway.client(), await gateway.client()
        assert (await other.ask(get("/open/a"))).status == 200
        greedy.send(get("/shut/a") * 1000)
        await until(lambda: any(each.state == ConnectionState.YIELDING for each in gateway.listener.connections))
        assert (await other.ask(get("/open/b"))).body == b"/open/b"
        assert any(each.buffer for each in gateway.listener.connections)
        for _ in range(1000):
            assert (await greedy.answer()).status == 403


async def test_a_client_that_pipelines_many_requests_and_half_closes_gets_every_answer() -> None:
    async with serving(answering(echo_target), half_close=True) as (gateway, _):
        client = await gateway.client()
        client.send(get("/shut/a") * 99 + get("/open/b"))
        client.writer.write_eof()
        for _ in range(99):
            assert (await client.answer()).status == 403
        assert (await client.answer()).body == b"/open/b"
        assert await client.rest() == b""


async def test_a_head_that_arrives_byte_by_byte_is_searched_only_once() -> None:
    async with serving(answering(echo_target)) as (gateway, _):
        client = await gateway.client()
        data = get("/open/a", "X-Long: " + "x" * 20_000)
        await until(lambda: gateway.listener.connections)
        connection = connection_of(gateway)
        before = time.process_time()
        for at in range(len(data)):
            connection.data_received(data[at : at + 1])
        assert time.process_time() - before < 2.0
        assert (await client.answer()).body == b"/open/a"


async def test_asterisk_form_names_no_route() -> None:
    async with serving(answering(echo_target)) as (gateway, _):
        client = await gateway.client()
        assert (await client.ask(get("*", method="OPTIONS"))).reason == "no_route"
        client = await gateway.client()
        assert (await client.ask(get("*"))).status == 400


async def test_a_client_that_ends_inside_its_body_gets_no_answer() -> None:
    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        assert await connection.exactly(3) == b"abc"
        assert await connection.gone()

    async with serving(handle) as (gateway, backend):
        client = await gateway.client()
        client.send(b"POST /open/a HTTP/1.1\r\nHost: gateway\r\nContent-Length: 9\r\n\r\nabc")
        await until(lambda: backend.connections and backend.connections[0].received.endswith(b"abc"))
        client.writer.write_eof()
        assert await client.rest() == b""
        assert gateway.active == 0


async def test_a_client_that_leaves_ends_its_upstream_exchange() -> None:
    left = asyncio.Event()

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        assert await connection.gone()
        left.set()

    async with serving(handle) as (gateway, backend):
        client = await gateway.client()
        client.send(get("/open/a"))
        await until(lambda: backend.connections and backend.connections[0].head)
        client.reset()
        async with asyncio.timeout(HANGS_SECONDS):
            await left.wait()
        assert gateway.active == 0
        await until(lambda: gateway.recorder.connections == 0)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_connection_close_and_http_1_0_end_the_connection(version: str) -> None:
    async with serving(answering(echo_target)) as (gateway, _):
        client = await gateway.client()
        lines = ("Connection: close",) if version == "1.1" else ()
        answer = await client.ask(get("/open/a", *lines, version=version))
        assert (answer.body, answer.closes) == (b"/open/a", True)
        assert await client.rest() == b""


async def test_http_1_0_keeps_the_connection_where_it_requests_that() -> None:
    async with serving(answering(echo_target)) as (gateway, _):
        client = await gateway.client()
        for _ in range(2):
            answer = await client.ask(get("/open/a", "Connection: Keep-Alive", version="1.0"))
            assert answer.all(b"connection") == [b"keep-alive"]


async def test_a_drain_lets_exchanges_finish_and_closes_idle_connections() -> None:
    release = asyncio.Event()

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await release.wait()
        await connection.send(response(b"done"))

    async with serving(handle) as (gateway, backend):
        idle, busy = await gateway.client(), await gateway.client()
        busy.send(get("/open/a"))
        await until(lambda: backend.connections and len(gateway.listener.connections) == 2)
        gateway.listener.drain()
        assert await idle.rest() == b""
        assert not gateway.listener.empty.is_set()
        release.set()
        answer = await busy.answer()
        assert answer.body == b"done"
        assert answer.closes
        assert await busy.rest() == b""
        busy.writer.close()
        idle.writer.close()
        async with asyncio.timeout(HANGS_SECONDS):
            await gateway.listener.empty.wait()


async def test_a_pipelining_client_is_read_no_further_than_the_read_ahead() -> None:
    release = asyncio.Event()

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await release.wait()
        await connection.send(response(b"done"))

    async with serving(handle) as (gateway, _):
        client = await gateway.client()
        client.send(get("/open/a"))
        await until(lambda: connection_of(gateway).exchange)
        client.send(get("/shut/a", "X-Fill: " + "a" * 8000) * 2000)
        await until(lambda: connection_of(gateway).paused)
        assert len(connection_of(gateway).buffer) < 1024 * 1024
        release.set()
        assert (await client.answer()).body == b"done"
        for _ in range(2000):
            assert (await client.answer()).status == 403


async def test_a_slow_reader_gets_its_whole_answer_before_the_connection_closes() -> None:
    body = bytes(range(256)) * 16384  # 4 MiB
    async with serving(answering(response(body))) as (gateway, _):
        client = await gateway.client(receive_buffer=4096)
        shrink(gateway)
        client.send(get("/open/a", "Connection: close"))
        await until(lambda: gateway.listener.connections and connection_of(gateway).exchange)
        # Read all but the gateway's own buffer, wait longer than a closing connection lingers, and read the rest.
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert b"Connection: close" in head
        received = b""
        while not connection_of(gateway).closing:
            received += await client.reader.read(65536)
        await asyncio.sleep(2.3)
        received += await client.rest()
        assert len(received) == len(body)


def connection_of(gateway: Gateway) -> ClientConnection:
    (connection,) = gateway.listener.connections
    return connection


def shrink(gateway: Gateway) -> None:
    """Shrink the kernel's buffer, so that the rest stays in the gateway."""
    for connection in gateway.listener.connections:
        assert connection.transport is not None
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
