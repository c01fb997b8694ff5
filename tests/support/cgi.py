"""A small threaded server for one CGI program (RFC 3875), streaming both ways; used for ``git http-backend``.

A chunked request body is decoded before it reaches the program, which then gets no CONTENT_LENGTH and reads to the end
of its input (RFC 3875 §4.2 allows a server to do so; git http-backend expects it).
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType, TracebackType
from typing import IO

from tests.support.process import LOOPBACK

BLOCK = 1 << 16


class CgiServer:
    """Serves one program on a free loopback port; a context manager. ``requests`` has every request line."""

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        self.requests: list[str] = []
        seen = self.requests

        class Handler(_Handler):
            requests = seen
            program = tuple(argv)
            environ_base = MappingProxyType(dict(environ))

        self._server = _Server((LOOPBACK, 0), Handler)
        self.port: int = self._server.server_address[1]
        self.url = f"http://{LOOPBACK}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="cgi", daemon=True)
        self._thread.start()

    def __enter__(self) -> CgiServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # kept-alive connections belong to the gateway's pool and end with it


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    requests: list[str]
    program: Sequence[str] = ()
    environ_base: Mapping[str, str] = MappingProxyType({})

    def do_GET(self) -> None:
        self._run()

    def do_POST(self) -> None:
        self._run()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the test reads the output of the client and the gateway."""

    def _run(self) -> None:
        self.requests.append(self.requestline)
        with subprocess.Popen(
            self.program,
            env=self._environ(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as program:
            assert program.stdin is not None and program.stdout is not None
            feeder = threading.Thread(target=self._feed, args=(program.stdin,), name="cgi-body", daemon=True)
            feeder.start()
            self._relay(program.stdout)
            feeder.join()

    def _environ(self) -> dict[str, str]:
        path, _, query = self.path.partition("?")
        environ = dict(self.environ_base)
        environ |= {
            "GATEWAY_INTERFACE": "CGI/1.1",
            "SERVER_PROTOCOL": self.request_version,
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "REMOTE_ADDR": self.client_address[0],
            "REMOTE_USER": self.headers.get("X-Auth-User", ""),
        }
        if "Content-Length" in self.headers:
            environ["CONTENT_LENGTH"] = self.headers["Content-Length"]
        for name, value in self.headers.items():
            environ["HTTP_" + name.upper().replace("-", "_")] = value
        return environ

    def _feed(self, stdin: IO[bytes]) -> None:
        """Write the whole request body to the program; read it to its end even after the program stops reading."""
        listening = True
        for block in self._body():
            if listening:
                try:
                    stdin.write(block)
                except BrokenPipeError:
                    listening = False
        with suppress(BrokenPipeError):  # data that was buffered for a program that has ended
            stdin.close()

    def _body(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                yield from self._exactly(size)
                self.rfile.readline()
            while self.rfile.readline() not in (b"\r\n", b""):
                pass
        else:
            yield from self._exactly(int(self.headers.get("Content-Length", "0")))

    def _exactly(self, count: int) -> Iterator[bytes]:
        while count:
            block = self.rfile.read(min(count, BLOCK))
            if not block:
                self.close_connection = True
                return
            count -= len(block)
            yield block

    def _relay(self, stdout: IO[bytes]) -> None:
        status, fields = 200, []
        while (line := stdout.readline().rstrip(b"\r\n")) != b"":
            name, _, value = line.decode("latin-1").partition(":")
            if name.lower() == "status":
                status = int(value.split()[0])
            else:
                fields.append((name, value.strip()))
        self.send_response(status)
        for name, value in fields:
            self.send_header(name, value)
        if any(name.lower() == "content-length" for name, _ in fields):
            self.end_headers()
            while block := stdout.read(BLOCK):
                self.wfile.write(block)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while block := stdout.read1(BLOCK) if hasattr(stdout, "read1") else stdout.read(BLOCK):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block))
        self.wfile.write(b"0\r\n\r\n")
