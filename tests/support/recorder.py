"""A backend that keeps the exact bytes it receives, connection by connection, and answers from a script.

It parses the framing of requests only to know when to answer; it keeps the bytes as they came off the socket. Tests
make assertions about the backend's view, because a status code alone does not show what was forwarded.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

from tests.support.leaks import SECRETS, SENT, leaks
from tests.support.listener import Listener
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


class Recorder(Listener):
    """The server; a context manager. ``script`` returns the whole response to a request; b"" closes without one.

    The wire sentinel checks what it receives, unless the sender is not a gateway (``watched=False``).
    """

    def __init__(self, script: Script = answer_ok, *, watched: bool = True, host: str = LOOPBACK) -> None:
        self.script = script
        self._watched = watched
        self._requests: list[Recorded] = []
        self._received: dict[int, bytearray] = {}
        super().__init__("recorder", host=host)

    def close(self) -> None:
        super().close()
        self._look_for_secrets()

    @property
    def requests(self) -> list[Recorded]:
        with self._lock:
            return list(self._requests)

    @property
    def received(self) -> list[bytes]:
        """Every byte of every connection, including incomplete requests."""
        with self._lock:
            return [bytes(data) for _, data in sorted(self._received.items())]

    def clear(self) -> None:
        """Drop what was received so far, after a check for secrets if it came from a gateway."""
        self._look_for_secrets()
        with self._lock:
            self._requests.clear()
            for data in self._received.values():
                data.clear()

    def _look_for_secrets(self) -> None:
        if self._watched and leaks(b"\n".join(self.received), SECRETS):
            SENT.append(f"a gateway sent a token's secret to the recorder on port {self.port}")

    def last(self) -> Recorded:
        """The newest request; wait for one, because an answer may be faster than the recorder's own thread."""
        return wait_until(lambda: self.requests or None, "a request at the backend")[-1]

    def serve(self, number: int, connection: socket.socket) -> None:
        with self._lock:
            self._received[number] = bytearray()
        watch = Watch(f"recorder connection {number}") if self._watched else None
        reader = _Reader(connection, lambda data: self._keep(number, data, watch))
        while (request := reader.request(number)) is not None:
            if watch is not None:
                watch.agree(reader.taken)
            with self._lock:
                self._requests.append(request)
            answer = self.script(request)
            if watch is not None:
                watch.answered(answer)
            if not answer:
                return
            connection.sendall(answer)
            if b"\r\nconnection: close" in answer.split(b"\r\n\r\n", 1)[0].lower():
                return

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
