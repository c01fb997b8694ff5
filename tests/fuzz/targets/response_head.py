"""Fuzz target: llhttp accepts every response head that the relay accepts, and reads the same from it.

llhttp is not consulted where the relay decides instead of the grammar: protocol switches, after which llhttp leaves the
rest of the connection unparsed, and framing, of which llhttp accepts more forms.
"""

from __future__ import annotations

from typing import Final

import httptools

from proxy.core.reasons import Reason
from proxy.gateway.exchange import Exchange
from proxy.gateway.http1.grammar import HEAD_END, head_lines
from proxy.gateway.phases.relay import Relay
from proxy.gateway.upstream.pool import UpstreamConnection
from tests.fuzz.targets.request_head import Read, fields_of, for_llhttp, named
from tests.fuzz.targets.target import Target


class IdleOwner:
    """An exchange owner that does nothing: the target only parses heads."""

    def complete(self, x: Exchange) -> None:
        raise AssertionError

    def streaming(self, x: Exchange) -> None:
        raise AssertionError

    def fail(self, x: Exchange, reason: Reason) -> None:
        raise AssertionError

    def retry(self, x: Exchange, connection: UpstreamConnection) -> bool:
        raise AssertionError


class ReadResponse(Read):
    def on_status(self, status: bytes) -> None:
        self.url += status


def check(data: bytes, relay: Relay) -> bool:
    """Whether the relay accepts the first head of ``data``; asserts that llhttp then does, and reads the same."""
    end = data.find(HEAD_END)
    lines = head_lines(data[:end]) if end >= 0 else None
    line = None if lines is None else relay._status_line(lines[0])
    taken = None if lines is None or line is None else relay._fields_of(lines, line)
    if lines is None or line is None or taken is None:
        return False
    kept, length, chunked, keep, _ = taken
    fields = fields_of(b"\r\n".join((b"", *lines[1:])))
    assert [b"%d" % int(value) for value in named(fields, b"content-length")] == ([] if length is None else [length])
    assert [value.lower() for value in named(fields, b"transfer-encoding")] == [b"chunked"] * chunked
    assert length is None or not chunked
    passed = fields_of(kept)
    nominated = b",".join(named(fields, b"connection")).lower()
    if (not named(fields, b"date") or b"date" in nominated) and named(passed, b"date"):
        # RFC 9110 section 6.6.1: the recipient of a response without a date adds one.
        passed = passed[:-1]
    wanted = iter(fields)
    assert all(field in wanted for field in passed), "fields added, changed or in another order"
    if line.status == 101 or named(fields, b"upgrade"):
        return True
    read = ReadResponse()
    parser = read.parser = httptools.HttpResponseParser(read)
    parser.feed_data(for_llhttp(data[: end + len(HEAD_END)]))
    assert read.headers_complete
    assert parser.get_status_code() == line.status
    assert parser.get_http_version() == f"1.{line.minor}"
    assert line.text == b"HTTP/1.1 %d %b" % (line.status, read.url)
    assert [(name, value.strip(b" \t")) for name, value in read.fields] == fields
    if (length is not None or chunked) and not named(fields, b"proxy-connection"):
        # Without either, the end of the connection ends the body for llhttp, as for the relay. And llhttp obeys
        # ``Proxy-Connection``, which is not in the standard.
        assert read.keep_alive or not keep
    return True


def run(data: bytes) -> None:
    relay = Relay(IdleOwner())
    accepted = check(data, relay)
    assert check(data, relay) == accepted


TARGET: Final = Target(
    name="response_head",
    run=run,
    seeds=(
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: text/plain\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\nTrailer: X-A\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 \r\nX-A: b\r\n\r\n",
        b"HTTP/1.1 304\r\nETag: x\r\nConnection: x-a, close\r\nX-A: b\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 200 \r\nTransfer-Encoding:chunked\t\r\n\r\n",
        b"HTTP/1.1 999 \x80\xff\tok\r\nkeep_alive: 1\r\nContent.Length: 5\r\n\r\n",
    ),
    pieces=(
        b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\r\n ", b"\0", b"\x0b", b"\x7f", b"\x80", b":", b" :", b"HTTP/1.1 ",
        b"date", b"\r\nDate: x", b"\r\nProxy-Authenticate: Basic", b" 407 ", b" 426 ", b"\r\nContent-Length: 010",
        b"HTTP/1.0 ", b"HTTP/2 200", b" 200 ", b" 099 ", b" 1000", b"\r\nContent-Length: 5", b"\r\nContent-Length: -5",
        b"\r\nContent-Length: 5, 5", b"\r\nTransfer-Encoding: chunked", b"\r\nTransfer-Encoding: gzip, chunked",
        b"\r\nTransfer-Encoding : chunked", b"\r\nTransfer_Encoding: chunked", b"\r\nConnection: ", b"close",
        b"keep-alive", b", ", b"\r\nUpgrade: websocket", b"\r\nKeep-Alive: 5", b"\r\nProxy-Connection: close",
    ),
)  # fmt: skip
