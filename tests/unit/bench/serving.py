"""A server that gives one answer, and a client of the benchmarks that runs beside a test."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from threading import Event, Thread

from bench.errors import BenchError
from tests.support.process import HANGS_SECONDS

REFUSAL = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Answers every head with ``answer``; keeps what it was sent."""

    def __init__(self, answer: bytes, *, closing: bool = False) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.received: dict[int, bytes] = {}
        self.over = Event()
        self._answer = answer
        self._closing = closing

    def serve(self) -> None:
        connections: list[socket.socket] = []
        with selectors.DefaultSelector() as ready, self.listener:
            ready.register(self.listener, selectors.EVENT_READ)
            while not self.over.is_set():
                for key, _ in ready.select(0.02):
                    if key.fileobj is self.listener:
                        connections.append(self.listener.accept()[0])
                        ready.register(connections[-1], selectors.EVENT_READ, len(connections))
                    elif isinstance(key.fileobj, socket.socket) and not self._answered(key.fileobj, key.data):
                        ready.unregister(key.fileobj)
                        key.fileobj.close()
        for connection in connections:
            connection.close()

    def _answered(self, connection: socket.socket, number: int) -> bool:
        with suppress(OSError):
            data = connection.recv(1 << 16)
            self.received[number] = self.received.get(number, b"") + data
            connection.sendall(self._answer * data.count(b"\r\n\r\n"))
            return bool(data) and not self._closing
        return False


@contextmanager
def serving(answer: bytes, *, closing: bool = False) -> Iterator[Server]:
    server = Server(answer, closing=closing)
    thread = Thread(target=server.serve, name="server")
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        thread.join()


@contextmanager
def running(client: Callable[[Connection], None]) -> Iterator[Connection]:
    """The client in a thread and not, as in a benchmark, in a process; the other end of its pipe."""
    ours, theirs = Pipe()

    def run() -> None:
        with theirs, suppress(BenchError):
            client(theirs)

    thread = Thread(target=run, name="client")
    thread.start()
    try:
        yield ours
    finally:
        ours.close()
        thread.join()


def seconds_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANGS_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
