"""Sends requests in bulk: keep-alive connections, a window of pipelined requests, responses read in order.

The gateway serves one request of a connection at a time. If a request closes the connection, the following ones were
not processed: they are sent again on the next connection.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress

from tests.differential.judge import Answer, Case, View
from tests.support.pathservers import PathServer
from tests.support.process import LOOPBACK

WINDOW = 40
SECONDS = 60.0

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_PROBLEM = re.compile(rb"\r\ncontent-type: *application/problem\+json", re.IGNORECASE)
_HEADERS = re.compile(rb"\r\nX-(Case|Area|Entity|Id|Path|Method): ([^\r]*)")


class Lane:
    """One connection at a time to a port, for the host of one server.

    ``tokens`` are the wide one (under True) and the narrow one; without them no token is sent. The port may be that of
    the server, to see how it reads a target that no gateway has checked.
    """

    def __init__(self, port: int, server: PathServer, *, tokens: Mapping[bool, bytes] | None = None) -> None:
        self._port = port
        self._server = server
        host = b" HTTP/1.1\r\nHost: " + server.host.encode("ascii")
        logins = {True: b"", False: b""}
        for wide, token in (tokens or {}).items():
            logins[wide] = b"\r\nAuthorization: Bearer " + token
        self._fields = {wide: host + login + b"\r\nX-Case: " for wide, login in logins.items()}
        self._socket: socket.socket | None = None
        self._buffer = b""

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._buffer = b""

    def exchange(self, cases: Sequence[Case]) -> list[Answer]:
        """The response to each case, in order."""
        answers: list[Answer] = []
        failed_at = -1
        while len(answers) < len(cases):
            begun = len(answers)
            window = cases[begun : begun + WINDOW]
            # The responses before the connection broke can still be read.
            with suppress(BrokenPipeError, ConnectionResetError):
                self._send(b"".join(self._request(case) for case in window))
            for case in window:
                answer = self._read(case)
                if answer is None:
                    self.close()
                    break
                answers.append(answer)
                if self._socket is None:
                    break
            if len(answers) == begun:
                # An idle connection may be closed while we write. If a new one ends without a response, that counts.
                if failed_at == begun:
                    answers.append(Answer(status=0, by_gateway=True))
                failed_at = begun
        return answers

    def _request(self, case: Case) -> bytes:
        end = b"\r\nContent-Length: 0\r\n\r\n" if case.method in ("PUT", "POST") else b"\r\n\r\n"
        head = case.method.encode("ascii") + b" " + case.for_host(self._server.host)
        return head + self._fields[case.wide] + b"%d" % case.number + end

    def _send(self, data: bytes) -> None:
        if self._socket is None:
            self._socket = socket.create_connection((LOOPBACK, self._port), timeout=SECONDS)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(data)

    def _read(self, case: Case) -> Answer | None:
        """The next response; None if the connection ends before it is complete."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if not self._more():
                return None
        head = self._buffer[: end + 2]
        status = int(head[9:12])
        length = 0
        if status != 204 and case.method != "HEAD":
            found = _LENGTH.search(head)
            assert found is not None or _CLOSE.search(head), f"an answer without a length: {head!r}"
            length = int(found[1]) if found is not None else 0
        while len(self._buffer) < end + 4 + length:
            if not self._more():
                return None
        self._buffer = self._buffer[end + 4 + length :]
        if _CLOSE.search(head) is not None:
            self.close()
        if _PROBLEM.search(head) is not None:
            return Answer(status=status, by_gateway=True)
        if status != 204:
            return Answer(status=status, by_gateway=False, number=case.number)
        headers = dict(_HEADERS.findall(head))
        return Answer(status=status, by_gateway=False, number=int(headers[b"Case"]), view=_view(headers))

    def _more(self) -> bool:
        if self._socket is None:
            return False
        try:
            data = self._socket.recv(1 << 18)
        except ConnectionResetError:
            return False
        self._buffer += data
        return data != b""


def _view(headers: dict[bytes, bytes]) -> View:
    """The view in a server's headers. Apache keeps an encoded slash in an id, the others decode it."""
    return View(
        method=headers[b"Method"].decode("ascii"),
        area=headers[b"Area"].decode("ascii"),
        entity=_slashes(headers[b"Entity"][1:-1], b"/"),
        entity_id=_slashes(headers[b"Id"][1:-1], b"/"),
        path=_slashes(headers[b"Path"][1:-1], b"%2F"),
    )


def _slashes(text: bytes, written: bytes) -> bytes:
    return text.replace(b"%2f", written).replace(b"%2F", written)
