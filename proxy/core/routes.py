"""The route table: finds the first route that matches a request, and the operation that the request needs.

1. The first matching route in the table's order wins; without a match the request is refused.
2. Paths are in the canonical form of ``request.target``. Matching is exact: case counts, and ``/a`` and ``/a/`` differ.
   Only a denied route may ignore letter case (``fold_case``). The query is not part of ``match``: if the
   first match has ``query`` conditions, the caller chooses among ``matches`` (``request.request_reading``).
3. ``{name}`` matches one whole segment of at least one character; an encoded slash does not end a segment. ``**`` is
   allowed only at the end and matches the rest, which may be empty: ``/ui/**`` matches ``/ui/`` and ``/ui/x``, not
   ``/ui``.
4. HEAD counts as GET unless a route names HEAD itself.
5. A method without an operation gives an operation of None, never a default.
6. The memory of a table is bounded by the configuration, not by requests.
7. An id that is composed of several captures is different for different captures: a slash of the pattern is between
   them, and no capture contains one, because such a route cannot allow encoded slashes.

Performance: a path is split once and matched segment by segment. A node represents the patterns that can still match;
each segment is one dict lookup. Nodes are created when a request first needs them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.core.model import Access, RefusalFormat
from proxy.core.request.query import Conditions
from proxy.core.request.target import PathAllowance, decoded_name, encoded_segments

if TYPE_CHECKING:
    from proxy.core.credential_places import CredentialPlaces
    from proxy.core.request.cors import CorsPolicy

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


def validate_id(path: str, template: str, *, encoded_slash: bool) -> None:
    """Raise PatternError unless ``template`` composes an id of captures of the valid pattern ``path`` (rule 7).

    ``encoded_slash``: the route allows encoded slashes.
    """
    parts = id_parts(template)
    names = [name for literal, name in parts if name]
    known = captures(path)
    for name in names:
        if name not in known:
            raise PatternError(f"the path has no {{{name}}}")
    if not names:
        raise PatternError("an id is composed of captures of the path, such as {scope}/{name}")
    if len(set(names)) < len(names):
        raise PatternError("an id names each capture once")
    literals = [literal for literal, _ in parts]
    if any(_NOT_LITERAL.search(literal) is not None for literal in literals):
        raise PatternError("the text between captures has no spaces, control characters or any of { } * % ? # \\")
    if any("/" not in literal for literal in literals[1 : len(names)]):
        raise PatternError("two captures need a / between them, or two paths could have one id")
    if encoded_slash and len(names) > 1:
        raise PatternError("an id of several captures excludes encoded_slash in allow, or two paths could have one id")


def id_parts(template: str) -> tuple[tuple[str, str], ...]:
    """The parts of a composed id: pairs of a literal and the capture after it, "" at the end."""
    pieces = _CAPTURE.split(template)
    return tuple(zip(pieces[::2], [*pieces[1::2], ""], strict=True))


def validate_prefix(path: str, prefix: str) -> None:
    """Raise PatternError unless ``prefix`` is a sequence of literal segments with which the pattern ``path`` begins."""
    validate_pattern(prefix)
    if prefix.endswith("/"):
        raise PatternError("a prefix does not end with /")
    if captures(prefix) or prefix.endswith(REST):
        raise PatternError("a prefix has only literal segments")
    if path != prefix and not path.startswith(f"{prefix}/"):
        raise PatternError("a prefix is the first segments of the route's path")


def folded_case(segment: str) -> str:
    """A form of a segment that is the same for all segments which differ only in case, by whichever rule of Unicode.

    By some rules the long s, the Kelvin sign and the Turkish i letters are ASCII letters in another case.
    """
    return segment.lower() if segment.isascii() else segment.upper().casefold().replace("i\u0307", "i")


def captures(path: str) -> frozenset[str]:
    """The capture names of a valid pattern."""
    return frozenset(found[1] for found in map(_CAPTURE.fullmatch, path.split("/")) if found is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """One route. Raises PatternError for an invalid pattern.

    ``name`` labels metrics; the default is the pattern, with the conditions on the query. ``operations`` (METHOD →
    operation) replaces the defaults: those of an item for a pattern with ``{id}`` or a composed id, else those of a
    collection. ``methods`` None is any method. ``host`` None is any host, ``*.example.com`` any host below it.
    ``query`` are the parameters that a request must have. ``entity_id`` composes the id of captures
    (``{scope}/{name}``). ``allow`` holds ``target.PathAllowance`` bits. ``fold_case`` ignores the case of letters in
    literals, on a denied route only. ``strip_prefix`` holds leading segments that the backend does not get.
    ``enforce`` False is report-only. ``second_targets`` holds the folded names of fields that name a second resource
    and are passed to this route's backend unchecked. ``credentials`` None: the places for tokens of the whole gateway;
    ``cors`` None: the CORS policy of the site; ``refusals`` None: the format of the whole gateway.
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
    query: Conditions = ()
    entity_id: str | None = None
    allow: int = 0
    fold_case: bool = False
    strip_prefix: str = ""
    enforce: bool = True
    second_targets: frozenset[bytes] = frozenset()
    credentials: CredentialPlaces | None = None
    cors: CorsPolicy | None = None
    refusals: RefusalFormat | None = None
    prefix: bytes = field(init=False, default=b"")
    """``strip_prefix`` percent-encoded."""

    def __post_init__(self) -> None:
        validate_pattern(self.path)
        if self.entity_id is not None:
            encoded_slash = self.allow & PathAllowance.ENCODED_SLASH != 0
            validate_id(self.path, self.entity_id, encoded_slash=encoded_slash)
        if self.fold_case and self.access is not Access.DENIED:
            raise PatternError("only a denied route can ignore letter case")
        if self.strip_prefix:
            validate_prefix(self.path, self.strip_prefix)
            object.__setattr__(self, "prefix", encoded_segments(self.strip_prefix))
        if not self.name:
            object.__setattr__(self, "name", route_name(self.path, self.query))

    @property
    def effective_operations(self) -> Mapping[str, str]:
        """The operation of each method, including HEAD."""
        if self.operations:
            given: Mapping[str, str] = self.operations
        else:
            item = self.entity_id is not None or "id" in captures(self.path)
            given = ITEM_OPERATIONS if item else COLLECTION_OPERATIONS
        return given if "HEAD" in given or "GET" not in given else {**given, "HEAD": given["GET"]}

    def serves(self, method: str) -> bool:
        """Whether the route matches requests with this method."""
        return self.methods is None or method in self.methods or (method == "HEAD" and "GET" in self.methods)


