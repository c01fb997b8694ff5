"""A client's connections: kept-alive ones that ask for a verdict, and one for each call of the control API.

Both are unix sockets, which belong to no network namespace: a node that is cut off from PostgreSQL is still asked.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

RECONNECT_SECONDS: Final = 0.05
_LENGTH: Final = b"\r\ncontent-length: "


@dataclass(slots=True)
class Register:
    """Something that has a verdict of its own: one token, asked for one operation."""

    number: int
    name: str
    request: bytes


Answered = Callable[["Asker", Register, int, int, int, bytes], None]
"""Called with the connection, the register, the status, start and end of the request (ns), and the whole answer."""


class Asker(asyncio.Protocol):
    """A kept-alive connection to one node's forward-auth listener, with at most one request under way.

    ``free`` is called when it may ask again. It reconnects by itself, until ``close``.
    """

    def __init__(self, path: str, node: int, answered: Answered, free: Callable[[Asker], None]) -> None:
        self.path = path
        self.node = node
        self.asked: Register | None = None
        self.begun = 0
        self.closed = False
        self.refused = False
        """Whether the last answer was no verdict."""
        self.connected = False
        self._answered = answered
        self._free = free
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._connecting: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._connecting = asyncio.create_task(self._connect(), name="connect to a node")

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        while not self.closed:
            try:
                await loop.create_unix_connection(lambda: self, self.path)
            except OSError:
                await asyncio.sleep(RECONNECT_SECONDS)
            else:
                return

    def ask(self, register: Register) -> None:
        """Send a request; the connection must be ``connected`` and have none under way."""
        assert self._transport is not None
        self.asked = register
        self.begun = time.monotonic_ns()
        self._transport.write(register.request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has the methods, and another base class
        self._buffer = b""
        self.connected = True
        self._free(self)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if self._buffer:
            data = self._buffer + data
        if not complete(data):
            self._buffer = data
            return
        self._buffer = b""
        register, self.asked = self.asked, None
        if register is None:
            # Such as 408, before the connection is closed.
            return
        self._answered(self, register, int(data[9:12]), self.begun, now, data)
        self._free(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.connected = False
        self.asked = None
        if not self.closed:
            self.start()

    def close(self) -> None:
        self.closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._transport is not None:
            self._transport.abort()


def complete(data: bytes) -> bool:
    """Whether this is a whole response; the gateway's own ones have a ``Content-Length``."""
    head = data.find(b"\r\n\r\n")
    if head < 0:
        return False
    place = data[:head].lower().find(_LENGTH)
    if place < 0:
        return True
    length = int(data[place + len(_LENGTH) : data.find(b"\r\n", place + 2)])
    return len(data) >= head + 4 + length


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The outcome of a call of the control API. ``status`` 0: there was no answer, although the call may have arrived.

    -1: it certainly did not arrive. ``document`` is the answer's JSON object.
    """

    status: int
    start: int
    end: int
    document: dict[str, Any]

    @property
    def reason(self) -> str:
        return str(self.document.get("reason", ""))

    @property
    def acknowledged(self) -> bool:
        return 200 <= self.status < 300


async def call(path: str, method: str, target: str, body: object = None, *, seconds: float, key: str = "") -> Answer:
    """Call the control API at a unix socket, and wait so many seconds for the answer."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} /api/v1{target} HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += [f"Content-Length: {len(content)}", "Content-Type: application/json"] if body is not None else []
    lines += [f"Idempotency-Key: {key}"] if key else []
    request = "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + content
    start = time.monotonic_ns()
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return Answer(status=-1, start=start, end=time.monotonic_ns(), document={})
    received = b""
    try:
        async with asyncio.timeout(seconds):
            writer.write(request)
            received = await reader.read(1 << 20)
            while not complete(received) and (more := await reader.read(1 << 20)):
                received += more
    except (TimeoutError, OSError):
        pass
    end = time.monotonic_ns()
    writer.transport.abort()
    if not received or not complete(received):
        return Answer(status=0, start=start, end=end, document={})
    try:
        document = json.loads(received.partition(b"\r\n\r\n")[2] or b"{}")
    except ValueError:
        document = {}
    return Answer(status=int(received[9:12]), start=start, end=end, document=document)
