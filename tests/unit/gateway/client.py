"""A raw HTTP client for tests: sends bytes and reads responses by their framing."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from dataclasses import dataclass, field
from typing import cast

from tests.support.process import HANGS_SECONDS


def reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@dataclass(kw_only=True)
class Answer:
    """A response, exactly as read from the socket."""

    status: int
    head: bytes
    body: bytes
    interim: list[int] = field(default_factory=list)

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        lines = self.head.split(b"\r\n")[1:-2]
        return [(name, value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines)]

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key.lower() == name.lower()]

    @property
    def closes(self) -> bool:
        return self.all(b"connection") == [b"close"]

    @property
    def reason(self) -> str:
        assert self.all(b"content-type") == [b"application/problem+json"]
        document = json.loads(self.body)
        assert document["status"] == self.status
        return str(document["reason"])


class Client:
    """A raw client: sends bytes, reads responses by their framing (RFC 9112 section 6.3)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        # A write to a disconnected peer is lost; uvloop would raise where asyncio drops it.
        if not self.writer.is_closing():
            self.writer.write(data)

    def stop_reading(self) -> None:
        """Pause reading, so that further data stays in the kernel's buffer."""
        self._transport.pause_reading()

    def read_on(self) -> None:
        """Resume reading."""
        self._transport.resume_reading()

    @property
    def _transport(self) -> asyncio.Transport:
        return cast(asyncio.Transport, self.writer.transport)

    def reset(self) -> None:
        """Disconnect with a reset, because closing only the sending side may be a half-close."""
        reset(self.writer)

    async def answer(self, method: str = "GET", *, seconds: float = HANGS_SECONDS) -> Answer:
        """The next final response; a truncated one raises IncompleteReadError or ConnectionResetError."""
        async with asyncio.timeout(seconds):
            interim: list[int] = []
            while True:
                head = await self.reader.readuntil(b"\r\n\r\n")
                status = int(head[9:12])
                if status >= 200:
                    break
                interim.append(status)
            answer = Answer(status=status, head=head, body=b"", interim=interim)
            if method == "HEAD" or status in (204, 304):
                return answer
            lengths, codings = answer.all(b"content-length"), answer.all(b"transfer-encoding")
            assert len(lengths) + len(codings) <= 1, "two framings"
            if codings:
                answer.body = await self._chunks()
            elif lengths:
                answer.body = await self.reader.readexactly(int(lengths[0]))
            else:
                answer.body = await self.reader.read()
            return answer

    async def ask(self, data: bytes, *, seconds: float = HANGS_SECONDS) -> Answer:
        self.send(data)
        return await self.answer(data.split(b" ", 1)[0].decode(), seconds=seconds)

    async def _chunks(self) -> bytes:
        body = b""
        while True:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            data = await self.reader.readexactly(size + 2)
            assert data.endswith(b"\r\n")
            if not size:
                return body
            body += data[:-2]

    async def rest(self, *, seconds: float = HANGS_SECONDS) -> bytes:
        """All bytes until the gateway closes the connection."""
        async with asyncio.timeout(seconds):
            return await self.reader.read()
