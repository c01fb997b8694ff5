"""A byte-transparent tap in front of a third-party backend, so that the wire sentinel reads the gateway's bytes.

Ends and resets pass through unchanged, and a backend that refuses connections gives the gateway a reset.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

from tests.support.listener import Listener
from tests.support.process import LOOPBACK
from tests.support.sentinel import Watch

BLOCK = 1 << 18


class Tap(Listener):
    """Listens on a free port and forwards every connection to ``port``; a context manager."""

    def __init__(self, port: int, name: str) -> None:
        self._backend = port
        super().__init__(name)

    def serve(self, number: int, connection: socket.socket) -> None:
        watch = Watch(f"{self.name} connection {number + 1}")
        try:
            backend = socket.create_connection((LOOPBACK, self._backend))
        except OSError:
            reset(connection)
            return
        for one in (connection, backend):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open.add(backend)
        broken = threading.Event()
        back = threading.Thread(
            target=pump, args=(backend, connection, watch.answered, broken), name="tap back", daemon=True
        )
        back.start()
        pump(connection, backend, watch.sent, broken)
        back.join()
        with self._lock:
            self._open.discard(backend)
        for one in (connection, backend):
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
