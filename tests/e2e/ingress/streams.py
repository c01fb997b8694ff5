"""An application for what the recorder cannot do: it counts large bodies, sends event streams and answers late.

It parses as little HTTP as it needs and answers one request for each connection.
"""

from __future__ import annotations

import hashlib
import socket
import threading
from dataclasses import dataclass, field

from tests.support.listener import Listener
from tests.support.process import HANGS_SECONDS

BLOCK = 1 << 18


@dataclass(kw_only=True, slots=True)
class Taken:
    """One request: its head, the length and the SHA-256 of its body, and the connection to answer on."""

    head: bytes
    size: int = 0
    digest: str = ""
    done: threading.Event = field(default_factory=threading.Event)


class Streams(Listener):
    """The server; a context manager. ``taken`` has every request that it received."""

    def __init__(self) -> None:
        self.taken: list[Taken] = []
        self.second_event = threading.Event()
        """Set it to let event streams send their second event."""
        super().__init__("streams")

    def close(self) -> None:
        self.second_event.set()
        super().close()

    def serve(self, number: int, connection: socket.socket) -> None:
        with connection.makefile("rb", BLOCK) as reader:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                line = reader.readline()
                if not line:
                    return
                head += line
            taken = Taken(head=head)
            self.taken.append(taken)
            fields = {
                name.lower(): value.strip()
                for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
            }
            if fields.get(b"expect", b"").lower() == b"100-continue":
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            digest = hashlib.sha256()
            if b"transfer-encoding" in fields:
                while size := int(reader.readline().partition(b";")[0], 16):
                    digest.update(reader.read(size))
                    taken.size += size
                    reader.readline()
            else:
                taken.size = int(fields.get(b"content-length", b"0"))
                left = taken.size
                while left:
                    data = reader.read(min(left, BLOCK))
                    if not data:
                        return
                    digest.update(data)
                    left -= len(data)
            taken.digest = digest.hexdigest()
            taken.done.set()
            if b"/messages" in head.split(b"\r\n", 1)[0]:
                self._events(connection)
            else:
                body = f"{taken.size} {taken.digest}".encode()
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
                )

    def _events(self, connection: socket.socket) -> None:
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
            b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
            b"d\r\ndata: first\n\n\r\n"
        )
        self.second_event.wait(HANGS_SECONDS)
        connection.sendall(b"e\r\ndata: second\n\n\r\n0\r\n\r\n")
