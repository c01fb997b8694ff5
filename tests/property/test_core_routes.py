"""The route table agrees with a matcher that tries every route in order, segment by segment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote, urlencode

from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.core.model import Access
from proxy.core.permissions import Permission
from proxy.core.reasons import Reason
from proxy.core.request.query import Conditions
from proxy.core.request.request_reading import judge
from proxy.core.request.target import PathAllowance, canonical_path
from proxy.core.routes import Match, Route, RouteTable

LITERALS = ["v1", "a", "b", "things", "a.b", "a+", "café"]
segments = st.sampled_from([*LITERALS, "{entity}", "{id}", "{org}", "{x}", "{y}"])
IDS = ["{x}/{y}", "{id}/-/{x}", "a{y}/{entity}b", "{id}"]
QUERIES: list[Conditions] = [(), (), (), ((b"a", b"1"),), ((b"a", b"2"),), ((b"b", b""),), ((b"a", b"1"), (b"b", b"2"))]
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "get", "PROPFIND", ""]
HOSTS = ["api.example.com", "example.com", "x.example.com", "a.b.example.com", "API.Example.Com:80", "other", ""]


@st.composite
def patterns(draw: st.DrawFn) -> str:
    chosen: list[str] = []
    for segment in draw(st.lists(segments, max_size=4)):
        if segment not in chosen or not segment.startswith("{"):
            chosen.append(segment)
    return "/" + "/".join([*chosen, *draw(st.sampled_from([[], [], [], ["**"], [""] if chosen else []]))])


@st.composite
def tables(draw: st.DrawFn) -> tuple[Route, ...]:
    return tuple(draw(route(index)) for index in range(draw(st.integers(0, 7))))


@st.composite
def route(draw: st.DrawFn, index: int) -> Route:
    path, access = draw(patterns()), draw(st.sampled_from(Access))
    fitting = [template for template in IDS if set(re.findall(r"\{\w+\}", template)) <= set(path.split("/"))]
    return Route(
        index=index,
        path=path,
        upstream="app",
        access=access,
        query=draw(st.sampled_from(QUERIES)),
        entity_id=draw(st.sampled_from([None, *fitting])),
        fold_case=access is Access.DENIED and draw(st.booleans()),
        entity=draw(st.sampled_from([None, None, "fixed"])),
        operations=draw(st.sampled_from([{}, {}, {"GET": "peek"}, {"POST": "share", "HEAD": "look"}])),
        methods=draw(st.sampled_from([None, None, frozenset({"GET"}), frozenset({"HEAD", "POST"})])),
        host=draw(st.sampled_from([None, None, None, "api.example.com", "*.example.com", "*.b.example.com"])),
    )


paths = st.lists(
    st.sampled_from([*LITERALS, "", "", "*", "**", "{id}", "x%2Fy", "100%", "x%252Fy", "A", "V1", "ThiNGS", "a\nb"]),
    max_size=6,
).map(lambda parts: "/" + "/".join(parts))


def naive(routes: tuple[Route, ...], method: str, host: str, path: str) -> Match | None:
    """The first route that matches, found by trying every route."""
    return next(naive_matches(routes, method, host, path), None)


def naive_matches(routes: tuple[Route, ...], method: str, host: str, path: str) -> Iterator[Match]:
    """Every route that matches."""
    host = host.lower().removesuffix(":80")
    given_ = path.split("/")
    for route in routes:
        counts_as = {method, "GET"} if method == "HEAD" else {method}
        if route.methods is not None and not counts_as & route.methods:
            continue
        if route.host is not None:
            if route.host.startswith("*."):
                if not host.endswith(route.host[1:]):
                    continue
            elif host != route.host:
                continue
        wanted = route.path.split("/")
        if wanted[-1] == "**":
            if len(given_) < len(wanted):
                continue
            pairs = list(zip(wanted[:-1], given_, strict=False))
        elif len(wanted) != len(given_):
            continue
        else:
            pairs = list(zip(wanted, given_, strict=True))
        captured: dict[str, str] = {}
        for want, have in pairs:
            if want.startswith("{"):
                if not have:
                    break
                captured[want[1:-1]] = have.replace("%2F", "/").replace("%25", "%")
            elif want != have and not (route.fold_case and any_case(want) == any_case(have)):
                break
        else:
            operations = dict(route.operations)
            if not operations:
                operations = (
                    {"GET": "read", "PUT": "update", "PATCH": "update", "DELETE": "delete"}
                    if "{id}" in route.path or route.entity_id
                    else {"GET": "list", "POST": "create"}
                )
            operation = operations.get(method)
            if operation is None and method == "HEAD":
                operation = operations.get("GET")
            entity = route.entity if route.entity is not None else captured.get("entity")
            entity_id = captured.get("id")
            if route.entity_id is not None:
                entity_id = route.entity_id.format(**captured)
            yield Match(route, entity, entity_id, operation, captured.get("org"))


def any_case(text: str) -> str:
    """``text`` with each letter replaced by one of those that some rule takes for the same."""
    letters = {"\u017f": "s", "\u212a": "k", "\u0130": "i", "\u0131": "i"}
    return "".join(letters.get(char, char).upper().casefold() for char in text).replace("i\u0307", "i")


def until_unconditional(matches: Iterable[Match]) -> Iterator[Match]:
    for match in matches:
        yield match
        if not match.route.query:
            return


@given(tables(), st.lists(st.tuples(st.sampled_from(METHODS), st.sampled_from(HOSTS), paths), min_size=1, max_size=12))
@settings(max_examples=200)
@example((), [("GET", "h", "/")])
def test_the_table_agrees_with_a_matcher_that_tries_every_route(
    routes: tuple[Route, ...], requests: list[tuple[str, str, str]]
) -> None:
    # Several requests to one table, because earlier requests must not change the result of later ones.
    table = RouteTable(routes)
    for request in requests:
        assert table.match(*request) == naive(routes, *request)
        found = until_unconditional(table.matches(*request))
        assert list(found) == list(until_unconditional(naive_matches(routes, *request)))


@given(tables(), st.sampled_from(METHODS), paths)
@settings(max_examples=60)
def test_the_table_agrees_for_paths_made_from_its_patterns(routes: tuple[Route, ...], method: str, tail: str) -> None:
    table = RouteTable(routes)
    for route in routes:
        for filled in ("a", "things", "x%2Fy"):
            path = "/".join(filled if part.startswith("{") else part for part in route.path.split("/"))
            path = path.removesuffix("/**") + tail if path.endswith("/**") else path
            for request in ((method, "api.example.com", path), (method, "c.b.example.com", path + "/")):
                assert table.match(*request) == naive(routes, *request)


PARAMETERS: list[dict[str, str]] = [{}, {"a": "1"}, {"a": "2"}, {"a": "3", "b": ""}, {"a": "1", "b": "2"}, {"b": "2"}]


@given(
    tables(),
    st.lists(st.tuples(st.sampled_from(METHODS), paths, st.sampled_from(PARAMETERS)), min_size=1, max_size=12),
)
@settings(max_examples=200)
def test_a_request_gets_the_first_route_whose_conditions_on_the_query_are_met(
    routes: tuple[Route, ...], requests: list[tuple[str, str, dict[str, str]]]
) -> None:
    table = RouteTable(routes)
    for method, path, parameters in requests:
        target = quote(path.replace("%2F", "/"), safe="/*+").encode()
        judged = canonical_path(target)
        if judged is None or judged[1] or method != method.upper() or not method:
            continue
        text = judged[0]
        expected = next(
            (
                match
                for match in naive_matches(routes, method, "api.example.com", text)
                if all(parameters.get(name.decode()) == value.decode() for name, value in match.route.query)
            ),
            None,
        )
        query = f"?{urlencode(parameters)}".encode() if parameters else b""
        match, reason = judge(table, method.encode(), "api.example.com", target, query)
        assert match == expected
        denied = expected is not None and expected.route.access is Access.DENIED
        assert reason is (Reason.NO_ROUTE if expected is None else Reason.ROUTE_DENIED if denied else None)


SEGMENT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=6)


@given(st.sampled_from(["{x}/{y}", "{y}/-/{x}", "@{x}/{y}", "{x}a/b{y}"]), *[SEGMENT] * 4)
@settings(max_examples=300)
@example("{x}/{y}", "a/b", "c", "a", "b/c")
@example("{x}a/b{y}", "a", "b", "", "bb")
def test_two_paths_of_one_route_have_one_composed_id_only_if_their_captures_are_equal(
    template: str, one: str, two: str, three: str, four: str
) -> None:
    """An encoded slash in a segment is refused, so a token for one id never reaches the things of another."""
    table = RouteTable([Route(index=0, path="/p/{x}/{y}", entity="things", entity_id=template)])
    found = []
    for names in ((one, two), (three, four)):
        target = "/p/" + "/".join(quote(name, safe="") for name in names)
        match, reason = judge(table, b"GET", "", target.encode(), b"")
        if reason is not None:
            assert match is None or reason is Reason.TARGET_NOT_CANONICAL
            return
        assert match is not None
        found.append((match.entity_id, names))
    assert (found[0][0] == found[1][0]) is (found[0][1] == found[1][1])


@given(SEGMENT, SEGMENT)
@example("@acme", "tool")
def test_a_composed_id_is_the_id_of_the_same_name_in_one_segment(scope: str, name: str) -> None:
    """A scope for one id covers both spellings of a package, npm's ``@scope%2fname`` and ``@scope/name``."""
    table = RouteTable(
        [
            Route(index=0, path="/{id}", entity="packages", allow=int(PathAllowance.ENCODED_SLASH)),
            Route(index=1, path="/{scope}/{name}/-/{file}", entity="packages", entity_id="{scope}/{name}"),
        ]
    )
    whole = f"/{quote(scope, safe='')}%2f{quote(name, safe='')}"
    parts = f"/{quote(scope, safe='')}/{quote(name, safe='')}/-/x.tgz"
    (one, refused), (other, also) = (judge(table, b"GET", "", path.encode(), b"") for path in (whole, parts))
    if refused is None and also is None:
        assert one is not None and other is not None
        assert one[1:] == other[1:]
        permission = Permission(one.entity, one.entity_id, "read")
        assert Permission.parse(str(permission)) == permission
    else:
        assert "/" in scope + name or refused is also is Reason.TARGET_NOT_CANONICAL