def route_name(path: str, query: Conditions) -> str:
    """The default name of a route: its pattern, and its conditions in the form of a query."""
    return path if not query else f"{path}?{'&'.join(f'{name.decode()}={value.decode()}' for name, value in query)}"


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
    composed: tuple[tuple[str, int], ...] | None
    """The parts of a composed id: pairs of a literal and the index of the capture after it, 0 at the end."""
    fixed: Mapping[str, Match] | None
    """Without captures, all possible matches: by method, and under "" for a method without an operation."""


class _Pattern(NamedTuple):
    """A route's pattern as segments, the first one ""; None is a capture, ``**`` the rest.

    ``fold``: the literals are in the form of ``folded_case`` and match any case. ``always``: no condition on the query.
    """

    segments: tuple[str | None, ...]
    leaf: _Leaf
    fold: bool
    always: bool


class _Node:
    """The state after some segments: the patterns that can still match, in the table's order.

    ``following`` maps each literal that one of them has next to its node, or None until a request first needs it;
    ``other`` is the node for all other segments. ``leaf`` is the first route if the path ends here. A node whose
    patterns all match any rest, or that has none, is its own successor.

    Where a pattern ignores letter case, ``other`` stays None, so that ``step`` sees every segment that is not in
    ``following``: ``folded`` has the nodes for the folded literals, and ``rest`` is the node for the others.
    """

    __slots__ = ("alive", "depth", "folded", "following", "leaf", "other", "rest")

    def __init__(self, alive: tuple[_Pattern, ...], depth: int) -> None:
        # A pattern after one that always matches any rest can never win.
        for number, pattern in enumerate(alive):
            if pattern.always and _takes_rest(pattern, depth):
                alive = alive[: number + 1]
                break
        self.alive: Final = alive
        self.depth: Final = depth
        self.leaf: Final = next((pattern.leaf for pattern in alive if _ends(pattern, depth)), None)
        self.other: _Node | None = None
        self.rest: _Node | None = None
        self.folded: Final[dict[str, _Node | None]] = {}
        self.following: Final[dict[str, _Node | None]] = {}
        if all([_takes_rest(pattern, depth) for pattern in alive]):
            self.other = self
            return
        # An empty segment never matches a capture, so every node has it as a literal.
        self.following[""] = None
        for pattern in alive:
            if depth < len(pattern.segments):
                segment = pattern.segments[depth]
                if segment is not None and segment != REST:
                    self.following[segment] = None
                    if pattern.fold:
                        self.folded[segment] = None

    def step(self, segment: str) -> _Node:
        """The node after ``segment``; creates it if it does not exist."""
        known = segment in self.following
        folded = folded_case(segment) if self.folded and not known else ""
        node = self.folded.get(folded, self.rest) if self.folded and not known else None
        if node is not None:
            return node
        alive = tuple([pattern for pattern in self.alive if _continues(pattern, self.depth, segment)])
        node = _Node(alive, self.depth + 1)
        if known:
            self.following[segment] = node
        elif not self.folded:
            self.other = node
        elif folded in self.folded:
            self.folded[folded] = node
        else:
            self.rest = node
        return node

    def ends(self) -> tuple[_Leaf, ...]:
        """Every route that matches a path which ends here, in the table's order."""
        return tuple([pattern.leaf for pattern in self.alive if _ends(pattern, self.depth)])


