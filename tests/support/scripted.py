"""A backend that misbehaves according to a plan: each connection runs a function that reads and writes any bytes.

The wire sentinel checks what it receives, as in the recorder. A failed assertion in a plan fails the test that set it.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from tests.support.process import LOOPBACK
from tests.support.sentinel import Watch
from tests.support.tap import reset

BLOCK = 1 << 18
SECONDS = 20.0


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


class ScriptedBackend:
    """The server; a context manager. ``use`` sets the plan for later connections."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        """Every connection since the plan was set."""
        self.failures: list[BaseException] = []
        self._plan: Plan = echo
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._listen(0)

    def __enter__(self) -> ScriptedBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.die()

    @property
    def targets(self) -> list[str]:
        """The targets requested since the plan was set, connection by connection."""
        with self._lock:
            return [target for peer in self.peers for target in peer.targets]

    def use(self, plan: Plan) -> None:
        """End the connections of the previous plan, wait until the gateway has noticed, and set a new plan."""
        self._end_connections()
        assert not self.failures, self.failures
        with self._lock:
            self.peers = []
            self._plan = plan

    def die(self) -> None:
        """Stop listening and drop every connection."""
        # shutdown wakes the thread that is blocked in accept; close alone would not
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        self._end_connections()

    def revive(self) -> None:
        """Listen again on the port that the gateway expects."""
        self._listen(self.port)

    def _listen(self, port: int) -> None:
        self._listener = socket.create_server((LOOPBACK, port), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://{LOOPBACK}:{self.port}"
        self._acceptor = threading.Thread(target=self._accept, name="scripted", daemon=True)
        self._acceptor.start()

    def _end_connections(self) -> None:
        with self._lock:
            peers, threads, self._threads = list(self.peers), self._threads, []
        for peer in peers:
            peer.close()
        for thread in threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                peer = Peer(len(self.peers), connection)
                self.peers.append(peer)
                thread = threading.Thread(
                    target=self._serve, args=(peer, connection, self._plan), name="scripted", daemon=True
                )
                self._threads.append(thread)
            thread.start()

    def _serve(self, peer: Peer, connection: socket.socket, plan: Plan) -> None:
        with connection:
            try:
                plan(peer)
                if connection.fileno() >= 0:
                    connection.shutdown(socket.SHUT_WR)
                    peer.rest()
            except (GatewayLeft, ConnectionError, OSError):
                pass  # if the gateway disconnects, the test judges that
            except AssertionError as failure:
                self.failures.append(failure)
            finally:
                peer.ended.set()
