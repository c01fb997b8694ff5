"""WebSocket tunnels and long downloads: no byte lost, bounded buffers, and an idle time limit of their own."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from proxy.core.ipc.clock import boottime_ns
from tests.support.process import HANGS_SECONDS
from tests.support.sockets import kernel_keeps
from tests.unit.gateway.kit import Backend, BackendConnection, Client, Gateway, Handler, get, serving, until

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
OPENING = get("/open/a", "Connection: Upgrade", "Upgrade: websocket")
BLOCK = 65_536
WAITING = 1024 * 1024
"""More bytes than the gateway buffers for either side."""


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


async def keep(connection: BackendConnection) -> None:
    """Open the tunnel and leave it to the test."""
    await connection.request()
    await connection.send(SWITCH)
    await asyncio.Event().wait()


@asynccontextmanager
async def tunnel(handler: Handler = keep, **facts: float) -> AsyncIterator[tuple[Gateway, Backend, Client]]:
    async with serving(handler, **facts) as (gateway, backend):
        client = await gateway.client()
        client.send(OPENING)
        await client.reader.readuntil(b"\r\n\r\n")
        yield gateway, backend, client


def waiting(gateway: Gateway) -> int:
    """Bytes that the only tunnel has read from one side and not yet sent to the other."""
    (client,) = gateway.listener.connections
    assert client.exchange is not None and client.exchange.upstream_connection is not None
    transports = (client.transport, client.exchange.upstream_connection.transport)
    return sum(transport.get_write_buffer_size() for transport in transports if transport is not None)


async def still(count: Callable[[], int], most: int) -> None:
    """Return when a changing count has become stable; fail when it exceeds ``most``."""
    last, since = -1, 0
    while since < 20:
        await asyncio.sleep(0.01)
        last, since = count(), since + 1 if count() == last else 0
        assert last < most


@pytest.mark.parametrize("upwards", [True, False], ids=["to the backend", "to the client"])
async def test_a_tunnel_takes_no_more_than_the_other_side_reads(upwards: bool) -> None:
    sent, came, noises = 0, hashlib.sha256(), random.Random(1)
    enough = asyncio.Event()
    async with tunnel() as (gateway, backend, client):
        served = backend.connections[0]
        writer, reader = (client.writer, served.reader) if upwards else (served.writer, client.reader)

        async def flood() -> str:
            nonlocal sent
            went = hashlib.sha256()
            while not enough.is_set():
                block = noises.randbytes(BLOCK)
                writer.write(block)
                went.update(block)
                sent += BLOCK
                await writer.drain()
            return went.hexdigest()

        flooding = asyncio.create_task(flood(), name="flood")
        await until(lambda: sent)
        # The buffers of the kernel on both sides of the gateway, and of the streams of this test.
        await still(lambda: sent, 2 * kernel_keeps() + 8 * WAITING)
        assert waiting(gateway) < WAITING
        enough.set()
        received = 0
        async with asyncio.timeout(HANGS_SECONDS):
            while received < sent:
                data = await reader.read(BLOCK)
                assert data
                came.update(data)
                received += len(data)
            assert await flooding == came.hexdigest()


async def test_both_directions_of_a_tunnel_flow_at_once_without_loss() -> None:
    up, down = noise(4 * WAITING, 2), noise(4 * WAITING, 3)
    async with tunnel() as (_, backend, client):
        served = backend.connections[0]
        client.writer.write(up)
        served.writer.write(down)
        got = await asyncio.wait_for(
            asyncio.gather(served.reader.readexactly(len(up)), client.reader.readexactly(len(down))), 60
        )
        assert tuple(got) == (up, down)


async def test_a_tunnel_has_its_own_idle_time_which_any_byte_restarts() -> None:
    async with tunnel(response_timeout=30, tunnel_seconds=3600) as (gateway, backend, client):
        (connection,) = gateway.listener.connections
        served = backend.connections[0]

        def moved_since(deadline: int) -> bool:
            return connection.deadline > deadline

        assert connection.deadline - boottime_ns() > 3_000_000_000_000
        before = connection.deadline
        client.send(b"up")
        assert await served.reader.readexactly(2) == b"up"
        assert moved_since(before)
        before = connection.deadline
        await served.send(b"down")
        assert await client.reader.readexactly(4) == b"down"
        assert moved_since(before)


async def test_a_tunnel_that_is_silent_for_too_long_is_closed_on_both_sides() -> None:
    async with tunnel(tunnel_seconds=0.3) as (gateway, backend, client):
        with suppress(ConnectionResetError):
            assert await client.rest() == b""
        assert await backend.connections[0].gone()
        await until(lambda: not gateway.listener.connections and not gateway.active and not gateway.idle)


@pytest.mark.parametrize("framing", ["a length", "chunks", "the end"])
async def test_a_long_download_is_exact_to_the_byte(framing: str) -> None:
    """In pieces of every size, so that reads end anywhere in a piece."""
    payload = noise(2 * 1024 * 1024, 4)
    sizes = random.Random(5)

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        head = {"a length": b"Content-Length: %d\r\n" % len(payload), "chunks": b"Transfer-Encoding: chunked\r\n"}
        await connection.send(b"HTTP/1.1 200 OK\r\n" + head.get(framing, b"") + b"\r\n")
        at = 0
        while at < len(payload):
            piece = payload[at : at + sizes.choice((1, 2, 17, 1000, 65_535, 300_000))]
            at += len(piece)
            await connection.send(b"%x\r\n%b\r\n" % (len(piece), piece) if framing == "chunks" else piece)
        if framing == "chunks":
            await connection.send(b"0\r\n\r\n")

    async with serving(handle) as (gateway, _):
        answer = await (await gateway.client()).ask(get("/open/a"))
        assert answer.body == payload


async def test_a_client_that_sends_and_never_reads_loses_its_tunnel() -> None:
    """A tunnel may be idle for long, but a side that leaves everything unread is not idle."""

    async def flood(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(SWITCH)
        while True:
            await connection.send(b"\x82\x7e\x10\x00" + bytes(4096))

    facts = {"access": "all", "response_timeout": 0.5, "client_rate": 240}
    async with serving(flood, **facts) as (gateway, _):
        client = await gateway.client(receive_buffer=4096)
        gateway.stop_sweeping()
        client.send(OPENING)
        await client.reader.readuntil(b"\r\n\r\n")
        gateway.sweep_on()
        while gateway.listener.connections:
            client.send(b"\x82\x80mask")
            await asyncio.sleep(0.05)
        await until(lambda: gateway.access)
        assert gateway.access[0]["reason"] == "client_left"
