"""The bytes of a connection of Envoy: slices with turns for others, flow control, and the ways to close.

Rules of this module:
1. What arrives together is taken in small slices, and other connections have their turn between them: HTTP/2 in Python
   costs some 300 µs for each call.
2. Nothing is taken while the peer does not read its answers.
3. A connection that closes has a deadline, at which it is reset: a peer may not read what was written, or not answer
   the end of TLS.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, cast

from proxy.core.ipc.clock import boottime_ns
from proxy.gateway.downstream.connection_state import ConnectionState

if TYPE_CHECKING:
    from proxy.gateway.ext_authz.listener import EnvoyListener

NEVER: Final = 2**63
_SLICE: Final = 4096
"""Bytes that are taken before other connections have their turn."""
_WRITE_HIGH_WATER: Final = 256 * 1024

_now_ns: Final = boottime_ns


class ByteStream(asyncio.Protocol, ABC):
    """The transport of one connection. ``deadline`` is in nanoseconds of CLOCK_BOOTTIME."""

    def __init__(self, listener: EnvoyListener) -> None:
        self.listener = listener
        self.transport: asyncio.Transport | None = None
        self.state = int(ConnectionState.OPENING)
        self.deadline = NEVER
        self.unread = b""
        """Bytes that have arrived and wait for their turn."""
        self.full = False
        """Whether the peer does not read its answers fast enough."""
        self._paused = False
        """Whether nothing more is read for now."""
        self._taking = False
        """Whether a slice is being taken, at whose end everything is sent."""

    @abstractmethod
    def take(self, data: bytes) -> bool:
        """Take a slice of what has arrived; False if the connection has ended by it."""

    @abstractmethod
    def ready(self) -> bytes:
        """What is ready to be sent, and has not been returned before."""

    @abstractmethod
    def rest(self) -> None:
        """Start the time of an idle connection, or close it if it was announced."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the connection, after its TLS handshake if it has one."""
        # uvloop's transports have the interface and not the base class.
        self.transport = made = cast(asyncio.Transport, transport)
        made.set_write_buffer_limits(high=_WRITE_HIGH_WATER)
        self.state = int(ConnectionState.IDLE)
        self.deadline = _now_ns() + self.listener.limits.head_ns

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget what has not been taken."""
        self.transport = None
        self.unread = b""
        self.state = int(ConnectionState.CLOSED)

    def data_received(self, data: bytes) -> None:
        """Take a slice now, and the rest later."""
        waits = bool(self.unread)
        self.unread += data
        if not waits and not self.full:
            self._take()

    def eof_received(self) -> bool:
        """Close the connection: its calls have no one to answer to."""
        self.close()
        return False

    def pause_writing(self) -> None:
        """Read no further calls from a peer that does not read its answers."""
        self.full = True
        if self.open:
            self.deadline = _now_ns() + self.listener.limits.answer_ns
            self._read_on()

    def resume_writing(self) -> None:
        """Read again."""
        self.full = False
        if self.open:
            self.deadline = NEVER
            self.rest()
            self._read_on()

    @property
    def open(self) -> bool:
        """Whether the connection is open, and is not being closed."""
        return self.transport is not None and not self.transport.is_closing()

    def flush(self) -> None:
        """Send what is ready, unless a slice is being taken: at its end all is sent at once."""
        if not self._taking:
            self.write()

    def write(self, more: bytes = b"") -> None:
        """Send what is ready, and then ``more``."""
        transport = self.transport
        if transport is not None and not transport.is_closing() and (data := self.ready() + more):
            transport.write(data)

    def close(self) -> None:
        """Close after what has been written has been sent (rule 3)."""
        transport = self.transport
        if transport is not None and not transport.is_closing():
            self.state = int(ConnectionState.CLOSING)
            self.write()
            transport.close()
            self.deadline = _now_ns() + self.listener.limits.head_ns

    def abort(self) -> None:
        """Reset the connection at once."""
        if self.transport is not None:
            self.transport.abort()

    def _take(self) -> None:
        if not self.open:
            self.unread = b""
            return
        data, self.unread = self.unread[:_SLICE], self.unread[_SLICE:]
        self._taking = True
        try:
            more = self.take(data)
        finally:
            self._taking = False
        if more:
            self.write()
            self.rest()
            self._read_on()

    def _read_on(self) -> None:
        """Take what has arrived, or read more, unless the peer has answers to read first."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        waits = self.full or bool(self.unread)
        if waits != self._paused:
            self._paused = waits
            if waits:
                transport.pause_reading()
            else:
                transport.resume_reading()
        if self.unread and not self.full:
            asyncio.get_running_loop().call_soon(self._in_turn)

    def _in_turn(self) -> None:
        if self.unread and not self.full:
            self._take()
