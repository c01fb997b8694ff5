"""The end of a TLS connection on which the client may still be sending.

A socket that is closed with bytes unread resets the connection, and a reset destroys what the client has yet to read.
Without TLS the sending side is shut first and the rest is read. A TLS transport cannot be shut by half: it sends its
close_notify, and closes as soon as anything but the client's own arrives. So a second descriptor keeps the connection
open behind it, and what still comes is read from there, as it is, and thrown away (as nginx's lingering close does).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

_READ: Final = 64 * 1024


class Linger:
    """Holds the connection of ``transport``: made before the transport is closed, told when it is by ``begin``.

    ``ended`` is called when there is nothing left to hold. Raises OSError where there is no descriptor for it.
    """

    __slots__ = ("_ended", "_reading", "_sock", "deadline")

    def __init__(self, transport: asyncio.BaseTransport, deadline: int, ended: Callable[[Linger], None]) -> None:
        self._sock: socket.socket = transport.get_extra_info("socket").dup()
        self._reading = False
        self._ended = ended
        self.deadline = deadline
        """CLOCK_MONOTONIC, in nanoseconds; whoever sweeps calls ``late`` then."""

    def begin(self, deadline: int) -> None:
        """The transport is closed, and its last bytes are with the kernel: say the end, and read what comes."""
        self.deadline = deadline
        try:
            self._sock.setblocking(False)
            self._sock.shutdown(socket.SHUT_WR)
            asyncio.get_running_loop().add_reader(self._sock, self._read)
            self._reading = True
        except OSError:
            self.end()

    def end(self) -> None:
        """Close the connection for good."""
        if self._reading:
            self._reading = False
            asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()
        self._ended(self)

    def late(self) -> None:
        """The deadline has passed."""
        self.end()

    def _read(self) -> None:
        try:
            if self._sock.recv(_READ):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass  # it is gone, which is as good
        self.end()
