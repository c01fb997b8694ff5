"""Both ends of a WebSocket in raw frames (RFC 6455), as far as tests need them."""

from __future__ import annotations

import socket
from collections.abc import Callable

UPGRADE = (
    b"GET %b HTTP/1.1\r\nHost: gateway\r\nConnection: %b\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%b\r\n"
)
ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
TEXT = 0x1
BINARY = 0x2
CLOSE = 0x8
GOING_AWAY = (1001).to_bytes(2, "big")


def frame(opcode: int, payload: bytes, *, masked: bool = False, final: bool = True) -> bytes:
    """One frame; the masking key is fixed, which is enough for tests."""
    first = opcode | (0x80 if final else 0)
    mask = 0x80 if masked else 0
    size = len(payload)
    if size < 126:
        head = bytes((first, mask | size))
    elif size < 1 << 16:
        head = bytes((first, mask | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, mask | 127)) + size.to_bytes(8, "big")
    if not masked:
        return head + payload
    key = b"\x11\x22\x33\x44"
    return head + key + unmask(payload, key)


def unmask(payload: bytes, key: bytes) -> bytes:
    return bytes(byte ^ key[place % 4] for place, byte in enumerate(payload))


def read_frame(exactly: Callable[[int], bytes]) -> tuple[int, bytes, bool]:
    """Read the next frame: opcode, payload, whether it was masked. ``exactly`` reads the given number of bytes."""
    first, second = exactly(2)
    size = second & 0x7F
    if size == 126:
        size = int.from_bytes(exactly(2), "big")
    elif size == 127:
        size = int.from_bytes(exactly(8), "big")
    key = exactly(4) if second & 0x80 else b""
    payload = exactly(size)
    return first & 0x0F, unmask(payload, key) if key else payload, bool(key)


class Client:
    """A client whose connection is already upgraded or is upgraded by ``open``."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = b""

    def open(self, target: bytes, headers: bytes = b"", *, connection: bytes = b"Upgrade") -> int:
        """Request the upgrade and return the status. ``connection`` is the value of that field."""
        self._socket.sendall(UPGRADE % (target, connection, headers))
        while b"\r\n\r\n" not in self._buffer:
            self._fill()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return int(head[9:12])

    def send(self, opcode: int, payload: bytes) -> None:
        self._socket.sendall(frame(opcode, payload, masked=True))

    def receive(self) -> tuple[int, bytes]:
        opcode, payload, masked = read_frame(self._exactly)
        assert not masked, "a server's frames are not masked (section 5.1)"
        return opcode, payload

    def ended(self) -> bool:
        """Whether the other end closes without an error, with no more bytes to read."""
        return not self._buffer and self._socket.recv(1) == b""

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._fill()
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _fill(self) -> None:
        data = self._socket.recv(65536)
        assert data, "the connection ended in the middle of something"
        self._buffer += data
