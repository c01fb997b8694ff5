"""Log lines reach their descriptor by a thread of their own, so that whoever logs never waits for whoever reads.

Rules of this module:
1. ``put`` does no I/O and waits for none: it holds a lock only around arithmetic and a queue that takes at once.
2. What waits is bounded. Beyond the bound the newest lines are dropped and counted, until most of what waits is
   written; then one line says how many are missing, and where: it stands in their place.
3. What is written at once is whole lines and, where several processes may share the descriptor, at most ``PIPE_BUF``
   bytes, which POSIX writes without mixing (write(2), "Pipes and FIFOs"). Regular files mix nothing.
"""

from __future__ import annotations

import os
import select
import stat
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import IO, Final

QUEUE_BYTES: Final = 8 * 1024 * 1024
"""Bytes that may wait to be written."""
RESUME_BYTES: Final = 2 * 1024 * 1024
"""Once lines were dropped, none is taken before so few bytes wait: what is missing is then missing in one piece."""


class LineWriter:
    """Writes whole lines to ``stream``: to a duplicate of its descriptor or, where it has none, to itself.

    ``notice`` makes the line that says how many lines were dropped.
    """

    def __init__(self, stream: IO[str] | None, notice: Callable[[int], bytes]) -> None:
        self.stream = stream
        self._notice = notice
        self._fd, self._chunk = _descriptor(stream)
        self._queue: SimpleQueue[bytes | threading.Event | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._put = 0
        self._written = 0
        self._dropped = 0
        self._torn = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
        self._thread.start()

    def put(self, lines: bytes) -> None:
        """Have ``lines``, each with its end, written soon, or count them as dropped."""
        with self._lock:
            waiting = self._put - self._written
            if waiting > RESUME_BYTES if self._dropped else waiting + len(lines) > QUEUE_BYTES:
                self._dropped += lines.count(b"\n")
                return
            if self._dropped:
                self._queue.put(self._say_dropped())
            self._put += len(lines)
            self._queue.put(lines)

    def flush(self, seconds: float) -> bool:
        """Wait until everything put so far is written, for at most ``seconds``; whether it is."""
        if self._closed:
            self._thread.join(seconds)
            return not self._thread.is_alive()
        done = threading.Event()
        self._queue.put(done)
        return done.wait(seconds)

    def close(self) -> None:
        """Write no line after those put so far; for these, ``flush`` waits."""
        self._closed = True
        self._queue.put(None)

    def _say_dropped(self) -> bytes:
        """The notice of what was dropped, which then counts as said. Called with the lock held."""
        notice = self._notice(self._dropped)
        self._dropped = 0
        self._put += len(notice)
        return notice

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, bytes):
                self._write(item)
            # When nothing follows, nothing else would bring the notice.
            if self._dropped and self._queue.empty():
                with self._lock:
                    notice = self._say_dropped()
                self._write(notice)
            if isinstance(item, threading.Event):
                item.set()
        if self._fd is not None:
            os.close(self._fd)

    def _write(self, data: bytes) -> None:
        at = 0
        try:
            if self._torn:
                data = b"\n" + data
            while at < len(data):
                end = self._end(data, at)
                while at < end:
                    at += self._write_some(data[at:end])
        except (OSError, ValueError):
            # A full disk, a closed pipe or stream. It may get better; the process has other things to do.
            self._torn = at > 0 and data[at - 1] != _LINE_END
            with self._lock:
                self._dropped += data.count(b"\n", at)
                self._written += len(data)
            return
        self._torn = False
        with self._lock:
            self._written += len(data)

    def _end(self, data: bytes, start: int) -> int:
        """Where what is written next ends: after as many whole lines as fit a chunk, and after one at least."""
        if len(data) - start <= self._chunk:
            return len(data)
        end = data.rfind(b"\n", start, start + self._chunk)
        return (end if end >= 0 else data.find(b"\n", start)) + 1

    def _write_some(self, data: bytes) -> int:
        if self._fd is None:
            if self.stream is not None:
                self.stream.write(data.decode("ascii"))
            return len(data)
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            # Another process made the descriptor that it shares with this one non-blocking.
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            poll.poll()
            return 0


_LINE_END: Final = 0x0A
_FILE_CHUNK: Final = 1 << 20


def _descriptor(stream: IO[str] | None) -> tuple[int | None, int]:
    """A descriptor of the writer's own, which stays what it is when ``stream`` is closed, and the size of a chunk."""
    if stream is None:
        return None, _FILE_CHUNK
    try:
        fd = os.dup(stream.fileno())
    except (OSError, ValueError):
        return None, _FILE_CHUNK
    return fd, _FILE_CHUNK if stat.S_ISREG(os.fstat(fd).st_mode) else select.PIPE_BUF
