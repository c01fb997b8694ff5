"""A WebSocket server of the ``websockets`` package that echoes messages and obeys a client's commands.

Text that begins with ``close`` (code, reason) or ``ping`` is a command. Reports ``opened`` and ``closed`` for every
connection.
"""

from __future__ import annotations

from typing import Any

from websockets.asyncio.server import ServerConnection, serve  # type: ignore[import-not-found,unused-ignore]
from websockets.exceptions import ConnectionClosed  # type: ignore[import-not-found,unused-ignore]

from tests.backends.line import Line, work

MOST = 1 << 21


class Server:
    def __init__(self, line: Line) -> None:
        self._line = line
        self._server: Any = None

    async def do_serve(self, subprotocols: list[str]) -> int:
        """Start the server with its subprotocols, the preferred first; return the port on which it listens."""
        # Only the tests send pings; timeouts of silent connections are not tested here.
        self._server = await serve(
            self._handle,
            "127.0.0.1",
            0,
            # The package's default refuses a client that offers none.
            select_subprotocol=lambda _, offered: next((each for each in subprotocols if each in offered), None),
            ping_interval=None,
            max_size=MOST,
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def _handle(self, connection: ServerConnection) -> None:
        headers = {name.lower(): value for name, value in connection.request.headers.raw_items()}
        token = headers.get("x-auth-token-name")
        self._line.tell(
            "opened",
            token=token,
            path=connection.request.path,
            headers=headers,
            subprotocol=connection.subprotocol,
            extensions=[extension.name for extension in connection.protocol.extensions],
        )
        try:
            async for message in connection:
                await self._obey(connection, message)
        except ConnectionClosed:
            pass
        self._line.tell("closed", token=token, code=connection.close_code, reason=connection.close_reason)

    async def _obey(self, connection: ServerConnection, message: str | bytes) -> None:
        match message.split(" ", 2) if isinstance(message, str) else ():
            case ["close", code, reason]:
                await connection.close(int(code), reason)
            case ["ping"]:
                await (await connection.ping())
                await connection.send("pong came")
            case _:
                await connection.send(message)


if __name__ == "__main__":
    work(Server)