def _takes_rest(pattern: _Pattern, depth: int) -> bool:
    """Whether the ``**`` of a pattern has already matched a segment at this depth."""
    return pattern.segments[-1] == REST and depth >= len(pattern.segments)


def _ends(pattern: _Pattern, depth: int) -> bool:
    """Whether a pattern matches a path that ends at this depth."""
    return len(pattern.segments) == depth or _takes_rest(pattern, depth)


def _continues(pattern: _Pattern, depth: int, segment: str) -> bool:
    """Whether a pattern still matches with ``segment`` at ``depth``."""
    if depth >= len(pattern.segments):
        return _takes_rest(pattern, depth)
    expected = pattern.segments[depth]
    if expected is None:
        return segment != ""
    return expected in (REST, segment) or (pattern.fold and folded_case(segment) == expected)


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
        """The first match for a method, a ``Host`` value (its port is ignored) and a canonical path, or None.

        Conditions on the query are not checked.
        """
        segments = path.split("/")
        leaf = self._end(method, host, segments).leaf
        return None if leaf is None else _match(leaf, method, segments, path)

    def matches(self, method: str, host: str, path: str) -> tuple[Match, ...]:
        """Every match in the table's order; none after the first without conditions on the query can win."""
        segments = path.split("/")
        return tuple([_match(leaf, method, segments, path) for leaf in self._end(method, host, segments).ends()])

    def _end(self, method: str, host: str, segments: list[str]) -> _Node:
        """The node at which a path ends."""
        roots = self._any_host
        if roots is None:
            of = host if host in self._hosts else self._host_class(host)
            roots = self._by_host.get(of) or self._roots(of)
        node = roots.get(method) or roots[""]
        for segment in segments:
            node = node.following.get(segment, node.other) or node.step(segment)
        return node

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


def _match(leaf: _Leaf, method: str, segments: list[str], path: str) -> Match:
    """The match of a route for the segments of ``path``."""
    route, operations, entity_at, id_at, org_at, composed, fixed = leaf
    if fixed is not None:
        return fixed.get(method) or fixed[""]
    entity = segments[entity_at] if entity_at else route.entity
    entity_id = segments[id_at] if id_at else None
    org = segments[org_at] if org_at else None
    if "%" in path:
        entity, entity_id, org = _decoded(entity), _decoded(entity_id), _decoded(org)
    if composed is not None:
        entity_id = "".join([literal + decoded_name(segments[at]) for literal, at in composed])
    # The generated constructor would cost as much as the matching.
    return _new_match(Match, (route, entity, entity_id, operations.get(method), org))


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
    at: dict[str, int] = {}
    segments: list[str | None] = []
    for number, segment in enumerate(route.path.split("/")):
        capture = _CAPTURE.fullmatch(segment)
        segments.append((folded_case(segment) if route.fold_case else segment) if capture is None else None)
        if capture is not None:
            at[capture[1]] = number
    composed = None
    if route.entity_id is not None:
        # Segment 0 is always "", so it stands for no capture at the end.
        composed = tuple([(literal, at[name] if name else 0) for literal, name in id_parts(route.entity_id)])
    # The entity of the route has precedence over a captured one.
    entity_at = at.get("entity", 0) if route.entity is None else 0
    id_at = at.get("id", 0) if composed is None else 0
    org_at = at.get("org", 0)
    operations = dict(route.effective_operations)
    fixed = None
    if not entity_at and not id_at and not org_at and composed is None:
        fixed = {method: Match(route, route.entity, None, operation, None) for method, operation in operations.items()}
        fixed[""] = Match(route, route.entity, None, None, None)
    leaf = _Leaf(route, operations, entity_at, id_at, org_at, composed, fixed)
    return _Pattern(tuple(segments), leaf, route.fold_case, not route.query)


def _decoded(captured: str | None) -> str | None:
    return None if captured is None else decoded_name(captured)
