"""The mutate phase: builds the request head for the backend, in one ``bytes`` join.

Rules of this module:
1. The path and query are the bytes that were judged; they are never rewritten.
2. Field lines are the client's that ``parse`` kept, in their order, then the gateway's own, each exactly once.
3. The credential is not forwarded. A field that could have carried it, and is the application's own, is.
4. The identity lines come from ``backend_identity``; this module never chooses them.
5. Every request is marked with ``Via`` (RFC 9110 section 7.6.3), after the ``Via`` lines that it arrived with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from proxy.core.request.request_reading import host_name
from proxy.gateway.exchange import Exchange

_UPGRADE: Final = b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"


class Mutator:
    """Builds upstream heads.

    ``foreign_credentials`` returns the credential lines of a request that are not patgate's; ``pseudonym`` is this
    node's name in ``Via``.
    """

    def __init__(self, *, foreign_credentials: Callable[[Exchange], bytes], pseudonym: bytes) -> None:
        # One constant that includes the name of the next field: ``Via`` costs only its bytes.
        self._via = b"Via: 1.1 %b\r\nX-Request-Id: " % pseudonym
        self._via_1_0 = b"Via: 1.0 %b\r\nX-Request-Id: " % pseudonym
        self._foreign_credentials = foreign_credentials

    def mutate(self, x: Exchange, identity: bytes) -> None:
        """Set ``x.upstream_head``, which contains the ``identity`` lines."""
        client = x.client
        assert client is not None
        foreign = b"" if x.entry is not None and x.presented is None else self._foreign_credentials(x)
        x.upstream_head = b"".join(
            (
                x.method,
                b" ",
                x.path,
                x.query,
                b" HTTP/1.1",
                x.kept,
                foreign,
                b"\r\nTransfer-Encoding: chunked\r\n" if x.chunked else _UPGRADE if x.websocket else b"\r\n",
                identity,
                self._via if x.version else self._via_1_0,
                x.request_id,
                client.forwarded_lines if x.forwarded is None else _forwarded_for(x, x.forwarded),
                b"\r\nX-Forwarded-Host: ",
                x.host if x.forwarded is None else forwarded_host(x, x.forwarded),
                b"\r\n\r\n",
            )
        )


def _forwarded_for(x: Exchange, fields: list[tuple[bytes, bytes]]) -> bytes:
    """The forwarding lines for a request that arrived with some: only a trusted peer's chain is continued."""
    client = x.client
    assert client is not None
    if not client.peer_trusted:
        return client.forwarded_lines
    chain = b", ".join([value for name, value in fields if name == b"x-forwarded-for"])
    protos = [value for name, value in fields if name == b"x-forwarded-proto"]
    proto = protos[0] if protos in ([b"http"], [b"https"]) else client.listener.scheme
    peer = client.peer.encode("ascii")
    return b"\r\nX-Forwarded-For: %s\r\nX-Forwarded-Proto: %s" % (chain + b", " + peer if chain else peer, proto)


def forwarded_host(x: Exchange, fields: list[tuple[bytes, bytes]]) -> bytes:
    """The host that the client addressed: a trusted peer's one valid ``X-Forwarded-Host``, else the request's own."""
    if x.client is not None and x.client.peer_trusted:
        hosts = [value for name, value in fields if name == b"x-forwarded-host"]
        if len(hosts) == 1 and host_name(hosts[0]) is not None:
            return hosts[0]
    return x.host
