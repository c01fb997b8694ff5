"""Asynchronous log writing: a thread writes the lines, so that logging never waits for a slow reader.

Rules of this module:
1. ``put`` does no I/O and never waits for I/O: it holds a lock only for arithmetic and a non-blocking queue.
2. The queue is bounded. When it is full, the newest lines are dropped and counted until most of the queue is written;
   then one line in their place reports their number.
3. One write has whole lines and, if several processes may share the descriptor, at most ``PIPE_BUF`` bytes, which POSIX
   writes atomically (write(2), "Pipes and FIFOs"). Appending to a regular file needs no such limit.
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
"""Most bytes in the queue."""
RESUME_BYTES: Final = 2 * 1024 * 1024
"""After a drop, no line is accepted until so few bytes are queued, so that the missing lines form one gap."""


class LineWriter:
    """Writes whole lines to a duplicate of the descriptor of ``stream`` or, if it has none, to ``stream``.

    ``notice`` returns the line that reports how many lines were dropped.
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
        """Queue ``lines``, each with its line end, or count them as dropped."""
        with self._lock:
            waiting = self._put - self._written
            if waiting > RESUME_BYTES if self._dropped else waiting + len(lines) > QUEUE_BYTES:
                self._dropped += lines.count(b"\n")
                return
            if self._dropped:
                self._queue.put(self._drop_notice())
            self._put += len(lines)
            self._queue.put(lines)

    def flush(self, seconds: float) -> bool:
        """Wait at most ``seconds`` until all lines put so far are written; false after a timeout."""
        if self._closed:
            self._thread.join(seconds)
            return not self._thread.is_alive()
        done = threading.Event()
        self._queue.put(done)
        return done.wait(seconds)

    def close(self) -> None:
        """Accept no more lines; the queued ones are still written (see ``flush``)."""
        self._closed = True
        self._queue.put(None)

    def _drop_notice(self) -> bytes:
        """The notice of the dropped lines; resets their count. The caller holds the lock."""
        notice = self._notice(self._dropped)
        self._dropped = 0
        self._put += len(notice)
        return notice

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, bytes):
                self._write(item)
            # Without this, the notice would wait for the next line.
            if self._dropped and self._queue.empty():
                with self._lock:
                    # Asked again: ``put`` may have queued the notice meanwhile.
                    notice = self._drop_notice() if self._dropped else b""
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
            # A full disk, or a closed pipe or stream: drop the lines and continue, because it may recover.
            self._torn = at > 0 and data[at - 1] != _LINE_END
            with self._lock:
                self._dropped += data.count(b"\n", at)
                self._written += len(data)
            return
        self._torn = False
        with self._lock:
            self._written += len(data)

    def _end(self, data: bytes, start: int) -> int:
        """The end of the next write: as many whole lines as fit a chunk, but at least one."""
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
            # Another process that shares the descriptor has made it non-blocking.
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            poll.poll()
            return 0


_LINE_END: Final = 0x0A
_FILE_CHUNK: Final = 1 << 20


def _descriptor(stream: IO[str] | None) -> tuple[int | None, int]:
    """A duplicate of the stream's descriptor, which stays open when ``stream`` is closed, and the size of a chunk."""
    if stream is None:
        return None, _FILE_CHUNK
    try:
        fd = os.dup(stream.fileno())
    except (OSError, ValueError):
        return None, _FILE_CHUNK
    return fd, _FILE_CHUNK if stat.S_ISREG(os.fstat(fd).st_mode) else select.PIPE_BUF
