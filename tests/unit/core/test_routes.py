"""The route table, route by route."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.core.model import Access
from proxy.core.request.target import PathAllowance
from proxy.core.routes import Match, PatternError, Route, RouteTable, validate_pattern, validate_prefix


def table(*routes: dict[str, Any]) -> RouteTable:
    return RouteTable(Route(index=index, upstream="app", **route) for index, route in enumerate(routes))


EXAMPLE = table(
    {"path": "/healthz", "access": Access.PUBLIC},
    {"path": "/ui/**", "access": Access.PASSTHROUGH},
    {"path": "/billing/**", "access": Access.DENIED},
    {
        "path": "/v1/channels/{id}/messages",
        "entity": "channels",
        "operations": {"POST": "publish", "GET": "subscribe"},
    },
    {"path": "/v1/{entity}"},
    {"path": "/v1/{entity}/{id}"},
    {"path": "/orgs/{org}/things/{id}", "entity": "things"},
)


def matched(routes: RouteTable, method: str, path: str, host: str = "h") -> tuple[str | None, ...] | None:
    match = routes.match(method, host, path)
    return None if match is None else (match.route.path, *match[1:])


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/healthz", ("/healthz", None, None, "list", None)),
        ("GET", "/ui/", ("/ui/**", None, None, "list", None)),
        ("GET", "/ui/a//b", ("/ui/**", None, None, "list", None)),
        ("GET", "/ui", None),
        ("GET", "/", None),
        ("GET", "/UI/", None),
        ("GET", "/healthz/", None),
        ("GET", "/healthz/x", None),
        ("POST", "/v1/channels/7/messages", ("/v1/channels/{id}/messages", "channels", "7", "publish", None)),
        ("HEAD", "/v1/channels/7/messages", ("/v1/channels/{id}/messages", "channels", "7", "subscribe", None)),
        ("DELETE", "/v1/channels/7/messages", ("/v1/channels/{id}/messages", "channels", "7", None, None)),
        ("GET", "/v1/channels//messages", None),
        ("GET", "/v1/things", ("/v1/{entity}", "things", None, "list", None)),
        ("HEAD", "/v1/things", ("/v1/{entity}", "things", None, "list", None)),
        ("POST", "/v1/things", ("/v1/{entity}", "things", None, "create", None)),
        ("DELETE", "/v1/things", ("/v1/{entity}", "things", None, None, None)),
        ("GET", "/v1/things/", None),
        ("GET", "/v1/", None),
        ("GET", "/v1", None),
        ("GET", "/v1/things/42", ("/v1/{entity}/{id}", "things", "42", "read", None)),
        ("PUT", "/v1/things/42", ("/v1/{entity}/{id}", "things", "42", "update", None)),
        ("PATCH", "/v1/things/42", ("/v1/{entity}/{id}", "things", "42", "update", None)),
        ("DELETE", "/v1/things/42", ("/v1/{entity}/{id}", "things", "42", "delete", None)),
        ("POST", "/v1/things/42", ("/v1/{entity}/{id}", "things", "42", None, None)),
        ("get", "/v1/things/42", ("/v1/{entity}/{id}", "things", "42", None, None)),
        ("GET", "/v1/things/42/", None),
        ("GET", "/v1/things/42/x", None),
        ("GET", "/v1/things/a%2Fb", ("/v1/{entity}/{id}", "things", "a/b", "read", None)),
        ("GET", "/v1/things/100%", ("/v1/{entity}/{id}", "things", "100%", "read", None)),
        ("GET", "/v1/*/*", ("/v1/{entity}/{id}", "*", "*", "read", None)),
        ("GET", "/v1/**/{id}", ("/v1/{entity}/{id}", "**", "{id}", "read", None)),
        ("GET", "/v1/a\nb/c", ("/v1/{entity}/{id}", "a\nb", "c", "read", None)),
        ("GET", "/orgs/acme/things/1", ("/orgs/{org}/things/{id}", "things", "1", "read", "acme")),
        ("GET", "/v2/things", None),
    ],
)
def test_the_routes_of_the_example_configuration_match(
    method: str, path: str, expected: tuple[str | None, ...] | None
) -> None:
    assert matched(EXAMPLE, method, path) == expected


def test_the_first_route_wins_even_if_a_later_one_is_more_specific() -> None:
    assert matched(table({"path": "/{entity}"}, {"path": "/things"}), "GET", "/things") == (
        ("/{entity}", "things", None, "list", None)
    )
    assert matched(table({"path": "/**"}, {"path": "/things"}), "GET", "/things") == ("/**", None, None, "list", None)


def test_a_capture_matches_if_the_literal_alternative_does_not() -> None:
    routes = table({"path": "/v1/things/x/y"}, {"path": "/v1/{entity}/{id}"}, {"path": "/v1/**"})
    assert matched(routes, "GET", "/v1/things/x") == ("/v1/{entity}/{id}", "things", "x", "read", None)
    assert matched(routes, "GET", "/v1/things/x/z") == ("/v1/**", None, None, "list", None)


def test_a_route_for_some_methods_leaves_the_others_to_later_routes() -> None:
    routes = table({"path": "/a", "methods": frozenset({"GET"})}, {"path": "/a", "methods": frozenset({"POST"})})
    assert [
        match.route.index for match in map(lambda m: routes.match(m, "h", "/a"), ("GET", "HEAD", "POST")) if match
    ] == [
        0,
        0,
        1,
    ]
    assert routes.match("PUT", "h", "/a") is None
    assert routes.match("", "h", "/a") is None


def test_a_route_for_head_does_not_match_get() -> None:
    routes = table({"path": "/a", "methods": frozenset({"HEAD"}), "operations": {"HEAD": "peek"}})
    assert matched(routes, "HEAD", "/a") == ("/a", None, None, "peek", None)
    assert routes.match("GET", "h", "/a") is None


def test_configured_operations_replace_all_defaults() -> None:
    routes = table({"path": "/v1/{entity}/{id}", "operations": {"POST": "share"}})
    assert [routes.match(method, "h", "/v1/a/b")[3] for method in ("POST", "GET", "HEAD", "DELETE")] == [  # type: ignore[index]
        "share",
        None,
        None,
        None,
    ]


def test_hosts_match_exactly_or_by_wildcard_ignoring_case_and_port() -> None:
    routes = table(
        {"path": "/a", "host": "API.example.com"},
        {"path": "/a", "host": "*.dev.example.com"},
        {"path": "/a", "host": "*.example.com"},
        {"path": "/b"},
    )

    def index(host: str) -> int | None:
        match = routes.match("GET", host, "/a")
        return None if match is None else match.route.index

    assert [index(host) for host in ("api.example.com", "Api.Example.Com:8443", "api.example.com.")] == [0, 0, 0]
    assert [index(host) for host in ("x.dev.example.com", "dev.example.com", "a.b.example.com")] == [1, 2, 2]
    assert [index(host) for host in ("example.com", "xexample.com", ".example.com", "", "[::1]:80")] == [None] * 5
    assert [index(host) for host in ("*.example.com", "api.example.com:x", "api.example.com.evil")] == [2, None, None]
    assert routes.match("GET", "elsewhere", "/b") is not None


def test_the_entity_of_a_route_has_precedence_over_a_captured_one() -> None:
    assert matched(table({"path": "/{entity}/{id}", "entity": "things"}), "GET", "/users/1") == (
        ("/{entity}/{id}", "things", "1", "read", None)
    )


def test_an_empty_table_matches_nothing() -> None:
    assert RouteTable(()).match("GET", "h", "/") is None


def test_requests_do_not_grow_the_table_without_bound() -> None:
    routes = table(
        {"path": "/v1/{entity}/{id}", "host": "*.example.com"},
        {"path": "/secret/x/**", "access": Access.DENIED, "fold_case": True},
        {"path": "/x/**", "query": ((b"a", b"1"),)},
        {"path": "/x/{entity}/{id}"},
        {"path": "/x/**"},
    )

    def size() -> int:
        nodes, seen = [node for roots in routes._by_host.values() for node in roots.values()], set()
        while nodes:
            node = nodes.pop()
            if id(node) not in seen:
                seen.add(id(node))
                after = (node.other, node.rest, *node.following.values(), *node.folded.values())
                nodes += [each for each in after if each is not None]
        return len(seen)

    def visit(number: int) -> None:
        for path in (
            f"/v1/a{number}/b{number}",
            f"/x/{number}/{number}",
            f"/{number}",
            "".join(each.upper() if number >> at & 1 else each for at, each in enumerate(f"/secret/x/{number}")),
            "/v1//",
            "/v1/a/b" + "/c" * number,
        ):
            routes.match(f"M{number}", f"h{number}.example.com", path)
            routes.match("GET", f"h{number}", path)

    for number in range(10):
        visit(number)
    before = size()
    for number in range(10, 200):
        visit(number)
    assert size() == before


@pytest.mark.parametrize(
    "path", ["/", "/a", "/a/", "/**", "/a/**", "/{id}", "/{entity}/{id}/{x}/**", "/café", "/a.b;c"]
)
def test_a_pattern_is_accepted(path: str) -> None:
    validate_pattern(path)
    assert Route(index=0, path=path).name == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "a",
        "**",
        "//",
        "/a//b",
        "/a/./b",
        "/../a",
        "/a/**/b",
        "/a**",
        "/{id",
        "/id}",
        "/{id}x",
        "/{}",
        "/{a b}",
        "/{1}",
        "/{id}/{id}",
        "/a*",
        "/a%20b",
        "/a?b",
        "/a#b",
        "/a b",
        "/a\\b",
        "/a\n",
        "/\x80",
    ],
)
def test_a_pattern_that_could_be_misread_is_refused(path: str) -> None:
    with pytest.raises(PatternError):
        validate_pattern(path)
    with pytest.raises(PatternError):
        Route(index=0, path=path)


def test_a_match_names_its_parts() -> None:
    match = EXAMPLE.match("GET", "h", "/orgs/acme/things/1")
    assert match is not None
    assert isinstance(match, Match)
    assert (match.entity, match.entity_id, match.operation, match.org) == ("things", "1", "read", "acme")


PACKAGES = table(
    {"path": "/npm/{id}", "entity": "packages", "allow": int(PathAllowance.ENCODED_SLASH)},
    {"path": "/npm/{scope}/{name}", "entity": "packages", "entity_id": "{scope}/{name}"},
    {"path": "/npm/{scope}/{name}/-/{file}", "entity": "packages", "entity_id": "{scope}/{name}"},
)


@pytest.mark.parametrize(
    ("method", "path", "id_", "operation"),
    [
        ("GET", "/npm/@acme%2Ftool", "@acme/tool", "read"),
        ("GET", "/npm/@acme/tool", "@acme/tool", "read"),
        ("GET", "/npm/@acme/tool/-/tool-1.0.0.tgz", "@acme/tool", "read"),
        ("PUT", "/npm/@acme/tool", "@acme/tool", "update"),
        ("DELETE", "/npm/@acme/tool", "@acme/tool", "delete"),
        ("POST", "/npm/@acme/tool", "@acme/tool", None),
        ("GET", "/npm/@acme%252Ftool/x", "@acme%2Ftool/x", "read"),
    ],
)
def test_an_id_composed_of_segments_is_that_of_an_item(method: str, path: str, id_: str, operation: str | None) -> None:
    match = PACKAGES.match(method, "h", path)
    assert match is not None
    assert (match.entity, match.entity_id, match.operation) == ("packages", id_, operation)


@pytest.mark.parametrize(
    "template",
    [
        "",
        "fixed",
        "{other}/x",
        "{a}/{a}",
        "{a}{b}",
        "{a}-{b}",
        "{a} /{b}",
        "{a}/%2F{b}",
        "{a}/{b",
        "{a}/*",
        "{a}/{b}?",
    ],
)
def test_a_composed_id_that_could_stand_for_two_paths_is_refused(template: str) -> None:
    with pytest.raises(PatternError):
        Route(index=0, path="/{a}/{b}", entity="x", entity_id=template)


def test_an_id_of_several_segments_excludes_encoded_slashes() -> None:
    allow = int(PathAllowance.ENCODED_SLASH)
    with pytest.raises(PatternError, match="encoded_slash"):
        Route(index=0, path="/{a}/{b}", entity="x", entity_id="{a}/{b}", allow=allow)
    assert Route(index=0, path="/{a}/{b}", entity="x", entity_id="v-{a}", allow=allow).entity_id == "v-{a}"


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        ("/npm", "/npm"),
        ("/npm/", "/npm"),
        ("/npm/**", "/npm"),
        ("/a/b/{id}", "/a/b"),
        ("/a/b/{id}", "/a"),
        ("/é/x", "/é"),
    ],
)
def test_a_prefix_is_the_first_literal_segments_of_the_path(path: str, prefix: str) -> None:
    validate_prefix(path, prefix)


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        ("/npm/**", "npm"),
        ("/npm/**", "/"),
        ("/npm/**", "/npm/"),
        ("/npm/**", "/np"),
        ("/npm/**", "/NPM"),
        ("/npm", "/npm/x"),
        ("/{id}/x", "/{id}"),
        ("/npm/**", "/npm/**"),
        ("/npm/x", "/x"),
        ("/npm/**", ""),
        ("/npm/**", "/%6epm"),
    ],
)
def test_another_prefix_is_refused(path: str, prefix: str) -> None:
    with pytest.raises(PatternError):
        validate_prefix(path, prefix)


def test_a_route_knows_its_prefix_as_it_is_sent() -> None:
    assert Route(index=0, path="/café/**", strip_prefix="/café").prefix == b"/caf%C3%A9"
    assert Route(index=0, path="/café/**").prefix == b""


def test_a_denied_route_can_ignore_letter_case_by_every_rule_of_unicode() -> None:
    routes = table(
        {"path": "/Admin/é/{x}", "access": Access.DENIED, "fold_case": True},
        {"path": "/ADMIN/é/x", "access": Access.PUBLIC},
        {"path": "/**", "access": Access.PUBLIC},
    )
    for path in (
        "/Admin/é/x",
        "/admin/é/X",
        "/ADMIN/é/x",
        "/aDMIN/é/y",
        "/admin/É/z",
        "/adm\u0131n/é/z",
        "/ADM\u0130N/é/z",
    ):
        assert matched(routes, "GET", path) == ("/Admin/é/{x}", None, None, "list", None), path
    for path in ("/admin/e/x", "/admins/é/x", "/admin/é/", "/admin", "/ADMIN/é/x/y", "/\u212admin/é/x"):
        assert matched(routes, "GET", path) == ("/**", None, None, "list", None), path


def test_letters_that_some_servers_take_for_ascii_letters_are_no_way_around_a_denied_route() -> None:
    """For Java's ``equalsIgnoreCase`` and Go's ``EqualFold`` the long s is an s, and the Kelvin sign a k."""
    routes = table(
        {"path": "/backups/**", "access": Access.DENIED, "fold_case": True}, {"path": "/**", "access": Access.PUBLIC}
    )
    for path in ("/backups/x", "/bac\u212aups/x", "/backup\u017f/x", "/BAC\u212aUP\u017f/x"):
        assert matched(routes, "GET", path) == ("/backups/**", None, None, "list", None), path


def test_only_a_denied_route_can_ignore_letter_case() -> None:
    with pytest.raises(PatternError, match="denied"):
        Route(index=0, path="/a", entity="a", fold_case=True)


def test_matches_are_those_until_the_first_without_conditions_on_the_query() -> None:
    condition = ((b"a", b"1"),)
    routes = table(
        {"path": "/x/**", "query": condition},
        {"path": "/x/{id}", "entity": "x", "query": condition},
        {"path": "/x/y"},
        {"path": "/**"},
    )

    def indexes(path: str) -> list[int]:
        return [match.route.index for match in routes.matches("GET", "h", path)]

    assert [indexes(path) for path in ("/x/z", "/x/z/w", "/y", "/")] == [[0, 1, 3], [0, 3], [3], [3]]
    assert indexes("/x/y")[:3] == [0, 1, 2]
    first = routes.match("GET", "h", "/x/z")
    assert first is not None
    assert first.route.name == "/x/**?a=1"
