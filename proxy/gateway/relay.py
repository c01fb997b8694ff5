"""The relay phase: the backend's response goes to the client, in the framing that the client understands.

Rules of this module:
1. The response head is parsed as strictly as a request's; two framings, or one that is not understood, end it with 502.
2. An answer that breaks off after its head has gone out breaks the client's connection: it never looks whole.
3. A backend's hop-by-hop fields stay here (RFC 9110 section 7.6.1).
4. The connection is kept only when both messages have ended and nothing lies behind the response.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

from proxy.core.reasons import Reason
from proxy.gateway.body import Body, ChunkedBody, CloseBody, FramingError, LengthBody, TunnelBody, encode_chunks
from proxy.gateway.exchange import Exchange
from proxy.gateway.grammar import RESPONSE_HEAD, field_splitter
from proxy.gateway.upstream import UpstreamConnection

MAX_RESPONSE_HEAD: Final = 64 * 1024
_MAX_LENGTH_DIGITS: Final = 18
_MAX_INTERIM: Final = 16
_HOP_BY_HOP: Final = (
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
)
_SPLIT: Final = field_splitter((*_HOP_BY_HOP, b"content-length")).split
_NAMES: Final = {
    name: name.lower()
    for name in (
        b"Content-Length",
        b"content-length",
        b"Connection",
        b"connection",
        b"Transfer-Encoding",
        b"Keep-Alive",
    )
}
"""The usual spellings, lowered beforehand."""
_UPGRADED: Final = b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
_BODILESS: Final = frozenset((204, 304))
"""RFC 9110 section 6.4.1; 1xx never gets here, and what HEAD asks for is known by the request."""
_NO_LENGTH: Final = (None, b"0")
_INTERIM_DIGIT: Final = ord("1")


class Ending(Protocol):
    """What the relay reports: the end of an exchange, good or bad."""

    def complete(self, x: Exchange) -> None:
        """The whole response has been written to the client."""

    def goes_on(self, x: Exchange) -> None:
        """The response has begun and did not come whole: it will take a while."""

    def fail(self, x: Exchange, reason: Reason) -> None:
        """The upstream failed; the response may have begun."""

    def retry(self, x: Exchange, connection: UpstreamConnection) -> bool:
        """Send `x` again if it is safe; False if it is not."""


class Relay:
    """Takes what arrives on upstream connections (`upstream.Receiver`)."""

    def __init__(self, ending: Ending) -> None:
        self._ending = ending

    def received(self, connection: UpstreamConnection, data: bytes) -> None:
        x = connection.exchange
        assert x is not None
        client = x.client
        if client is None or client.transport is None:
            connection.close()
            return
        body = connection.body
        if body is None:
            if connection.buffer:
                data = connection.buffer + data
                connection.buffer = b""
            self._head(connection, x, data)
            return
        try:
            pieces, rest = body.feed(data)
        except FramingError:
            self._ending.fail(x, Reason.UPSTREAM_PROTOCOL)
            return
        out = self._encode(x, pieces, last=body.done)
        if out:
            x.bytes_out += len(out)
            client.transport.write(out)
        client.touch()
        if body.done:
            self._done(connection, x, clean=not rest)

    def ended(self, connection: UpstreamConnection, *, clean: bool) -> None:
        x = connection.exchange
        assert x is not None
        body = connection.body
        if isinstance(body, CloseBody | TunnelBody) and clean:
            body.done = True
            out = self._encode(x, [], last=True)
            if out and x.client is not None and x.client.transport is not None:
                x.client.transport.write(out)
            self._done(connection, x, clean=False)
        elif body is None and not connection.buffer and self._ending.retry(x, connection):
            return
        else:
            self._ending.fail(x, Reason.UPSTREAM_RESET)

    def writable(self, connection: UpstreamConnection, *, now: bool) -> None:
        x = connection.exchange
        if x is not None and x.client is not None:
            x.client.read_more(now)

    def _head(self, connection: UpstreamConnection, x: Exchange, data: bytes) -> None:
        """Parse response heads out of `data`: interim ones are passed on, the final one starts the response."""
        while True:
            matched = RESPONSE_HEAD.match(data)
            if matched is None:
                if b"\r\n\r\n" in data or len(data) > MAX_RESPONSE_HEAD:
                    self._ending.fail(x, Reason.UPSTREAM_PROTOCOL)
                else:
                    connection.buffer = data
                return
            end = matched.end()
            if end > MAX_RESPONSE_HEAD:
                self._ending.fail(x, Reason.UPSTREAM_PROTOCOL)
                return
            if matched[2][0] != _INTERIM_DIGIT:
                break
            if x.websocket and matched[2] == b"101":
                self._switch(connection, x, matched, data[end:])
                return
            if not self._interim(connection, x, matched):
                self._ending.fail(x, Reason.UPSTREAM_PROTOCOL)
                return
            data = data[end:]
            if not data:
                return
        self._final(connection, x, matched, data[end:])

    def _interim(self, connection: UpstreamConnection, x: Exchange, matched: re.Match[bytes]) -> bool:
        """Pass a 1xx answer on to a client that can have it; False if it is none that may come."""
        connection.interim += 1
        # No upgrade was asked for, so 101 is no answer; a flood of interim answers is none either.
        if matched[2] == b"101" or connection.interim > _MAX_INTERIM:
            return False
        if x.version and x.client is not None and x.client.transport is not None:
            kept = b"".join(_SPLIT(matched[4])[::3])
            x.client.transport.write(b"".join((b"HTTP/1.1 ", matched[2], matched[3] or b" ", kept, b"\r\n\r\n")))
        return True

    def _switch(self, connection: UpstreamConnection, x: Exchange, matched: re.Match[bytes], rest: bytes) -> None:
        """Turn both connections into a tunnel (RFC 9110 section 7.8, RFC 6455 section 4.2.2)."""
        client = x.client
        assert client is not None and client.transport is not None
        parts = _SPLIT(matched[4])
        protocols = [
            parts[at + 1].strip(b" \t").lower() for at in range(1, len(parts), 3) if parts[at].lower() == b"upgrade"
        ]
        if protocols != [b"websocket"]:
            self._ending.fail(x, Reason.UPSTREAM_PROTOCOL)
            return
        connection.keep = False
        connection.body = TunnelBody()
        x.status = 101
        x.response_started = True
        x.tunnel = True
        x.keep_alive = False
        head = (b"HTTP/1.1 101", matched[3] or b" ", b"".join(parts[::3]), _UPGRADED, rest)
        out = b"".join(head)
        x.bytes_out = len(out)
        client.transport.write(out)
        self._ending.goes_on(x)
        client.switch(x)

    def _final(self, connection: UpstreamConnection, x: Exchange, matched: re.Match[bytes], rest: bytes) -> None:
        """Send the head of the final answer, in the client's framing, and what has come of the body, in one write."""
        client = x.client
        assert client is not None and client.transport is not None
        minor, code, phrase, lines = matched.groups()
        phrase = phrase or b" "
        fields = _fields_of(lines, minor)
        if fields is None:
            self._ending.fail(x, Reason.UPSTREAM_PROTOCOL)
            return
        kept, length, chunked, connection.keep = fields
        x.status = status = int(code)
        if not x.body_done or client.closing or x.websocket or client.listener.draining:
            # The answer came before the whole request: what is left of it must not become the next one. Or the worker
            # is to end, and the client is told not to send more.
            x.keep_alive = False
            if not x.body_done:
                # What the backend takes the rest for is not known, however clean the end will look.
                connection.keep = False
        if (
            length is not None
            and len(rest) == int(length)
            and status not in _BODILESS
            and x.keep_alive
            and x.version
            and not x.head_only
        ):
            # The usual answer has come whole, and so it goes.
            x.response_started = True
            out = b"".join((b"HTTP/1.1 ", code, phrase, kept, b"\r\nContent-Length: ", length, b"\r\n\r\n", rest))
            x.bytes_out = len(out)
            client.transport.write(out)
            self._done(connection, x, clean=True)
            return
        framing = b""
        body: Body
        if x.head_only or status in _BODILESS:
            body = LengthBody(0)
            if chunked or length not in _NO_LENGTH:
                # A backend that sends the body all the same sends it into the next exchange.
                connection.keep = False
            if length is not None and status != 204:
                framing = b"\r\nContent-Length: " + length
        elif length is not None:
            body = LengthBody(int(length))
            framing = b"\r\nContent-Length: " + length
        else:
            if chunked:
                body = ChunkedBody()
            else:
                body = CloseBody()
                connection.keep = False
            if x.version:
                framing = b"\r\nTransfer-Encoding: chunked"
            else:
                x.keep_alive = False
        if not x.keep_alive:
            framing += b"\r\nConnection: close"
        elif not x.version:
            framing += b"\r\nConnection: keep-alive"
        connection.body = body
        try:
            pieces, behind = body.feed(rest) if rest else ([], b"")
        except FramingError:
            self._ending.fail(x, Reason.UPSTREAM_PROTOCOL)
            return
        x.response_started = True
        out = b"".join(
            (b"HTTP/1.1 ", code, phrase, kept, framing, b"\r\n\r\n", self._encode(x, pieces, last=body.done))
        )
        x.bytes_out = len(out)
        client.transport.write(out)
        if body.done:
            self._done(connection, x, clean=not behind)
        else:
            client.touch()
            self._ending.goes_on(x)

    def _encode(self, x: Exchange, pieces: list[bytes], *, last: bool) -> bytes:
        connection = x.upstream_connection
        assert connection is not None
        if isinstance(connection.body, LengthBody | TunnelBody) or not x.version:
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return encode_chunks(pieces, last=last)

    def _done(self, connection: UpstreamConnection, x: Exchange, *, clean: bool) -> None:
        server = connection.server
        server.active -= 1
        connection.interim = 0
        x.upstream_connection = None
        transport = connection.transport
        if (
            connection.keep
            and clean
            and x.body_done
            and transport is not None
            and not transport.is_closing()
            # A body that is not sent yet was answered early, though the client has done its part.
            and (x.body is None or not transport.get_write_buffer_size())
        ):
            if x.client is not None and x.client.full:
                # It was paused for this client; the next exchange on it may be another's.
                transport.resume_reading()
            server.release(connection)
        else:
            connection.close()
        self._ending.complete(x)


