"""The route table: the first route that fits a request, and what the request asks of it.

1. The first route in the table's order wins; no route is no match, which is refused.
2. Paths come in the match form of `target`; matching is exact: case counts, `/a` and `/a/` differ, the query is unknown here.
3. `{name}` is one whole segment of at least one character and never spans an encoded slash's two sides as two
   segments; `**` stands last and is the rest, which may be empty (`/ui/**` has `/ui/` and `/ui/x`, not `/ui`).
4. HEAD counts as GET unless a route names HEAD itself.
5. A method that a route has no operation for gives an operation of None, never a default.
6. What is remembered here is bounded by the configuration, not by what requests bring.

How it is fast: the routes that can fit a request are few once its method, host, first segment and depth are known.
For each such combination that occurs, one alternation of their patterns is compiled when it is first needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple

from proxy.core.model import Access

ITEM_OPERATIONS: Final[Mapping[str, str]] = MappingProxyType(
    {"GET": "read", "PUT": "update", "PATCH": "update", "DELETE": "delete"}
)
COLLECTION_OPERATIONS: Final[Mapping[str, str]] = MappingProxyType({"GET": "list", "POST": "create"})

REST: Final = "**"
_CAPTURE: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}", re.ASCII)
_NOT_LITERAL: Final = re.compile(r"[\x00-\x20\x7f-\x9f{}*%?#\\]")


class PatternError(ValueError):
    """A path pattern that cannot be used; the message says why."""


def validate_pattern(path: str) -> None:
    """Raise PatternError unless `path` is a pattern. Literals are written decoded (`/café`), without escapes."""
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
                raise PatternError("** stands only at the end of a path pattern")
        elif not segment:
            if not last:
                raise PatternError("a path pattern has no empty segments")
        elif segment.strip() in (".", ".."):
            raise PatternError("a path pattern has no . or .. segments")
        elif _NOT_LITERAL.search(segment) is not None:
            raise PatternError(
                "a segment is {name}, a final **, or literal text without spaces, control characters and any of { } * % ? # \\"
            )


def captures(path: str) -> frozenset[str]:
    """The names that a valid pattern captures."""
    return frozenset(found[1] for found in map(_CAPTURE.fullmatch, path.split("/")) if found is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """One route. Raises PatternError for a pattern that is none.

    `name` labels metrics and is the pattern unless given. `operations` (METHOD → operation), if any, are all there are;
    else the defaults apply: with `{id}` those of an item, without those of a collection. `methods` None is any method.
    `host` None is any host, `*.example.com` any host below it. `allow` holds `target.Allowance` bits.
    `enforce` False is report only.
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

    def __post_init__(self) -> None:
        validate_pattern(self.path)
        if not self.name:
            object.__setattr__(self, "name", self.path)

    @property
    def effective_operations(self) -> Mapping[str, str]:
        """The operation of each method, HEAD included."""
        if self.operations:
            given: Mapping[str, str] = self.operations
        else:
            given = ITEM_OPERATIONS if "id" in captures(self.path) else COLLECTION_OPERATIONS
        return given if "HEAD" in given or "GET" not in given else {**given, "HEAD": given["GET"]}

    def serves(self, method: str) -> bool:
        """Whether the route takes part for this method."""
        return self.methods is None or method in self.methods or (method == "HEAD" and "GET" in self.methods)


class Match(NamedTuple):
    """What a request asks for. `operation` None: the route names none for the method. `org` None: the route names none."""

    route: Route
    entity: str | None
    entity_id: str | None
    operation: str | None
    org: str | None


class _Candidate(NamedTuple):
    """A route inside one compiled alternation: the group numbers of its captures, 0 where it has none."""

    route: Route
    operations: Mapping[str, str]
    entity: int
    entity_id: int
    org: int
    fixed: Mapping[str, Match] | None
    """Without captures, every match there can be: by method, and under "" for a method without an operation."""


class _Bucket(NamedTuple):
    regex: re.Pattern[str]
    by_group: tuple[_Candidate | None, ...]


_Key = tuple[str | None, str | None, str | None, int]


