"""Rules about routes: each by itself, and each against the ones before it."""

from collections.abc import Iterator
from itertools import takewhile

from proxy.core.model import Access
from proxy.core.request.claims import fold
from proxy.core.request.query import ANY
from proxy.core.routes import REST, PatternError, captures, folded_case, validate_id, validate_prefix
from proxy.settings.checks.candidate import Candidate, RuleViolation
from proxy.settings.model import Settings
from proxy.settings.problems import Loc, suggestion
from proxy.settings.sections.routes import RouteSettings
from proxy.settings.values import quoted


def meanings(candidate: Candidate) -> Iterator[RuleViolation]:
    """Routes whose fields contradict each other."""
    for index, route in enumerate(candidate.settings.routes):
        loc: Loc = ("routes", index)
        if loc in candidate.holes:
            continue
        yield from _route_upstream(candidate, loc, route)
        if all(candidate.sound((*loc, name)) for name in ("path", "entity", "id", "access", "operations")):
            yield from _route_meaning(loc, route)
        yield from _route_form(candidate, loc, route)
        if route.methods is not None and candidate.sound((*loc, "methods")):
            for method in route.operations or ():
                if method not in route.methods:
                    message = f"names {method}, which methods does not list, so it can never match"
                    yield RuleViolation(loc=(*loc, "operations", method), message=message)


def _route_upstream(candidate: Candidate, loc: Loc, route: RouteSettings) -> Iterator[RuleViolation]:
    loc = (*loc, "upstream")
    known = candidate.upstreams
    if not candidate.sound(loc) or known is None:
        return
    if route.upstream is None:
        if route.access is not Access.DENIED and candidate.sound((*loc[:-1], "access")):
            yield RuleViolation(loc=loc, message="is required here, because the route is not denied")
    elif route.upstream not in known:
        message = f"unknown upstream {quoted(route.upstream)}{suggestion(route.upstream, known)}"
        yield RuleViolation(loc=loc, message=message)


def _route_meaning(loc: Loc, route: RouteSettings) -> Iterator[RuleViolation]:
    """A token route needs an entity; on other routes entity and operations have no meaning."""
    if route.access is not Access.TOKEN:
        for name in ("entity", "id", "operations"):
            if getattr(route, name) is not None:
                message = f"has no meaning on a route whose access is {route.access}: no token is checked there"
                yield RuleViolation(loc=(*loc, name), message=message)
        return
    captured = "entity" in captures(route.path)
    if route.entity is None and not captured:
        yield RuleViolation(loc=(*loc, "entity"), message="is required here, because the path has no {entity}")
    elif route.entity is not None and captured:
        yield RuleViolation(loc=(*loc, "entity"), message="conflicts with {entity} in the path; keep one of the two")


def _route_form(candidate: Candidate, loc: Loc, route: RouteSettings) -> Iterator[RuleViolation]:
    """A composed id, a prefix or ``fold_case`` that does not fit the rest of the route."""
    sound = candidate.sound((*loc, "path"))
    if route.id is not None and sound and all(candidate.sound((*loc, name)) for name in ("id", "allow")):
        try:
            validate_id(route.path, route.id, encoded_slash="encoded_slash" in route.allow)
        except PatternError as error:
            yield RuleViolation(loc=(*loc, "id"), message=f"{quoted(route.id)} is not an id: {error}")
    if route.strip_prefix is not None and sound and candidate.sound((*loc, "strip_prefix")):
        if route.access is Access.DENIED:
            message = "has no meaning on a denied route: nothing is forwarded"
            yield RuleViolation(loc=(*loc, "strip_prefix"), message=message)
        try:
            validate_prefix(route.path, route.strip_prefix)
        except PatternError as error:
            yield RuleViolation(loc=(*loc, "strip_prefix"), message=f"does not fit the path: {error}")
    if route.fold_case and route.access is not Access.DENIED and candidate.sound((*loc, "access")):
        message = f"has a meaning only on a denied route, and the access of this one is {route.access}"
        yield RuleViolation(loc=(*loc, "fold_case"), message=message)


def second_targets(candidate: Candidate) -> Iterator[RuleViolation]:
    """A route can list only headers of ``headers.second_targets``: all others pass anyway."""
    if not candidate.sound(("headers",)):
        return
    known = {fold(name.encode("ascii")) for name in candidate.settings.headers.second_targets}
    for index, route in enumerate(candidate.settings.routes):
        for place, name in enumerate(route.second_targets):
            loc: Loc = ("routes", index, "second_targets", place)
            if fold(name.encode("ascii")) not in known and candidate.sound(loc):
                yield RuleViolation(
                    loc=loc, message=f"{quoted(name)} is not in headers.second_targets, so it passes anyway"
                )


