"""A relay between an ingress and patgate, which can change the header lines of each call."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress

from tests.support.listener import Listener
from tests.support.rawhttp import Connection, ConnectionEnded

Line = tuple[bytes, bytes]
Change = Callable[[Line], list[Line]]
"""Returns the lines (name, value) that stand in place of one."""


def unchanged(line: Line) -> list[Line]:
    return [line]


class Relay(Listener):
    """The server; a context manager. ``change`` is applied to every header line.

    ``calls`` has the lines of each call as they came, and ``has_body`` whether it had a body.
    """

    def __init__(self, port: int) -> None:
        self.change: Change = unchanged
        self.calls: list[list[Line]] = []
        self.has_body: list[bool] = []
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
                head, _, pending = pending.partition(b"\r\n\r\n")
                connection.sendall(self._asked(self._changed(head)))

    def _changed(self, head: bytes) -> bytes:
        first, *rest = head.split(b"\r\n")
        parts = [line.partition(b":") for line in rest]
        lines = [(name, value.strip(b" ")) for name, _, value in parts]
        self.calls.append(lines)
        folded = {name.lower(): value for name, value in lines}
        self.has_body.append(folded.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in folded)
        changed = [b"%b: %b" % each for line in lines for each in self.change(line)]
        return b"\r\n".join([first, *changed, b"", b""])

    def _asked(self, head: bytes) -> bytes:
        """Patgate's answer to a call, as bytes."""
        method = head.partition(b" ")[0].decode("latin-1")
        with Connection(self._patgate) as patgate:
            answer = patgate.exchange(head, method=method)
        lines = [b"HTTP/1.1 %d Answer" % answer.status]
        lines += [b"%b: %b" % pair for pair in answer.headers if pair[0].lower() != b"connection"]
        return b"\r\n".join([*lines, b"", b""]) + answer.body
