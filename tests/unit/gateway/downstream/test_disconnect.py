"""When a client leaves before its answer is complete its exchange ends, in every state of the exchange.

docs/decisions/0009: a client that ends its sending side has left, unless the listener supports half-close. No backend
here answers within the time of a test, so an exchange ends only because its client has left.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from proxy.core.kinds import Kind
from proxy.gateway.downstream.min_rate import unread
from tests.support.certificates import pair
from tests.unit.gateway.downstream.test_connection import connection_of
from tests.unit.gateway.ingress import entry
from tests.unit.gateway.kit import (
    HOST,
    TOKENS,
    BackendConnection,
    Client,
    Entrance,
    Gateway,
    answering,
    get,
    make_page,
    response,
    serving,
    task_runs,
    until,
)
from tests.unit.gateway.ports import full_backlog, gateway_to
from tests.unit.gateway.scripted import authority_at

BODY = 16_000_000
UPLOAD = b"POST /open/a HTTP/1.1\r\nHost: gateway\r\nContent-Length: %d\r\n\r\n" % BODY
OPENING = get("/open/a", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
Leave = Callable[[Client], None]


def end(client: Client) -> None:
    """End the sending side, and wait."""
    client.writer.write_eof()


def close(client: Client) -> None:
    """Close the connection, as curl does at its timeout."""
    client.writer.close()


LEAVINGS: tuple[Leave, ...] = (end, close, Client.reset)


async def silent(connection: BackendConnection) -> None:
    """A backend that reads only the head and answers nothing."""
    await connection.request()
    transport = cast(asyncio.Transport, connection.writer.transport)
    transport.pause_reading()
    await asyncio.Event().wait()


async def listening(connection: BackendConnection) -> None:
    """A backend that reads everything, answers nothing, and closes when the gateway closes."""
    await connection.request()
    while await connection.reader.read(2**20):
        pass


def nothing_is_left(gateway: Gateway) -> bool:
    return not gateway.active and not gateway.idle and not gateway.listener.connections and not gateway.listener.unread


async def left(gateway: Gateway) -> dict[str, Any]:
    """The one line of the access log, once the exchange has ended and its connections are closed."""
    await until(lambda: nothing_is_left(gateway) and gateway.access)
    assert gateway.recorder.connections == 0
    (line,) = gateway.access
    return line


def assert_client_left(line: dict[str, Any]) -> None:
    assert (line["status"], line["reason"], line["outcome"]) == (499, "client_left", "failed")


async def no_answer(client: Client) -> None:
    client.send(get("/open/a"))


async def more_ahead(client: Client) -> None:
    client.send(get("/open/a") * 3)


async def a_whole_body(client: Client) -> None:
    client.send(b"POST /open/a HTTP/1.1\r\nHost: gateway\r\nContent-Length: 4\r\n\r\nbody")


async def half_a_body(client: Client) -> None:
    client.send(b"POST /open/a HTTP/1.1\r\nHost: gateway\r\nContent-Length: 9\r\n\r\nbody")


async def an_upgrade(client: Client) -> None:
    client.send(OPENING)


async def of_version_1_0(client: Client) -> None:
    client.send(get("/open/a", version="1.0"))


ASKING: tuple[Callable[[Client], Awaitable[None]], ...] = (
    no_answer,
    more_ahead,
    a_whole_body,
    half_a_body,
    an_upgrade,
    of_version_1_0,
)


@pytest.mark.parametrize("leave", LEAVINGS)
@pytest.mark.parametrize("ask", ASKING)
async def test_a_client_that_leaves_before_its_answer_closes_the_backends_connection(
    ask: Callable[[Client], Awaitable[None]], leave: Leave
) -> None:
    async with serving(listening) as (gateway, backend):
        client = await gateway.client()
        await ask(client)
        await until(lambda: backend.connections and backend.connections[0].head)
        leave(client)
        assert_client_left(await left(gateway))
        await until(lambda: backend.connections[0].writer.is_closing())
        assert len(backend.connections) == 1, "what it had sent ahead is not begun"


@pytest.mark.parametrize("leave", LEAVINGS)
async def test_a_client_that_leaves_inside_its_answer_closes_the_backends_connection(leave: Leave) -> None:
    async def half(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await connection.gone()

    async with serving(half) as (gateway, backend):
        client = await gateway.client()
        client.send(get("/open/a"))
        await client.reader.readuntil(b"half")
        leave(client)
        assert_client_left(await left(gateway))
        await until(lambda: backend.connections[0].writer.is_closing())


async def upload_until_nobody_reads(client: Client, gateway: Gateway) -> None:
    """Send part of a body until the gateway stops reading, and wait until its kernel has all of it."""
    client.send(UPLOAD)
    # While the connection to the backend is being made, the client is not read either, but that is another case.
    await until(lambda: gateway.active and gateway.listener.connections)
    while not connection_of(gateway).paused:
        client.send(b"b" * 65536)
        await until(lambda: not unread(cast(asyncio.Transport, client.writer.transport)))


@pytest.mark.parametrize("leave", LEAVINGS)
async def test_a_client_that_leaves_while_the_backend_does_not_read_its_body_is_noticed(leave: Leave) -> None:
    """The gateway does not read it, so the event loop does not see its end."""
    async with serving(silent) as (gateway, _):
        client = await gateway.client()
        await upload_until_nobody_reads(client, gateway)
        leave(client)
        assert_client_left(await left(gateway))


@pytest.mark.parametrize("leave", LEAVINGS)
async def test_a_client_that_leaves_after_pipelining_much_is_noticed(leave: Leave) -> None:
    async with serving(listening) as (gateway, backend):
        client = await gateway.client()
        client.send(get("/open/a"))
        await until(lambda: backend.connections and backend.connections[0].head)
        client.send(get("/shut/a", "X-Fill: " + "a" * 8000) * 20)
        await until(lambda: connection_of(gateway).paused)
        held = len(connection_of(gateway).buffer)
        assert held < 1024 * 1024
        leave(client)
        assert_client_left(await left(gateway))


@pytest.mark.parametrize("leave", LEAVINGS)
async def test_a_client_that_leaves_while_a_connection_is_being_made_is_noticed(leave: Leave) -> None:
    with full_backlog() as port:
        async with gateway_to(port, connect_timeout=30.0) as gateway:
            client = await gateway.client()
            client.send(get("/open/a"))
            await until(lambda: gateway.listener.connections and connection_of(gateway).exchange is not None)
            leave(client)
            assert_client_left(await left(gateway))


@pytest.mark.parametrize("leave", LEAVINGS)
async def test_a_client_that_leaves_while_its_token_is_looked_up_reaches_no_backend(
    leave: Leave, tmp_path: Path
) -> None:
    go = asyncio.Event()
    async with authority_at(tmp_path / "link") as authority:

        async def late(message: Any) -> Any:
            await go.wait()
            return authority.resolved(message)

        authority.answers["resolve"] = late
        async with serving(answering(response()), link_path=tmp_path / "link", page=make_page()) as (gateway, backend):
            await until(lambda: gateway.link.cache_key)
            client = await gateway.client()
            client.send(get("/v1/things", "Authorization: Bearer " + minted_elsewhere()))
            await until(lambda: authority.asked["resolve"])
            leave(client)
            assert_client_left(await left(gateway))
            go.set()
            await until(lambda: not task_runs("settle"))
            assert backend.connections == []
            assert len(gateway.access) == 1


def minted_elsewhere() -> str:
    return TOKENS.mint(Kind.PAT).token


@pytest.mark.parametrize("leave", LEAVINGS)
async def test_an_ingress_that_leaves_during_the_authority_lookup_is_noticed(leave: Leave, tmp_path: Path) -> None:
    async with authority_at(tmp_path / "link") as authority:
        authority.answers["resolve"] = lambda message: None
        async with entry(link_path=tmp_path / "link", page=make_page()) as gateway:
            await until(lambda: gateway.link.cache_key)
            client = await gateway.client()
            lines = ("X-Original-Method: GET", "X-Original-URI: /v1/things/1")
            client.send(get("/nginx", *lines, "Authorization: Bearer " + minted_elsewhere()))
            await until(lambda: authority.asked["resolve"])
            leave(client)
            assert_client_left(await left(gateway))


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    made = pair(tmp_path_factory.mktemp("tls"), "gateway")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.certificate, made.key)
    return server, ssl.create_default_context(cafile=str(made.certificate))


async def over_tls(gateway: Gateway, context: ssl.SSLContext) -> Client:
    reader, writer = await asyncio.open_connection(HOST, gateway.port, ssl=context, server_hostname="gateway")
    return Client(reader, writer)


@pytest.mark.parametrize("half_close", [False, True])
@pytest.mark.parametrize("leave", [close, Client.reset])
async def test_a_client_that_leaves_under_tls_is_noticed(
    leave: Leave, half_close: bool, contexts: tuple[ssl.SSLContext, ssl.SSLContext], caplog: pytest.LogCaptureFixture
) -> None:
    """A TLS transport has no half-close, regardless of the setting."""
    async with serving(listening, entrance=Entrance(context=contexts[0]), half_close=half_close) as (gateway, backend):
        client = await over_tls(gateway, contexts[1])
        client.send(get("/open/a"))
        await until(lambda: backend.connections and backend.connections[0].head)
        leave(client)
        assert_client_left(await left(gateway))
        assert [record for record in caplog.records if "eof_received" in record.getMessage()] == []


async def test_a_client_that_leaves_under_tls_while_the_backend_does_not_read_is_noticed(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async with serving(silent, entrance=Entrance(context=contexts[0])) as (gateway, _):
        client = await over_tls(gateway, contexts[1])
        await upload_until_nobody_reads(client, gateway)
        client.reset()
        assert_client_left(await left(gateway))


async def test_a_tunnel_whose_client_leaves_while_the_backend_does_not_read_is_ended() -> None:
    async def switch(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        cast(asyncio.Transport, connection.writer.transport).pause_reading()
        await asyncio.Event().wait()

    async with serving(switch) as (gateway, _):
        client = await gateway.client()
        client.send(OPENING)
        await client.reader.readuntil(b"\r\n\r\n")
        client.send(b"\x82\x7f" + (BODY).to_bytes(8, "big") + b"b" * BODY)
        await until(lambda: connection_of(gateway).paused)
        client.reset()
        await until(lambda: nothing_is_left(gateway))


async def late_answer(connection: BackendConnection) -> None:
    await connection.request()
    await asyncio.sleep(0.05)
    await connection.send(response(b"late"))


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_half_closed_client_gets_its_answer_where_the_listener_supports_it(version: str) -> None:
    async with serving(late_answer, half_close=True) as (gateway, _):
        client = await gateway.client()
        client.send(get("/open/a", version=version))
        client.writer.write_eof()
        assert (await client.answer()).body == b"late"
        assert await client.rest() == b""


async def test_a_half_closed_client_whose_body_is_not_read_yet_gets_its_answer() -> None:
    go = asyncio.Event()

    async def slow(connection: BackendConnection) -> None:
        await connection.request()
        transport = cast(asyncio.Transport, connection.writer.transport)
        transport.pause_reading()
        await go.wait()
        transport.resume_reading()
        await connection.exactly(BODY)
        await connection.send(response(b"all"))

    async with serving(slow, half_close=True) as (gateway, _):
        client = await gateway.client()
        client.send(UPLOAD + b"b" * BODY)
        client.writer.write_eof()
        await until(lambda: gateway.listener.connections and connection_of(gateway).paused)
        seen = gateway.sweeps
        await until(lambda: gateway.sweeps > seen + 3)
        go.set()
        assert (await client.answer()).body == b"all"


async def test_a_half_closed_client_that_then_resets_counts_as_gone() -> None:
    async with serving(listening, half_close=True) as (gateway, backend):
        client = await gateway.client()
        client.send(get("/open/a"))
        await until(lambda: backend.connections and backend.connections[0].head)
        client.writer.write_eof()
        await until(lambda: connection_of(gateway).half_closed)
        client.reset()
        assert_client_left(await left(gateway))


async def test_a_client_that_ends_its_sending_side_after_its_answer_is_no_failure() -> None:
    async with serving(answering(response()), access="all") as (gateway, _):
        client = await gateway.client()
        assert (await client.ask(get("/open/a"))).status == 200
        client.writer.write_eof()
        assert await client.rest() == b""
        await until(lambda: not gateway.listener.connections and gateway.access)
        assert [line["status"] for line in gateway.access] == [200]
        assert gateway.idle == 1, "the backend's connection serves the next"