def unreachable(candidate: Candidate) -> Iterator[RuleViolation]:
    """Routes that can never match."""
    # Compare a route only with those whose literal prefix it shares, so that thousands of routes are fast to check.
    seen: dict[tuple[str, ...], list[int]] = {}
    routes = candidate.settings.routes
    for later, route in enumerate(routes):
        if not all(candidate.sound(("routes", later, name)) for name in ("path", "host", "methods")):
            continue
        segments = tuple(_folded(segment) for segment in route.path.split("/")[1:])
        shared = (index for length in range(len(segments) + 1) for index in seen.get(segments[:length], ()))
        earlier = min((index for index in shared if covers(routes[index], route)), default=None)
        if earlier is not None:
            same = "is the same as" if routes[earlier].path == route.path else "is covered by"
            yield RuleViolation(
                loc=("routes", later, "path"),
                message=f"can never match, because it {same} routes[{earlier}].path and the first match wins",
                other=("routes", earlier, "path"),
            )
        literal = tuple(takewhile(lambda segment: segment != REST and not segment.startswith("{"), segments))
        seen.setdefault(literal, []).append(later)


def covers(first: RouteSettings, second: RouteSettings) -> bool:
    """Whether the first route matches every request that the second one matches."""
    if first.methods is not None and (second.methods is None or not set(second.methods) <= set(first.methods)):
        return False
    wanted = second.query or {}
    if not all(name in wanted and value in (ANY, wanted[name]) for name, value in (first.query or {}).items()):
        return False
    return _host_covers(first.host, second.host) and _path_covers(*_segments(first, second))


def _segments(first: RouteSettings, second: RouteSettings) -> tuple[list[str], list[str]]:
    """The segments of two patterns, comparable by value: literals of a pattern that ignores case are folded.

    A pattern that does not ignore case never covers one that does, except by captures.
    """
    mine, theirs = first.path.split("/")[1:], second.path.split("/")[1:]
    if first.fold_case:
        return [_folded(segment) for segment in mine], [_folded(segment) for segment in theirs]
    if second.fold_case:
        # A mark that no literal has: letters can be of another case than those of the first pattern.
        return mine, [f"*{segment}" if has_letters(segment) else segment for segment in theirs]
    return mine, theirs


def _folded(segment: str) -> str:
    return segment if segment.startswith("{") else folded_case(segment)


def has_letters(segment: str) -> bool:
    """Whether a segment is a literal with ASCII letters."""
    return not segment.startswith("{") and any(char.isascii() and char.isalpha() for char in segment)


def _host_covers(first: str | None, second: str | None) -> bool:
    if first is None or first == second:
        return True
    return second is not None and first.startswith("*.") and second.endswith(first[1:])


def _path_covers(first: list[str], second: list[str]) -> bool:
    for mine, theirs in zip(first, second, strict=False):
        if mine == REST:
            return True
        if mine.startswith("{"):
            if theirs in ("", REST):
                return False
        elif mine != theirs:
            return False
    return len(first) == len(second)


def open_above(settings: Settings) -> Iterator[RuleViolation]:
    """Denied routes ``/x/**`` where a later route allows ``/x`` itself."""
    routes = settings.routes
    for index, route in enumerate(routes):
        itself = route.path.removesuffix(f"/{REST}")
        if route.access is not Access.DENIED or itself in (route.path, ""):
            continue
        wanted = route.model_copy(update={"path": itself})
        for place, other in enumerate(routes):
            if covers(other, wanted) and (place < index or other.access is Access.DENIED):
                # The operator has decided on this path explicitly.
                break
            if place > index and other.access is not Access.DENIED and _lets_some_through(other, wanted):
                message = (
                    f"denies only the paths below {quoted(itself)}, but routes[{place}].path allows {quoted(itself)} "
                    f"itself: add a route that denies it, if that was meant"
                )
                yield RuleViolation(loc=("routes", index, "path"), message=message, other=("routes", place, "path"))
                break


def _lets_some_through(route: RouteSettings, wanted: RouteSettings) -> bool:
    """Whether the route matches the path of ``wanted`` for some hosts and methods."""
    return some_requests(route, wanted) and _path_covers(*_segments(route, wanted))


def some_requests(first: RouteSettings, second: RouteSettings) -> bool:
    """Whether some host, method and query fits both routes."""
    hosts = _host_covers(first.host, second.host) or _host_covers(second.host, first.host)
    methods = first.methods is None or second.methods is None or not set(first.methods).isdisjoint(second.methods)
    wanted = second.query or {}
    query = all(value == ANY or wanted.get(name, value) in (value, ANY) for name, value in (first.query or {}).items())
    return hosts and methods and query
