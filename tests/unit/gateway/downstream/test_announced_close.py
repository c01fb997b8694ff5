"""Closing a connection after the request that its client called the last one (docs/decisions/0020)."""

from __future__ import annotations

import socket

import pytest

from tests.unit.gateway.kit import Client, answering, get, response, serving, until


def echo_target(head: bytes) -> bytes:
    return response(head.split(b" ")[1])


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_connection_is_closed_at_once_after_the_request_that_the_client_called_its_last(version: str) -> None:
    """Nothing waits for the client to close it: a byte that it sends against the rule is answered by a reset."""
    async with serving(answering(echo_target)) as (gateway, _):
        client = await gateway.client()
        lines = ("Connection: close",) if version == "1.1" else ()
        assert (await client.ask(get("/open/a", *lines, version=version))).closes
        assert await client.rest() == b""
        client.send(b"x")
        await until(lambda: is_reset(client))


@pytest.mark.parametrize("behind", [b"\r\n", get("/open/b")])
async def test_bytes_behind_the_last_request_do_not_reset_its_answer(behind: bytes) -> None:
    async with serving(answering(echo_target)) as (gateway, _):
        client = await gateway.client()
        client.send(get("/open/a", "Connection: close") + behind)
        answer = await client.answer()
        assert (answer.body, answer.closes) == (b"/open/a", True)
        client.send(b"x" * 1000)
        assert await client.rest() == b""
        assert not is_reset(client)


@pytest.mark.parametrize("size", [100_000, 200_000])
async def test_bytes_after_the_last_request_do_not_reset_an_answer_that_is_still_on_its_way(size: int) -> None:
    """As old clients send CRLF behind the body of a POST (RFC 9112 section 2.2)."""
    async with serving(answering(lambda _: response(b"x" * size))) as (gateway, backend):
        client = await gateway.client(receive_buffer=4096)
        client.send(get("/open/a", "Connection: close"))
        await until(lambda: backend.connections and all(not each.exchange for each in gateway.listener.connections))
        client.send(b"\r\n")
        answer = await client.answer()
        assert (len(answer.body), answer.closes) == (size, True)
        assert await client.rest() == b""


async def test_the_body_of_a_refused_last_request_does_not_reset_the_answer() -> None:
    async with serving(answering(echo_target)) as (gateway, _):
        client = await gateway.client()
        client.send(b"POST /shut/a HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.closes) == (403, True)
        client.send(b"x" * 1000)
        assert await client.rest() == b""
        assert not is_reset(client)


def is_reset(client: Client) -> bool:
    """Whether the kernel has seen a reset of the client's connection (tcp(7): state TCP_CLOSE)."""
    bound = client.writer.get_extra_info("socket")
    state: int = bound.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state == 7
