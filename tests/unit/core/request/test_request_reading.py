"""Reading a request: names in ``Host``, request lines, and the refusing route."""

from __future__ import annotations

import pytest

from proxy.core.model import Access
from proxy.core.reasons import TABLE, Reason
from proxy.core.request.request_reading import host_name, judge, only_reported, read_line
from proxy.core.request.target import PathAllowance, PathForm, refused_form
from proxy.core.routes import Route, RouteTable

LABEL = b"a" * 63
LONGEST = b".".join((LABEL, LABEL, LABEL, LABEL))


@pytest.mark.parametrize(
    ("authority", "name"),
    [
        (b"example.com", "example.com"),
        (b"EXAMPLE.com:8080", "example.com"),
        (b"example.com.", "example.com."),
        (b"example.com.:443", "example.com."),
        (b"a", "a"),
        (b"under_score.x-y", "under_score.x-y"),
        (b"127.0.0.1:80", "127.0.0.1"),
        (b"[::1]:80", "[::1]"),
        (b"[::]", "[::]"),
        (b"[2001:DB8::1]", "[2001:db8::1]"),
        (b"[::ffff:192.0.2.1]:65535", "[::ffff:192.0.2.1]"),
        (b"example.com:", "example.com"),
        (LABEL + b".com", LABEL.decode() + ".com"),
        (LONGEST, LONGEST.decode()),
        (LONGEST + b":65535", LONGEST.decode()),
        (b"example.com:0", "example.com"),
        (b"[::1]:", "[::1]"),
        (b"[0:0:0:0:0:0:0:1]", "[::1]"),
        (b"[2001:0DB8:0:0:1:0:0:1]:443", "[2001:db8::1:0:0:1]"),
        (b"[::FFFF:c000:0201]", "[::ffff:192.0.2.1]"),
        (b"[1:2:3:4:5:6:7:8]", "[1:2:3:4:5:6:7:8]"),
        (b"0.0.0.0", "0.0.0.0"),
        (b"255.255.255.255:1", "255.255.255.255"),
        (b"1.example", "1.example"),
        (b"1.2.3.4.example", "1.2.3.4.example"),
        (b"0x7f.x", "0x7f.x"),
        (b"xn--1", "xn--1"),
        (b"app1", "app1"),
        (b"a0x1", "a0x1"),
    ],
)
def test_names_and_addresses_are_normalised(authority: bytes, name: str) -> None:
    assert host_name(authority) == name


@pytest.mark.parametrize(
    "authority",
    [
        b"",
        b".",
        b".com",
        b"a..b",
        b"a.b..",
        b"..a",
        b"%61dmin.example.com",
        b"example%2ecom",
        b"a" * 64,
        b"a" * 64 + b".com",
        b"com." + b"a" * 64,
        # Names of 256 bytes, with and without a port.
        LONGEST + b".",
        LONGEST + b".:80",
        b"a." + LONGEST,
        b"a" * 30_000,
        b"user@example.com",
        b"example.com:80:80",
        b"example.com:http",
        b"example.com:123456",
        b"example.com/",
        b"example.com?",
        b"example com",
        b"a,b",
        b"caf\xe9.example",
        b"[]",
        b"[::1",
        b"::1",
        b"[::1]x",
        b"[" + b":" * 46 + b"]",
        b"[fe80::1%25eth0]",
        b"[v1.x]",
        # Invalid ports, and ports that could be read as octal numbers.
        b"example.com:65536",
        b"example.com:99999",
        b"example.com:080",
        b"example.com:00",
        b"example.com:+80",
        b"example.com:-1",
        b"example.com: 80",
        b"[::1]:65536",
        b"127.0.0.1:99999",
        # Invalid addresses.
        b"[:::::::]",
        b"[:]",
        b"[:::]",
        b"[1::2::3]",
        b"[1:2:3:4:5:6:7]",
        b"[1:2:3:4:5:6:7:8:9]",
        b"[12345::]",
        b"[::1.2.3]",
        b"[::1.2.3.256]",
        b"[::01.2.3.4]",
        b"[1.2.3.4]",
        b"[....]",
        b"[fe80::1%eth0]",
        b"[]:80",
        # Names that some resolvers read as addresses.
        b"127.1",
        b"1",
        b"2130706433",
        b"0177.0.0.1",
        b"127.0.0.01",
        b"0x7f.0.0.1",
        b"0x7f000001",
        b"0X7F.1",
        b"127.0.0.0x1",
        b"0x",
        b"256.0.0.1",
        b"1.2.3.4.5",
        b"127.0.0.1.",
        b"example.1",
        b"example.0x1",
        b"1.",
    ],
)
def test_an_invalid_host_name_is_refused(authority: bytes) -> None:
    assert host_name(authority) is None


