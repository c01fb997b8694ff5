"""A backend whose path chooses its behaviour: whole answers, partial ones, none, resets, tunnels.

It serves ``/v1/faulty/{behaviour}`` for ``load.aborting_clients``. It trusts the gateway: heads are not checked, and
all bytes on a connection belong to the one exchange on it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
import socket
import struct
from enum import StrEnum
from multiprocessing.connection import Connection
from typing import Final

import uvloop

from bench.testbed import LOOPBACK

BLOCK: Final = bytes(64 * 1024)
LARGE: Final = 16 * len(BLOCK)
"""Bytes in the body of a large answer: more than the socket buffers on its way hold."""
_ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_HEAD_OF_LARGE: Final = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE
_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_KEY: Final = re.compile(rb"(?i)\r\nsec-websocket-key: *([^\r]+)")
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_RESET: Final = struct.pack("ii", 1, 0)


class Behaviour(StrEnum):
    """How the backend treats a request."""

    ANSWER = "answer"
    """Reads the whole request, then answers."""
    EARLY = "early"
    """Answers before it reads the body."""
    SILENT = "silent"
    """Never answers."""
    RESET = "reset"
    """Resets the connection instead of answering."""
    HALF_HEAD = "half_head"
    HALF_BODY = "half_body"
    """Resets the connection within the declared length."""
    HALF_CHUNKS = "half_chunks"
    """Ends the connection within a chunked body."""
    UNTIL_CLOSE = "until_close"
    """Answers without a length, so that the connection's end is the answer's."""
    LARGE = "large"
    EXCESS = "excess"
    """Sends more than the declared length."""
    GARBAGE = "garbage"
    TUNNEL = "tunnel"
    """Accepts a WebSocket and echoes; closes on ``CLOSE`` and resets on ``CUT``."""


CLOSE: Final = b"close, please"
CUT: Final = b"reset, please"


class _FaultyBackend(asyncio.Protocol):
    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._left = 0
        self._chunked = False
        self._tunnel = False
        self._behaviour: Behaviour | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a socket's transport reads and writes

    def data_received(self, data: bytes) -> None:
        if self._tunnel:
            self._echo(data)
            return
        self._buffer += data
        while self._behaviour is None and b"\r\n\r\n" in self._buffer:
            head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
            self._begin(head)
        if self._behaviour is not None:
            self._body()

    def _begin(self, head: bytes) -> None:
        target = head.split(b" ", 2)[1]
        self._behaviour = behaviour = Behaviour(target.rpartition(b"/")[2].partition(b"?")[0].decode())
        length = _LENGTH.search(head)
        self._left = int(length[1]) if length else 0
        self._chunked = b"\r\nTransfer-Encoding: chunked" in head
        match behaviour:
            case Behaviour.EARLY:
                self._write(_ANSWER)
            case Behaviour.RESET:
                self._reset()
            case Behaviour.HALF_HEAD:
                self._write(b"HTTP/1.1 200 OK\r\nContent-Le")
                self._reset()
            case Behaviour.HALF_BODY:
                self._write(_HEAD_OF_LARGE + BLOCK)
                asyncio.get_running_loop().call_later(0.005, self._reset)
            case Behaviour.HALF_CHUNKS:
                self._write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400\r\nnot so much")
                self._close()
            case Behaviour.UNTIL_CLOSE:
                self._write(b"HTTP/1.1 200 OK\r\n\r\n" + BLOCK)
                self._close()
            case Behaviour.EXCESS:
                self._write(_ANSWER + _ANSWER)
            case Behaviour.GARBAGE:
                self._write(b"\x16\x03\x01\x02\x00 this is no HTTP\r\n\r\n")
            case Behaviour.TUNNEL:
                key = _KEY.search(head)
                accept = base64.b64encode(hashlib.sha1(key[1].strip() + _GUID).digest()) if key else b""
                self._write(
                    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                    b"Sec-WebSocket-Accept: %s\r\n\r\n" % accept
                )
                self._tunnel = True
                self._echo(self._buffer)

    def _body(self) -> None:
        """Consume what has arrived of the body; act on its end."""
        self._left -= len(self._buffer)
        ended = self._buffer.endswith(b"0\r\n\r\n") if self._chunked else self._left <= 0
        self._buffer = self._buffer[-5:] if self._chunked and not ended else b""
        if not ended:
            return
        if self._behaviour is Behaviour.ANSWER:
            self._write(_ANSWER)
        elif self._behaviour is Behaviour.LARGE:
            self._write(_HEAD_OF_LARGE + BLOCK * (LARGE // len(BLOCK)))
        if self._behaviour is not Behaviour.SILENT:
            self._behaviour = None

    def _echo(self, data: bytes) -> None:
        if CUT in data:
            self._reset()
        elif CLOSE in data:
            self._close()
        elif data:
            self._write(data)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _reset(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            with contextlib.suppress(OSError):
                self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()


def faulty_backend(pipe: Connection) -> None:
    """Serve until the pipe ends; sends its port first."""
    uvloop.run(_serve(pipe))


async def _serve(pipe: Connection) -> None:
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    server = await loop.create_server(_FaultyBackend, LOOPBACK, 0, backlog=4096)
    loop.add_reader(pipe.fileno(), over.set)
    pipe.send({"port": server.sockets[0].getsockname()[1]})
    await over.wait()
    server.close()
