"""A relay between an ingress and patgate, which can change the header lines of each call."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from types import TracebackType

from tests.support.process import LOOPBACK
from tests.support.rawhttp import Connection, ConnectionEnded

Line = tuple[bytes, bytes]
Change = Callable[[Line], list[Line]]
"""Returns the lines (name, value) that stand in place of one."""


def unchanged(line: Line) -> list[Line]:
    return [line]


class Relay:
    """The server; a context manager. ``change`` is applied to every header line.

    ``calls`` has the lines of each call as they came, and ``has_body`` whether it had a body.
    """

    def __init__(self, port: int) -> None:
        self.change: Change = unchanged
        self.calls: list[list[Line]] = []
        self.has_body: list[bool] = []
        self._patgate = port
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server((LOOPBACK, 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name="relay", daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # shutdown wakes the thread that is blocked in accept; close alone would not
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        for connection in list(self._open):
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), name="relay", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        pending = b""
        with connection:
            try:
                while True:
                    while b"\r\n\r\n" not in pending:
                        data = connection.recv(1 << 16)
                        if not data:
                            return
                        pending += data
                    head, _, pending = pending.partition(b"\r\n\r\n")
                    connection.sendall(self._asked(self._changed(head)))
            except (OSError, ConnectionEnded):
                return
            finally:
                self._open.discard(connection)

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
