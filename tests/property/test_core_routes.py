"""The route table agrees with a matcher that tries every route in order, segment by segment."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.core.model import Access
from proxy.core.routes import Match, Route, RouteTable

LITERALS = ["v1", "a", "b", "things", "a.b", "a+", "café"]
segments = st.sampled_from([*LITERALS, "{entity}", "{id}", "{org}", "{x}", "{y}"])
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
    return tuple(
        Route(
            index=index,
            path=draw(patterns()),
            upstream="app",
            access=draw(st.sampled_from(Access)),
            entity=draw(st.sampled_from([None, None, "fixed"])),
            operations=draw(st.sampled_from([{}, {}, {"GET": "peek"}, {"POST": "share", "HEAD": "look"}])),
            methods=draw(st.sampled_from([None, None, frozenset({"GET"}), frozenset({"HEAD", "POST"})])),
            host=draw(st.sampled_from([None, None, None, "api.example.com", "*.example.com", "*.b.example.com"])),
        )
        for index in range(draw(st.integers(0, 7)))
    )


paths = st.lists(st.sampled_from([*LITERALS, "", "", "*", "**", "{id}", "x%2Fy", "100%", "A", "a\nb"]), max_size=6).map(
    lambda parts: "/" + "/".join(parts)
)


def naive(routes: tuple[Route, ...], method: str, host: str, path: str) -> Match | None:
    """The first route that matches, found by trying every route."""
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
                captured[want[1:-1]] = have.replace("%2F", "/")
            elif want != have:
                break
        else:
            operations = dict(route.operations)
            if not operations:
                operations = (
                    {"GET": "read", "PUT": "update", "PATCH": "update", "DELETE": "delete"}
                    if "{id}" in route.path
                    else {"GET": "list", "POST": "create"}
                )
            operation = operations.get(method)
            if operation is None and method == "HEAD":
                operation = operations.get("GET")
            entity = route.entity if route.entity is not None else captured.get("entity")
            return Match(route, entity, captured.get("id"), operation, captured.get("org"))
    return None


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
