"""Heads that arrive in parts: the verdict does not depend on the segments, and limits are exact."""

from __future__ import annotations

import time

import pytest

from proxy.core.reasons import Reason
from proxy.gateway.http1.partial_head import answer_possible, request_refusal
from tests.unit.gateway.ingress import connected
from tests.unit.gateway.kit import Gateway

LINE = 60
HEAD = 400
FIELDS = 10


def verdict(gateway: Gateway, *pieces: bytes) -> bytes:
    """The status of the one answer to a head that arrives in these parts; empty while there is none."""
    connection, wire = connected(gateway, "192.0.2.1")
    for piece in pieces:
        if connection.exchange is None and not connection.closing:
            connection.data_received(piece)
    connection.connection_lost(None)
    return wire.sent[9:12]


def cuts(data: bytes) -> list[list[bytes]]:
    """``data`` split in two at every place, in three at many, and into single bytes."""
    step = max(1, len(data) // 16)
    two = [[data[:at], data[at:]] for at in range(1, len(data))]
    three = [
        [data[:at], data[at:to], data[to:]] for at in range(1, len(data), step) for to in range(at + 1, len(data), step)
    ]
    return [*two, *three, [data[at : at + 1] for at in range(len(data))]]


def line(size: int) -> bytes:
    return b"GET /shut/" + b"a" * (size - len(b"GET /shut/ HTTP/1.1")) + b" HTTP/1.1"


def head(request_line: bytes, *lines: bytes, size: int = 0) -> bytes:
    """A head, filled up to ``size`` bytes."""
    made = b"\r\n".join((request_line, b"Host: gateway", *lines)) + b"\r\n\r\n"
    if len(made) >= size:
        return made
    return b"\r\n".join((request_line, b"Host: gateway", *lines, b"X: " + b"x" * (size - len(made) - 5))) + b"\r\n\r\n"


SHORT = line(30)
HEADS = {
    "the longest line": (head(line(LINE)), b"403"),
    "a line a byte too long": (head(line(LINE + 1)), b"414"),
    "a line far too long": (head(line(3 * LINE)), b"414"),
    "a line too long for the whole head": (head(line(HEAD + 50)), b"414"),
    "a line too long in a head too long": (head(line(LINE + 1), size=HEAD + 1), b"414"),
    "a line too long with too many fields": (head(line(LINE + 1), *[b"A: b"] * FIELDS), b"414"),
    "a line too long behind an empty line": (b"\r\n" + head(line(LINE + 1)), b"414"),
    "a line far too long behind empty lines": (b"\r\n\r\n" + head(line(HEAD + 50)), b"414"),
    "a line too long of another version": (head(line(LINE + 1)[:-1] + b"2"), b"414"),
    "a line too long with a control byte in a field": (head(line(LINE + 1), b"A: \x01"), b"414"),
    "a line too long with a bare LF in a field": (head(line(LINE + 1), b"A: b\nC: d"), b"414"),
    "a line too long with a bare LF within the limit": (head(line(20) + b"\n" + b"a" * LINE), b"400"),
    "a line too long with a bare LF just within it": (head(line(LINE - 1) + b"\nab"), b"400"),
    "a line too long with a bare LF just behind it": (head(line(LINE) + b"\nab"), b"414"),
    "a line too long with a bare CR just within it": (head(line(LINE - 1) + b"\rab"), b"400"),
    "a line too long with a bare CR just behind it": (head(line(LINE) + b"\rab"), b"414"),
    "a line too long with two CR at its limit": (head(line(LINE - 1) + b"\r\rab"), b"400"),
    "the longest line with a CR more": (head(line(LINE) + b"\r"), b"414"),
    "a line too long with NUL within the limit": (head(b"GET /\0" + b"a" * LINE + b" HTTP/1.1"), b"400"),
    "the longest head": (head(SHORT, size=HEAD), b"403"),
    "the longest head behind an empty line": (b"\r\n" + head(SHORT, size=HEAD), b"403"),
    "the longest head with the longest line": (head(line(LINE), size=HEAD), b"403"),
    "a head a byte too long": (head(SHORT, size=HEAD + 1), b"431"),
    "a head far too long": (head(SHORT, size=3 * HEAD), b"431"),
    "a head too long with too many fields": (head(SHORT, *[b"A: b"] * FIELDS, size=HEAD + 1), b"431"),
    "a head too long with a bare LF in it": (head(SHORT, b"A: b\nC: d", size=HEAD + 1), b"400"),
    "a head too long with a bare LF behind the limit": (head(SHORT, size=HEAD)[:-4] + b"xxxxx\nx\r\n\r\n", b"431"),
    "a head too long with a bare CR in it": (head(SHORT, b"A: b\rC: d", size=2 * HEAD), b"400"),
    "a head too long that is malformed elsewhere": (head(SHORT, b"no field", size=HEAD + 1), b"431"),
    "the most fields": (head(SHORT, *[b"A: b"] * (FIELDS - 1)), b"403"),
    "a field too many": (head(SHORT, *[b"A: b"] * FIELDS), b"431"),
    "a field too many and one that is none": (head(SHORT, *[b"A: b"] * FIELDS, b"none"), b"431"),
    "a bare LF": (head(SHORT, b"A: b\nC: d"), b"400"),
    "no field": (head(SHORT, b"none"), b"400"),
    "a CONNECT": (head(b"CONNECT / HTTP/1.1"), b"405"),
    "a CONNECT too long": (head(b"CONNECT /" + b"a" * LINE + b" HTTP/1.1"), b"414"),
}


@pytest.mark.parametrize(("data", "status"), HEADS.values(), ids=HEADS)
async def test_the_verdict_on_a_head_does_not_depend_on_its_segments(data: bytes, status: bytes) -> None:
    gateway = Gateway(9, max_request_line=LINE, max_head=HEAD, max_headers=FIELDS)
    assert verdict(gateway, data) == status
    for pieces in cuts(data):
        assert verdict(gateway, *pieces) == status, [len(piece) for piece in pieces]


@pytest.mark.parametrize("status", [b"403", b"431", b"414"])
async def test_a_head_is_refused_at_the_first_byte_that_decides(status: bytes) -> None:
    """A line or head that is too long is refused at its first byte too many, and not before."""
    gateway = Gateway(9, max_request_line=LINE, max_head=HEAD, max_headers=FIELDS)
    whole = {b"403": head(SHORT, size=HEAD), b"431": head(SHORT, size=2 * HEAD), b"414": head(line(HEAD))}[status]
    limit = {b"403": HEAD, b"431": HEAD + 1, b"414": LINE + 1}[status]
    assert verdict(gateway, whole[: limit - 1]) == b""
    assert verdict(gateway, whole[:limit]) == status


def test_later_bytes_do_not_change_a_refusal() -> None:
    for data, _ in HEADS.values():
        found: Reason | None = None
        for size in range(1, len(data) + 1):
            now = request_refusal(data[:size], 0, max_line=LINE, max_head=HEAD)
            assert found is None or now is found, size
            found = now


ANSWERS = {
    "an answer": b"HTTP/1.1 200 OK\r\nA: b\r\nC:\r\nD: \xff\t\r\n\r\n",
    "one of HTTP/1.0 without a phrase": b"HTTP/1.0 200\r\n\r\n",
    "one without fields": b"HTTP/1.1 204 \r\n\r\n",
}


@pytest.mark.parametrize("data", ANSWERS.values(), ids=ANSWERS)
def test_every_beginning_of_a_valid_answer_is_possible(data: bytes) -> None:
    for size in range(len(data) - 3):
        for since in range(size + 1):
            assert answer_possible(data[:size], since), (data[:size], since)


NO_ANSWERS = {
    "bare LF": (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", 16),
    "bare LF in the fields": (b"HTTP/1.1 200 OK\r\nA: b\nC: d", 22),
    "bare CR": (b"HTTP/1.1 200 OK\rA: b", 17),
    "a page": (b"<html>", 1),
    "HTTP/2": (b"HTTP/2 200\r\n", 6),
    "HTTP/2 frames": (b"\x00\x00\x12\x04\x00", 1),
    "HTTP/1.2": (b"HTTP/1.2 200 OK\r\n", 8),
    "HTTP/1.10": (b"HTTP/1.10 200 OK\r\n", 9),
    "a TLS alert": (b"\x15\x03\x03\x00\x02\x02\x46", 1),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n", 1),
    "an empty line first": (b"\r\nHTTP/1.1 200 OK\r\n", 1),
    "a space first": (b" HTTP/1.1 200 OK\r\n", 1),
    "no number": (b"HTTP/1.1 OK\r\nA: b", 13),
    "a number of two digits": (b"HTTP/1.1 20 OK\r\n", 16),
    "a status below 100": (b"HTTP/1.1 099 X\r\n", 16),
    "no field": (b"HTTP/1.1 200 OK\r\nA: b\r\nnone\r\n", 28),
    "a folded line": (b"HTTP/1.1 200 OK\r\nA: b\r\n c: d\r\n", 29),
    "a space before the colon": (b"HTTP/1.1 200 OK\r\nA : b\r\n", 23),
    "an empty name": (b"HTTP/1.1 200 OK\r\n: b\r\n", 21),
    "NUL": (b"HTTP/1.1 200 OK\r\nA: \0", 21),
    "a control byte in the phrase": (b"HTTP/1.1 200 \x01", 14),
    "DEL": (b"HTTP/1.1 200 OK\r\nA: \x7f", 21),
}


@pytest.mark.parametrize(("data", "certain"), NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_an_impossible_answer_is_known_at_the_first_byte_that_decides(data: bytes, certain: int) -> None:
    assert answer_possible(data[: certain - 1], 0)
    assert not answer_possible(data[:certain], 0)
    assert not answer_possible(data, 0)
    # In any two parts too, of which the first was possible.
    for since in range(certain):
        assert not answer_possible(data, since), since


def test_a_long_beginning_is_searched_only_once() -> None:
    """Each part is searched once: 16 times the bytes in 16 times as many parts take far less than 256 times as long."""

    def seconds(size: int) -> float:
        data = b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%05d: y\r\n" % number for number in range(size))
        begun = time.process_time()
        for at in range(0, len(data), 64):
            assert answer_possible(data[: at + 64], at)
        return time.process_time() - begun

    seconds(100)
    assert seconds(3200) < 16 * 8 * max(seconds(200), 0.001)
