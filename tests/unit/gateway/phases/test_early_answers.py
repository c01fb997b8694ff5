"""Backends that respond while the request body is still arriving, and disconnect before they have read it."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.gateway.kit import BackendConnection, Client, Handler, serving

ANSWERS = {
    "with a length": b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 7\r\n\r\ntoo big",
    "chunked": b"HTTP/1.1 413 Content Too Large\r\nTransfer-Encoding: chunked\r\n\r\n7\r\ntoo big\r\n0\r\n\r\n",
}
TO_ITS_END = b"HTTP/1.0 413 Content Too Large\r\n\r\ntoo big"


def answer_and_go(answer: bytes) -> Handler:
    """Close with unread bytes, which resets the connection."""

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await connection.exactly(1000)
        await connection.send(answer)

    return handle


async def uploaded(client: Client, *, pause: float = 0.0) -> tuple[int, bytes, bool]:
    """What a client receives that sends an endless body until it gets a response."""
    client.send(b"POST /open/a HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n")
    answering = asyncio.create_task(client.answer("POST"), name="answer")
    while not answering.done():
        client.send(b"10000\r\n" + b"b" * 65536 + b"\r\n")
        await asyncio.sleep(pause)
    answer = await answering
    return answer.status, answer.body, answer.closes


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_the_client_gets_a_response_that_arrived_before_the_backend_disconnected(answer: bytes) -> None:
    """The reset must not destroy the response before it, whether the gateway reads or writes first."""
    async with serving(answer_and_go(answer)) as (gateway, backend):
        for number in range(1, 21):
            assert await uploaded(await gateway.client()) == (413, b"too big", True)
            assert len(backend.connections) == number
        assert gateway.idle == gateway.active == 0


@pytest.mark.parametrize("reads_on", [False, True])
async def test_a_response_delimited_by_the_connections_end_is_complete_although_the_body_is_not(reads_on: bool) -> None:
    """The backend closes its side in order, whether or not it reads the rest of the body."""
    end = asyncio.Event()

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(TO_ITS_END)
        connection.writer.write_eof()
        if reads_on:
            while await connection.reader.read(2**20):
                pass
        else:
            await end.wait()

    async with serving(handle) as (gateway, _):
        client = await gateway.client()
        assert await uploaded(client, pause=0.001) == (413, b"too big", True)
        end.set()
        assert gateway.idle == gateway.active == 0


async def test_a_partial_response_before_a_reset_is_not_taken_for_a_response() -> None:
    """Half a head, and half of an announced body, are not complete responses."""
    for beginning, status in (
        (b"HTTP/1.1 413 Content", 502),
        (b"HTTP/1.1 413 X\r\nContent-Length: 9\r\n\r\nhalf", None),
    ):
        async with serving(answer_and_go(beginning)) as (gateway, _):
            client = await gateway.client()
            if status is not None:
                assert (await uploaded(client))[0] == status
            else:
                with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                    await uploaded(client)
            assert gateway.idle == gateway.active == 0
