"""A worker's forward-auth entry, and a transport for client addresses that are not loopback addresses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from proxy.core.routes import Route
from proxy.gateway.downstream.connection import ClientConnection
from proxy.gateway.forward_auth import ForwardAuthPipeline
from tests.unit.gateway.kit import HOST, Gateway

TRUSTED = (f"{HOST}/32",)


@asynccontextmanager
async def entry(
    *,
    routes: Iterable[Route] | None = None,
    trusted: Iterable[str] = TRUSTED,
    max_request_line: int = 8192,
    **facts: Any,
) -> AsyncIterator[Gateway]:
    """A gateway without a backend, with a forward-auth listener as ``Worker`` opens it."""
    gateway = Gateway(9, routes=routes, trusted=trusted, max_request_line=max_request_line, **facts)
    pipeline = ForwardAuthPipeline(
        patience=30.0,
        routes=gateway.pipeline.routes,
        authenticator=gateway.authenticator,
        responder=gateway.pipeline.responder,
        recorder=gateway.recorder,
        identity=gateway.identity,
        max_request_line=max_request_line,
    )
    gateway.listener.pipeline = pipeline
    try:
        await gateway.start()
        yield gateway
    finally:
        await pipeline.close()
        await gateway.close()


class Wire(asyncio.Transport):
    """A transport to a peer with any address; it records written data, and its buffer is never full."""

    def __init__(self, address: str) -> None:
        super().__init__({"peername": (address, 4711)})
        self.sent = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def write_eof(self) -> None:
        self.closed = True

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        return None

    resume_reading = pause_reading

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        return None


def connected(gateway: Gateway, address: str) -> tuple[ClientConnection, Wire]:
    """A new connection from ``address``, and its transport."""
    connection, wire = gateway.listener.connection(address), Wire(address)
    gateway.listener.arriving += 1
    connection.connection_made(wire)
    return connection, wire
