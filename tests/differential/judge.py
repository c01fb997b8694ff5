"""The routes of the gateway under test, and two independent checks that a server ran the authorised operation.

1. Without code of patgate: a narrow token permits only the operations listed in ``NARROW``. The operation that a server
   ran with that token must be one of them, and with no token may a server run an operation of a denied route.
2. With code of patgate: the match of the route table is the authorised operation. The server must run the same
   operation, entity and id, and read exactly the matched path.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from proxy.core.model import Access
from proxy.core.request.target import canonical_path, split_target
from proxy.core.routes import RouteTable
from tests.support.pathservers import PathServer

#: The ambiguous forms that each server reads as patgate does, and that a route to it may therefore allow.
ALLOW = {
    "nginx": ["semicolon", "encoded_percent"],
    "apache": ["semicolon", "encoded_slash", "encoded_percent"],
    "wsgi": ["semicolon", "encoded_percent"],
    "node": ["semicolon", "encoded_slash", "empty_segment", "encoded_percent"],
}

#: The prefix that routes cut off: a server reads ``/v1/…`` of ``/m/v1/…``.
MOUNT = "/m"

#: The area of a route to everything below the prefix that no other route denies: only the path is compared.
ANYTHING = "anything"

#: The name of each pattern's area in the servers' routers.
AREAS = {
    "/admin/**": "admin",
    "/public/**": "public",
    "/open/secret/**": "secret",
    "/open/**": "open",
    "/loose/**": "loose",
    "/v1/things/special": "special",
    "/v1/{entity}": "collection",
    "/v1/{entity}/{id}": "item",
    "/lenient/{entity}/{id}": "lenient",
    "/**": ANYTHING,
}

DENIED_AREAS = frozenset(("admin", "secret", "special", "other"))

#: The result of a server's router that redirects instead of running an operation.
REDIRECT = "redirect"

#: Route entities and captured entities share one name space, so no target captures the names used here.
NARROW_SCOPES = ("public-zone:read", "open-zone:read", "loose-zone:read", "things/7:read")
NARROW = frozenset(
    (method, area, entity, entity_id)
    for method in ("GET", "HEAD")
    for area, entity, entity_id in (
        ("public", b"", b""),
        ("open", b"", b""),
        ("loose", b"", b""),
        ("item", b"things", b"7"),
        ("lenient", b"things", b"7"),
    )
)


def routes(server: PathServer) -> list[dict[str, Any]]:
    """The gateway's routes for one server, selected by its host."""
    here = {"host": server.host, "upstream": server.name}
    mounted = {"strip_prefix": MOUNT} | here
    allow = ALLOW[server.name]
    return [
        {"path": "/admin/**", "access": "denied"} | here,
        {"path": "/public/**", "entity": "public-zone", "operations": {"GET": "read"}} | here,
        {"path": "/open/secret/**", "access": "denied"} | here,
        {"path": "/open/**", "entity": "open-zone", "operations": {"GET": "read", "PUT": "update"}} | here,
        {"path": "/loose/**", "entity": "loose-zone", "operations": {"GET": "read"}, "allow": allow} | here,
        {"path": "/v1/things/special", "access": "denied"} | here,
        {"path": "/v1/{entity}"} | here,
        {"path": "/v1/{entity}/{id}"} | here,
        {"path": "/lenient/{entity}/{id}", "allow": allow} | here,
        {"path": f"{MOUNT}/admin/**", "access": "denied"} | here,
        {"path": f"{MOUNT}/open/secret/**", "access": "denied"} | here,
        {"path": f"{MOUNT}/v1/things/special", "access": "denied"} | here,
        {"path": f"{MOUNT}/open/**", "entity": "open-zone", "operations": {"GET": "read", "PUT": "update"}} | mounted,
        {"path": f"{MOUNT}/v1/{{entity}}/{{id}}"} | mounted,
        {"path": f"{MOUNT}/**", "entity": "mount-zone", "operations": {"GET": "read"}, "allow": allow} | mounted,
    ]


