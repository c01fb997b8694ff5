"""A relay between an ingress and patgate, which can change the head of each call."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress

from tests.support.listener import Listener
from tests.support.rawhttp import Connection, ConnectionEnded

Change = Callable[[bytes], bytes]


def unchanged(head: bytes) -> bytes:
    return head


class Relay(Listener):
    """The server; a context manager. ``change`` is applied to every head, and ``heads`` has them as they came."""

    def __init__(self, port: int) -> None:
        self.change: Change = unchanged
        self.heads: list[bytes] = []
        self._patgate = port
        super().__init__("relay")

    def serve(self, number: int, connection: socket.socket) -> None:
        pending = b""
        with suppress(ConnectionEnded):
            while True:
                while b"\r\n\r\n" not in pending:
                    data = connection.recv(1 << 16)
                    if not data:
                        return
                    pending += data
                head, mark, pending = pending.partition(b"\r\n\r\n")
                self.heads.append(head + mark)
                connection.sendall(self._asked(self.change(head + mark)))

    def _asked(self, head: bytes) -> bytes:
        """Patgate's answer to a call, as bytes."""
        method = head.partition(b" ")[0].decode("latin-1")
        with Connection(self._patgate) as patgate:
            answer = patgate.exchange(head, method=method)
        lines = [b"HTTP/1.1 %d Answer" % answer.status]
        lines += [b"%b: %b" % pair for pair in answer.headers if pair[0].lower() != b"connection"]
        return b"\r\n".join([*lines, b"", b""]) + answer.body
