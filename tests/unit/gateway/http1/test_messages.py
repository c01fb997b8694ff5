"""Rules of RFC 9110 and 9112 for an intermediary: old versions, interim answers, half-closed connections, cleanup."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import pytest

from proxy.gateway.phases.relay import MAX_RESPONSE_HEAD
from tests.unit.gateway.kit import (
    BackendConnection,
    Client,
    Gateway,
    Handler,
    answering,
    field_lines,
    get,
    response,
    serving,
    until,
)

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </%d>\r\n\r\n"
UPLOAD = b"PUT /open/a HTTP/1.1\r\nHost: gateway\r\nContent-Length: 10\r\n%b\r\n"


def left_nothing(gateway: Gateway) -> bool:
    """Whether no exchange, connection or task is left, and no connection was pooled."""
    tasks = {task.get_name() for task in asyncio.all_tasks()} & {"settle", "upstream connect", "judge again"}
    return not (gateway.listener.connections or gateway.idle or gateway.active or len(gateway.pipeline.live) or tasks)


# --- Date (RFC 9110 section 6.6.1) ---


def is_now(date: bytes) -> bool:
    return abs(parsedate_to_datetime(date.decode()) - datetime.now(UTC)) < timedelta(seconds=60)


@pytest.mark.parametrize("answer", [response(), CHUNKED + b"0\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\nx"], ids=repr)
async def test_an_answer_without_a_date_gets_one(answer: bytes) -> None:
    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(HINTS % 1 + answer)

    async with serving(handle) as (gateway, _):
        client = await gateway.client()
        client.send(get("/open/a"))
        interim = await client.reader.readuntil(b"\r\n\r\n")
        assert interim == HINTS % 1
        (date,) = (await client.answer()).all(b"date")
        assert is_now(date)


async def test_an_answers_own_date_is_kept_unchanged() -> None:
    async with serving(answering(response(fields=b"dAtE: never\r\n"))) as (gateway, _):
        assert (await (await gateway.client()).ask(get("/open/a"))).all(b"date") == [b"never"]


async def test_a_refusal_has_a_date() -> None:
    async with serving(answering(response())) as (gateway, _):
        (date,) = (await (await gateway.client()).ask(get("/v1/things"))).all(b"date")
        assert is_now(date)


# --- HTTP/1.0 on either side (RFC 9112 sections 2.3 and 9.3, RFC 9110 section 10.1.1) ---


@pytest.mark.parametrize("lines", [("Expect: 100-continue",), ("Expect: 100-continue", "Expect: 100-continue")])
async def test_an_expectation_of_an_http_1_0_client_is_ignored(lines: tuple[str, ...]) -> None:
    async def handle(connection: BackendConnection) -> None:
        assert field_lines(await connection.request(), "expect") == []
        assert await connection.exactly(4) == b"body"
        await connection.send(CONTINUE + HINTS % 1 + response())

    async with serving(handle) as (gateway, _):
        client = await gateway.client()
        client.send(get("/open/a", *lines, "Content-Length: 4", method="POST", version="1.0") + b"body")
        assert (await client.rest()).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_an_http_1_0_client_keeps_its_connection_on_request_if_the_answers_end_is_known() -> None:
    answers = {b"/open/length": response(b"ok"), b"/open/none": b"HTTP/1.1 204 No Content\r\n\r\n"}
    async with serving(answering(lambda head: answers[head.split(b" ")[1]])) as (gateway, _):
        client = await gateway.client()
        for target in ("/open/length", "/open/none", "/shut/a", "/open/length"):
            answer = await client.ask(get(target, "Connection: keep-alive", version="1.0"))
            assert answer.all(b"connection") == [b"keep-alive"]
        assert (await client.ask(get("/open/length", version="1.0"))).closes
        assert await client.rest() == b""


@pytest.mark.parametrize("answer", [CHUNKED + b"2\r\nok\r\n0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nok"], ids=repr)
async def test_an_http_1_0_client_reads_to_the_end_of_the_connection_without_a_length(answer: bytes) -> None:
    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(answer)

    async with serving(handle) as (gateway, _):
        client = await gateway.client()
        client.send(get("/open/a", "Connection: keep-alive", version="1.0"))
        head, _, body = (await client.rest()).partition(b"\r\n\r\n")
        assert body == b"ok"
        assert b"\r\nConnection: close" in head and b"ransfer-" not in head and b"ontent-Length" not in head


@pytest.mark.parametrize(
    ("fields", "kept"), [(b"", False), (b"Connection: keep-alive\r\n", True), (b"Connection: Keep-Alive, x\r\n", True)]
)
async def test_an_http_1_0_backend_keeps_its_connection_only_with_keep_alive(fields: bytes, kept: bool) -> None:
    answer = response(fields=fields).replace(b"HTTP/1.1", b"HTTP/1.0")
    async with serving(answering(answer)) as (gateway, backend):
        client = await gateway.client()
        for _ in range(3):
            got = await client.ask(get("/open/a"))
            assert (got.status, got.body, got.closes) == (200, b"ok", False)
            assert got.head.startswith(b"HTTP/1.1 ")
        assert len(backend.connections) == (1 if kept else 3)


# --- answers (RFC 9110 section 15) ---


@pytest.mark.parametrize(
    "answer",
    [response(b"", status=b"205 Reset Content"), CHUNKED.replace(b"200 OK", b"205 X") + b"0\r\n\r\n"],
    ids=repr,
)
async def test_a_205_is_an_answer_with_an_empty_body(answer: bytes) -> None:
    async with serving(answering(answer)) as (gateway, backend):
        client = await gateway.client()
        for _ in range(2):
            got = await client.ask(get("/open/a"))
            assert (got.status, got.body) == (205, b"")
        assert len(backend.connections) == 1


async def test_a_304_keeps_the_length_that_it_announces() -> None:
    async with serving(answering(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 12\r\nETag: x\r\n\r\n")) as (
        gateway,
        _,
    ):
        answer = await (await gateway.client()).ask(get("/open/a"))
        assert (answer.all(b"content-length"), answer.all(b"etag"), answer.body) == ([b"12"], [b"x"], b"")


async def test_interim_answers_are_forwarded_while_the_body_arrives() -> None:
    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(HINTS % 1 + CONTINUE)
        await connection.exactly(5)
        await connection.send(HINTS % 2)
        await connection.exactly(5)
        await connection.send(HINTS % 3 + response())

    async with serving(handle) as (gateway, _):
        client = await gateway.client()
        client.send(UPLOAD % b"Expect: 100-continue\r\n")
        assert await client.reader.readexactly(len(HINTS % 1 + CONTINUE)) == HINTS % 1 + CONTINUE
        client.send(b"b" * 5)
        assert await client.reader.readexactly(len(HINTS % 2)) == HINTS % 2
        client.send(b"b" * 5)
        answer = await client.answer("PUT")
        assert (answer.status, answer.interim, answer.closes) == (200, [103], False)


async def test_a_backend_that_closes_after_its_100_is_a_502_without_a_retry() -> None:
    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(CONTINUE)
        await connection.exactly(5)

    async with serving(handle) as (gateway, backend):
        client = await gateway.client()
        client.send(UPLOAD % b"Expect: 100-continue\r\n")
        assert await client.reader.readexactly(len(CONTINUE)) == CONTINUE
        client.send(b"b" * 5)
        answer = await client.answer("PUT")
        assert (answer.status, answer.reason, answer.closes) == (502, "upstream_reset", True)
        assert len(backend.connections) == 1


async def test_a_request_with_an_interim_answer_is_not_sent_again() -> None:
    """The connection was reused, and the interim answer shows that it was open."""

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(response())
        await connection.request()
        await connection.send(HINTS % 1)

    async with serving(handle) as (gateway, backend):
        client = await gateway.client()
        assert (await client.ask(get("/open/a"))).status == 200
        answer = await client.ask(get("/open/a"))
        assert (answer.status, answer.interim) == (502, [103])
        assert len(backend.connections) == 1


@pytest.mark.parametrize("cut", [None, 1000, -1])
@pytest.mark.parametrize(("over", "status"), [(-1, 200), (0, 200), (1, 502)])
async def test_the_limit_of_an_answers_head_is_exact(over: int, status: int, cut: int | None) -> None:
    """Without the two CRLF at its end, in any segmentation."""
    lines = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: "
    head = lines + b"x" * (MAX_RESPONSE_HEAD + over - len(lines)) + b"\r\n\r\n"

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(head[:cut])
        if cut is not None:
            await asyncio.sleep(0.02)
            await connection.send(head[cut:])

    async with serving(handle) as (gateway, _):
        assert (await (await gateway.client()).ask(get("/open/a"))).status == status


# --- half-closed connections (RFC 9112 sections 8 and 9.6) ---


@pytest.mark.parametrize("framing", ["Content-Length: 10", "Transfer-Encoding: chunked"])
async def test_a_client_that_ends_its_sending_side_inside_a_body_has_left(framing: str) -> None:
    bodies: list[bytes] = []

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        bodies.append(await connection.reader.read())

    async with serving(handle) as (gateway, backend):
        client = await gateway.client()
        client.send(get("/open/a", framing, method="POST") + b"3\r\nabc\r\n")
        await until(lambda: backend.connections and backend.connections[0].head)
        client.writer.write_eof()
        assert await client.rest() == b""
        await until(lambda: left_nothing(gateway) and bodies)
        assert not bodies[0].endswith(b"0\r\n\r\n")


async def half_a_head(client: Client) -> None:
    client.send(get("/open/a")[:-3])


async def half_a_body(client: Client) -> None:
    client.send(UPLOAD % b"" + b"half")


async def no_answer_yet(client: Client) -> None:
    client.send(get("/open/a"))


async def no_answer_yet_and_more_ahead(client: Client) -> None:
    client.send(get("/open/a") * 10)


async def half_an_answer(client: Client) -> None:
    client.send(get("/open/half"))
    await client.reader.readuntil(b"half")


async def half_an_answer_to_half_a_body(client: Client) -> None:
    client.send(UPLOAD.replace(b"/a", b"/half") % b"" + b"half")
    await client.reader.readuntil(b"half")


STATES: tuple[Callable[[Client], Awaitable[None]], ...] = (
    half_a_head,
    half_a_body,
    no_answer_yet,
    no_answer_yet_and_more_ahead,
    half_an_answer,
    half_an_answer_to_half_a_body,
)


def stalling(half: bytes) -> Handler:
    async def handle(connection: BackendConnection) -> None:
        head = await connection.request()
        if b"/half" in head:
            await connection.send(half)
        await connection.gone()

    return handle


@pytest.mark.parametrize(
    "half", [CHUNKED + b"9\r\nhalf", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"], ids=repr
)
@pytest.mark.parametrize("state", STATES)
async def test_a_client_that_resets_leaves_nothing_behind(
    state: Callable[[Client], Awaitable[None]], half: bytes
) -> None:
    async with serving(stalling(half)) as (gateway, backend):
        client = await gateway.client()
        await until(lambda: gateway.listener.connections)
        await state(client)
        if state is not half_a_head:
            await until(lambda: backend.connections and backend.connections[0].head)
        client.reset()
        await until(lambda: left_nothing(gateway))
        await until(lambda: all(connection.writer.is_closing() for connection in backend.connections))