def _fields_of(lines: bytes, minor: bytes) -> tuple[bytes, bytes | None, bool, bool] | None:
    """The lines that go on, the Content-Length, whether chunked, whether the connection persists; None if ambiguous."""
    parts = _SPLIT(lines)
    keep = minor == b"1"
    if len(parts) == 1:
        return lines, None, False, keep
    length: bytes | None = None
    chunked = False
    nominated: set[bytes] = set()
    for at in range(1, len(parts), 3):
        name = _NAMES.get(parts[at])
        if name is None:
            name = parts[at].lower()
        value = parts[at + 1]
        if name == b"content-length":
            value = value.rstrip(b" \t")
            if length is not None or not value.isdigit() or len(value) > _MAX_LENGTH_DIGITS:
                return None
            length = value
        elif name == b"connection":
            if value != b"keep-alive":
                nominated |= {option.strip(b" \t") for option in value.lower().split(b",")}
            elif minor == b"0":
                keep = True
        elif name == b"transfer-encoding":
            if chunked or value.rstrip(b" \t").lower() != b"chunked" or minor == b"0":
                return None
            chunked = True
    if chunked and length is not None:
        return None
    kept = b"".join(parts[::3])
    if nominated:
        keep = b"close" not in nominated and (keep or b"keep-alive" in nominated)
        nominated -= {b"", b"close", b"keep-alive"}
        if nominated:
            kept = b"\r\n".join(
                line for line in kept.split(b"\r\n") if line.partition(b":")[0].lower() not in nominated
            )
    return kept, length, chunked, keep
