"""How fast a client sends a body and reads an answer: slow is allowed, up to the pace that is asked for."""

from __future__ import annotations

import array
import asyncio
import fcntl
import termios
from typing import Final

_SECOND_NS: Final = 1_000_000_000


class Pace:
    """The pace of one connection; times are nanoseconds of CLOCK_MONOTONIC, rates bytes a second, 0 for any.

    It is made for connections that wait for a body or for a reader, which most never do.
    """

    __slots__ = ("_paused", "_since", "_unread", "_unread_since")

    def __init__(self) -> None:
        self._since = 0
        self._paused = 0
        self._unread = 0
        self._unread_since = 0

    def body_deadline(self, received: int, now: int, *, idle_ns: int, rate: int) -> int:
        """Until when more of a body must come, of which ``received`` bytes are here.

        Each piece buys the idle time, but all of them no more than the slowest client allowed takes for them.
        """
        if not self._since:
            self._since = now
        deadline = now + idle_ns
        return min(deadline, self._since + idle_ns + received * _SECOND_NS // rate) if rate else deadline

    def body_ended(self) -> None:
        """The next body is measured anew."""
        self._since = 0

    def paused(self, now: int) -> bool:
        """The client is not read for a while, and cannot send. Whether a body is under way."""
        self._paused = now
        return self._since > 0

    def resumed(self, now: int) -> bool:
        """The client is read again: the time since ``paused`` is not its own. Whether a body is under way."""
        if self._since:
            self._since += now - self._paused
        return self._since > 0

    def left_unread(self, size: int, now: int) -> None:
        """``size`` bytes wait here for the client to read; 0 when it has caught up."""
        self._unread = size
        self._unread_since = now if size else 0

    def measured(self) -> bool:
        """Whether it is known what the client had yet to read at some time."""
        return self._unread_since > 0

    def fetches(self, size: int, now: int, *, rate: int) -> bool:
        """Whether the client has read on, fast enough, since it was last asked; ``size`` bytes wait now."""
        read, time = self._unread - size, now - self._unread_since
        measured = self.measured()
        self.left_unread(size, now)
        return measured and size > 0 and read > 0 and read * _SECOND_NS >= rate * time


def unread(transport: asyncio.Transport) -> int:
    """Bytes that the peer has not acknowledged: those that wait in this process, and those in the kernel's queue.

    The kernel takes more only when a third of its queue is free, so that this process alone sees nothing of a slow
    reader for minutes (tcp(7), SIOCOUTQ, which Linux has under the name of the terminals' TIOCOUTQ).
    """
    queued = array.array("i", [0])
    bound = transport.get_extra_info("socket")
    if bound is not None:
        try:
            fcntl.ioctl(bound.fileno(), termios.TIOCOUTQ, queued)
        except OSError:
            return 0  # it is closed, and nobody reads on
    return transport.get_write_buffer_size() + queued[0]
