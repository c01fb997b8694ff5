"""WebSocket tunnels that can be ended with a word: where a frame ends (RFC 6455 section 5.2), and a Close put there.

Rules of this module:
1. Bytes pass unchanged and are never kept: of a frame only its header is read, and its payload skipped by its length.
2. A Close frame of ours is put between two frames and nowhere else; after it nothing of that direction is sent on.
3. Nothing is judged: a stream that is no WebSocket has no boundary that counts, and is cut at the deadline instead.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

from proxy.gateway.http1.body import TunnelBody

_GOING_AWAY: Final = b"\x03\xe9"
"""1001 (RFC 6455 section 7.4.1)."""
_CLOSE: Final = 0x08
_OPCODE: Final = 0x0F
_MASKED: Final = 0x80
_LENGTH: Final = 0x7F
_LENGTH_16: Final = 126
_LENGTH_64: Final = 127
_LONGEST_HEADER: Final = 14


class WebSocketBody(TunnelBody):
    """One direction of a tunnel that carries WebSocket frames."""

    __slots__ = ("_farewell", "_header", "_remaining", "closed", "said")

    def __init__(self) -> None:
        super().__init__()
        self._remaining = 0
        self._header = b""
        self._farewell = b""
        self.closed = False
        """A Close frame of the sender has gone by, whole or in part."""
        self.said = False
        """Our own Close has been put in: nothing more of this direction goes on."""

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        size = len(data)
        remaining = self._remaining
        if size < remaining and not self.said:
            self._remaining = remaining - size
            return [data], b""
        if not self._farewell:
            self._walk(data, 0, first=False)
            return [data], b""
        boundary = 0
        if not self.said:
            boundary = self._walk(data, 0, first=True)
            if boundary < 0:
                return [data], b""
        last = b"" if self.said else self._last_words(data[:boundary])
        # What follows is not sent on, and yet tells when the sender closes.
        self._walk(data, boundary, first=False)
        return ([last] if last else []), b""

    def part(self, transport: asyncio.Transport, *, masked: bool) -> int:
        """Say to the receiver at the next end of a frame that the gateway goes away; the bytes written if that is now.

        ``masked`` towards a server (RFC 6455 section 5.3).
        """
        if self.said or self._farewell:
            return 0
        if masked:
            key = os.urandom(4)
            self._farewell = b"\x88\x82" + key + bytes([_GOING_AWAY[0] ^ key[0], _GOING_AWAY[1] ^ key[1]])
        else:
            self._farewell = b"\x88\x02" + _GOING_AWAY
        if self._remaining or self._header:
            return 0
        last = self._last_words(b"")
        if last:
            transport.write(last)
        return len(last)

    def _last_words(self, before: bytes) -> bytes:
        """What lies before the boundary and our Close, unless the sender has said its own (section 5.5.1)."""
        self.said = True
        return before if self.closed else before + self._farewell

    def _walk(self, data: bytes, at: int, *, first: bool) -> int:
        """Follow the frames through ``data`` from ``at`` on: to its end, or (``first``) to where the first of them
        ends.

        The place, or -1 where no frame ends.
        """
        end = len(data)
        while at < end or not self._remaining:
            if self._remaining:
                step = min(self._remaining, end - at)
                self._remaining -= step
                at += step
                if first and not self._remaining:
                    return at
                continue
            header = self._header + data[at : at + _LONGEST_HEADER - len(self._header)]
            length = _header_length(header)
            if len(header) < length:
                self._header = header
                return -1
            at += length - len(self._header)
            self._header = b""
            if header[0] & _OPCODE == _CLOSE:
                self.closed = True
            self._remaining = _payload_length(header)
            if first and not self._remaining:
                return at
        return -1


def _header_length(header: bytes) -> int:
    """Bytes of the frame header that begins here; at least 2."""
    if len(header) < 2:
        return 2
    code = header[1] & _LENGTH
    extended = 2 if code == _LENGTH_16 else 8 if code == _LENGTH_64 else 0
    return 2 + extended + (4 if header[1] & _MASKED else 0)


def _payload_length(header: bytes) -> int:
    code = header[1] & _LENGTH
    if code == _LENGTH_16:
        return int.from_bytes(header[2:4], "big")
    if code == _LENGTH_64:
        return int.from_bytes(header[2:10], "big")
    return code
