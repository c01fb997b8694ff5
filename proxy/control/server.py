"""Serves the two applications on bound sockets."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from aiohttp import web

from proxy.control.app import REFUSED, socket_app, tcp_app
from proxy.control.connections import KEEPALIVE_SECONDS, ServerConnections, Site
from proxy.control.runtime import ControlRuntime

SHUTDOWN_SECONDS: Final = 2.0
"""How long running requests may take to end when the server stops."""


@asynccontextmanager
async def serving(
    runtime: ControlRuntime, *, tcp: Sequence[socket.socket], unix: Sequence[socket.socket], hosts: Iterable[str]
) -> AsyncIterator[None]:
    """Serve ``runtime`` while the block runs: on ``tcp`` with tokens, on ``unix`` to operators. Closes the sockets."""
    async with AsyncExitStack() as stack:
        for app, sockets in ((tcp_app(runtime, hosts), tcp), (socket_app(runtime), unix)):
            if not sockets:
                continue
            runner = web.AppRunner(
                app, access_log=None, keepalive_timeout=KEEPALIVE_SECONDS, shutdown_timeout=SHUTDOWN_SECONDS
            )
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            listener = None
            if REFUSED in app and runner.server is not None:
                listener = ServerConnections(runner.server, app[REFUSED])
            for bound in sockets:
                await (web.SockSite(runner, bound) if listener is None else Site(runner, bound, listener)).start()
        yield
