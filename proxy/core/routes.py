"""The route table: finds the first route that matches a request, and the operation that the request needs.

1. The first matching route in the table's order wins; without a match the request is refused.
2. Paths are in the canonical form of ``request.target``. Matching is exact: case counts, ``/a`` and ``/a/`` differ, and
   the query is not part of it.
3. ``{name}`` matches one whole segment of at least one character; an encoded slash does not end a segment. ``**`` is
   allowed only at the end and matches the rest, which may be empty: ``/ui/**`` matches ``/ui/`` and ``/ui/x``, not
   ``/ui``.
4. HEAD counts as GET unless a route names HEAD itself.
5. A method without an operation gives an operation of None, never a default.
6. The memory of a table is bounded by the configuration, not by requests.

Performance: a path is split once and matched segment by segment. A node represents the patterns that can still match;
each segment is one dict lookup. Nodes are created when a request first needs them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.core.model import Access

if TYPE_CHECKING:
    from proxy.core.cors import CorsPolicy
    from proxy.core.credential_places import CredentialPlaces

ITEM_OPERATIONS: Final[Mapping[str, str]] = MappingProxyType(
    {"GET": "read", "PUT": "update", "PATCH": "update", "DELETE": "delete"}
)
COLLECTION_OPERATIONS: Final[Mapping[str, str]] = MappingProxyType({"GET": "list", "POST": "create"})

REST: Final = "**"
_CAPTURE: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}", re.ASCII)
_NOT_LITERAL: Final = re.compile(r"[\x00-\x20\x7f-\x9f{}*%?#\\]")


class PatternError(ValueError):
    """A path pattern is invalid; the message says why."""


def validate_pattern(path: str) -> None:
    """Raise PatternError unless ``path`` is a valid pattern. Literals are in decoded form (``/café``)."""
    if not path.startswith("/"):
        raise PatternError("a path pattern begins with /")
    seen: set[str] = set()
    segments = path.split("/")[1:]
    for number, segment in enumerate(segments):
        last = number == len(segments) - 1
        capture = _CAPTURE.fullmatch(segment)
        if capture is not None:
            if capture[1] in seen:
                raise PatternError(f"the capture {{{capture[1]}}} occurs twice")
            seen.add(capture[1])
        elif segment == REST:
            if not last:
                raise PatternError("** is allowed only at the end of a path pattern")
        elif not segment:
            if not last:
                raise PatternError("a path pattern has no empty segments")
        elif segment.strip() in (".", ".."):
            raise PatternError("a path pattern has no . or .. segments")
        elif _NOT_LITERAL.search(segment) is not None:
            raise PatternError(
                "a segment is {name}, a final **, or literal text without spaces, control characters "
                "and any of { } * % ? # \\"
            )


def captures(path: str) -> frozenset[str]:
    """The capture names of a valid pattern."""
    return frozenset(found[1] for found in map(_CAPTURE.fullmatch, path.split("/")) if found is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """One route. Raises PatternError for an invalid pattern.

    ``name`` labels metrics; the default is the pattern. ``operations`` (METHOD → operation) replaces the defaults:
    those of an item for a pattern with ``{id}``, else those of a collection. ``methods`` None is any method. ``host``
    None is any host, ``*.example.com`` any host below it. ``allow`` holds ``target.PathAllowance`` bits. ``enforce``
    False is report-only. ``second_targets`` holds the folded names of fields that name a second resource and are passed
    to this route's backend unchecked. ``credentials`` None: the places for tokens of the whole gateway; ``cors`` None:
    the CORS policy of the site.
    """

    index: int
    path: str
    upstream: str = ""
    name: str = ""
    access: Access = Access.TOKEN
    entity: str | None = None
    operations: Mapping[str, str] = field(default_factory=dict, hash=False)
    methods: frozenset[str] | None = None
    host: str | None = None
    allow: int = 0
    enforce: bool = True
    second_targets: frozenset[bytes] = frozenset()
    credentials: CredentialPlaces | None = None
    cors: CorsPolicy | None = None

    def __post_init__(self) -> None:
        validate_pattern(self.path)
        if not self.name:
            object.__setattr__(self, "name", self.path)

    @property
    def effective_operations(self) -> Mapping[str, str]:
        """The operation of each method, including HEAD."""
        if self.operations:
            given: Mapping[str, str] = self.operations
        else:
            given = ITEM_OPERATIONS if "id" in captures(self.path) else COLLECTION_OPERATIONS
        return given if "HEAD" in given or "GET" not in given else {**given, "HEAD": given["GET"]}

    def serves(self, method: str) -> bool:
        """Whether the route matches requests with this method."""
        return self.methods is None or method in self.methods or (method == "HEAD" and "GET" in self.methods)


class Match(NamedTuple):
    """The route of a request and what it needs there.

    ``operation`` is None if the route names none for the method, ``org`` if the route names no organisation.
    """

    route: Route
    entity: str | None
    entity_id: str | None
    operation: str | None
    org: str | None


class _Leaf(NamedTuple):
    """A route and the index of each capture in a split path; 0 for no such capture (segment 0 is always "")."""

    route: Route
    operations: Mapping[str, str]
    entity: int
    entity_id: int
    org: int
    fixed: Mapping[str, Match] | None
    """Without captures, all possible matches: by method, and under "" for a method without an operation."""


class _Pattern(NamedTuple):
    """A route's pattern as segments, the first one ""; None is a capture, ``**`` the rest."""

    segments: tuple[str | None, ...]
    leaf: _Leaf


