"""Minimum rates: how fast a client must send a request body and read an answer, on average."""

from __future__ import annotations

import array
import asyncio
import fcntl
import termios
from typing import Final

_SECOND_NS: Final = 1_000_000_000


class Pace:
    """The measured rates of one connection. Times are nanoseconds of CLOCK_BOOTTIME, rates bytes a second, 0 for any.

    Created only for connections that wait for a body or for a slow reader, which most never do.
    """

    __slots__ = ("_paused", "_since", "_unread", "_unread_since")

    def __init__(self) -> None:
        self._since = 0
        self._paused = 0
        self._unread = 0
        self._unread_since = 0

    def body_deadline(self, received: int, now: int, *, idle_ns: int, rate: int) -> int:
        """The time by which more of a body must arrive, of which ``received`` bytes have arrived.

        Each part extends it by the idle time, up to the time that the slowest allowed client takes for all of them.
        """
        if not self._since:
            self._since = now
        deadline = now + idle_ns
        return min(deadline, self._since + idle_ns + received * _SECOND_NS // rate) if rate else deadline

    def body_ended(self) -> None:
        """Measure the next body from its own beginning."""
        self._since = 0

    def paused(self, now: int) -> bool:
        """Note that the gateway stops reading, so that the client cannot send; whether a body is in progress."""
        self._paused = now
        return self._since > 0

    def resumed(self, now: int) -> bool:
        """Take the time since ``paused`` off the client's account; returns whether a body is in progress."""
        if self._since:
            self._since += now - self._paused
        return self._since > 0

    def left_unread(self, size: int, now: int) -> None:
        """Note that ``size`` bytes wait for the client to read them; 0 when it has read all."""
        self._unread = size
        self._unread_since = now if size else 0

    def measured(self) -> bool:
        """Whether an amount of unread bytes has been noted."""
        return self._unread_since > 0

    def fetches(self, size: int, now: int, *, rate: int) -> bool:
        """Whether the client has read fast enough since the last check; ``size`` bytes wait now."""
        read, time = self._unread - size, now - self._unread_since
        measured = self.measured()
        self.left_unread(size, now)
        return measured and size > 0 and read > 0 and read * _SECOND_NS >= rate * time


def unread(transport: asyncio.Transport) -> int:
    """Bytes that the peer has not acknowledged: in the transport's buffer and in the kernel's send queue.

    The kernel takes more only when a third of its queue is free, so that the transport's buffer alone does not change
    for minutes with a slow reader (tcp(7), SIOCOUTQ, which Linux also calls TIOCOUTQ).
    """
    queued = array.array("i", [0])
    bound = transport.get_extra_info("socket")
    if bound is not None:
        try:
            fcntl.ioctl(bound.fileno(), termios.TIOCOUTQ, queued)
        except OSError:
            return 0  # the socket is closed
    return transport.get_write_buffer_size() + queued[0]
