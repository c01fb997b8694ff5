"""Clients that trickle, in either direction: those who keep the rate live, the others are gone."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.unit.gateway.kit import BackendConnection, answering, get, response, serving, until

RATE = 2000
IDLE = 0.5
SIZE = 16 * 1024 * 1024


async def swallow(connection: BackendConnection) -> None:
    while True:
        head = await connection.request()
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"Content-Length: "))
        await connection.exactly(int(length[16:]))
        await connection.send(response())


async def test_a_body_that_trickles_is_refused_though_it_never_pauses() -> None:
    async with serving(swallow, client_rate=RATE, body_idle_seconds=IDLE) as (gateway, _):
        client = await gateway.client()
        client.send(b"POST /open/a HTTP/1.1\r\nHost: gateway\r\nContent-Length: 100000\r\n\r\n")
        answer = asyncio.create_task(client.answer("POST", seconds=20), name="answer")
        while not answer.done():
            client.send(b"x")
            await asyncio.wait([answer], timeout=0.02)
        assert ((await answer).status, answer.result().closes) == (408, True)


async def test_a_body_that_keeps_the_rate_takes_as_long_as_it_takes() -> None:
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
    """Between two looks at the clock its share of the buffer has not emptied, and it is not taken for one that left."""
    facts = {"client_rate": RATE, "response_timeout": IDLE, "answer_seconds": IDLE}
    async with serving(answering(response(bytes(SIZE))), **facts) as (gateway, _):
        client = await gateway.client(receive_buffer=4096)
        client.send(get("/open/a"))
        received = 0
        begun = time.monotonic()
        while time.monotonic() - begun < 4 * IDLE:
            received += len(await client.reader.read(4096))
            await asyncio.sleep(0.005)
        async with asyncio.timeout(30):
            while received < SIZE:
                data = await client.reader.read(2**20)
                assert data
                received += len(data)


async def test_a_reader_that_stops_is_gone() -> None:
    facts = {"client_rate": RATE, "response_timeout": IDLE, "answer_seconds": IDLE}
    async with serving(answering(response(bytes(SIZE))), **facts) as (gateway, _):
        client = await gateway.client(receive_buffer=4096)
        client.send(get("/open/a"))
        await until(lambda: gateway.listener.connections)
        await until(lambda: not gateway.listener.connections, seconds=20)
        assert gateway.active == 0
