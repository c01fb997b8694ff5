"""WebSocket tunnels: finds frame boundaries (RFC 6455 section 5.2) and inserts a Close frame at one.

Rules of this module:
1. Bytes pass unchanged and are never kept: only the header of a frame is parsed, and its payload is skipped by its
   length.
2. The gateway's Close frame is inserted between two frames and nowhere else; after it nothing more of that direction is
   forwarded.
3. The stream is not validated: one that is no WebSocket has no usable boundary, and is cut at the deadline instead.
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

    __slots__ = ("_close_frame", "_header", "_remaining", "close_sent", "sender_closed")

    def __init__(self) -> None:
        super().__init__()
        self._remaining = 0
        self._header = b""
        self._close_frame = b""
        self.sender_closed = False
        """The sender's Close frame has passed, whole or in part."""
        self.close_sent = False
        """The gateway's Close has been inserted: nothing more of this direction is forwarded."""

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Follow the frames in ``data``; return it unchanged, or up to the boundary with the gateway's Close."""
        size = len(data)
        remaining = self._remaining
        if size < remaining and not self.close_sent:
            self._remaining = remaining - size
            return [data], b""
        if not self._close_frame:
            self._walk(data, 0, first=False)
            return [data], b""
        boundary = 0
        if not self.close_sent:
            boundary = self._walk(data, 0, first=True)
            if boundary < 0:
                return [data], b""
        last = b"" if self.close_sent else self._with_close(data[:boundary])
        # The rest is not forwarded, but it may contain the sender's Close.
        self._walk(data, boundary, first=False)
        return ([last] if last else []), b""

    def send_close(self, transport: asyncio.Transport, *, masked: bool) -> int:
        """Send the receiver a Close "going away" at the next frame boundary; returns the bytes written if that is now.

        ``masked`` towards a server (RFC 6455 section 5.3).
        """
        if self.close_sent or self._close_frame:
            return 0
        if masked:
            key = os.urandom(4)
            self._close_frame = b"\x88\x82" + key + bytes([_GOING_AWAY[0] ^ key[0], _GOING_AWAY[1] ^ key[1]])
        else:
            self._close_frame = b"\x88\x02" + _GOING_AWAY
        if self._remaining or self._header:
            return 0
        last = self._with_close(b"")
        if last:
            transport.write(last)
        return len(last)

    def _with_close(self, before: bytes) -> bytes:
        """The bytes before the boundary, and the gateway's Close unless the sender has sent one (section 5.5.1)."""
        self.close_sent = True
        return before if self.sender_closed else before + self._close_frame

    def _walk(self, data: bytes, at: int, *, first: bool) -> int:
        """Follow the frames in ``data`` from ``at`` to its end, or (``first``) to the end of the first frame.

        Returns that frame's end, or -1 where no frame ends.
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
                self.sender_closed = True
            self._remaining = _payload_length(header)
            if first and not self._remaining:
                return at
        return -1


def _header_length(header: bytes) -> int:
    """Length of the frame header in bytes, as far as its first bytes show it; at least 2."""
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
