"""Second targets: header fields that name another resource than the request line.

``COPY /a`` with ``Destination: /b`` writes ``/b``. So that a backend does only what was authorised, a field that names
a resource is checked like the request's own target, or the request is refused.

Rules of this module:
1. A field whose value is a target (``JUDGED``) is parsed here and checked by ``judge_second``. The fields of
   ``UNJUDGED`` name a resource in a form that only the backend can parse; a request with one of them is refused.
2. A route may pass fields on unchecked (``Route.second_targets``), if its backend checks them itself.
3. A ``Destination`` is written, so it needs the permission of PUT there. If its route names no operation for PUT and is
   the request's own route, the operation of the request's own method counts, unless that one only reads.
4. A resource that ``If`` names (a tagged list) is read, so it needs the permission of GET there.
5. Another host is refused, and so is a route with another access or another upstream: it is unknown what this backend
   would do with a path that patgate routes elsewhere.
6. A path with an escaped ``?`` or ``#``, or with ``;`` in any form, is refused: some servers (wsgidav) decode a
   ``Destination`` before they split it, and then write to the part before that character. A path that begins with
   ``//`` is refused even if its route allows empty segments: in a URI reference that is a host (RFC 3986 section 4.2),
   which most servers ignore. An escaped ``%`` before two hex digits is refused even if its route allows it: the same
   servers may decode once more.
7. A backend behind a route with ``strip_prefix`` reads other paths than the client names, so a second target is refused
   if its route or the request's own has one. A second target with a query is refused where a route's conditions on the
   query decide: it is unknown whether the backend reads that query.
8. At most ``_MOST_TAGS`` resources are checked: a head can hold thousands, and each costs as much as a request.
9. No function here raises.

Sources: RFC 4918 sections 8.3, 10.3 and 10.4 (WebDAV), and the documentation of the stores that define each field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from proxy.core.model import Access
from proxy.core.reasons import Reason
from proxy.core.request.request_reading import host_name, judge
from proxy.core.request.target import PathAllowance, canonical_path, split_target
from proxy.core.routes import Match, RouteTable

DESTINATION: Final = b"destination"
IF: Final = b"if"
JUDGED: Final = (DESTINATION, IF)
"""Folded names of the fields that patgate can check."""

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
"""Fields that name a resource in another form than a path: copies of object stores (a bucket and a key), Swift's
copies, manifests, links and version containers, the concatenation of tus (a list), references of RFC 4437."""

_WRITE: Final = b"PUT"
_READ: Final = b"GET"
_READING: Final = frozenset(("read", "list", "subscribe"))
_DEFAULT_PORTS: Final = frozenset((b"80", b"443"))
_SPLIT_AFTER_DECODING: Final = re.compile(rb"%3[Ff]|%23|%3[Bb]|;")
_TAG: Final = re.compile(rb"<([^<>]*+)>")
_MOST_TAGS: Final = 64
_LISTS: Final = re.compile(rb"\([^()]*+\)")


class NamedTarget:
    """A path that a field names; ``written``: the request writes it. ``query`` is empty or begins with "?"."""

    __slots__ = ("authority", "path", "query", "written")

    def __init__(self, authority: bytes | None, path: bytes, *, query: bytes = b"", written: bool) -> None:
        self.authority = authority
        self.path = path
        self.query = query
        self.written = written

    @property
    def method(self) -> bytes:
        """The method whose permission the target needs."""
        return _WRITE if self.written else _READ


def read_field(name: bytes, value: bytes) -> list[NamedTarget] | None:
    """The targets in a field of ``JUDGED``: empty for an ``If`` without tags, None if the value is invalid."""
    if name == DESTINATION:
        destination = _target(value, written=True)
        return None if destination is None else [destination]
    # Outside its lists, an If holds only tags. A condition inside a list is about the resource before the list.
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
    judged = canonical_path(parts[1])
    if judged is not None and judged[1] & PathAllowance.ENCODED_PERCENT:
        return None
    return NamedTarget(parts[0], parts[1], query=parts[2], written=written)


def same_host(authority: bytes, hosts: Iterable[bytes], *, ports: bool) -> bool:
    """Whether ``authority`` names the host of one of ``hosts`` (values of ``Host``).

    Ports 80 and 443 count as no port. Without ``ports`` only the names are compared: an ingress may omit the port.
    """
    name, port = host_name(authority), _port(authority)
    return name is not None and any(name == host_name(host) and (not ports or port == _port(host)) for host in hosts)


def _port(authority: bytes) -> bytes:
    _, colon, port = authority.rpartition(b":")
    return port if colon and not port.endswith(b"]") and port not in _DEFAULT_PORTS else b""


def judge_second(table: RouteTable, own: Match, host: str, target: NamedTarget) -> tuple[Match | None, Reason | None]:
    """The match of a second target, and the reason if it is refused regardless of the grant.

    ``own`` is the match of the request's own target; ``host`` is the host name of both. Without a refusal there is a
    match, whose operation the grant must allow if its route's access is ``token``. A refusal has the match of a
    report-only route only if both routes are report-only, or if the second target's own route refuses.
    """
    match, reason = judge(table, target.method, host, target.path, None if target.query else b"")
    if reason is not None or match is None:
        return match, reason or Reason.NO_ROUTE
    route = match.route
    elsewhere = route.access is not own.route.access or route.upstream != own.route.upstream
    if elsewhere or route.prefix or own.route.prefix:
        return own if own.route.enforce else match, Reason.SECOND_TARGET
    if target.written and match.operation is None and route is own.route and own.operation not in _READING:
        match = match._replace(operation=own.operation)
    if match.operation is None and route.access is Access.TOKEN:
        return match, Reason.OPERATION_UNMAPPED
    return match, None
