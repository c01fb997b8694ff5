"""Responses that parsers read differently: the gateway forwards what it has parsed, or nothing."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.gateway.http1.test_partial_head import NO_ANSWERS
from tests.unit.gateway.kit import (
    BackendConnection,
    Handler,
    answering,
    field_lines,
    get,
    response,
    serving,
    until,
)

DATE = b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("length", [b"0200", b"200", b"00000000000000200", b" 0200\t"])
async def test_the_length_of_a_response_is_forwarded_as_parsed(length: bytes) -> None:
    body = b"b" * 200
    wire = b"HTTP/1.1 200 OK\r\n" + DATE + b"Content-Length:" + length + b"\r\n\r\n" + body
    async with serving(answering(wire)) as (gateway, backend):
        client = await gateway.client()
        for _ in range(2):
            answer = await client.ask(get("/open/a"))
            assert answer.head == b"HTTP/1.1 200 OK\r\n" + DATE + b"Content-Length: 200\r\n\r\n"
            assert answer.body == body
        assert len(backend.connections) == 1


async def test_the_length_of_a_response_that_arrives_in_pieces_is_forwarded_as_parsed() -> None:
    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 010\r\n\r\n01234")
        await connection.taken()
        await connection.send(b"56789")

    async with serving(handle) as (gateway, _):
        client = await gateway.client()
        answer = await client.ask(get("/open/a"))
        assert (answer.all(b"content-length"), answer.body) == ([b"10"], b"0123456789")


@pytest.mark.parametrize(
    ("method", "head", "length"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 0200\r\n\r\n", [b"200"]),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 0200\r\n\r\n", [b"200"]),
        ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 000\r\n\r\n", []),
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 000\r\n\r\n", [b"0"]),
    ],
)
async def test_the_length_of_a_response_without_a_body_is_forwarded_as_parsed(
    method: str, head: bytes, length: list[bytes]
) -> None:
    async with serving(answering(head)) as (gateway, _):
        client = await gateway.client()
        answer = await client.ask(get("/open/a", method=method))
        assert answer.all(b"content-length") == length


@pytest.mark.parametrize(("length", "size"), [("0200", 200), ("00", 0), ("010", 10), ("000000000000000007", 7)])
async def test_the_length_of_a_request_is_forwarded_as_parsed(length: str, size: int) -> None:
    async def handle(connection: BackendConnection) -> None:
        while True:
            assert field_lines(await connection.request(), "content-length") == [b"%d" % size]
            await connection.exactly(size)
            await connection.send(response())

    async with serving(handle) as (gateway, _):
        client = await gateway.client()
        for _ in range(2):
            client.send(get("/open/a", f"Content-Length: {length}", method="POST") + b"b" * size)
            assert (await client.answer()).status == 200


async def test_a_content_length_with_too_many_digits_is_refused() -> None:
    async with serving(answering(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"0" * 18 + b"2\r\n\r\nok")) as (gateway, _):
        client = await gateway.client()
        assert (await client.ask(get("/open/a"))).reason == "upstream_protocol"


# --- statuses that need a field ---


@pytest.mark.parametrize(
    ("fields", "upgrade"),
    [
        (b"Connection: Upgrade\r\nUpgrade: TLS/1.2, HTTP/1.1\r\n", [b"TLS/1.2, HTTP/1.1"]),
        (b"Upgrade: websocket\r\n", [b"websocket"]),
        (b"Connection: upgrade\r\nUpgrade: TLS/1.2\r\nUpgrade: h2c\r\n", [b"TLS/1.2, h2c"]),
        (b"", []),
    ],
)
@pytest.mark.parametrize("asked", ["", "keep-alive", "close"])
async def test_a_426_keeps_its_upgrade_field(fields: bytes, upgrade: list[bytes], asked: str) -> None:
    async with serving(answering(response(status=b"426 Upgrade Required", fields=fields))) as (gateway, _):
        client = await gateway.client()
        answer = await client.ask(get("/open/a", *([f"Connection: {asked}"] if asked else [])))
        assert (answer.status, answer.body, answer.all(b"upgrade")) == (426, b"ok", upgrade)
        said = [b"close"] if asked == "close" else []
        options = b", ".join([*said, *([b"Upgrade"] if upgrade else [])])
        assert answer.all(b"connection") == ([options] if options else [])


async def test_a_426_to_a_websocket_request_keeps_its_upgrade_field_and_closes() -> None:
    fields = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    async with serving(answering(response(status=b"426 Upgrade Required", fields=fields))) as (gateway, _):
        client = await gateway.client()
        answer = await client.ask(get("/open/a", "Connection: Upgrade", "Upgrade: websocket"))
        assert answer.all(b"upgrade") == [b"websocket"]
        assert answer.all(b"sec-websocket-version") == [b"13"]
        assert answer.all(b"connection") == [b"close, Upgrade"]


@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad Request", b"101 Switching Protocols", b"407 X"])
async def test_no_other_answer_offers_an_upgrade(status: bytes) -> None:
    fields = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    async with serving(answering(response(status=status, fields=fields))) as (gateway, _):
        client = await gateway.client()
        answer = await client.ask(get("/open/a"))
        assert answer.all(b"upgrade") == answer.all(b"connection") == []


CHALLENGES = b'Proxy-Authenticate: Basic realm="a"\r\nproxy-authenticate: Negotiate\r\n'


async def test_a_407_keeps_its_challenge() -> None:
    async with serving(answering(response(status=b"407 X", fields=CHALLENGES))) as (gateway, _):
        client = await gateway.client()
        answer = await client.ask(get("/open/a"))
        assert answer.status == 407
        assert answer.all(b"proxy-authenticate") == [b'Basic realm="a"', b"Negotiate"]


@pytest.mark.parametrize("status", [b"200 OK", b"401 Unauthorized", b"408 X"])
async def test_no_other_answer_has_a_proxys_challenge(status: bytes) -> None:
    async with serving(answering(response(status=status, fields=CHALLENGES))) as (gateway, _):
        client = await gateway.client()
        assert (await client.ask(get("/open/a"))).all(b"proxy-authenticate") == []


# --- fields that a backend's Connection nominates ---


@pytest.mark.parametrize("fields", [b"Connection: Date\r\n" + DATE, b"Connection: close, dATE\r\n", DATE])
async def test_a_response_has_one_date_whatever_its_connection_field_nominates(fields: bytes) -> None:
    async with serving(answering(response(fields=fields))) as (gateway, _):
        client = await gateway.client()
        (date,) = (await client.ask(get("/open/a"))).all(b"date")
        assert date.endswith(b" GMT")
        assert date.startswith(b"Sun, 06 Nov 1994") == (fields == DATE), "one that ends here is no answer's"


async def test_an_interim_response_gets_no_date() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nConnection: date\r\n" + DATE + b"\r\n"
    async with serving(answering(interim + response())) as (gateway, _):
        client = await gateway.client()
        client.send(get("/open/a"))
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 103 Early Hints\r\n\r\n"
        assert (await client.answer()).status == 200


KEPT = (
    b"Cache-Control: no-store", b"Content-Encoding: gzip", b"Content-Range: bytes 0-1/9", b"Content-Type: text/plain",
    b"Content-Security-Policy: default-src 'none'", b"Location: /b", b"Set-Cookie: a=1", b"Vary: Cookie",
    b"Strict-Transport-Security: max-age=1", b"WWW-Authenticate: Bearer", b"X-Content-Type-Options: nosniff",
    b"X-Frame-Options: DENY",
)  # fmt: skip


@pytest.mark.parametrize("line", KEPT, ids=[line.partition(b":")[0].decode() for line in KEPT])
async def test_a_backends_connection_field_removes_no_field_that_every_recipient_needs(line: bytes) -> None:
    name, _, value = line.partition(b": ")
    fields = b"Connection: x-own, " + name.lower() + b"\r\n" + line + b"\r\nX-Own: 1\r\n"
    async with serving(answering(response(fields=fields))) as (gateway, _):
        client = await gateway.client()
        answer = await client.ask(get("/open/a"))
        assert answer.all(name) == [value]
        assert answer.all(b"x-own") == []


@pytest.mark.parametrize(
    ("answer", "length", "coding"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 2\r\n\r\nok", [b"2"], []),
        (
            b"HTTP/1.1 200 OK\r\nConnection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"2\r\nok\r\n0\r\n\r\n",
            [],
            [b"chunked"],
        ),
    ],
)
async def test_a_backends_connection_field_does_not_remove_the_framing(
    answer: bytes, length: list[bytes], coding: list[bytes]
) -> None:
    async with serving(answering(answer)) as (gateway, backend):
        client = await gateway.client()
        for _ in range(2):
            got = await client.ask(get("/open/a"))
            assert (got.body, got.all(b"content-length"), got.all(b"transfer-encoding")) == (b"ok", length, coding)
        assert len(backend.connections) == 1


# --- beginnings that cannot become a response ---


def saying(*pieces: bytes) -> Handler:
    """A backend that sends these pieces one by one and then waits for the gateway."""

    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        for piece in pieces:
            await connection.send(piece)
            await connection.taken()
        await connection.gone()

    return handle


@pytest.mark.parametrize("data", [data for data, _ in NO_ANSWERS.values()], ids=NO_ANSWERS)
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "in bytes"])
async def test_a_beginning_that_cannot_become_a_response_is_refused_at_once(data: bytes, whole: bool) -> None:
    pieces = [data] if whole else [data[at : at + 1] for at in range(len(data))]
    async with serving(saying(*pieces)) as (gateway, backend):
        client = await gateway.client()
        answer = await client.ask(get("/open/a"))
        assert (answer.status, answer.reason) == (502, "upstream_protocol")
        await until(lambda: backend.connections[0].writer.is_closing())
        assert gateway.active == gateway.idle == 0


async def test_a_beginning_that_cannot_become_a_response_is_refused_after_an_interim_one() -> None:
    async with serving(saying(b"HTTP/1.1 103 Early Hints\r\n\r\n<html>", b"")) as (gateway, _):
        client = await gateway.client()
        answer = await client.ask(get("/open/a"))
        assert (answer.interim, answer.reason) == ([103], "upstream_protocol")


async def test_a_response_may_arrive_byte_by_byte() -> None:
    wire = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nA:\r\nContent-Length: 2\r\n\r\nok"
    async with serving(saying(*(wire[at : at + 1] for at in range(len(wire))))) as (gateway, _):
        client = await gateway.client()
        answer = await client.ask(get("/open/a"))
        assert (answer.status, answer.body, answer.interim) == (200, b"ok", [103])


# --- chunk extensions ---

GOOD = (
    b";a", b";a=b", b' ;\t a = "b\\"; \xff"', b";a;b=c;d", b';a=""', b";" + b"e" * 256,
    b';a="\x21\x23\x5b\x5d\x7e\t "', b";!#$%&'*+-.^_`|~=~",
)  # fmt: skip
BAD = (
    b";", b";[x=y", b"; ", b";a=", b";a;", b";=b", b";a b", b";a=b c", b';a="b', b';a="b"c', b';a=b"c"', b";a==b",
    b";a ", b";a=b ", b" ", b"\t", b';a="\\"', b';a="\\\x01"', b";a=\x01", b";\xff", b";a=\xff", b";a,b", b";;a",
    b";a=b;", b';"a"', b";" + b"e" * 257, b";a\r", b' a', b"=a",
)  # fmt: skip


@pytest.mark.parametrize("extension", GOOD, ids=repr)
async def test_a_chunk_extension_is_parsed_and_not_forwarded(extension: bytes) -> None:
    body = b"2" + extension + b"\r\nok\r\n0" + extension + b"\r\n\r\n"

    async def handle(connection: BackendConnection) -> None:
        while True:
            await connection.request()
            assert await connection.chunked() == b"2\r\nok\r\n0\r\n\r\n"
            await connection.send(CHUNKED + body)

    async with serving(handle) as (gateway, backend):
        client = await gateway.client()
        for _ in range(2):
            client.send(get("/open/a", "Transfer-Encoding: chunked", method="POST") + body)
            assert (await client.answer()).body == b"ok"
        assert len(backend.connections) == 1


@pytest.mark.parametrize("extension", BAD, ids=repr)
@pytest.mark.parametrize("last", [False, True])
async def test_a_request_with_a_malformed_chunk_extension_is_refused(extension: bytes, last: bool) -> None:
    body = b"2\r\nok\r\n0" + extension + b"\r\n\r\n" if last else b"2" + extension + b"\r\nok\r\n0\r\n\r\n"
    async with serving(answering(response())) as (gateway, backend):
        client = await gateway.client()
        client.send(get("/open/a", "Transfer-Encoding: chunked", method="POST") + body + get("/open/smuggled"))
        answer = await client.answer()
        assert (answer.status, answer.reason, answer.closes) == (400, "request_malformed", True)
        assert await client.rest() == b""
        assert backend.connections == []


@pytest.mark.parametrize("extension", BAD, ids=repr)
async def test_a_response_with_a_malformed_chunk_extension_never_looks_complete(extension: bytes) -> None:
    async with serving(answering(CHUNKED + b"2\r\nok\r\n0" + extension + b"\r\n\r\n")) as (gateway, _):
        client = await gateway.client()
        assert (await client.ask(get("/open/a"))).reason == "upstream_protocol"
    async with serving(saying(CHUNKED + b"2\r\nok\r\n", b"0" + extension + b"\r\n\r\n")) as (gateway, _):
        client = await gateway.client()
        client.send(get("/open/a"))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await client.answer()
        assert gateway.active == gateway.idle == 0
