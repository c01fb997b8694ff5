"""Parsing the fields that name a second resource."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.core.reasons import Reason
from proxy.core.request.second_targets import DESTINATION, IF, judge_second, read_field, same_host
from proxy.core.routes import Route, RouteTable


@pytest.mark.parametrize(
    ("value", "authority", "path"),
    [
        (b"/a/b", None, b"/a/b"),
        (b"/a?x=1", None, b"/a"),
        (b"http://h/a", b"h", b"/a"),
        (b"HTTPS://h:8443/a?x", b"h:8443", b"/a"),
    ],
)
def test_a_destination_is_one_path_that_is_written(value: bytes, authority: bytes | None, path: bytes) -> None:
    (target,) = read_field(DESTINATION, value) or []
    assert (target.authority, target.path, target.written) == (authority, path, True)


@pytest.mark.parametrize("value", [b"", b"a", b"http://h", b"http://u@h/a", b"ftp://h/a", b"mailto:x", b"/a?b#c", b"*"])
def test_an_invalid_destination_is_refused(value: bytes) -> None:
    assert read_field(DESTINATION, value) is None


@pytest.mark.parametrize("value", [b"//h/a", b"//a", b"http://h//a"])
def test_a_path_that_a_uri_reference_reads_as_a_host_is_refused(value: bytes) -> None:
    assert read_field(DESTINATION, value) is None
    assert read_field(IF, b"<" + value + b"> (<urn:x>)") is None


def test_the_number_of_resources_in_an_if_is_limited() -> None:
    """A head can hold ten thousand of them, and each costs as much as a request."""
    assert len(read_field(IF, b"</a> (<urn:x>) " * 64) or []) == 64
    assert read_field(IF, b"</a> (<urn:x>) " * 65) is None


@pytest.mark.parametrize("value", [b"/a%3F", b"/a%3fb", b"/a%23", b"/a/..%3F", b"/a;b", b"/a%3B", b"http://h/a%3F"])
def test_a_path_that_servers_split_after_decoding_is_refused(value: bytes) -> None:
    """The server wsgidav decodes a Destination before it splits it, and so gets another resource."""
    assert read_field(DESTINATION, value) is None
    assert read_field(IF, b"<" + value + b"> (<urn:x>)") is None


def test_an_if_names_the_resources_outside_its_lists() -> None:
    assert read_field(IF, b'(<urn:x>) (Not <urn:y> [W/"e"])') == []
    named = read_field(IF, b"</a> (<urn:x>) (<urn:y>) <http://h/b> (Not <DAV:no-lock>)") or []
    assert [(target.authority, target.path, target.written) for target in named] == [
        (None, b"/a", False),
        (b"h", b"/b", False),
    ]


@pytest.mark.parametrize(
    "value", [b"<", b"<a>", b"</a> x", b"x (<urn:x>)", b"(<urn:x>", b"</a>> (<urn:x>)", b"<urn:x>"]
)
def test_an_invalid_if_is_refused(value: bytes) -> None:
    assert read_field(IF, value) is None


def test_a_list_of_any_depth_is_read_in_linear_time() -> None:
    for value in (b"(" * 30_000, b"<" * 30_000, b"(<a>" * 8_000, b"()" * 15_000 + b"("):
        read_field(IF, value)


@pytest.mark.parametrize(
    ("authority", "host", "ports", "same"),
    [
        (b"h", b"h", True, True),
        (b"H", b"h", True, True),
        (b"h:80", b"h", True, True),
        (b"h", b"h:443", True, True),
        (b"h:8080", b"h", True, False),
        (b"h:8080", b"h:8081", True, False),
        (b"h:8080", b"h", False, True),
        (b"x", b"h", False, False),
        (b"[::1]:8080", b"[::1]:8080", True, True),
        (b"[::1]", b"[::1]:8080", True, False),
        (b"h,", b"h", True, False),
    ],
)
def test_the_same_host_has_the_same_name_and_port(authority: bytes, host: bytes, ports: bool, same: bool) -> None:
    assert same_host(authority, [b"other", host], ports=ports) is same


def routes(**facts: Any) -> RouteTable:
    return RouteTable(
        [
            Route(index=0, path="/q/{id}", upstream="app", entity="files", query=((b"a", b"1"),)),
            Route(index=1, path="/q/{id}", upstream="app", entity="files"),
            Route(index=2, path="/dav/{id}", upstream="app", entity="files", **facts),
            Route(index=3, path="/plain/{id}", upstream="app", entity="files"),
        ]
    )


def judged(table: RouteTable, own: str, value: bytes) -> Reason | None:
    (target,) = read_field(DESTINATION, value) or []
    match = table.match("COPY", "h", own)
    assert match is not None
    return judge_second(table, match, "h", target)[1]


@pytest.mark.parametrize(("own", "other"), [("/dav/a", b"/dav/b"), ("/dav/a", b"/plain/b"), ("/plain/a", b"/dav/b")])
def test_a_second_target_is_refused_where_the_backend_does_not_see_the_clients_paths(own: str, other: bytes) -> None:
    """The backend reads the value as a path of its own, which is below its root and not below the prefix."""
    assert judged(routes(), own, other) is None
    assert judged(routes(strip_prefix="/dav"), own, other) is Reason.SECOND_TARGET


def test_a_query_of_a_second_target_is_refused_where_a_route_depends_on_it() -> None:
    assert judged(routes(), "/plain/a", b"/q/b") is None
    assert judged(routes(), "/plain/a", b"/plain/b?a=1") is None
    assert judged(routes(), "/plain/a", b"/q/b?a=1") is Reason.QUERY_AMBIGUOUS
    assert judged(routes(), "/plain/a", b"/q/b?a=2") is Reason.QUERY_AMBIGUOUS


def test_an_escape_that_is_left_after_decoding_is_refused_even_if_its_route_allows_it() -> None:
    assert read_field(DESTINATION, b"/a%253Fb") is None
    assert read_field(IF, b"</a%252Fb> (<urn:x>)") is None
    assert read_field(DESTINATION, b"/100%25") is not None
