"""The scripted backend of a gateway under test: a server in the test's own event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Final, cast

from proxy.gateway.downstream.min_rate import unread as unacknowledged
from tests.support.sockets import unread
from tests.unit.authority.waiting import until
from tests.unit.gateway.client import reset

HOST: Final = "127.0.0.1"

Handler = Callable[["BackendConnection"], Coroutine[Any, Any, None]]


class BackendConnection:
    """One connection to the scripted backend: reads requests by their framing and keeps all bytes."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer
        self.head = b""
        self.received = b""

    async def request(self) -> bytes:
        """The next request's head with its blank line; IncompleteReadError if the gateway disconnected."""
        self.head = await self.reader.readuntil(b"\r\n\r\n")
        self.received += self.head
        return self.head

    async def exactly(self, count: int) -> bytes:
        data = await self.reader.readexactly(count)
        self.received += data
        return data

    async def chunked(self) -> bytes:
        """A chunked body without trailers, exactly as received."""
        raw = b""
        while True:
            line = await self.reader.readuntil(b"\r\n")
            size = int(line, 16)
            raw += line + await self.reader.readexactly(size + 2)
            if not size:
                self.received += raw
                return raw

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def taken(self) -> None:
        """Wait until the gateway has read everything that was sent, so that what is sent next arrives by itself."""
        transport = cast(asyncio.Transport, self.writer.transport)
        ours, gateways = (transport.get_extra_info(name)[1] for name in ("sockname", "peername"))
        await until(lambda: not unacknowledged(transport) and not unread(gateways, ours), pause=0.0)

    async def gone(self) -> bool:
        """Whether the gateway closes the connection without sending more."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionResetError:
            return True

    def reset(self) -> None:
        """Close the connection with a reset."""
        reset(self.writer)


class Backend:
    """A server that runs ``handler`` for each connection; ``close`` raises the failures of handlers."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.connections: list[BackendConnection] = []
        self.heads: list[bytes] = []
        self.errors: list[BaseException] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self, sock: socket.socket | None = None) -> None:
        sock = socket.create_server((HOST, 0)) if sock is None else sock
        self._server = await asyncio.start_server(self._accept, sock=sock, limit=2**20)
        self.port = sock.getsockname()[1]

    def refuse(self) -> None:
        """Stop listening, so that the kernel refuses new connections."""
        assert self._server is not None
        self._server.close()

    async def close(self) -> None:
        self.refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self.connections:
            # A task that was cancelled before its first step has closed nothing, and unsent data would keep a transport
            # open behind the end of the event loop.
            connection.writer.transport.abort()
        if self.errors:
            raise self.errors[0]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = BackendConnection(len(self.connections), reader, writer)
        self.connections.append(connection)
        task = asyncio.create_task(self._serve(connection), name="backend connection")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: BackendConnection) -> None:
        try:
            await self.handler(connection)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        except AssertionError as error:
            self.errors.append(error)
        finally:
            connection.writer.close()


def answering(answer: bytes | Callable[[bytes], bytes]) -> Handler:
    """A handler that sends each request without a body the same response, or one computed from its head."""

    async def handle(connection: BackendConnection) -> None:
        while True:
            head = await connection.request()
            await connection.send(answer if isinstance(answer, bytes) else answer(head))

    return handle


def response(body: bytes = b"ok", *, status: bytes = b"200 OK", fields: bytes = b"") -> bytes:
    return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, fields, len(body), body)