LONGEST_LINE = 100


@pytest.mark.parametrize(
    ("method", "target", "host", "found"),
    [
        (b"GET", b"/a/%7e?q=1", b"API.example:80", ("api.example", b"/a/%7e", b"?q=1")),
        (b"GET", b"/a", b"", ("", b"/a", b"")),
        (b"GET", b"http://API.example:80/a?q", b"", ("api.example", b"/a", b"?q")),
        (b"GET", b"http://api.example/a", b"api.example", ("api.example", b"/a", b"")),
        (b"GET", b"http://api.example/a", b"other.example", Reason.TARGET_NOT_CANONICAL),
        (b"GET", b"http://user@api.example/a", b"", Reason.TARGET_NOT_CANONICAL),
        (b"GET", b"a", b"", Reason.TARGET_NOT_CANONICAL),
        (b"GET", b"*", b"", Reason.TARGET_NOT_CANONICAL),
        (b"OPTIONS", b"*", b"", Reason.NO_ROUTE),
        (b"CONNECT", b"api.example:80", b"", Reason.METHOD_REFUSED),
        (b"CONNECT", b"/a", b"api.example", Reason.METHOD_REFUSED),
        (b"connect", b"/a", b"api.example", Reason.METHOD_REFUSED),
        (b"GET", b"", b"", Reason.REQUEST_MALFORMED),
        (b"GET", b"?q", b"", Reason.REQUEST_MALFORMED),
        (b"GET", b"/a b", b"", Reason.REQUEST_MALFORMED),
        (b"GET", b"/a\r\nHost: b", b"", Reason.REQUEST_MALFORMED),
        (b"GET", b"/a?b c", b"", Reason.REQUEST_MALFORMED),
        (b"GET", b"/a?b#c", b"", Reason.REQUEST_MALFORMED),
        (b"G T", b"/a", b"", Reason.REQUEST_MALFORMED),
        (b"", b"/a", b"", Reason.REQUEST_MALFORMED),
        (b"GET", b"/a", b"a/b@c", Reason.HOST_INVALID),
        (b"GET", b"/" + b"a" * (LONGEST_LINE - 14), b"", ("", b"/" + b"a" * (LONGEST_LINE - 14), b"")),
        (b"GET", b"/" + b"a" * (LONGEST_LINE - 13), b"", Reason.TARGET_TOO_LONG),
    ],
)
def test_a_request_line_gives_host_path_and_query_or_a_reason(
    method: bytes, target: bytes, host: bytes, found: tuple[str, bytes, bytes] | Reason
) -> None:
    assert read_line(method, target, host, LONGEST_LINE) == found


ROUTES = RouteTable(
    [
        Route(index=0, path="/never", access=Access.DENIED),
        Route(index=1, path="/v1/{entity}/{id}"),
        Route(index=2, path="/later/{entity}", enforce=False),
    ]
)


@pytest.mark.parametrize(
    ("method", "path", "index", "reason"),
    [
        (b"GET", b"/v1/things/7", 1, None),
        (b"GET", b"/never", 0, Reason.ROUTE_DENIED),
        (b"GET", b"/v1/things/7;x", 1, Reason.TARGET_NOT_CANONICAL),
        (b"GET", b"/v1/things/../7", None, Reason.TARGET_NOT_CANONICAL),
        (b"GET", b"/other", None, Reason.NO_ROUTE),
        (b"GET", b"/other;x", None, Reason.TARGET_NOT_CANONICAL),
        (b"get", b"/v1/things/7", None, Reason.METHOD_REFUSED),
        (b"TRACE", b"/v1/things/7", None, Reason.METHOD_REFUSED),
        (b"PURGE", b"/v1/things/7", 1, None),
    ],
)
def test_a_refusal_has_the_match_of_the_refusing_route(
    method: bytes, path: bytes, index: int | None, reason: Reason | None
) -> None:
    match, found = judge(ROUTES, method, "", path, b"")
    assert found is reason
    assert (None if match is None else match.route.index) == index


