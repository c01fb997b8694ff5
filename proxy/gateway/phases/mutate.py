"""The mutate phase: builds the request head for the backend, in one ``bytes`` join.

Rules of this module:
1. The path and query are the bytes that were judged; they are never rewritten. A route may cut its own leading segments
   off the path (``strip_prefix``), and then the backend gets them in ``X-Forwarded-Prefix``.
2. Field lines are the client's that ``parse`` kept, in their order, then the gateway's own, each exactly once. A field
   that the upstream sets or removes is not the client's, in any spelling.
3. The credential is not forwarded. A field that could have carried it, and is the application's own, is.
4. The identity lines come from ``backend_identity``; this module never chooses them.
5. Of the fields of a trusted peer, a prefix and a port are forwarded, each only if it is one valid value. Where it sent
   ``X-Real-IP``, the backend gets there the address that was judged.
6. Every request is marked with ``Via`` (RFC 9110 section 7.6.3), after the ``Via`` lines that it arrived with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from proxy.core.request.client_address import parse_entry
from proxy.core.request.header_edits import HeaderEdits
from proxy.core.request.request_reading import host_name, only_value
from proxy.core.request.target import canonical_path, without_prefix
from proxy.gateway.exchange import Exchange

_PREFIX: Final = b"x-forwarded-prefix"
_PREFIX_LIMIT: Final = 512
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

    def mutate(self, x: Exchange, identity: bytes, edits: HeaderEdits | None) -> None:
        """Set ``x.upstream_head``, which contains the ``identity`` lines; ``edits`` are those of the upstream."""
        client, match = x.client, x.match
        assert client is not None and match is not None
        prefix = match.route.prefix
        kept = x.kept
        foreign = b"" if x.entry is not None and x.presented is None else self._foreign_credentials(x)
        if edits is not None:
            kept, foreign = edits.kept(kept + foreign), b""
            identity = edits.lines + identity
        x.upstream_head = b"".join(
            (
                x.method,
                b" ",
                x.path if not prefix else without_prefix(x.path, prefix),
                x.query,
                b" HTTP/1.1",
                kept,
                foreign,
                b"\r\nTransfer-Encoding: chunked\r\n" if x.chunked else _UPGRADE if x.websocket else b"\r\n",
                identity,
                self._via if x.version else self._via_1_0,
                x.request_id,
                client.forwarded_lines if x.forwarded is None else _forwarded_for(x, x.forwarded),
                b"\r\nX-Forwarded-Host: ",
                x.host if x.forwarded is None else forwarded_host(x, x.forwarded),
                b"\r\n\r\n" if not prefix else _forwarded_prefix(x, prefix),
            )
        )


def _forwarded_prefix(x: Exchange, prefix: bytes) -> bytes:
    """The last line of a head whose path was cut: the segments that the backend does not see, outermost first."""
    outer = b""
    if x.forwarded is not None and x.client is not None and x.client.peer_trusted:
        given = only_value(x.forwarded, _PREFIX)
        if given is not None and _is_prefix(given):
            outer = given.rstrip(b"/")
    return b"\r\nX-Forwarded-Prefix: " + outer + prefix + b"\r\n\r\n"


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
    lines = b"\r\nX-Forwarded-For: %s\r\nX-Forwarded-Proto: %s" % (chain + b", " + peer if chain else peer, proto)
    lines += _from_ingress(fields, cut=x.match is not None and x.match.route.prefix != b"")
    real = only_value(fields, b"x-real-ip")
    if real is None or parse_entry(real) is None:
        return lines
    # Many proxies set X-Forwarded-For only and pass on the client's X-Real-IP: the backend gets the judged address.
    return lines + b"\r\nX-Real-IP: " + client.address(x).encode("ascii")


def _from_ingress(fields: list[tuple[bytes, bytes]], *, cut: bool) -> bytes:
    """The other lines of a trusted peer that are forwarded; ``cut``: its prefix is in a line with the route's own."""
    lines = b""
    for name, line, is_valid in _PASSED_ON:
        value = None if cut and name == _PREFIX else only_value(fields, name)
        if value is not None and is_valid(value):
            lines += line + value
    return lines


def _is_prefix(value: bytes) -> bool:
    """Whether a path has exactly one reading, and needs nothing that a route would have to allow."""
    judged = canonical_path(value) if len(value) <= _PREFIX_LIMIT else None
    return judged is not None and not judged[1]


def _is_port(value: bytes) -> bool:
    return value.isdigit() and len(value) <= 5 and 0 < int(value) <= 65535


_PASSED_ON: Final[tuple[tuple[bytes, bytes, Callable[[bytes], bool]], ...]] = (
    (_PREFIX, b"\r\nX-Forwarded-Prefix: ", _is_prefix),
    (b"x-forwarded-port", b"\r\nX-Forwarded-Port: ", _is_port),
)


def forwarded_host(x: Exchange, fields: list[tuple[bytes, bytes]]) -> bytes:
    """The host that the client addressed: a trusted peer's one valid ``X-Forwarded-Host``, else the request's own."""
    if x.client is not None and x.client.peer_trusted:
        host = only_value(fields, b"x-forwarded-host")
        if host is not None and host_name(host) is not None:
            return host
    return x.host