#: The number of requests outside every round, for which no test checks whether a server saw them.
UNCOUNTED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One request to every server. ``wide`` selects its token: one for everything, or the narrow one."""

    number: int
    target: bytes
    method: str = "GET"
    wide: bool = True

    def for_host(self, host: str) -> bytes:
        return self.target.replace(b"HOST", host.encode("ascii"))


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """A request as one reader sees it; the path is decoded, except for encoded slashes in a segment (``%2F``)."""

    method: str
    area: str
    entity: bytes
    entity_id: bytes
    path: bytes

    @property
    def operation(self) -> tuple[str, str, bytes, bytes]:
        return self.method, self.area, self.entity, self.entity_id


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A response. ``status`` 0: the connection ended instead. Only a server's response has ``number`` and ``view``."""

    status: int
    by_gateway: bool
    number: int | None = None
    view: View | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A disagreement, which counts as a defect until it is understood."""

    server: str
    case: Case
    problem: str

    def __str__(self) -> str:
        token = "wide" if self.case.wide else "narrow"
        return f"{self.server}, {token} token: {self.case.method} {self.case.target!r}: {self.problem}"


class Judge:
    """Compares views with one route table; does no I/O."""

    def __init__(self, table: RouteTable) -> None:
        self.table = table

    def judge(self, server: PathServer, case: Case, answer: Answer) -> str | None:
        """The problem of a response, in a sentence, or None."""
        authorised = self.authorised(server, case)
        if answer.by_gateway or answer.status == 0:
            if answer.status not in (400, 403):
                return f"the gateway answered {answer.status}"
            if authorised is not None:
                return f"the gateway refused ({answer.status}) what its own route table authorises"
            return None
        if answer.number != case.number:
            return f"this is the answer to request {answer.number}"
        view = answer.view
        if view is None:
            return f"the server answered {answer.status} by itself, so nothing is known of what it read"
        anything = authorised is not None and authorised.area == ANYTHING
        if view.area in DENIED_AREAS and not (anything and view.area == "other"):
            return f"the server believes {view}, which no token opens"
        if view.area == REDIRECT:
            if authorised is None or view.path != authorised.path:
                return f"the server read {view.path!r}, authorised was {authorised}"
            return None
        if not case.wide and view.operation not in NARROW:
            return f"the server believes {view}, which the narrow token does not open"
        if anything and authorised is not None:
            view = replace(view, area=ANYTHING, entity=b"", entity_id=b"")
        if authorised is None:
            return f"the server believes {view}, and the route table authorises nothing"
        if view != authorised:
            return f"the server believes {view}, authorised was {authorised}"
        return None

    def authorised(self, server: PathServer, case: Case) -> View | None:
        """The operation that the route table and the token's scopes authorise; None refuses."""
        parts = split_target(case.for_host(server.host))
        if parts is None or (parts[0] is not None and parts[0].lower() != server.host.encode("ascii")):
            return None
        canonical = canonical_path(parts[1])
        if canonical is None:
            return None
        path, needs = canonical
        match = self.table.match(case.method, server.host, path)
        if match is None or needs & ~match.route.allow or match.route.access is not Access.TOKEN:
            return None
        if match.operation is None:
            return None
        pattern = match.route.path
        if match.route.strip_prefix:
            # The canonical path is cut, so that this checks how the gateway cuts the bytes.
            pattern, path = pattern.removeprefix(MOUNT), path.removeprefix(MOUNT) or "/"
            if path.startswith("//"):
                return None
        area = AREAS[pattern]
        captured = match.route.entity is None
        view = View(
            method=case.method,
            area=area,
            entity=slashes(match.entity or "", "/") if captured else b"",
            entity_id=slashes(match.entity_id or "", "/"),
            path=slashes(path.replace("%25", "%"), "%2F"),
        )
        return view if case.wide or view.operation in NARROW else None


def slashes(text: str, written: str) -> bytes:
    """``text`` with ``%2F`` written in one way: some servers show an encoded slash and these characters alike."""
    return text.replace("%2f", written).replace("%2F", written).encode()


def numbered(targets: Iterable[bytes], start: int) -> list[Case]:
    """Cases whose tokens and methods are selected by their number."""
    return [
        Case(number=number, target=target, method=_METHODS[number % len(_METHODS)], wide=number % 4 != 0)
        for number, target in enumerate(targets, start)
    ]


#: Mostly GET; an odd count, so that each method has both tokens, the narrow one every fourth time.
_METHODS = ("GET",) * 15 + ("PUT", "HEAD", "DELETE", "POST")