class _Node:
    """The state after some segments: the patterns that can still match, in the table's order.

    ``following`` maps each literal that one of them has next to its node, or None until a request first needs it;
    ``other`` is the node for all other segments. ``leaf`` is the route if the path ends here. A node without a possible
    next segment, or whose first pattern matches any rest, is its own successor.
    """

    __slots__ = ("alive", "depth", "following", "leaf", "other")

    def __init__(self, alive: tuple[_Pattern, ...], depth: int) -> None:
        # A pattern after one that matches any rest can never win.
        for number, pattern in enumerate(alive):
            if _takes_rest(pattern, depth):
                alive = alive[: number + 1]
                break
        self.alive: Final = alive
        self.depth: Final = depth
        self.leaf: Final = next(
            (pattern.leaf for pattern in alive if _takes_rest(pattern, depth) or len(pattern.segments) == depth), None
        )
        self.other: _Node | None = None
        self.following: Final[dict[str, _Node | None]] = {}
        if not alive or _takes_rest(alive[0], depth):
            self.other = self
            return
        # An empty segment never matches a capture, so every node has it as a literal.
        self.following[""] = None
        for pattern in alive:
            if depth < len(pattern.segments):
                segment = pattern.segments[depth]
                if segment is not None and segment != REST:
                    self.following[segment] = None

    def step(self, segment: str) -> _Node:
        """The node after ``segment``; creates it."""
        known = segment in self.following
        alive = tuple(pattern for pattern in self.alive if _continues(pattern, self.depth, segment))
        node = _Node(alive, self.depth + 1)
        if known:
            self.following[segment] = node
        else:
            self.other = node
        return node


def _takes_rest(pattern: _Pattern, depth: int) -> bool:
    """Whether the ``**`` of a pattern has already matched a segment at this depth."""
    return pattern.segments[-1] == REST and depth >= len(pattern.segments)


def _continues(pattern: _Pattern, depth: int, segment: str) -> bool:
    """Whether a pattern still matches with ``segment`` at ``depth``."""
    if depth >= len(pattern.segments):
        return _takes_rest(pattern, depth)
    expected = pattern.segments[depth]
    return expected == REST or (segment != "" if expected is None else segment == expected)


