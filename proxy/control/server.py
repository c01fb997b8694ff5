"""Serving the two applications on sockets that are bound already."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from aiohttp import web

from proxy.control.app import socket_app, tcp_app
from proxy.control.plane import Plane

SHUTDOWN_SECONDS: Final = 2.0
"""How long a request that has begun may take to end when the plane is taken down."""
KEEPALIVE_SECONDS: Final = 30.0


@asynccontextmanager
async def serving(
    plane: Plane, *, tcp: Sequence[socket.socket], unix: Sequence[socket.socket], hosts: Iterable[str]
) -> AsyncIterator[None]:
    """Serve `plane` while the block runs: health and metrics on `tcp`, the whole API on `unix`.  Closes the sockets."""
    async with AsyncExitStack() as stack:
        for app, sockets in ((tcp_app(plane, hosts), tcp), (socket_app(plane), unix)):
            runner = web.AppRunner(
                app, access_log=None, keepalive_timeout=KEEPALIVE_SECONDS, shutdown_timeout=SHUTDOWN_SECONDS
            )
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            for bound in sockets:
                await web.SockSite(runner, bound).start()
        yield
