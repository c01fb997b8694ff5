"""A real authority with its control plane on real sockets: a TCP listener and the control socket."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from proxy.authority.runtime import Authority
from proxy.authority.sockets import bind_unix
from proxy.control import server
from proxy.control.connections import ServerConnections
from proxy.control.server import serving
from proxy.settings.model import Argon2, Policy, Settings
from tests.support.stores import migrated


@pytest.fixture
def settings() -> Iterator[Settings]:
    # Not tmp_path: the path of a unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        migrated(Path(name), key=True)
        yield Settings(
            brand="acme",
            data_dir=Path(name),
            workers=1,
            roles={"admin": ("*:*",), "editor": ("things:*",), "viewer": ("things:read",)},
            policy=Policy(max_lifetime=86400.0 * 365),
            argon2=Argon2(memory=64 * 1024, iterations=1),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    authority: Authority
    socket: aiohttp.ClientSession
    """Client of the control socket; paths begin with a slash."""
    tcp: aiohttp.ClientSession
    port: int
    listeners: list[ServerConnections]
    """The listeners of the TCP sockets."""


@pytest.fixture
async def world(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    listeners: list[ServerConnections] = []

    class Noted(ServerConnections):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            listeners.append(self)

    monkeypatch.setattr(server, "ServerConnections", Noted)
    async with AsyncExitStack() as stack:
        authority = await stack.enter_async_context(Authority(settings))
        path = settings.data_dir / "control.sock"
        unix, tcp = bind_unix(path), socket.create_server(("127.0.0.1", 0))
        port = tcp.getsockname()[1]
        hosts = ["gate.example.org"]
        await stack.enter_async_context(serving(authority, tcp=[tcp], unix=[unix], hosts=hosts))
        over_socket = aiohttp.ClientSession("http://localhost", connector=aiohttp.UnixConnector(str(path)))
        over_tcp = aiohttp.ClientSession(f"http://127.0.0.1:{port}")
        yield World(
            authority=authority,
            socket=await stack.enter_async_context(over_socket),
            tcp=await stack.enter_async_context(over_tcp),
            port=port,
            listeners=listeners,
        )
