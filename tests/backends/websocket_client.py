"""WebSocket clients of the ``websockets`` package, in both its variants: on asyncio, and on threads.

Each has a name, with which it reports ``got`` for every message and ``closed`` when its connection ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import Any, Protocol

import websockets.asyncio.client as on_asyncio  # type: ignore[import-not-found,unused-ignore]
import websockets.sync.client as on_threads  # type: ignore[import-not-found,unused-ignore]
from websockets.exceptions import ConnectionClosed  # type: ignore[import-not-found,unused-ignore]

from tests.backends.line import Line, work

MOST = 1 << 21


class Connection(Protocol):
    """The methods of both variants that the tests use."""

    raw: Any

    async def receive(self) -> str | bytes: ...
    async def send(self, message: Any) -> None: ...
    async def ping(self) -> None: ...
    async def close(self, code: int, reason: str) -> None: ...


class OnAsyncio:
    def __init__(self, raw: Any) -> None:
        self.raw = raw

    async def receive(self) -> str | bytes:
        message: str | bytes = await self.raw.recv()
        return message

    async def send(self, message: Any) -> None:
        await self.raw.send(message)

    async def ping(self) -> None:
        await (await self.raw.ping())

    async def close(self, code: int, reason: str) -> None:
        await self.raw.close(code, reason)


class OnThreads:
    def __init__(self, raw: Any) -> None:
        self.raw = raw

    async def receive(self) -> str | bytes:
        message: str | bytes = await asyncio.to_thread(self.raw.recv)
        return message

    async def send(self, message: Any) -> None:
        await asyncio.to_thread(self.raw.send, message)

    async def ping(self) -> None:
        came = self.raw.ping()
        assert await asyncio.to_thread(came.wait, 20), "no pong came"

    async def close(self, code: int, reason: str) -> None:
        await asyncio.to_thread(self.raw.close, code, reason)


class Clients:
    def __init__(self, line: Line) -> None:
        self._line = line
        self._connections: dict[str, Connection] = {}
        self._readers: set[asyncio.Task[None]] = set()

    async def do_open(
        self,
        client: str,
        way: str,
        url: str,
        headers: dict[str, str],
        subprotocols: list[str] | None = None,
        compression: str | None = "deflate",
    ) -> Any:
        """Open a connection; return the negotiated subprotocol and extensions."""
        options: dict[str, Any] = {
            "additional_headers": headers,
            "subprotocols": subprotocols,
            "compression": compression,
            "proxy": None,
            "ping_interval": None,
            "max_size": MOST,
        }
        connection: Connection
        if way == "asyncio":
            connection = OnAsyncio(await on_asyncio.connect(url, **options))
        else:
            connection = OnThreads(await asyncio.to_thread(on_threads.connect, url, **options))
        self._connections[client] = connection
        reader = asyncio.create_task(self._read(client, connection), name=f"{client} reads")
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)
        extensions = [extension.name for extension in connection.raw.protocol.extensions]
        return {"subprotocol": connection.raw.subprotocol, "extensions": extensions}

    async def do_say(self, client: str, text: str) -> None:
        await self._connections[client].send(text)

    async def do_send(self, client: str, size: int, fragments: int = 1) -> str:
        """Send random bytes; return their digest."""
        data = os.urandom(size)
        pieces = [data[at : at + size // fragments] for at in range(0, size, size // fragments)]
        await self._connections[client].send(data if fragments == 1 else pieces)
        return digest(data)

    async def do_ping(self, client: str) -> None:
        """Send a ping; return when the pong has come."""
        await self._connections[client].ping()

    async def do_close(self, client: str, code: int, reason: str) -> None:
        await self._connections.pop(client).close(code, reason)

    async def do_abandon(self) -> None:
        """Close every connection normally."""
        connections, self._connections = self._connections, {}
        await asyncio.gather(*(each.close(1000, "") for each in connections.values()))

    async def _read(self, client: str, connection: Connection) -> None:
        while True:
            try:
                message = await connection.receive()
            except ConnectionClosed as error:
                received = error.rcvd
                self._line.tell(
                    "closed",
                    client=client,
                    kind=type(error).__name__,
                    code=None if received is None else received.code,
                    reason=None if received is None else received.reason,
                )
                return
            if isinstance(message, str):
                self._line.tell("got", client=client, text=message)
            else:
                self._line.tell("got", client=client, size=len(message), digest=digest(message))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    work(Clients)