class RouteTable:
    """The routes in their order. Immutable except for its nodes, and therefore not thread-safe."""

    __slots__ = ("_any_host", "_by_host", "_hosts", "_methods", "_patterns", "_wildcards", "routes")

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes: Final = tuple(routes)
        self._patterns: Final = tuple(_pattern(route) for route in self.routes)
        self._methods: Final = frozenset(
            method
            for route in self.routes
            for name in route.methods or ()
            for method in ((name, "HEAD") if name == "GET" else (name,))
        )
        hosts = {route.host.lower() for route in self.routes if route.host is not None}
        self._hosts: Final = frozenset(host for host in hosts if not host.startswith("*."))
        # Longest first: a host below the longest suffix is below the shorter ones that end it too.
        self._wildcards: Final = tuple(
            sorted((host[1:] for host in hosts if host.startswith("*.")), key=len, reverse=True)
        )
        self._by_host: Final[dict[str | None, dict[str, _Node]]] = {}
        self._any_host: Final = None if hosts else self._roots(None)

    def match(self, method: str, host: str, path: str) -> Match | None:
        """The first match for a method, a ``Host`` value (its port is ignored) and a canonical path, or None."""
        roots = self._any_host
        if roots is None:
            of = host if host in self._hosts else self._host_class(host)
            roots = self._by_host.get(of) or self._roots(of)
        node = roots.get(method) or roots[""]
        segments = path.split("/")
        for segment in segments:
            node = node.following.get(segment, node.other) or node.step(segment)
        leaf = node.leaf
        if leaf is None:
            return None
        route, operations, entity_at, id_at, org_at, fixed = leaf
        if fixed is not None:
            return fixed.get(method) or fixed[""]
        entity = segments[entity_at] if entity_at else route.entity
        entity_id = segments[id_at] if id_at else None
        org = segments[org_at] if org_at else None
        if "%" in path:
            entity, entity_id, org = _slashes(entity), _slashes(entity_id), _slashes(org)
        # The generated constructor would cost as much as the matching.
        return _new_match(Match, (route, entity, entity_id, operations.get(method), org))

    def _host_class(self, host: str) -> str | None:
        """The configured host for a request's host: the same one, the longest wildcard that matches, or None."""
        name = host.lower()
        if not name.endswith("]"):
            before, colon, port = name.rpartition(":")
            if colon and (not port or port.isdecimal()):
                name = before
        name = name.removesuffix(".")
        if name in self._hosts:
            return name
        for suffix in self._wildcards:
            if name.endswith(suffix) and len(name) > len(suffix):
                return "*" + suffix
        return None

    def _roots(self, host: str | None) -> dict[str, _Node]:
        """The root nodes for a host class: by method, and under "" for methods that no route names."""
        here = tuple(pattern for pattern in self._patterns if _host_fits(pattern.leaf.route.host, host))
        roots = {
            method: _Node(tuple(pattern for pattern in here if pattern.leaf.route.serves(method)), 0)
            for method in (*self._methods, "")
        }
        self._by_host[host] = roots
        return roots


_new_match: Final = tuple.__new__


def _host_fits(rule: str | None, host: str | None) -> bool:
    """Whether a route with the host ``rule`` matches the host class ``host``."""
    if rule is None:
        return True
    if host is None:
        return False
    rule, host = rule.lower(), host.removeprefix("*")
    if rule.startswith("*."):
        return host.endswith(rule[1:]) and (len(host) > len(rule) - 1 or host.startswith("."))
    return rule == host


def _pattern(route: Route) -> _Pattern:
    """The compiled pattern of a route."""
    at = {"entity": 0, "id": 0, "org": 0}
    segments: list[str | None] = []
    for number, segment in enumerate(route.path.split("/")):
        capture = _CAPTURE.fullmatch(segment)
        segments.append(segment if capture is None else None)
        if capture is not None and capture[1] in at:
            at[capture[1]] = number
    if route.entity is not None:
        # The entity of the route has precedence over a captured one.
        at["entity"] = 0
    operations = dict(route.effective_operations)
    fixed = None
    if not any(at.values()):
        fixed = {method: Match(route, route.entity, None, operation, None) for method, operation in operations.items()}
        fixed[""] = Match(route, route.entity, None, None, None)
    return _Pattern(tuple(segments), _Leaf(route, operations, at["entity"], at["id"], at["org"], fixed))


def _slashes(captured: str | None) -> str | None:
    return None if captured is None else captured.replace("%2F", "/")
