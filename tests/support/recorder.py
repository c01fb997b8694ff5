"""A backend that keeps the exact bytes it receives, connection by connection, and answers from a script.

It parses the framing of requests only to know when to answer; it keeps the bytes as they came off the socket. Tests
make assertions about the backend's view, because a status code alone does not show what was forwarded.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from tests.support.leaks import SECRETS, SENT, leaks
from tests.support.process import LOOPBACK, wait_until
from tests.support.sentinel import Watch

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """One request as it came: ``head`` through the blank line, ``body`` still in its transfer coding."""

    connection: int
    head: bytes
    body: bytes

    @property
    def request_line(self) -> bytes:
        return self.head.split(b"\r\n", 1)[0]

    @property
    def target(self) -> bytes:
        return self.request_line.split(b" ")[1]

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        lines = self.head[:-4].split(b"\r\n")[1:]
        return [(name, value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines)]

    def all(self, name: str) -> list[bytes]:
        """A header's values under any spelling that a WSGI or CGI backend would fold to the same variable."""
        wanted = fold(name.encode())
        return [value for key, value in self.headers if fold(key) == wanted]

    def only(self, name: str) -> str:
        values = self.all(name)
        assert len(values) == 1, f"{name} reached the backend {len(values)} times: {values}"
        return values[0].decode("latin-1")


Script = Callable[[Recorded], bytes]


def fold(name: bytes) -> bytes:
    return name.lower().replace(b"_", b"-").replace(b".", b"-")


def answer_ok(request: Recorded) -> bytes:
    return OK


class Recorder:
    """The server; a context manager. ``script`` returns the whole response to a request; b"" closes without one.

    The wire sentinel checks what it receives, unless the sender is not a gateway (``watched=False``).
    """

    def __init__(self, script: Script = answer_ok, *, watched: bool = True, host: str = LOOPBACK) -> None:
        self.script = script
        self._watched = watched
        self._lock = threading.Lock()
        self._requests: list[Recorded] = []
        self._received: list[bytearray] = []
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server((host, 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://{LOOPBACK}:{self.port}"
        self._acceptor = threading.Thread(target=self._accept, name="recorder", daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        # shutdown wakes the thread that is blocked in accept; close alone would not
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        self.drop_connections()
        for thread in self._threads:
            thread.join()
        self._look_for_secrets()

    def drop_connections(self) -> None:
        """End every open connection, as a backend that restarts does."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with suppress(OSError):  # the peer closed first
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def requests(self) -> list[Recorded]:
        with self._lock:
            return list(self._requests)

    @property
    def received(self) -> list[bytes]:
        """Every byte of every connection, including incomplete requests."""
        with self._lock:
            return [bytes(data) for data in self._received]

    def clear(self) -> None:
        """Drop what was received so far, after a check for secrets if it came from a gateway."""
        self._look_for_secrets()
        with self._lock:
            self._requests.clear()
            for data in self._received:
                data.clear()

    def _look_for_secrets(self) -> None:
        if self._watched and leaks(b"\n".join(self.received), SECRETS):
            SENT.append(f"a gateway sent a token's secret to the recorder on port {self.port}")

    def last(self) -> Recorded:
        """The newest request; wait for one, because an answer may be faster than the recorder's own thread."""
        return wait_until(lambda: self.requests or None, "a request at the backend", seconds=20)[-1]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                number = len(self._received)
                self._received.append(bytearray())
                self._open.add(connection)
            thread = threading.Thread(
                target=self._serve, args=(number, connection), name=f"recorder-{number}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def _serve(self, number: int, connection: socket.socket) -> None:
        watch = Watch(f"recorder connection {number}") if self._watched else None
        reader = _Reader(connection, lambda data: self._keep(number, data, watch))
        with connection:
            try:
                while (request := reader.request(number)) is not None:
                    if watch is not None:
                        watch.agree(reader.taken)
                    with self._lock:
                        self._requests.append(request)
                    answer = self.script(request)
                    if watch is not None:
                        watch.answered(answer)
                    if not answer:
                        break
                    connection.sendall(answer)
                    if b"\r\nconnection: close" in answer.split(b"\r\n\r\n", 1)[0].lower():
                        break
            except OSError:
                pass  # if the peer disconnects, the test judges that by what was recorded
            finally:
                with self._lock:
                    self._open.discard(connection)

    def _keep(self, number: int, data: bytes, watch: Watch | None) -> None:
        if watch is not None:
            watch.sent(data)
        with self._lock:
            self._received[number] += data


class _Reader:
    def __init__(self, connection: socket.socket, keep: Callable[[bytes], None]) -> None:
        self._connection = connection
        self._keep = keep
        self._buffer = b""
        self.taken = 0
        """The number of bytes in complete requests, heads and bodies."""

    def request(self, number: int) -> Recorded | None:
        head = self._until(b"\r\n\r\n")
        if head is None:
            return None
        fields = {name.lower(): value for name, value in Recorded(connection=number, head=head, body=b"").headers}
        if fields.get(b"expect", b"").lower() == b"100-continue":
            self._connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if b"transfer-encoding" in fields:
            body = self._chunks()
        else:
            body = self._exactly(int(fields.get(b"content-length", b"0")))
        return None if body is None else Recorded(connection=number, head=head, body=body)

    def _chunks(self) -> bytes | None:
        parts = []
        while True:
            line = self._until(b"\r\n")
            if line is None:
                return None
            parts.append(line)
            size = int(line.partition(b";")[0], 16)
            if size == 0:
                break
            data = self._exactly(size + 2)
            if data is None:
                return None
            parts.append(data)
        while parts[-1] != b"\r\n":  # the trailer section is part of what the backend received
            line = self._until(b"\r\n")
            if line is None:
                return None
            parts.append(line)
        return b"".join(parts)

    def _until(self, mark: bytes) -> bytes | None:
        while (end := self._buffer.find(mark)) < 0:
            if not self._fill():
                return None
        end += len(mark)
        return self._take(end)

    def _exactly(self, count: int) -> bytes | None:
        while len(self._buffer) < count:
            if not self._fill():
                return None
        return self._take(count)

    def _take(self, count: int) -> bytes:
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        self.taken += count
        return taken

    def _fill(self) -> bool:
        data = self._connection.recv(1 << 16)
        self._keep(data)
        self._buffer += data
        return bool(data)
