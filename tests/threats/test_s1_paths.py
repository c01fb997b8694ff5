"""Threat model §1: only canonical targets reach a backend, and they arrive byte for byte."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.gateway import Patgate, Token
from tests.support.plugin import ADMIN
from tests.support.rawhttp import Response
from tests.support.recorder import Recorder

REFUSED = [
    b"/public/../admin",
    b"/public/..",
    b"/..",
    b"/./a",
    b"/public/.",
    b"/public/./a",
    b"//a",
    b"//",
    b"/a//b",
    b"/public/a//",
    b"/%2e%2e/a",
    b"/%2E%2E/a",
    b"/.%2e/a",
    b"/%2e./a",
    b"/public/%2e/a",
    b"/public/%2e",
    b"/public/%2e%2e",
    b"/x%2F..%2Fadmin",
    b"/public/..%2fadmin",
    b"/public/%2e%2e%2fadmin",
    b"/public/a%2fb",
    b"/public/a%2Fb",
    b"/public/%5c..%5cadmin",
    b"/public/a%5Cb",
    b"/public/a\\b",
    b"/public\\..\\admin",
    b"/a;x=y/b",
    b"/public/a;x=y",
    b"/public/;/admin",
    b"/..;/a",
    b"/public/..;x=y/admin",
    b"/public/%2e%2e;/admin",
    b"/public/a%3bx=y/b",
    b"/%00",
    b"/public/a%00b",
    b"/public/a%0d%0ab",
    b"/public/a%0ab",
    b"/public/a%7fb",
    b"/public/a%1bb",
    b"/%252e",
    b"/public/%252e%252e/admin",
    b"/public/%25%32%65",
    b"/public/a%252fb",
    b"/public/%c0%af",
    b"/public/%c0%ae%c0%ae/admin",
    b"/public/%e0%80%af",
    b"/public/%ff",
    b"/public/%ed%a0%80",
    b"/public/%f4%90%80%80",
    b"/public/%c3",
    b"/public/\xc3\xa9",
    b"/public/\xff",
    b"/public/a#/admin",
    b"/foo#/admin",
    b"/public/a?x#y",
    b"/%zz",
    b"/public/%",
    b"/public/a%2",
    b"/public/a%g1",
    b"/public/%u002e",
    b"public/a",
    b"a",
    b"?x",
    b"*",
    b"gateway:80",
    b"gateway",
    b"http:/public/a",
    b"http:///public/a",
    b"http://other/public/a",
    b"http://other:80/public/a",
    b"http://gateway@other/public/a",
    b"http://user@gateway/public/a",
    b"https://other/public/a",
    b"ftp://gateway/public/a",
    b"http://gateway/public/../a",
    b"http://gateway//a",
    b"/public/a\x01",
    b"/public/a\x7f",
    b"/public/a\tb",
]

FORWARDED = [
    b"/public/",
    b"/public/a",
    b"/public/a/",
    b"/public/a.b",
    b"/public/...",
    b"/public/.well-known/x",
    b"/public/a..b",
    b"/public/~user",
    b"/public/%7Euser",
    b"/public/%7euser",
    b"/public/%61dmin",
    b"/%70ublic/a",
    b"/public/a%20b",
    b"/public/caf%C3%A9",
    b"/public/caf%c3%a9",
    b"/public/%E2%82%AC",
    b"/public/%F0%9F%90%8D",
    b"/public/a+b,c:d@e!f$g&h'i(j)k*l=m",
    b"/public/100%25",
    b"/public/a?",
    b"/public/a?x=1&y=/../admin&z=%2e%2e%2f",
    b"/public/a??x=//",
]

DENIED_DISGUISED = [
    b"/%62illing/x",
    b"/billing/%78",
    b"/b%69lling/x",
    b"/billing/x?/public/",
    b"/billing/",
]

NOT_BILLING = [b"/Billing/x", b"/BILLING/x", b"/%42illing/x"]


@pytest.fixture(scope="module")
def admin(gateway: Patgate) -> Iterator[Token]:
    yield gateway.token(ADMIN, name="paths")


def ask(gateway: Patgate, target: bytes, token: Token | None = None, *, method: bytes = b"GET") -> Response:
    login = f"Authorization: Bearer {token.value}\r\n".encode() if token else b""
    with gateway.connect() as connection:
        return connection.exchange(method + b" " + target + b" HTTP/1.1\r\nHost: gateway\r\n" + login + b"\r\n")


def assert_backend_saw_only_a_later_request(gateway: Patgate, recorder: Recorder) -> None:
    """Send an allowed request, and assert that the recorder got it and no earlier one."""
    with gateway.connect() as connection:
        assert connection.request("GET", "/public/afterwards").status == 200
    assert [request.target for request in recorder.requests] == [b"/public/afterwards"]


@pytest.mark.parametrize("target", REFUSED, ids=repr)
def test_a_target_that_is_not_canonical_gets_400_and_never_reaches_a_backend(
    target: bytes, gateway: Patgate, recorder: Recorder, admin: Token
) -> None:
    response = ask(gateway, target, admin)
    assert response.status == 400
    assert response.get("Content-Type") == "application/problem+json"
    assert_backend_saw_only_a_later_request(gateway, recorder)


@pytest.mark.parametrize("target", FORWARDED, ids=repr)
def test_a_canonical_target_arrives_byte_for_byte(target: bytes, gateway: Patgate, recorder: Recorder) -> None:
    assert ask(gateway, target).status == 200
    assert recorder.last().target == target


def test_an_absolute_target_of_the_same_host_arrives_in_origin_form(gateway: Patgate, recorder: Recorder) -> None:
    """RFC 9112 §3.2.2: a proxy uses the authority of the target; here it equals Host."""
    assert ask(gateway, b"http://gateway/public/a?x=1").status == 200
    assert recorder.last().target == b"/public/a?x=1"


@pytest.mark.parametrize("target", DENIED_DISGUISED, ids=repr)
def test_an_escape_does_not_lead_around_a_denied_route(
    target: bytes, gateway: Patgate, recorder: Recorder, admin: Token
) -> None:
    response = ask(gateway, target, admin)
    assert response.status == 403
    assert response.json()["reason"] == "route_denied"
    assert_backend_saw_only_a_later_request(gateway, recorder)


@pytest.mark.parametrize("target", NOT_BILLING, ids=repr)
def test_matching_is_case_sensitive(target: bytes, gateway: Patgate, recorder: Recorder, admin: Token) -> None:
    response = ask(gateway, target, admin)
    assert response.status == 403
    assert response.json()["reason"] == "no_route"
    assert_backend_saw_only_a_later_request(gateway, recorder)


def test_the_query_takes_no_part_in_matching(gateway: Patgate, recorder: Recorder) -> None:
    assert ask(gateway, b"/v1/things/1?/public/").status == 401
    assert ask(gateway, b"/nowhere?/healthz").status == 403
    assert_backend_saw_only_a_later_request(gateway, recorder)


def test_a_trailing_slash_is_another_path(gateway: Patgate, recorder: Recorder, admin: Token) -> None:
    assert ask(gateway, b"/v1/things/1/", admin).status == 403
    assert ask(gateway, b"/healthz/", admin).status == 403
    assert_backend_saw_only_a_later_request(gateway, recorder)


@pytest.mark.parametrize("target", [b"/lenient/things/a%2Fb", b"/lenient/things/a;x=y", b"/lenient/things/a%2fb;v=1"])
def test_a_route_that_opts_in_forwards_what_it_allows(
    target: bytes, gateway: Patgate, recorder: Recorder, admin: Token
) -> None:
    assert ask(gateway, target, admin).status == 200
    assert recorder.last().target == target


@pytest.mark.parametrize("target", [b"/loose//a", b"/loose/a//b", b"/loose/a//", b"/loose///a?//"])
def test_a_route_that_allows_empty_segments_forwards_them_as_they_are(
    target: bytes, gateway: Patgate, recorder: Recorder
) -> None:
    assert ask(gateway, target).status == 200
    assert recorder.last().target == target


@pytest.mark.parametrize(
    "target", [b"//loose/a", b"/loose//../admin", b"/loose//%2e%2e/admin", b"/loose/a%2Fb", b"/loose//;"]
)
def test_one_allowance_is_no_other(target: bytes, gateway: Patgate, recorder: Recorder) -> None:
    assert ask(gateway, target).status == 400
    assert_backend_saw_only_a_later_request(gateway, recorder)


def test_options_of_the_server_itself_reach_no_backend(gateway: Patgate, recorder: Recorder) -> None:
    """The asterisk is valid only for OPTIONS (RFC 9112 §3.2.4), and names nothing that a route could match."""
    response = ask(gateway, b"*", method=b"OPTIONS")
    assert (response.status, response.json()["reason"]) == (403, "no_route")
    assert_backend_saw_only_a_later_request(gateway, recorder)


@pytest.mark.parametrize(
    "target",
    [
        b"/lenient/things/..%2Fadmin",
        b"/lenient/things/a%2F..%2Fb",
        b"/lenient/things/..;x=y",
        b"/lenient/things/%2e%2e%2fa",
    ],
)
def test_dot_segments_are_refused_where_an_allowance_would_hide_them(
    target: bytes, gateway: Patgate, recorder: Recorder, admin: Token
) -> None:
    assert ask(gateway, target, admin).status == 400
    assert_backend_saw_only_a_later_request(gateway, recorder)


def test_an_encoded_slash_never_matches_two_segments(gateway: Patgate, recorder: Recorder) -> None:
    """A token for one id cannot reach a sub-path of it, nor vice versa."""
    token = gateway.token(ADMIN, name="one id", scopes=["things/a/b:read"])
    assert ask(gateway, b"/lenient/things/a%2Fb", token).status == 200
    assert ask(gateway, b"/lenient/things/a", token).status == 403
    assert ask(gateway, b"/lenient/things%2Fa/b", token).status in (400, 403)
    assert [request.target for request in recorder.requests] == [b"/lenient/things/a%2Fb"]


def test_a_star_in_the_path_is_not_a_wildcard(gateway: Patgate, recorder: Recorder) -> None:
    token = gateway.token(ADMIN, name="not a wildcard", scopes=["things/7:read"])
    assert ask(gateway, b"/v1/things/*", token).status == 403
    assert ask(gateway, b"/v1/*/7", token).status == 403
    assert ask(gateway, b"/v1/things/7", token).status == 200
    assert len(recorder.requests) == 1


@pytest.mark.parametrize("method", [b"CONNECT", b"TRACE"])
@pytest.mark.parametrize("target", [b"/public/a", b"gateway:443"])
def test_connect_and_trace_are_refused(method: bytes, target: bytes, gateway: Patgate, recorder: Recorder) -> None:
    assert ask(gateway, target, method=method).status in (400, 405)
    assert_backend_saw_only_a_later_request(gateway, recorder)


@pytest.mark.parametrize(
    "override", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X_Http_Method_Override"]
)
def test_a_method_override_is_neither_honoured_nor_forwarded(
    override: str, gateway: Patgate, recorder: Recorder
) -> None:
    token = gateway.token(ADMIN, name="override", scopes=["things:create"])
    with gateway.connect() as connection:
        response = connection.request("POST", "/v1/things", headers=token.bearer | {override: "DELETE"}, body=b"{}")
    assert response.status == 200
    seen = recorder.last()
    assert seen.request_line == b"POST /v1/things HTTP/1.1"
    assert seen.all(override) == []


def test_nothing_of_a_refused_target_is_echoed(gateway: Patgate) -> None:
    response = ask(gateway, b"/public/../<script>marker")
    assert response.status == 400
    assert b"marker" not in response.body
    assert not any(b"marker" in value for _, value in response.headers)


def test_a_connection_can_be_used_after_a_refused_target_or_is_closed(gateway: Patgate, recorder: Recorder) -> None:
    with gateway.connect() as connection:
        first = connection.exchange(b"GET /public/../a HTTP/1.1\r\nHost: gateway\r\n\r\n")
        assert first.status == 400
        if first.keeps_alive:
            assert connection.request("GET", "/public/next").status == 200
        else:
            assert connection.ended()
