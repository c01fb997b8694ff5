"""A byte-transparent tap in front of a third-party backend, so that the wire sentinel reads the gateway's bytes.

Ends and resets pass through unchanged, and a backend that refuses connections gives the gateway a reset.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from tests.support.process import LOOPBACK
from tests.support.sentinel import Watch

BLOCK = 1 << 18


class Tap:
    """Listens on a free port and forwards every connection to ``port``; a context manager."""

    def __init__(self, port: int, name: str) -> None:
        self._backend = port
        self._name = name
        self._listener = socket.create_server((LOOPBACK, 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://{LOOPBACK}:{self.port}"
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._acceptor = threading.Thread(target=self._accept, name="tap", daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Tap:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # shutdown wakes the thread that is blocked in accept; close alone would not
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        number = 0
        while True:
            try:
                gateway, _ = self._listener.accept()
            except OSError:
                return
            number += 1
            thread = threading.Thread(
                target=self._carry, args=(gateway, f"{self._name} connection {number}"), name="tap", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def _carry(self, gateway: socket.socket, name: str) -> None:
        watch = Watch(name)
        try:
            backend = socket.create_connection((LOOPBACK, self._backend))
        except OSError:
            reset(gateway)
            return
        for one in (gateway, backend):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open |= {gateway, backend}
        broken = threading.Event()
        back = threading.Thread(
            target=pump, args=(backend, gateway, watch.answered, broken), name="tap back", daemon=True
        )
        back.start()
        pump(gateway, backend, watch.sent, broken)
        back.join()
        self._open -= {gateway, backend}
        for one in (gateway, backend):
            if broken.is_set():
                reset(one)
            one.close()


def pump(source: socket.socket, sink: socket.socket, seen: Callable[[bytes], None], broken: threading.Event) -> None:
    """Copy bytes one way until the source ends; show each block before sending it. Either way may break both."""
    try:
        while data := source.recv(BLOCK):
            seen(data)
            sink.sendall(data)
        if not broken.is_set():
            sink.shutdown(socket.SHUT_WR)
    except OSError:
        broken.set()
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RD)  # wakes the other way, and sends the peer nothing before the reset


def reset(connection: socket.socket) -> None:
    """Close a connection with a reset instead of an end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
