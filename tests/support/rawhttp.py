"""An HTTP/1.1 client that sends the bytes it is given and reads exactly one response by its framing (RFC 9112 §6)."""

from __future__ import annotations

import json
import socket
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from weakref import WeakSet

from tests.support.process import HANGS_SECONDS, LOOPBACK


class ConnectionEnded(Exception):
    """The peer closed the connection before the response was complete; ``.received`` is what it had sent."""

    def __init__(self, received: bytes) -> None:
        super().__init__(f"connection ended after {received!r}")
        self.received = received


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    informational: tuple[int, ...] = ()

    def all(self, name: str) -> list[str]:
        wanted = name.lower().encode()
        return [value.decode("latin-1") for key, value in self.headers if key.lower() == wanted]

    def get(self, name: str) -> str | None:
        """The only value of a header; None if it is missing; fails on a repeated header."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} came {len(values)} times: {values}"
        return values[0] if values else None

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def keeps_alive(self) -> bool:
        return "close" not in (self.get("connection") or "").lower()


_OPENED: WeakSet[Connection] = WeakSet()
_LOCK = threading.Lock()


def opened() -> set[Connection]:
    """Every connection that was opened, open or closed, and is still referred to."""
    with _LOCK:
        return set(_OPENED)


class Connection:
    """One TCP connection (or one that is passed in, such as a unix socket); usable as a context manager."""

    def __init__(
        self,
        port: int = 0,
        *,
        host: str = LOOPBACK,
        source: str | None = None,
        seconds: float = HANGS_SECONDS,
        sock: socket.socket | None = None,
    ) -> None:
        self.socket = sock or socket.create_connection(
            (host, port), timeout=seconds, source_address=(source, 0) if source else None
        )
        self.socket.settimeout(seconds)
        if self.socket.family != socket.AF_UNIX:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        with _LOCK:
            _OPENED.add(self)

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    @property
    def local_port(self) -> int:
        port: int = self.socket.getsockname()[1]
        return port

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def exchange(self, data: bytes, *, method: str | None = None) -> Response:
        """Send the bytes and read the response. ``method`` is needed only if the bytes do not begin with it."""
        self.send(data)
        return self.read_response(method or data.split(b" ", 1)[0].decode("latin-1"))

    def request(
        self,
        method: str,
        target: str,
        *,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        host: str = "gateway",
    ) -> Response:
        """Send a simple, well-formed request."""
        return self.exchange(request_bytes(method, target, headers=headers, body=body, host=host))

    def read_response(self, method: str = "GET") -> Response:
        informational = []
        while True:
            status, headers = self._read_head()
            if status < 200 and status != 101:
                informational.append(status)
                continue
            body = self._read_body(method, status, headers)
            return Response(status=status, headers=headers, body=body, informational=tuple(informational))

    def read_to_end(self) -> bytes:
        """Everything until the peer closes; a reset counts as the end."""
        while self._fill():
            pass
        rest, self._buffer = self._buffer, b""
        return rest

    def ended(self) -> bool:
        """Whether the peer has closed, with no more bytes to read."""
        return self.read_to_end() == b""

    def _read_head(self) -> tuple[int, tuple[tuple[bytes, bytes], ...]]:
        block = self._read_until(b"\r\n\r\n")
        lines = block[:-4].split(b"\r\n")
        version, _, rest = lines[0].partition(b" ")
        assert version in (b"HTTP/1.1", b"HTTP/1.0"), f"not a status line: {lines[0]!r}"
        headers = []
        for line in lines[1:]:
            name, colon, value = line.partition(b":")
            assert colon and name and name == name.strip(), f"not a header line: {line!r}"
            headers.append((name, value.strip(b" \t")))
        return int(rest[:3]), tuple(headers)

    def _read_body(self, method: str, status: int, headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
        if method == "HEAD" or status in (101, 204, 304):
            return b""
        fields = {name.lower(): value for name, value in headers}
        if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
            assert b"content-length" not in fields, "a response with both framings"
            return self._read_chunks()
        if b"content-length" in fields:
            return self._read_exactly(int(fields[b"content-length"]))
        return self.read_to_end()

    def _read_chunks(self) -> bytes:
        body: list[bytes] = []
        while True:
            size = int(self._read_until(b"\r\n")[:-2].partition(b";")[0], 16)
            if size == 0:
                while self._read_until(b"\r\n") != b"\r\n":
                    pass
                return b"".join(body)
            body.append(self._read_exactly(size))
            assert self._read_exactly(2) == b"\r\n", "a chunk that does not end where it says"

    def _read_until(self, mark: bytes) -> bytes:
        while (end := self._buffer.find(mark)) < 0:
            if not self._fill():
                raise ConnectionEnded(self._buffer)
        end += len(mark)
        taken, self._buffer = self._buffer[:end], self._buffer[end:]
        return taken

    def _read_exactly(self, count: int) -> bytes:
        parts = [self._buffer[:count]]
        self._buffer = self._buffer[count:]
        missing = count - len(parts[0])
        while missing:
            data = self.socket.recv(min(missing, 1 << 20))
            if not data:
                raise ConnectionEnded(b"".join(parts))
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def _fill(self) -> bool:
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionResetError:
            return False
        self._buffer += data
        return bool(data)


def request_bytes(
    method: str, target: str, *, headers: dict[str, str] | None = None, body: bytes = b"", host: str = "gateway"
) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body or method in ("POST", "PUT", "PATCH"):
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}
