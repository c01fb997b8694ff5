"""One request, sent exactly as given, and its response.

1. A target and headers are sent byte for byte: nothing is cleaned, encoded or added but what is given. (``aiohttp``
   normalises targets.)
2. Each request has its own connection, at most ``SECONDS`` for everything, and reads at most ``MOST_BYTES`` of a body.
3. No redirect is followed, so that a token reaches only the host that was named.
"""

import http.client
import json
import ssl
import time
from collections.abc import Sequence
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
    deadline = time.monotonic() + SECONDS
    connection = _connection(address)
    try:
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in (("Host", address.host), *headers):
            connection.putheader(name, value)
        if not any(name.lower() == "connection" for name, _ in headers):
            connection.putheader("Connection", "close")
        connection.endheaders()
        response = connection.getresponse()
        body = b""
        while len(body) < MOST_BYTES and time.monotonic() < deadline and (piece := response.read1(65536)):
            body += piece
        return Response(status=response.status, headers=tuple(response.getheaders()), body=body)
    except TimeoutError:
        raise NoAnswer(f"no answer within {SECONDS:g} seconds") from None
    except ssl.SSLCertVerificationError as error:
        raise NoAnswer(f"its certificate is not accepted: {error.verify_message} (--ca or --insecure)") from None
    except ssl.SSLError as error:
        raise NoAnswer(f"TLS failed: {(error.reason or 'unknown').replace('_', ' ').lower()}") from None
    except OSError as error:
        raise NoAnswer(error.strerror or "the connection failed") from None
    except http.client.HTTPException:
        raise NoAnswer("its answer is not HTTP/1.1") from None
    finally:
        connection.close()


def _connection(address: Address) -> http.client.HTTPConnection:
    if address.tls is None:
        return http.client.HTTPConnection(address.name, address.port, timeout=SECONDS)
    return http.client.HTTPSConnection(address.name, address.port, timeout=SECONDS, context=address.tls)
