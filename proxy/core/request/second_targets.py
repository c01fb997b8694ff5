"""Second targets: header fields that name another resource than the request line does.

``COPY /a`` with ``Destination: /b`` writes ``/b``. What was judged must be what runs, so a field that names a resource
is judged like the request's own target, or the request is refused.

Rules of this module:
1. A field whose value is a target (``JUDGED``) is read here and judged by ``judge_second``. Any other field of
   ``UNJUDGED`` names a resource in a form that only its backend can read; a request that has one is refused.
2. A route may pass fields on unjudged (``Route.second_targets``), where its backend judges them itself.
3. A ``Destination`` is written, so it needs what PUT needs there. Where its route names no operation for PUT, and is
   the request's own route, the operation of the request's own method counts, unless that one only reads.
4. A resource that ``If`` names (a tagged list) is read, so it needs what GET needs there.
5. Another host is refused, and so is a route with another access or another upstream: what a backend would do with a
   path that patgate sends elsewhere is not known.
6. A path with an escaped ``?`` or ``#``, or with ``;`` in any form, is refused: some servers decode a ``Destination``
   before they split it (wsgidav), and then write what stands before that character. So is one that begins with ``//``,
   whatever its route allows: in a URI reference that is a host (RFC 3986 section 4.2), which most servers leave out.
7. At most ``_MOST_TAGS`` resources are judged: a head has room for thousands, and each costs what a request costs.
8. Nothing here raises.

Sources: RFC 4918 sections 8.3, 10.3 and 10.4 (WebDAV), and the documentation of the stores that define each field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from proxy.core.model import Access
from proxy.core.reasons import Reason
from proxy.core.request.request_reading import host_name, judge
from proxy.core.request.target import split_target
from proxy.core.routes import Match, RouteTable

DESTINATION: Final = b"destination"
IF: Final = b"if"
JUDGED: Final = (DESTINATION, IF)
"""Folded names of the fields that patgate can judge."""

UNJUDGED: Final = (
    "X-Amz-Copy-Source",
    "X-Amz-Rename-Source",
    "X-Ms-Copy-Source",
    "X-Ms-Rename-Source",
    "X-Ms-File-Rename-Source",
    "X-Goog-Copy-Source",
    "X-Oss-Copy-Source",
    "X-Oss-Symlink-Target",
    "X-Cos-Copy-Source",
    "X-Obs-Copy-Source",
    "X-Bce-Copy-Source",
    "X-Tos-Copy-Source",
    "X-Copy-From",
    "X-Copy-From-Account",
    "X-Object-Manifest",
    "X-Symlink-Target",
    "X-Symlink-Target-Account",
    "X-Versions-Location",
    "X-History-Location",
    "Destination-Account",
    "Upload-Concat",
    "Redirect-Ref",
)
"""Fields that name a resource in a form of their own: object stores' copies (a bucket and a key), Swift's copies,
manifests, links and version containers, tus' concatenation (a list), RFC 4437's references."""

_WRITE: Final = b"PUT"
_READ: Final = b"GET"
_READING: Final = frozenset(("read", "list", "subscribe"))
_DEFAULT_PORTS: Final = frozenset((b"80", b"443"))
_SPLIT_AFTER_DECODING: Final = re.compile(rb"%3[Ff]|%23|%3[Bb]|;")
_TAG: Final = re.compile(rb"<([^<>]*+)>")
_MOST_TAGS: Final = 64
_LISTS: Final = re.compile(rb"\([^()]*+\)")


class NamedTarget:
    """A path that a field names. ``written`` says whether the request writes it."""

    __slots__ = ("authority", "path", "written")

    def __init__(self, authority: bytes | None, path: bytes, *, written: bool) -> None:
        self.authority = authority
        self.path = path
        self.written = written

    @property
    def method(self) -> bytes:
        """The method that the target is judged with."""
        return _WRITE if self.written else _READ


def read_field(name: bytes, value: bytes) -> list[NamedTarget] | None:
    """The targets that a judged field names; none for an ``If`` without tags; None if the value cannot be read."""
    if name == DESTINATION:
        found = _target(value, written=True)
        return None if found is None else [found]
    # Outside of its lists, an If holds nothing but tags. A condition within a list is about the resource before it.
    outside = _LISTS.sub(b" ", value)
    if not outside.strip(b" \t"):
        return []
    tags: list[bytes] = _TAG.findall(outside)
    if len(tags) > _MOST_TAGS:
        return None
    targets = []
    for tag in tags:
        target = _target(tag, written=False)
        if target is None:
            return None
        targets.append(target)
    return None if _TAG.sub(b"", outside).strip(b" \t") else targets


def _target(text: bytes, *, written: bool) -> NamedTarget | None:
    parts = split_target(text)
    if parts is None or parts[1].startswith(b"//") or _SPLIT_AFTER_DECODING.search(parts[1]) is not None:
        return None
    return NamedTarget(parts[0], parts[1], written=written)


def same_host(authority: bytes, hosts: Iterable[bytes], *, ports: bool) -> bool:
    """Whether ``authority`` names the host of one of ``hosts`` (values of ``Host``).

    Ports 80 and 443 count as none. Without ``ports`` only the names are compared: an ingress may leave the port out.
    """
    name, port = host_name(authority), _port(authority)
    return name is not None and any(name == host_name(host) and (not ports or port == _port(host)) for host in hosts)


def _port(authority: bytes) -> bytes:
    _, colon, port = authority.rpartition(b":")
    return port if colon and not port.endswith(b"]") and port not in _DEFAULT_PORTS else b""


def judge_second(table: RouteTable, own: Match, host: str, target: NamedTarget) -> tuple[Match | None, Reason | None]:
    """What a second target asks for, and why it is refused before any grant is looked at.

    ``own`` is the match of the request's own target, ``host`` the host's name of both. Without a refusal there is a
    match, whose operation the grant must reach where its route's access is ``token``. A match that only reports is
    returned where both do, or where the second target's alone refuses.
    """
    match, reason = judge(table, target.method, host, target.path)
    if reason is not None or match is None:
        return match, reason or Reason.NO_ROUTE
    route = match.route
    if route.access is not own.route.access or route.upstream != own.route.upstream:
        return own if own.route.enforce else match, Reason.SECOND_TARGET
    if target.written and match.operation is None and route is own.route and own.operation not in _READING:
        match = match._replace(operation=own.operation)
    if match.operation is None and route.access is Access.TOKEN:
        return match, Reason.OPERATION_UNMAPPED
    return match, None
