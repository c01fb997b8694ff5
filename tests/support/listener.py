"""The listening half of every test server that gives each connection a thread of its own."""

from __future__ import annotations

import socket
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from itertools import count
from types import TracebackType
from typing import Self

from tests.support.process import LOOPBACK

BACKLOG = 256


class Listener(ABC):
    """Listens on a free port of ``host`` and calls ``serve`` for each connection; a context manager.

    It accepts as soon as it exists: a subclass sets what ``serve`` needs before it calls this constructor.
    """

    def __init__(self, name: str, *, host: str = LOOPBACK) -> None:
        self.name = name
        self._host = host
        self._lock = threading.Lock()
        self._numbers = count()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        # Nobody else gets the port while the server does not listen: not even a client's own end, which would then be
        # connected to itself.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind((host, 0))
        self.listen(self._reserved.getsockname()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def serve(self, number: int, connection: socket.socket) -> None:
        """Serve one connection in its own thread; the caller closes it. Connections are counted from 0.

        An ``OSError`` ends it silently: the peer has left, and the test judges by what arrived.
        """

    def listen(self, port: int) -> None:
        """Listen on a port; after ``deafen``, on the same one again."""
        self._listener = socket.create_server((self._host, port), backlog=BACKLOG)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://{LOOPBACK}:{self.port}"
        self._acceptor = threading.Thread(target=self._accept, name=self.name, daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Stop listening, end every connection, wait for their threads, and give back the port."""
        self.deafen()
        self._reserved.close()

    def deafen(self) -> None:
        """Stop listening, end every connection and wait for their threads, and keep the port."""
        # shutdown wakes the thread that is blocked in accept; close alone would not
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        self.drop_connections()
        self.join()

    def drop_connections(self) -> None:
        """End every open connection, as a backend that restarts does."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with suppress(OSError):  # the peer closed first
                connection.shutdown(socket.SHUT_RDWR)

    def finish_connections(self) -> None:
        """End our side of every open connection, and wait until the other side has ended its own.

        Unlike ``drop_connections``, it shows that the peer has noticed: it uses none of these connections any more.
        """
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with suppress(OSError):  # the peer closed first
                connection.shutdown(socket.SHUT_WR)
        self.join()

    def join(self) -> None:
        """Wait until no connection accepted so far is being served."""
        with self._lock:
            threads, self._threads = self._threads, []
        for thread in threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            number = next(self._numbers)
            thread = threading.Thread(
                target=self._run, args=(number, connection), name=f"{self.name} {number}", daemon=True
            )
            with self._lock:
                self._open.add(connection)
                self._threads.append(thread)
                thread.start()

    def _run(self, number: int, connection: socket.socket) -> None:
        with connection:
            try:
                self.serve(number, connection)
            except OSError:
                pass
            finally:
                with self._lock:
                    self._open.discard(connection)
