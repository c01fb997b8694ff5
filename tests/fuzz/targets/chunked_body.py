"""Fuzz target: the parser of chunked bodies agrees, for any pieces, with a decoder of the whole and with llhttp.

The first byte of an input determines how the rest is cut.
"""

from __future__ import annotations

import re
from typing import Final

import httptools

from proxy.gateway.http1.body import (
    EXTENSION_LIMIT,
    LINE_LIMIT,
    TRAILER_LIMIT,
    ChunkedBody,
    FramingError,
    encode_chunks,
)
from tests.fuzz.targets.target import Target

HEAD: Final = b"POST / HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n"

_NAME: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED: Final = rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
_VALUE: Final = rb"(?:[ \t]*=[ \t]*(?:" + _NAME + rb"|" + _QUOTED + rb"))?"
_SIZE: Final = re.compile(
    rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;([ \t]*" + _NAME + _VALUE + rb"(?:[ \t]*;[ \t]*" + _NAME + _VALUE + rb")*))?"
)
_TRAILER: Final = re.compile(_NAME + rb":[\t\x20-\x7e\x80-\xff]*")

Outcome = tuple[bytes, bool, bytes] | None
"""The payload, whether the body has ended, and the bytes after it; None: refused."""


def pieces(data: bytes, how: int) -> list[bytes]:
    """``data`` cut by the number ``how`` (0 to 255): whole, in bytes, in equal parts, or in two."""
    if how == 0:
        return [data]
    if how < 16:
        return [data[at : at + how] for at in range(0, len(data), how)]
    at = how - 16 if how < 128 else max(0, len(data) - (how - 128))
    return [part for part in (data[:at], data[at:]) if part]


def ours(parts: list[bytes]) -> Outcome:
    """The parser's result for a body in these parts."""
    machine = ChunkedBody()
    payload, done, behind = b"", False, b""
    for part in parts:
        if done:
            behind += part
            continue
        try:
            found, behind = machine.feed(part)
        except FramingError:
            return None
        done = machine.done
        assert all(found), "an empty piece of payload"
        assert done or not behind, "something behind a body that has not ended"
        payload += b"".join(found)
    return payload, done, behind


def reference(wire: bytes) -> tuple[Outcome, bool]:
    """RFC 9112 section 7.1 with patgate's limits, read line by line; and whether the input ends within a line.

    A line that has not ended is not checked here, but the parser may already refuse it.
    """
    payload = b""
    while True:
        line, ended, rest = wire.partition(b"\n")
        if not ended:
            return (payload, False, b""), bool(wire)
        matched = _SIZE.fullmatch(line[:-1]) if line.endswith(b"\r") else None
        if matched is None or len(matched[2] or b"") > EXTENSION_LIMIT:
            return None, False
        if matched[2] is not None and len(line) - 1 > LINE_LIMIT:
            return None, False
        size = int(matched[1], 16)
        wire = rest
        if not size:
            break
        payload += wire[:size]
        behind, wire = wire[size : size + 2], wire[size + 2 :]
        if len(behind) < 2:
            return (None, False) if behind not in (b"", b"\r") else ((payload, False, b""), behind != b"")
        if behind != b"\r\n":
            return None, False
    trailers = 0
    while True:
        line, ended, rest = wire.partition(b"\n")
        if not ended:
            return (payload, False, b""), bool(wire)
        if not line.endswith(b"\r"):
            return None, False
        wire = rest
        if line == b"\r":
            return (payload, True, wire), False
        trailers += len(line) + 1
        if trailers > TRAILER_LIMIT or _TRAILER.fullmatch(line[:-1]) is None:
            return None, False


class Read:
    """The body of a message, as llhttp reads it."""

    def __init__(self) -> None:
        self.payload = b""
        self.complete = False

    def on_body(self, data: bytes) -> None:
        self.payload += data

    def on_message_complete(self) -> None:
        self.complete = True


def by_llhttp(wire: bytes) -> Read | None:
    """None if llhttp refuses."""
    read = Read()
    try:
        httptools.HttpRequestParser(read).feed_data(HEAD + wire)
    except httptools.HttpParserError:
        return None
    return read


def run(data: bytes) -> None:
    how, wire = data[0] if data else 0, data[1:]
    expected, within_line = reference(wire)
    whole = ours([wire])
    if not within_line or whole is not None:
        assert whole == expected, (whole, expected)
    for cut in {how, 1 if len(wire) < 64 else 15}:
        # In parts, an invalid beginning of a line is refused at the latest when the line ends.
        again = ours(pieces(wire, cut))
        assert again == whole or (within_line and None in (again, whole)), (again, whole, cut)
    if whole is None:
        return
    payload, done, behind = whole
    encoded = encode_chunks([payload], last=done)
    assert ours([encoded]) == (payload, done, b"")
    read = by_llhttp(wire[: len(wire) - len(behind)])
    if read is None or within_line:
        # It is stricter about trailers, and about white space in extensions, which are not passed on.
        read = by_llhttp(encoded)
        assert read is not None
    assert (read.payload, read.complete) == (payload, done)


TARGET: Final = Target(
    name="chunked_body",
    run=run,
    seeds=(
        b"\0005\r\nhello\r\n0\r\n\r\n",
        b"\0015\r\nhello\r\n0\r\n\r\nGET /next HTTP/1.1\r\n",
        b"\x02a;name=value\r\n0123456789\r\n00;x\r\nX-A: b\r\n\r\n",
        b"\x12FfF \t;a\r\n",
        b"\0001;\r\nx\r\n0\r\n\r\n",
        b"\0001;[x=y\r\nx\r\n0\r\n\r\n",
        b"\0011; a = \"b\\\"c\" ;d\r\nx\r\n0\r\n\r\n",
        b"\x81000000000000001\r\nx\r\n0\r\n\r\n",
        b"\0001\r\nx\r\n2\r\n\r\n\r\n0\r\n\r\n",
        b"\0001\nx\r\n0\r\n\r\n",
        b"\0001\r\nx\n0\r\n\r\n",
        b"\0000\r\n\n",
        b"\0001 \r\nx\r\n0\r\n\r\n",
        b"\000ffffffffffffffff\r\nx",
        b"\0001;" + b"e" * 256 + b"\r\nx\r\n0\r\n\r\n",
        b"\0001;" + b"e" * 257 + b"\r\nx\r\n0\r\n\r\n",
        b"\0001" + b" " * 300 + b";x\r\nx\r\n0\r\n\r\n",
        b"\x031" + b" " * 255 + b";" + b"e" * 255 + b"\r\nx\r\n0\r\n\r\n",
        b"\0000\r\nX" + b"x" * 16372 + b": v\r\n\r\n",
        b"\0000\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ),
    pieces=(
        b"\r\n", b"\n", b"\r", b"0\r\n\r\n", b"1\r\nx\r\n", b";", b" ", b"\t", b"0x", b"+1", b"-1", b"_", b"\0",
        b"\x80", b"ffffffffffffffff", b"10000000000000000", b'"', b":", b"X-A: b\r\n", b"0" * 15, b" " * 250,
    ),
    longest=20_000,
)  # fmt: skip
