"""Event streams: they have an idle time limit of their own."""

from __future__ import annotations

import asyncio

import pytest

from proxy.core.ipc.clock import boottime_ns
from tests.unit.gateway.kit import BackendConnection, Gateway, Handler, get, serving, until

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENTS = CHUNKED % b"text/event-stream"
TICK = b"c\r\ndata: tick\n\n\r\n"


def streaming(*pieces: bytes, head: bytes = EVENTS) -> Handler:
    """A handler that sends a head and pieces, and keeps the connection open."""

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(head)
        for piece in pieces:
            await connection.send(piece)
        assert await connection.gone()

    return handle


def streams(gateway: Gateway) -> list[bool]:
    """For each exchange with a started response, whether it is an event stream."""
    exchanges = [connection.exchange for connection in gateway.listener.connections]
    return [x.stream for x in exchanges if x is not None and x.response_started]


def patience(gateway: Gateway) -> float:
    """The seconds until the deadline of the only connection."""
    (connection,) = gateway.listener.connections
    return (connection.deadline - boottime_ns()) / 1e9


async def test_an_event_stream_that_begins_late_is_a_timeout() -> None:
    """The longer limit applies to a started stream; the response head has the usual one."""

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await connection.gone()

    async with serving(handle, response_timeout=0.2) as (gateway, _):
        answer = await (await gateway.client()).ask(get("/open/a", "Accept: text/event-stream"))
        assert (answer.status, answer.reason) == (504, "upstream_timeout")


async def test_an_event_stream_that_is_silent_for_too_long_breaks() -> None:
    async with serving(streaming(TICK), stream_seconds=0.3) as (gateway, _):
        client = await gateway.client()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await client.ask(get("/open/a"))
        await until(lambda: not gateway.listener.connections)
        assert gateway.idle == gateway.active == 0


@pytest.mark.parametrize(
    ("media_type", "is_one"),
    [
        (b"text/event-stream", True),
        (b"Text/Event-Stream;charset=utf-8", True),
        (b"  text/event-stream \t; charset=utf-8", True),
        (b"text/event-stream-not", False),
        (b"application/json; like=text/event-stream", False),
        (b"text/plain\r\nX-Content-Type: text/event-stream", False),
        (b"text/plain\r\nX: content-type: text/event-stream", False),
    ],
)
async def test_a_response_is_an_event_stream_by_its_media_type(media_type: bytes, is_one: bool) -> None:
    """The limit for streams then applies after the head and after each event."""
    handler = streaming(TICK, head=CHUNKED % media_type)
    async with serving(handler, response_timeout=30, stream_seconds=3600) as (gateway, _):
        client = await gateway.client()
        client.send(get("/open/a"))
        await client.reader.readuntil(b"\r\n\r\n")
        assert streams(gateway) == [is_one]
        assert (patience(gateway) > 60) is is_one
        await client.reader.readuntil(TICK)
        assert (patience(gateway) > 60) is is_one


async def test_a_reader_that_closes_a_silent_stream_is_noticed_at_once() -> None:
    """Only the closed connection shows it: nothing is sent that could fail, and the idle limit is long."""
    closed = asyncio.Event()

    async def handle(connection: BackendConnection) -> None:
        await streaming(TICK)(connection)
        closed.set()

    async with serving(handle) as (gateway, _):
        client = await gateway.client()
        client.send(get("/open/a"))
        await client.reader.readuntil(TICK)
        client.writer.close()
        await until(lambda: not gateway.listener.connections)
        assert gateway.idle == gateway.active == 0
        await until(closed.is_set)


async def test_a_reader_that_takes_no_events_has_the_usual_time() -> None:
    async def flood(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(EVENTS)
        while True:
            await connection.send(b"10000\r\n" + b"e" * 65536 + b"\r\n")

    async with serving(flood, response_timeout=30, stream_seconds=3600) as (gateway, _):
        client = await gateway.client(receive_buffer=4096)
        client.send(get("/open/a"))
        await until(lambda: any(connection.full for connection in gateway.listener.connections))
        assert streams(gateway) == [True]
        assert patience(gateway) < 60