@pytest.mark.parametrize("reason", Reason)
def test_a_report_only_route_lets_only_refusals_of_tokens_and_permissions_through(reason: Reason) -> None:
    for path, enforced in ((b"/later/things", False), (b"/v1/things/7", True)):
        match, _ = judge(ROUTES, b"GET", "", path, b"")
        assert match is not None
        assert only_reported(match, reason) is (not enforced and TABLE[reason].status in (401, 403))


REPOS = RouteTable(
    [
        Route(
            index=0,
            path="/{id}/info/refs",
            entity="repos",
            query=((b"service", b"git-receive-pack"),),
            operations={"GET": "update"},
        ),
        Route(index=1, path="/{id}/info/refs", entity="repos", operations={"GET": "read"}),
        Route(index=2, path="/x/**", access=Access.DENIED, query=((b"delete", b""), (b"now", b"1"))),
    ]
)


@pytest.mark.parametrize(
    ("path", "query", "index", "reason"),
    [
        (b"/r/info/refs", b"?service=git-receive-pack", 0, None),
        (b"/r/info/refs", b"?a=1&service=git-receive-pack", 0, None),
        (b"/r/info/refs", b"?service=git-upload-pack", 1, None),
        (b"/r/info/refs", b"?", 1, None),
        (b"/r/info/refs", b"", 1, None),
        (b"/r/info/refs", b"?service=git-upload-pack&service=git-receive-pack", 0, Reason.QUERY_AMBIGUOUS),
        (b"/r/info/refs", b"?Service=git-receive-pack", 0, Reason.QUERY_AMBIGUOUS),
        (b"/r/info/refs", b"?service=git%2Dreceive-pack", 0, Reason.QUERY_AMBIGUOUS),
        (b"/r/info/refs", None, 0, Reason.QUERY_AMBIGUOUS),
        (b"/%72/info/refs", b"?service[]=git-receive-pack", 0, Reason.QUERY_AMBIGUOUS),
        (b"/r;a/info/refs", b"?service=git-receive-pack", 0, Reason.TARGET_NOT_CANONICAL),
        (b"/r;a/info/refs", b"?service=git-upload-pack", 1, Reason.TARGET_NOT_CANONICAL),
        (b"/x/y", b"?delete&now=1", 2, Reason.ROUTE_DENIED),
        (b"/x/y", b"?delete", None, Reason.NO_ROUTE),
        (b"/x/;y", b"?delete", None, Reason.TARGET_NOT_CANONICAL),
        (b"/y", b"?service=1&service=2", None, Reason.NO_ROUTE),
    ],
)
def test_a_condition_on_the_query_selects_the_route_or_has_the_request_refused(
    path: bytes, query: bytes | None, index: int | None, reason: Reason | None
) -> None:
    match, found = judge(REPOS, b"GET", "", path, query)
    assert found is reason
    assert (None if match is None else match.route.index) == index


EMPTY = int(PathAllowance.EMPTY_SEGMENT)
STRIPPED = RouteTable(
    [Route(index=0, path="/npm/**", entity="packages", strip_prefix="/npm", allow=EMPTY | PathAllowance.ENCODED_SLASH)]
)


@pytest.mark.parametrize("path", [b"/npm//evil", b"/npm//", b"/%6epm//evil.example/x"])
def test_what_is_left_without_the_prefix_never_begins_with_two_slashes(path: bytes) -> None:
    """A backend could take it for a host, although the route allows empty segments."""
    match, reason = judge(STRIPPED, b"GET", "", path, b"")
    assert (match is not None, reason) == (True, Reason.TARGET_NOT_CANONICAL)
    assert refused_form(path, STRIPPED.routes[0].allow) is PathForm.EMPTY_SEGMENT


@pytest.mark.parametrize("path", [b"/npm/", b"/npm/a//b", b"/npm/http://x/y", b"/npm/%2F", b"/npm/%2Fa"])
def test_empty_segments_elsewhere_stay_allowed_where_the_route_allows_them(path: bytes) -> None:
    assert judge(STRIPPED, b"GET", "", path, b"")[1] is None
