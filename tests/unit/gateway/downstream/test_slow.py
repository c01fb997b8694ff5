"""Slow clients, in either direction: those that keep the minimum rate are served, others are cut."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest

from tests.support.certificates import pair
from tests.support.process import HANGS_SECONDS
from tests.unit.gateway.kit import HOST, BackendConnection, Entrance, answering, get, response, serving, still, until

RATE = 2000
IDLE = 0.5
SIZE = 16 * 1024 * 1024


async def swallow(connection: BackendConnection) -> None:
    while True:
        head = await connection.request()
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"Content-Length: "))
        await connection.exactly(int(length[16:]))
        await connection.send(response())


async def test_a_body_below_the_rate_is_refused_though_it_never_pauses() -> None:
    async with serving(swallow, client_rate=RATE, body_idle_seconds=IDLE) as (gateway, _):
        client = await gateway.client()
        client.send(b"POST /open/a HTTP/1.1\r\nHost: gateway\r\nContent-Length: 100000\r\n\r\n")
        answer = asyncio.create_task(client.answer("POST"), name="answer")
        while not answer.done():
            client.send(b"x")
            await asyncio.wait([answer], timeout=0.02)
        assert ((await answer).status, answer.result().closes) == (408, True)


async def test_a_body_that_keeps_the_rate_may_take_long() -> None:
    async with serving(swallow, client_rate=RATE, body_idle_seconds=IDLE) as (gateway, _):
        client = await gateway.client()
        begun = time.monotonic()
        client.send(b"POST /open/a HTTP/1.1\r\nHost: gateway\r\nContent-Length: 300000\r\n\r\n")
        for _ in range(30):
            client.send(bytes(10_000))
            await asyncio.sleep(IDLE / 10)
        assert (await client.answer("POST")).status == 200
        assert time.monotonic() - begun > 2 * IDLE


@pytest.mark.parametrize("body_idle_seconds", [5.0])
async def test_each_request_on_a_connection_has_its_own_time(body_idle_seconds: float) -> None:
    async with serving(swallow, client_rate=RATE, body_idle_seconds=body_idle_seconds) as (gateway, _):
        client = await gateway.client()
        for _ in range(3):
            client.send(b"POST /open/a HTTP/1.1\r\nHost: gateway\r\nContent-Length: 2\r\n\r\nx")
            await asyncio.sleep(0.05)
            client.send(b"x")
            assert (await client.answer("POST")).status == 200


async def test_a_reader_that_keeps_the_rate_gets_everything() -> None:
    """It may read less than the kernel's share of the buffer between two checks, and is still not cut."""
    facts = {"client_rate": RATE, "response_timeout": IDLE, "answer_seconds": IDLE}
    async with serving(answering(response(bytes(SIZE))), **facts) as (gateway, _):
        client = await gateway.client(receive_buffer=4096)
        client.send(get("/open/a"))
        received = 0
        begun = time.monotonic()
        while time.monotonic() - begun < 4 * IDLE:
            received += len(await client.reader.read(4096))
            await asyncio.sleep(0.005)
        async with asyncio.timeout(HANGS_SECONDS):
            while received < SIZE:
                data = await client.reader.read(2**20)
                assert data
                received += len(data)


async def test_a_reader_that_stops_is_cut() -> None:
    facts = {"client_rate": RATE, "response_timeout": IDLE, "answer_seconds": IDLE}
    async with serving(answering(response(bytes(SIZE))), **facts) as (gateway, _):
        client = await gateway.client(receive_buffer=4096)
        client.send(get("/open/a"))
        await until(lambda: gateway.listener.connections)
        await until(lambda: not gateway.listener.connections)
        assert gateway.active == 0


def sip(port: int, context: ssl.SSLContext | None, lines: tuple[str, ...], ended: threading.Event) -> int:
    """Read an answer of ``SIZE`` bytes, slowly for three seconds once only its end is left; returns the bytes read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(HANGS_SECONDS)
    sock.connect((HOST, port))
    received, until_then = b"", 0.0
    with sock if context is None else context.wrap_socket(sock, server_hostname="gateway") as bound:
        bound.sendall(get("/open/a", *lines))
        size = 0
        while size < SIZE + received.find(b"\r\n\r\n") + 4:
            try:
                data = bound.recv(4096)
            except ConnectionResetError:
                break
            if not data:
                break
            received = received or data
            size += len(data)
            if ended.is_set():
                until_then = until_then or time.monotonic() + 3
                if time.monotonic() < until_then:
                    time.sleep(0.005)
    return size - received.find(b"\r\n\r\n") - 4


@pytest.mark.parametrize(
    ("tls", "lines"),
    [(False, ()), (True, ()), (True, ("Connection: close",))],
    ids=["kept alive", "kept alive over TLS", "closed over TLS"],
)
async def test_a_reader_that_keeps_the_rate_gets_the_end_of_an_answer_too(
    tls: bool, lines: tuple[str, ...], tmp_path: Path
) -> None:
    """The client may take long to read what the gateway still buffers after the backend has answered."""
    server = client = None
    if tls:
        made = pair(tmp_path)
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(made.certificate, made.key)
        client = ssl.create_default_context(cafile=str(made.certificate))
    facts = {"client_rate": RATE, "keepalive_seconds": 1.0, "answer_seconds": 1.0, "entrance": Entrance(context=server)}
    async with serving(answering(response(bytes(SIZE))), **facts) as (gateway, backend):
        ended = threading.Event()
        reading = asyncio.create_task(asyncio.to_thread(sip, gateway.port, client, lines, ended), name="sip")
        await until(lambda: backend.connections)
        await until(lambda: not gateway.active and all(not c.exchange for c in gateway.listener.connections))
        ended.set()
        assert await reading == SIZE


async def test_a_client_that_stops_reading_is_recorded_as_client_left() -> None:
    facts = {"client_rate": RATE, "response_timeout": IDLE, "answer_seconds": IDLE, "access": "all"}
    async with serving(answering(response(bytes(SIZE))), **facts) as (gateway, _):
        client = await gateway.client(receive_buffer=4096)
        gateway.stop_sweeping()
        client.send(get("/open/a"))
        await until(lambda: any(connection.full for connection in gateway.listener.connections))
        gateway.sweep_on()
        await until(lambda: gateway.access)
        assert (gateway.access[0]["reason"], gateway.access[0]["outcome"]) == ("client_left", "failed")


async def test_a_backend_that_is_slow_to_read_a_body_gets_the_time_of_an_answer() -> None:
    """The client is not to blame while the gateway does not read it."""
    read = asyncio.Event()

    async def hesitant(connection: BackendConnection) -> None:
        await connection.request()
        await read.wait()
        await connection.exactly(SIZE)
        await connection.send(response())

    async with serving(hesitant, body_idle_seconds=IDLE) as (gateway, _):
        client = await gateway.client()
        # Deadlines are checked only while the gateway does not read: a busy machine may pause in the body, too.
        gateway.stop_sweeping()
        client.send(b"POST /open/a HTTP/1.1\r\nHost: gateway\r\nContent-Length: %d\r\n\r\n" % SIZE + bytes(SIZE))
        await until(lambda: [connection.paused for connection in gateway.listener.connections] == [True])
        # The kernel still takes some, and then the client is read again.
        await still(lambda: [each.exchange and each.exchange.bytes_in for each in gateway.listener.connections])
        gateway.sweep_on()
        before, begun = gateway.sweeps, time.monotonic()
        await until(lambda: gateway.sweeps > before and time.monotonic() - begun > 3 * IDLE)
        gateway.stop_sweeping()
        read.set()
        assert (await client.answer("POST")).status == 200
