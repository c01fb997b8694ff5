"""One request, sent exactly as given, and its response.

1. A target and headers are sent byte for byte: nothing is cleaned, encoded or added but what is given. (``aiohttp``
   normalises targets.)
2. Each request has its own connection and at most ``SECONDS`` to connect and ``SECONDS`` for everything after that,
   however slowly the server sends. It reads at most ``MOST_BYTES`` of a body.
3. No redirect is followed, so that a token reaches only the host that was named.
"""

import http.client
import json
import socket
import ssl
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from proxy.core.errors import PatgateError

SECONDS: Final = 5.0
MOST_BYTES: Final = 256 * 1024


class NoAnswer(PatgateError):
    """A server gave no HTTP response; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """A server. ``host`` is the value for ``Host``; ``tls`` is None for plain HTTP."""

    name: str
    port: int
    host: str
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return f"{'http' if self.tls is None else 'https'}://{self.host}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """A response: its headers in the order in which they came, and the beginning of its body."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def success(self) -> bool:
        """Whether the request was served: 2xx."""
        return 200 <= self.status < 300

    def all(self, name: str) -> list[str]:
        """The values of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def document(self) -> dict[str, Any]:
        """The JSON object of the body; empty if it is none."""
        try:
            document = json.loads(self.body)
        except ValueError:
            return {}
        return document if isinstance(document, dict) else {}


def send(address: Address, target: str, headers: Sequence[tuple[str, str]] = (), *, method: str = "GET") -> Response:
    """Send a request and return the response. Raises NoAnswer."""
    connection = http.client.HTTPConnection(address.name, address.port)
    late = threading.Event()
    try:
        sock = connection.sock = socket.create_connection((address.name, address.port), SECONDS)
        if address.tls is not None:
            # The handshake follows under the watch.
            sock = connection.sock = address.tls.wrap_socket(
                sock, server_hostname=address.name, do_handshake_on_connect=False
            )
        watch = threading.Timer(SECONDS, _end, (sock, late))
        watch.daemon = True
        watch.start()
        try:
            if isinstance(sock, ssl.SSLSocket):
                sock.do_handshake()
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in (("Host", address.host), *headers):
                connection.putheader(name, value)
            if not any(name.lower() == "connection" for name, _ in headers):
                connection.putheader("Connection", "close")
            connection.endheaders()
            response = connection.getresponse()
            if late.is_set():
                # The end of the connection reads like the end of the head.
                raise TimeoutError
            return Response(status=response.status, headers=tuple(response.getheaders()), body=_beginning(response))
        finally:
            watch.cancel()
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(_reason(TimeoutError() if late.is_set() else error)) from None
    finally:
        connection.close()


def _end(sock: socket.socket, late: threading.Event) -> None:
    """End what waits for the server. The limit of a socket holds for each call, and a server may send byte by byte."""
    late.set()
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _beginning(response: http.client.HTTPResponse) -> bytes:
    """The body as far as it came in time, at most ``MOST_BYTES``."""
    body = b""
    with suppress(OSError, http.client.HTTPException):
        while len(body) < MOST_BYTES and (piece := response.read1(65536)):
            body += piece
    return body


def _reason(error: OSError | http.client.HTTPException) -> str:
    match error:
        case TimeoutError():
            return f"no answer within {SECONDS:g} seconds"
        case ssl.SSLCertVerificationError():
            return f"its certificate is not accepted: {error.verify_message} (--ca or --insecure)"
        case ssl.SSLError():
            return f"TLS failed: {(error.reason or 'unknown').replace('_', ' ').lower()}"
        case OSError():
            return error.strerror or "the connection failed"
        case _:
            return "its answer is not HTTP/1.1"
