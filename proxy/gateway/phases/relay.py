"""The relay phase: sends the backend's response to the client, in the framing that the client understands.

Rules of this module:
1. A response head is parsed as strictly as a request's; two framings, or an unknown one, are answered with 502.
2. A response that breaks off after its head was sent aborts the client's connection, so that it never looks complete.
3. A backend's hop-by-hop fields (RFC 9110 section 7.6.1) and trailers (section 6.5.1) are not forwarded. A response
   without ``Date`` gets one (section 6.6.1). A 426 keeps its ``Upgrade`` (section 15.5.22) and a 407 its challenge
   (section 11.7.1), because they are meaningless without. Where patgate answers preflights, its CORS fields replace the
   backend's (``core.request.cors``). A WebSocket without a subprotocol gets patgate's own, if the client offered it
   (``core.credential_places``). Nothing else is added and nothing is changed.
4. The upstream connection is reused only when both messages have ended and no bytes follow the response.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

from proxy.core.credential_places import WEBSOCKET_MARK, offers_mark
from proxy.core.ipc.clock import boottime_ns
from proxy.core.reasons import Reason
from proxy.core.request.claims import fold
from proxy.core.request.cors import owned
from proxy.core.request.request_reading import TOKEN
from proxy.gateway.exchange import Exchange
from proxy.gateway.http1.body import (
    BodyReader,
    ChunkedBody,
    CloseBody,
    FramingError,
    LengthBody,
    TunnelBody,
    encode_chunks,
)
from proxy.gateway.http1.date import HttpClock
from proxy.gateway.http1.grammar import (
    HEAD_END,
    NAME_MEMO,
    NAME_MEMO_LENGTH,
    STATUS_LINE,
    head_lines,
    trimmed,
    without_fields,
)
from proxy.gateway.http1.partial_head import answer_possible
from proxy.gateway.http1.websocket import WebSocketBody
from proxy.gateway.upstream.pool import UpstreamConnection

MAX_RESPONSE_HEAD: Final = 64 * 1024
"""Longest head of a response, in bytes, without its final two CRLF."""
_MAX_LENGTH_DIGITS: Final = 18
_MAX_INTERIM: Final = 16
# How a response field is handled.
_UNKNOWN: Final = -1
_PASS: Final = 0
_DROP: Final = 1
_LENGTH: Final = 2
_CONNECTION: Final = 3
_TRANSFER: Final = 4
_UPGRADE: Final = 5
_DATE: Final = 6
_CHALLENGE: Final = 7
_FIELDS: Final = {
    b"content-length": _LENGTH,
    b"connection": _CONNECTION,
    b"transfer-encoding": _TRANSFER,
    b"upgrade": _UPGRADE,
    b"date": _DATE,
    b"keep-alive": _DROP,
    b"proxy-authenticate": _CHALLENGE,
    b"proxy-authentication-info": _DROP,
    b"proxy-connection": _DROP,
    b"te": _DROP,
    b"trailer": _DROP,
}
"""Framing fields, hop-by-hop fields (RFC 9110 section 7.6.1), and fields for clients that chose a proxy (section 11.7),
which does not apply to a reverse proxy."""
_NEVER_NOMINATED: Final = frozenset(
    (
        b"cache-control", b"content-encoding", b"content-range", b"content-security-policy", b"content-type",
        b"location", b"proxy-authenticate", b"set-cookie", b"strict-transport-security", b"vary", b"www-authenticate",
        b"x-content-type-options", b"x-frame-options",
    )
)  # fmt: skip
"""Fields that a backend's ``Connection`` cannot remove: content type, caching, redirects, security policy and login.
They are meant for every recipient and may not be nominated (RFC 9110 section 7.6.1)."""
# A call through the module, ``time.x()``, costs twice as much.
_now_ns: Final = boottime_ns
_Fields = tuple[bytes, bytes | None, bool, bool, bytes]
"""The lines to forward, the Content-Length, whether chunked, whether the connection persists, the protocols in
``Upgrade``."""
_UPGRADE_REQUIRED: Final = 426
_PROXY_AUTHENTICATION_REQUIRED: Final = 407
_UPGRADED: Final = b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
_EVENT_STREAM: Final = re.compile(rb"\r\ncontent-type:[ \t]*text/event-stream[ \t]*(?:[;\r]|$)", re.IGNORECASE)
_SUBPROTOCOL: Final = re.compile(rb"\r\nsec-websocket-protocol:", re.IGNORECASE)
_BODILESS: Final = frozenset((204, 304))
"""RFC 9110 section 6.4.1. 1xx is handled before, and responses to HEAD are known by their request."""
_UNUSUAL: Final = _BODILESS | {_UPGRADE_REQUIRED}
_NO_LENGTH: Final = (None, b"0")
_SWITCHING: Final = 101
_FINAL: Final = 200
_STATUS_MEMO: Final = 1024
"""Largest number of status lines that are remembered."""


class _StatusLine:
    """A parsed status line of a backend: minor version, status, and the line for the client."""

    __slots__ = ("minor", "status", "text")

    def __init__(self, minor: int, status: int, text: bytes) -> None:
        self.minor = minor
        self.status = status
        self.text = text


class RelayObserver(Protocol):
    """Receives what the relay reports about an exchange: its end, its failure, or that it takes long."""

    def complete(self, x: Exchange) -> None:
        """The whole response has been written to the client."""

    def streaming(self, x: Exchange) -> None:
        """The response has begun and is not complete yet: the exchange will last."""

    def fail(self, x: Exchange, reason: Reason) -> None:
        """The upstream failed; the response may have begun."""

    def retry(self, x: Exchange, connection: UpstreamConnection) -> bool:
        """Send ``x`` again if that is safe; False if it is not."""


class Relay:
    """Processes the bytes that arrive on upstream connections (``pool.Receiver``)."""

    def __init__(self, observer: RelayObserver) -> None:
        self._observer = observer
        self._codes: dict[bytes, int] = {}
        self._clock = HttpClock()
        self._status_lines: dict[bytes, _StatusLine] = {}

    def received(self, connection: UpstreamConnection, data: bytes) -> None:
        """Process bytes of the response to ``connection.exchange``."""
        x = connection.exchange
        assert x is not None
        client = x.client
        transport = None if client is None else client.transport
        if client is None or transport is None:
            connection.close()
            return
        body = connection.body
        if body is None:
            since = len(connection.buffer)
            if since:
                data = connection.buffer + data
                connection.buffer = b""
            self._head(connection, x, data, since)
            return
        try:
            pieces, rest = body.feed(data)
        except FramingError:
            self._observer.fail(x, Reason.UPSTREAM_PROTOCOL)
            return
        out = self._encode(x, pieces, last=body.done)
        if out:
            x.bytes_out += len(out)
            transport.write(out)
        client.touch()
        if body.done:
            self._done(connection, x, clean=not rest)

    def ended(self, connection: UpstreamConnection, *, clean: bool) -> None:
        """Complete, retry or fail the exchange of a connection that was lost."""
        x = connection.exchange
        assert x is not None
        body = connection.body
        if isinstance(body, CloseBody | TunnelBody) and clean:
            body.done = True
            out = self._encode(x, [], last=True)
            if out and x.client is not None and x.client.transport is not None:
                x.bytes_out += len(out)
                x.client.transport.write(out)
            self._done(connection, x, clean=False)
        elif body is None and not connection.buffer and self._observer.retry(x, connection):
            return
        else:
            self._observer.fail(x, Reason.UPSTREAM_RESET)

    def writable(self, connection: UpstreamConnection, *, now: bool) -> None:
        """Read the client's request body, or pause reading it (back pressure)."""
        x = connection.exchange
        if x is not None and x.client is not None:
            x.client.read_more(now)

    def _head(self, connection: UpstreamConnection, x: Exchange, data: bytes, since: int) -> None:
        """Parse response heads from ``data``: interim ones are forwarded, the final one starts the response.

        The bytes before ``since`` arrived earlier, as the beginning of a head.
        """
        while True:
            head, end, rest = data.partition(HEAD_END)
            if not end and len(data) < MAX_RESPONSE_HEAD + len(HEAD_END) and answer_possible(data, since):
                connection.buffer = data
                return
            lines = head_lines(head) if end and len(head) <= MAX_RESPONSE_HEAD else None
            line = None if lines is None else self._status_line(lines[0])
            fields = None if lines is None or line is None else self._fields_of(lines, line)
            if line is None or fields is None:
                self._observer.fail(x, Reason.UPSTREAM_PROTOCOL)
                return
            status = line.status
            if status >= _FINAL:
                self._final(connection, x, line, fields, rest)
                return
            # An HTTP/1.0 server has no interim responses, and so cannot switch protocols (RFC 6455 section 4.2.2).
            if x.websocket and status == _SWITCHING and fields[4].lower() == b"websocket" and line.minor:
                self._switch(connection, x, line, fields[0], rest)
                return
            connection.interim += 1
            # No upgrade was requested, so 101 is invalid; so is a flood of interim responses.
            if status == _SWITCHING or connection.interim > _MAX_INTERIM:
                self._observer.fail(x, Reason.UPSTREAM_PROTOCOL)
                return
            if x.version and x.client is not None and x.client.transport is not None:
                x.client.transport.write(line.text + fields[0] + HEAD_END)
            data, since = rest, 0
            if not data:
                return

    def _status_line(self, line: bytes) -> _StatusLine | None:
        """Parse a status line (RFC 9112 section 4), memoised because a backend has few; None if it is malformed."""
        known = self._status_lines.get(line)
        if known is None:
            matched = STATUS_LINE.fullmatch(line)
            if matched is None:
                return None
            text = b"HTTP/1.1 " + matched[2] + (matched[3] or b" ")
            known = _StatusLine(int(matched[1]), int(matched[2]), text)
            if len(self._status_lines) < _STATUS_MEMO and len(line) <= NAME_MEMO_LENGTH:
                self._status_lines[line] = known
        return known

    def _switch(self, connection: UpstreamConnection, x: Exchange, line: _StatusLine, kept: bytes, rest: bytes) -> None:
        """Turn both connections into a tunnel (RFC 9110 section 7.8, RFC 6455 section 4.2.2)."""
        client = x.client
        assert client is not None
        transport = client.transport
        assert transport is not None
        connection.keep = False
        connection.body = body = WebSocketBody()
        body.feed(rest)
        x.status = 101
        x.answered = _now_ns()
        x.response_started = True
        x.tunnel = True
        x.keep_alive = False
        presented = x.presented
        if presented is not None and offers_mark(presented) and _SUBPROTOCOL.search(kept) is None:
            # A browser that offered subprotocols needs one to be selected, and this backend selects none.
            kept += b"\r\nSec-WebSocket-Protocol: " + WEBSOCKET_MARK
        out = b"".join((line.text, kept, _UPGRADED, rest))
        x.bytes_out = len(out)
        transport.write(out)
        self._observer.streaming(x)
        client.switch(x)

    def _final(
        self, connection: UpstreamConnection, x: Exchange, line: _StatusLine, fields: _Fields, rest: bytes
    ) -> None:
        """Send the final head, in the client's framing, and the part of the body that has arrived, in one write."""
        client = x.client
        assert client is not None
        transport = client.transport
        assert transport is not None
        kept, length, chunked, connection.keep, upgrade = fields
        cors = x.cors
        if cors is not None and cors.lines is not None:
            kept = owned(kept, cors.lines)
        x.status = status = line.status
        x.answered = _now_ns()
        if not x.body_done or x.websocket or client.draining:
            # The response came before the end of the request, whose rest must not be read as the next one. Or the
            # worker is draining, and asks the client to send no more on this connection.
            x.keep_alive = False
        if x.body is not None and (not x.body_done or _unsent(connection)):
            # The backend may read the rest of the body as its next request, even if the response ends cleanly.
            connection.keep = False
        if (
            length is not None
            and len(rest) == int(length)
            and status not in _UNUSUAL
            and x.keep_alive
            and x.version
            and not x.head_only
        ):
            # The usual response has arrived completely and is sent unchanged.
            x.response_started = True
            out = b"".join((line.text, kept, b"\r\nContent-Length: ", length, b"\r\n\r\n", rest))
            x.bytes_out = len(out)
            transport.write(out)
            self._done(connection, x, clean=True)
            return
        framing = b""
        body: BodyReader
        if x.head_only or status in _BODILESS:
            body = LengthBody(0)
            if chunked or length not in _NO_LENGTH or (length is None and x.head_only):
                # A backend that sends the body nevertheless would send it into the next exchange, where it would look
                # like that one's response; and one that gives HEAD no length may end bodies by closing.
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
        option = b"close" if not x.keep_alive else b"" if x.version else b"keep-alive"
        if status == _UPGRADE_REQUIRED and upgrade:
            framing += b"\r\nUpgrade: " + upgrade
            option = option + b", Upgrade" if option else b"Upgrade"
        if option:
            framing += b"\r\nConnection: " + option
        connection.body = body
        try:
            pieces, behind = body.feed(rest) if rest else ([], b"")
        except FramingError:
            self._observer.fail(x, Reason.UPSTREAM_PROTOCOL)
            return
        x.response_started = True
        out = b"".join((line.text, kept, framing, b"\r\n\r\n", self._encode(x, pieces, last=body.done)))
        x.bytes_out = len(out)
        transport.write(out)
        if body.done:
            self._done(connection, x, clean=not behind)
        else:
            x.stream = _EVENT_STREAM.search(kept) is not None
            client.touch()
            self._observer.streaming(x)

    def _fields_of(self, lines: list[bytes], status: _StatusLine) -> _Fields | None:
        """Parse the field lines; None if they are malformed or ambiguous."""
        kept = [b""]
        codes = self._codes
        length: bytes | None = None
        chunked = False
        dated = status.status < _FINAL
        minor = status.minor
        keep = minor == 1
        nominated: set[bytes] | None = None
        upgrade = b""
        for at in range(1, len(lines)):
            line = lines[at]
            name, colon, value = line.partition(b":")
            code = codes.get(name, _UNKNOWN)
            if code == _UNKNOWN or not colon:
                if not colon or TOKEN.fullmatch(name) is None:
                    return None
                code = self._classify(name)
            if code == _PASS:
                kept.append(line)
                continue
            if code == _DATE:
                dated = True
                kept.append(line)
                continue
            value = trimmed(value)
            if code == _LENGTH:
                if length is not None or not value.isdigit() or len(value) > _MAX_LENGTH_DIGITS:
                    return None
                # Normalised: another parser might read a leading zero as an octal number.
                length = value if value[0] != 0x30 else value.lstrip(b"0") or b"0"
            elif code == _CONNECTION:
                if value != b"keep-alive":
                    options = {option.strip(b" \t") for option in value.lower().split(b",")}
                    nominated = options if nominated is None else nominated | options
                elif minor == 0:
                    keep = True
            elif code == _TRANSFER:
                if chunked or value.lower() != b"chunked" or minor == 0:
                    return None
                chunked = True
            elif code == _UPGRADE:
                # A list of two protocols is never the requested one.
                upgrade = value if not upgrade else upgrade + b", " + value
            elif code == _CHALLENGE and status.status == _PROXY_AUTHENTICATION_REQUIRED:
                kept.append(line)
        if chunked and length is not None:
            return None
        if nominated is not None:
            keep = b"close" not in nominated and (keep or b"keep-alive" in nominated)
            kept = without_fields(b"\r\n".join(kept), nominated - _NEVER_NOMINATED - {b""}).split(b"\r\n")
            dated = dated and (b"date" not in nominated or status.status < _FINAL)
        if not dated:
            kept.append(self._clock.date_line())
        return b"\r\n".join(kept), length, chunked, keep, upgrade

    def _classify(self, name: bytes) -> int:
        """The code of a received name: an alias that a client might mistake for a framing field is dropped."""
        folded = fold(name)
        code = _FIELDS.get(folded, _PASS)
        if code != _PASS and name.lower() != folded:
            code = _DROP
        if len(self._codes) < NAME_MEMO and len(name) <= NAME_MEMO_LENGTH:
            self._codes[name] = code
        return code

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
        if connection.keep and clean and x.body_done and transport is not None:
            if x.client is not None and x.client.full:
                # Reading was paused for this client; the next exchange may serve another one.
                transport.resume_reading()
            server.release(connection)
        else:
            connection.close()
        self._observer.complete(x)


def _unsent(connection: UpstreamConnection) -> int:
    """Bytes of the request that wait in the transport because the backend does not read them."""
    return 0 if connection.transport is None else connection.transport.get_write_buffer_size()
