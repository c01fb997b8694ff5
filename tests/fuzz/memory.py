"""A worker's request path without sockets: connections in memory, on an event loop that never waits.

``MemoryTransport`` behaves like asyncio's socket transport as far as the gateway could notice: it delivers nothing
while reading is paused or after a close, writing after the end of sending raises, and the loss of a connection is
reported later and once. ``MemoryLoop`` opens such a connection for every connection to a backend.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar, cast

T = TypeVar("T")

_PEER = ("192.0.2.7", 54321)


class Far(Protocol):
    """The other end of a connection."""

    def got(self, transport: MemoryTransport, data: bytes) -> None:
        """The gateway has written these bytes."""

    def got_end(self, transport: MemoryTransport) -> None:
        """The gateway writes no more; it may still read."""

    def lost(self, transport: MemoryTransport, *, aborted: bool) -> None:
        """The gateway has closed the connection, or (``aborted``) reset it."""


class MemoryTransport(asyncio.Transport):
    """The gateway's end of a connection to ``far``."""

    def __init__(self, loop: MemoryLoop, protocol: asyncio.Protocol, far: Far) -> None:
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self._far = far
        self._arrived: deque[bytes | None] = deque()
        self._paused = False
        self._ended = False
        self.closing = False
        self.over = False

    # --- what the other end does ---

    def deliver(self, data: bytes | None) -> None:
        """Send bytes to the gateway, or (None) end the sending side."""
        self._arrived.append(data)
        self._pump()

    def reset(self) -> None:
        """Reset the connection from outside."""
        if not self.closing:
            self.closing = True
            self._loop.call_soon(self._lost, ConnectionResetError())

    # --- asyncio.Transport ---

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return _PEER if name == "peername" else default

    def is_closing(self) -> bool:
        return self.closing

    def is_reading(self) -> bool:
        return not self._paused and not self.closing

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._loop.call_soon(self._pump)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        del high, low

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self._ended:
            raise RuntimeError("a write behind the end of sending")
        if self.over:
            raise RuntimeError("a write to a connection that is gone")
        if not self.closing and data:
            self._far.got(self, bytes(data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self._ended and not self.closing:
            self._ended = True
            self._far.got_end(self)

    def close(self) -> None:
        self._end(aborted=False)

    def abort(self) -> None:
        self._end(aborted=True)

    def _end(self, *, aborted: bool) -> None:
        if not self.closing:
            self.closing = True
            self._far.lost(self, aborted=aborted)
            self._loop.call_soon(self._lost, None)

    def _lost(self, error: Exception | None) -> None:
        self.over = True
        self._protocol.connection_lost(error)

    def _pump(self) -> None:
        while self._arrived and not self._paused and not self.closing:
            data = self._arrived.popleft()
            if data is not None:
                self._protocol.data_received(data)
            elif not self._protocol.eof_received():
                self._end(aborted=False)


class MemoryLoop(asyncio.SelectorEventLoop):
    """``backend`` creates the other end of each opened connection; ``failures`` has the exceptions of callbacks."""

    def __init__(self, backend: Callable[[], Far]) -> None:
        super().__init__()
        self._backend = backend
        # asyncio has no call for "is anything left to do?"; polling would take most of the time of a run.
        self._callbacks: deque[object] = cast(Any, self)._ready
        self.failures: list[BaseException] = []
        self.set_exception_handler(self._failed)

    async def quiet(self) -> None:
        """Return when no callback is ready any more; timers keep waiting."""
        await asyncio.sleep(0)
        while self._callbacks:  # noqa: ASYNC110 - there is no event for "nothing is left to be done"
            await asyncio.sleep(0)

    def connect(self, protocol: asyncio.Protocol, far: Far) -> MemoryTransport:
        """Open a connection."""
        transport = MemoryTransport(self, protocol, far)
        protocol.connection_made(transport)
        return transport

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.Protocol], *where: object, **how: object
    ) -> tuple[MemoryTransport, asyncio.Protocol]:
        protocol = protocol_factory()
        return self.connect(protocol, self._backend()), protocol

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.failures.append(error if isinstance(error, BaseException) else AssertionError(context["message"]))


def run(backend: Callable[[], Far], story: Callable[[MemoryLoop], Coroutine[Any, Any, T]]) -> T:
    """The outcome of ``story`` on a new loop; raises the failure of any callback."""
    loop = MemoryLoop(backend)
    try:
        outcome = loop.run_until_complete(story(loop))
    finally:
        loop.close()
    if loop.failures:
        raise loop.failures[0]
    return outcome
