"""Ports of backends that no connection can be made to, and a gateway in front of them."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager

from tests.unit.gateway.kit import HOST, Gateway


@contextmanager
def full_backlog() -> Iterator[int]:
    """A port that neither accepts nor refuses, because its accept queue is full."""
    with full_listener() as full:
        port: int = full.getsockname()[1]
        yield port


@contextmanager
def full_listener() -> Iterator[socket.socket]:
    """The listener of such a port; when it is closed, the kernel refuses the connections that were neither."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.create_server((HOST, 0), backlog=0))
        port: int = full.getsockname()[1]
        # These fill the queue, so that the kernel answers no further connection.
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((HOST, port))
        yield full


@asynccontextmanager
async def gateway_to(*ports: int, **facts: bool | float) -> AsyncIterator[Gateway]:
    """A gateway with the servers on these ports as its upstream."""
    gateway = Gateway(*ports, **facts)  # type: ignore[arg-type]
    try:
        await gateway.start()
        yield gateway
    finally:
        await gateway.close()