class RouteTable:
    """The routes in their order. Immutable but for what it has compiled; not for use from several threads at once."""

    __slots__ = ("_buckets", "_depth", "_firsts", "_hosts", "_methods", "_wildcards", "routes")

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes: Final = tuple(routes)
        self._methods: Final = frozenset(
            method
            for route in self.routes
            for name in route.methods or ()
            for method in ((name, "HEAD") if name == "GET" else (name,))
        )
        hosts = {route.host.lower() for route in self.routes if route.host is not None}
        self._hosts: Final = frozenset(host for host in hosts if not host.startswith("*."))
        # Longest first: a host below the longest suffix is below the shorter ones that end it too.
        self._wildcards: Final = tuple(sorted((host[1:] for host in hosts if host.startswith("*.")), key=len, reverse=True))
        firsts = (route.path.split("/", 2)[1] for route in self.routes)
        self._firsts: Final = frozenset(first for first in firsts if first != REST and _CAPTURE.fullmatch(first) is None)
        self._depth: Final = 1 + max((route.path.count("/") for route in self.routes), default=0)
        self._buckets: Final[dict[_Key, _Bucket | None]] = {}

    def match(self, method: str, host: str, path: str) -> Match | None:
        """The first route for this method, host (a `Host` value; its port does not count) and path in match form, or None."""
        end = path.find("/", 1)
        first: str | None = path[1:] if end < 0 else path[1:end]
        if first not in self._firsts:
            first = None
        depth = path.count("/")
        if depth > self._depth:
            depth = self._depth
        key = (
            method if method in self._methods else None,
            self._host_class(host) if self._hosts or self._wildcards else None,
            first,
            depth,
        )
        try:
            bucket = self._buckets[key]
        except KeyError:
            bucket = self._buckets[key] = self._compile(method, key)
        if bucket is None:
            return None
        found = bucket.regex.match(path)
        if found is None:
            return None
        candidate = bucket.by_group[found.lastindex or 0]
        if candidate is None:
            return None
        route, operations, entity_group, id_group, org_group, fixed = candidate
        if fixed is not None:
            return fixed.get(method) or fixed[""]
        entity = found[entity_group] if entity_group else route.entity
        entity_id = found[id_group] if id_group else None
        org = found[org_group] if org_group else None
        if "%" in path:
            entity, entity_id, org = _slashes(entity), _slashes(entity_id), _slashes(org)
        return Match(route, entity, entity_id, operations.get(method), org)

    def _host_class(self, host: str) -> str | None:
        """Which of the configured hosts a request's host is: itself, the longest wildcard above it, or none."""
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

    def _compile(self, method: str, key: _Key) -> _Bucket | None:
        _, host, first, depth = key
        parts: list[str] = []
        by_group: list[_Candidate | None] = [None]
        for route in self.routes:
            if not (route.serves(method) and _host_fits(route.host, host) and self._shape_fits(route.path, first, depth)):
                continue
            part, candidate = _alternative(route, len(by_group))
            parts.append(part)
            # The last group that closes is the empty one at a route's end: `lastindex` names the route.
            by_group.extend([None] * (_groups(candidate)))
            by_group.append(candidate)
        if not parts:
            return None
        return _Bucket(re.compile("|".join(parts), re.DOTALL), tuple(by_group))

    def _shape_fits(self, pattern: str, first: str | None, depth: int) -> bool:
        segments = pattern.split("/")[1:]
        if segments[0] != REST and _CAPTURE.fullmatch(segments[0]) is None and segments[0] != first:
            return False
        if segments[-1] == REST:
            return depth >= len(segments)
        # A depth at the table's bound stands for every deeper one too; no pattern without ** reaches it.
        return depth == len(segments)


def _host_fits(rule: str | None, host: str | None) -> bool:
    """Whether a route for `rule` serves the host class `host`."""
    if rule is None:
        return True
    if host is None:
        return False
    rule = rule.lower()
    if rule == host:
        return True
    return rule.startswith("*.") and host.removeprefix("*").endswith(rule[1:]) and len(host.removeprefix("*")) > len(rule[1:])


def _alternative(route: Route, group: int) -> tuple[str, _Candidate]:
    """The route's regular expression, whose groups begin at `group`, and the candidate that reads them."""
    groups = {"entity": 0, "id": 0, "org": 0}
    parts: list[str] = []
    for segment in route.path.split("/")[1:]:
        capture = _CAPTURE.fullmatch(segment)
        if segment == REST:
            parts.append("/.*")
        elif capture is None:
            parts.append("/" + re.escape(segment))
        elif capture[1] in groups and not (capture[1] == "entity" and route.entity is not None):
            groups[capture[1]] = group
            group += 1
            parts.append("/([^/]++)")
        else:
            parts.append("/[^/]++")
    operations = dict(route.effective_operations)
    fixed = None
    if not any(groups.values()):
        fixed = {method: Match(route, route.entity, None, operation, None) for method, operation in operations.items()}
        fixed[""] = Match(route, route.entity, None, None, None)
    candidate = _Candidate(route, operations, groups["entity"], groups["id"], groups["org"], fixed)
    return "".join(parts) + r"\Z()", candidate


def _groups(candidate: _Candidate) -> int:
    return sum(1 for group in (candidate.entity, candidate.entity_id, candidate.org) if group)


def _slashes(captured: str | None) -> str | None:
    return None if captured is None else captured.replace("%2F", "/")
