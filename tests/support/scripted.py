"""A backend that misbehaves according to a plan: each connection runs a function that reads and writes any bytes.

The wire sentinel checks what it receives, as in the recorder. A failed assertion in a plan fails the test that set it.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from tests.support.listener import Listener
from tests.support.process import HANGS_SECONDS
from tests.support.sentinel import Watch
from tests.support.tap import reset

BLOCK = 1 << 18


class GatewayLeft(Exception):
    """The gateway ended the connection while a plan was reading from it."""


class Peer:
    """One connection from the gateway; ``number`` counts from when the plan was set."""

    def __init__(self, number: int, connection: socket.socket) -> None:
        self.number = number
        self.heads: list[bytes] = []
        self.ended = threading.Event()
        """Set when the gateway has ended the connection, and after the plan."""
        self._socket = connection
        self._watch = Watch(f"scripted connection {number}")
        self._buffer = b""

    @property
    def targets(self) -> list[str]:
        return [head.split(b" ", 2)[1].decode() for head in self.heads]

    def head(self) -> bytes:
        """The next request's head. Raises ``GatewayLeft``."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            self._fill()
        head = self._take(end + 4)
        self.heads.append(head)
        return head

    def exactly(self, count: int) -> bytes:
        """Read the given number of body bytes."""
        while len(self._buffer) < count:
            self._fill()
        return self._take(count)

    def discard(self, count: int) -> None:
        """Read and discard the given number of bytes."""
        while count:
            if not self._buffer:
                self._fill()
            count -= len(self._take(min(count, len(self._buffer))))

    def waiting(self, seconds: float) -> bool:
        """Whether bytes are available, or arrive within the time; does not read them."""
        return bool(self._buffer) or bool(select.select([self._socket], [], [], seconds)[0])

    def send(self, data: bytes) -> None:
        self._watch.answered(data)
        self._socket.sendall(data)

    def rest(self) -> bytes:
        """Everything until the gateway ends the connection."""
        with suppress(GatewayLeft):
            while True:
                self._fill()
        rest, self._buffer = self._buffer, b""
        return rest

    def reset(self) -> None:
        reset(self._socket)

    def close(self) -> None:
        """End the connection in any state."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _take(self, count: int) -> bytes:
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _fill(self) -> None:
        try:
            data = self._socket.recv(BLOCK)
        except ConnectionResetError:
            data = b""
        if not data:
            self.ended.set()
            raise GatewayLeft
        self._watch.sent(data)
        self._buffer += data


Plan = Callable[[Peer], None]


def response(body: bytes = b"ok", *, status: bytes = b"200 OK", fields: bytes = b"") -> bytes:
    return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, fields, len(body), body)


def echo(peer: Peer) -> None:
    """Answer every request without a body with its own target, so that a mixed-up answer shows."""
    while True:
        head = peer.head()
        target = head.split(b" ", 2)[1]
        peer.send(response(b"" if head.startswith(b"HEAD ") else target))


class ScriptedBackend(Listener):
    """The server; a context manager. ``use`` sets the plan for later connections."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        """Every connection since the plan was set."""
        self.failures: list[BaseException] = []
        self._plan: Plan = echo
        super().__init__("scripted")

    @property
    def targets(self) -> list[str]:
        """The targets requested since the plan was set, connection by connection."""
        with self._lock:
            return [target for peer in self.peers for target in peer.targets]

    def use(self, plan: Plan) -> None:
        """End the connections of the previous plan, wait until the gateway has noticed, and set a new plan."""
        self.drop_connections()
        self.join()
        # Each plan is judged once: a failure of one test is none of the next.
        failures, self.failures = self.failures, []
        assert not failures, failures
        with self._lock:
            self.peers = []
            self._plan = plan

    def die(self) -> None:
        """Stop listening and drop every connection."""
        self.deafen()

    def revive(self) -> None:
        """Listen again on the port that the gateway expects."""
        self.listen(self.port)

    def serve(self, number: int, connection: socket.socket) -> None:
        connection.settimeout(HANGS_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            plan = self._plan
            peer = Peer(len(self.peers), connection)
            self.peers.append(peer)
        try:
            plan(peer)
            if connection.fileno() >= 0:
                connection.shutdown(socket.SHUT_WR)
                peer.rest()
        except GatewayLeft:
            pass  # the test judges that
        except AssertionError as failure:
            self.failures.append(failure)
        finally:
            peer.ended.set()
