"""Lingering close of a TLS connection on which the client may still be sending.

A socket that is closed with bytes unread resets the connection, and a reset destroys the bytes that the client has yet
to read. Without TLS the sending side is shut first and the rest is read. A TLS transport cannot be half-closed: it
sends its close_notify, and closes as soon as anything but the client's close_notify arrives. So a second descriptor
keeps the connection open behind it; bytes that still arrive are read from there, undecrypted, and thrown away (as in
nginx's lingering close).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

_READ: Final = 64 * 1024


class Linger:
    """Keeps the connection of ``transport`` open: created before the transport closes, started by ``begin`` after.

    ``ended`` is called when the connection is closed for good. Raises OSError where no descriptor is free.
    """

    __slots__ = ("_ended", "_reading", "_sock", "deadline")

    def __init__(self, transport: asyncio.BaseTransport, deadline: int, ended: Callable[[Linger], None]) -> None:
        self._sock: socket.socket = transport.get_extra_info("socket").dup()
        self._reading = False
        self._ended = ended
        self.deadline = deadline
        """CLOCK_BOOTTIME, in nanoseconds; the sweep then calls ``late``."""

    def begin(self, deadline: int) -> None:
        """Shut the sending side, after the transport has given its last bytes to the kernel, and read until the end."""
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
        """Close the connection, because the deadline has passed."""
        self.end()

    def _read(self) -> None:
        try:
            if self._sock.recv(_READ):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass  # the connection is gone already
        self.end()
