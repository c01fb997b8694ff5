"""Runs uvicorn on a free loopback port, in the running event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn  # type: ignore[import-not-found,unused-ignore]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Uvicorn:
    """Serves one application; accepts connections as soon as it is created."""

    def __init__(self, app: App) -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(listener.getsockname()[1])
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_keep_alive=600))
        self._task = asyncio.create_task(server.serve(sockets=[listener]), name="uvicorn")
