"""Connections of the control listener: their number, their timeouts, and the response to bytes that are no request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from proxy.control import connections, request_parsing
from tests.support.process import HANGS_SECONDS
from tests.unit.authority.waiting import until
from tests.unit.control.api_client import API, minted, person
from tests.unit.control.conftest import World

SECRET = "acme_pat_0123456789ab_SecretSecretSecretSecretSecret12000000"


@asynccontextmanager
async def connected(world: World) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    """All data until the other end closes or resets the connection."""
    received = b""
    try:
        async with asyncio.timeout(HANGS_SECONDS):
            while data := await reader.read(65536):
                received += data
    except ConnectionError:
        pass
    return received


def get(path: str, *more: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *more, "", ""]).encode()


async def answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    return head + await reader.readexactly(length)


@pytest.mark.parametrize(
    "sent",
    [
        f"GET /{SECRET} HTTP/9.9\r\n\r\n".encode(),
        f"{SECRET}\r\n\r\n".encode(),
        f"GET / HTTP/1.1\r\nHost: localhost\r\n{SECRET}\r\n\r\n".encode(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + SECRET.encode(),
        f"GET / HTTP/1.1\r\nHost: localhost\r\nX: {'y' * 20_000}\r\n\r\n".encode(),
        f"GET {API}/me HTTP/1.1\r\nHost: localhost\r\nExpect: {SECRET}\r\n\r\n".encode(),
    ],
)
async def test_bytes_that_are_no_request_get_a_problem_that_repeats_nothing(
    world: World, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(world) as (reader, writer):
        writer.write(sent)
        received = await until_closed(reader) if b"Expect" not in sent else await answer(reader)
    assert received.split(b" ")[1] in (b"400", b"417")
    assert b"application/problem+json" in received
    assert SECRET[-20:].encode() not in received
    assert SECRET[-20:] not in caplog.text


async def test_one_connection_serves_many_requests(world: World) -> None:
    await person(world, "root@example.org", "admin")
    token = (await minted(world, "root@example.org"))["token"]
    async with connected(world) as (reader, writer):
        for _ in range(5):
            writer.write(get(f"{API}/me", f"Authorization: Bearer {token}"))
            assert (await answer(reader)).startswith(b"HTTP/1.1 200")
            writer.write(get(f"{API}/me"))
            assert (await answer(reader)).startswith(b"HTTP/1.1 401")


async def test_the_longest_idle_connection_is_dropped_for_a_new_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client cannot keep health probes out by opening connections."""
    (listener,) = world.listeners
    monkeypatch.setattr(listener, "_most", 3)
    async with connected(world) as first, connected(world) as second, connected(world) as third:
        for reader, writer in (first, second, third):
            writer.write(get("/livez"))
            assert (await answer(reader)).startswith(b"HTTP/1.1 200")
        async with connected(world) as (reader, writer):
            writer.write(get("/livez"))
            assert (await answer(reader)).startswith(b"HTTP/1.1 200")
            assert await until_closed(first[0]) == b""
            assert len(listener) == 3
        second[1].write(get("/livez"))
        assert (await answer(second[0])).startswith(b"HTTP/1.1 200")


async def test_a_connection_that_does_not_read_is_dropped_for_a_new_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (listener,) = world.listeners
    monkeypatch.setattr(listener, "_most", 2)
    async with connected(world) as first, connected(world) as second:
        for _, writer in (first, second):
            for _ in range(500):
                writer.write(get(f"{API}/openapi.json"))
        await until(lambda: len(listener) == 2 and all(one._answer_timer is not None for one in listener._open))
        async with connected(world) as (reader, writer):
            writer.write(get("/livez"))
            assert (await answer(reader)).startswith(b"HTTP/1.1 200")


async def test_a_connection_that_sends_a_body_slowly_is_dropped_for_a_new_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (listener,) = world.listeners
    monkeypatch.setattr(listener, "_most", 1)
    await person(world, "root@example.org", "admin")
    token = (await minted(world, "root@example.org"))["token"]
    async with connected(world) as (slow, writer):
        head = [f"POST {API}/orgs HTTP/1.1", "Host: localhost", f"X-API-Key: {token}"]
        writer.write("\r\n".join([*head, "Content-Type: application/json", "Content-Length: 100", "", "{"]).encode())
        await until(lambda: any(one._current_request is not None for one in listener._idle))
        async with connected(world) as (reader, other):
            other.write(get("/livez"))
            assert (await answer(reader)).startswith(b"HTTP/1.1 200")
        assert await until_closed(slow) == b""


async def test_a_body_that_does_not_arrive_is_timed_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_parsing, "BODY_SECONDS", 0.05)
    await person(world, "root@example.org", "admin")
    token = (await minted(world, "root@example.org"))["token"]
    async with connected(world) as (reader, writer):
        head = [f"POST {API}/orgs HTTP/1.1", "Host: localhost", f"X-API-Key: {token}"]
        writer.write("\r\n".join([*head, "Content-Type: application/json", "Content-Length: 100", "", "{"]).encode())
        assert (await answer(reader)).startswith(b"HTTP/1.1 408")
        assert await until_closed(reader) == b""


async def test_a_head_that_does_not_arrive_is_timed_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "KEEPALIVE_SECONDS", 0.05)
    async with connected(world) as (reader, writer):
        writer.write(b"GET /livez HTTP/1.1\r\nHost: ")
        assert await until_closed(reader) == b""


async def test_a_client_that_does_not_read_the_response_is_disconnected(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "ANSWER_SECONDS", 0.2)
    (listener,) = world.listeners
    async with connected(world) as (_, writer):
        # The document has 140 kB: some hundreds of it fill every buffer on the way.
        for _ in range(500):
            writer.write(get(f"{API}/openapi.json"))
        await until(lambda: len(listener) == 1)
        await until(lambda: len(listener) == 0)
    async with world.tcp.get("/livez") as alive:
        assert alive.status == 200
