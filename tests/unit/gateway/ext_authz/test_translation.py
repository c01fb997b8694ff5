"""Translating a call of Envoy: what is described reaches the parser as it is, and what is odd is refused."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.gateway.ext_authz.messages import MessageError, read_call
from proxy.gateway.ext_authz.translation import UNREADABLE, answer_of, head_of, to_remove
from tests.unit.gateway.ext_authz.calls import check, part, verdict

GOOD = ((b":method", b"GET"), (b":path", b"/v1/things/1"), (b":authority", b"app.example"), (b":scheme", b"http"))
REFUSED = UNREADABLE + b"\r\n"


def head(data: bytes, *secrets: bytes, name: bytes = b"") -> bytes:
    return head_of(read_call(data), secret_name=name, secrets=secrets)


def test_a_call_becomes_a_forward_auth_call_with_every_line_of_the_request() -> None:
    raw = (*GOOD, (b"Authorization", b"Bearer a"), (b"x-a", b""), (b"x-a", b"\xff 2"))
    assert head(check(path=b"/v1/things/1?q=%2F", raw=raw[4:], source=b"192.0.2.7")) == (
        b"GET /envoy/v1/things/1?q=%2F HTTP/1.1\r\nHost: app.example\r\nauthorization: Bearer a\r\nx-a: \r\n"
        b"x-a: \xff 2\r\nx-forwarded-for: 192.0.2.7\r\n\r\n"
    )
    assert head(check(raw=raw)).startswith(b"GET /envoy/v1/things/1 HTTP/1.1\r\nHost: app.example\r\nauthorization:")


def test_the_address_of_the_client_is_the_last_of_the_list_whatever_the_client_sent() -> None:
    raw = ((b"x-forwarded-for", b"203.0.113.9"), (b"x-real-ip", b"203.0.113.9"))
    made = head(check(raw=raw, source=b"2001:db8::1"))
    assert made.endswith(b"x-forwarded-for: 203.0.113.9\r\nx-forwarded-for: 2001:db8::1\r\n\r\n")
    assert b"real" not in made


@pytest.mark.parametrize(
    "odd",
    [
        check(method=b""),
        check(method=b"GET /x"),
        check(method=b"GET\r\nX-A: b"),
        check(path=b""),
        check(path=b"/v1 HTTP/1.1\r\nX-A: b\r\n"),
        check(path=b"/v1/ x"),
        check(path=b"/v1\x00"),
        check(host=b"a b"),
        check(host=b"a\r\nX-A: b"),
        check(more=part(7, b"q=1")),
        check(path=b"/v1?q=2", more=part(7, b"q=1")),
        check(more=part(8, b"fragment")),
        check(source=b"internal"),
        check(source=b"192.0.2.7, 10.0.0.1"),
        check(raw=[(b"x a", b"1")]),
        check(raw=[(b"", b"1")]),
        check(raw=[(b"x-a", b"1\r\nx-b: 2")]),
        check(raw=[(b"x-a", b"1\n")]),
        check(raw=[(b"x-a", b"\x00")]),
        check(raw=[(b"x-a\r\nx-b", b"1")]),
        check(raw=[(b":status", b"200")]),
        check(raw=[(b":path", b"/other")]),
        check(raw=[(b":method", b"POST")]),
        check(raw=[(b":authority", b"other")]),
        check(raw=[(b"host", b"other")]),
        check(raw=[*GOOD, (b":path", b"/v1/things/1")]),
        check(raw=[(b"host", b"app.example"), (b"Host", b"app.example")]),
        check(joined=[(b"x-a", b"1\r\nx-b: 2")]),
        b"",
        part(1, b""),
        part(1, part(4, b"")),
        part(1, part(4, part(2, b""))),
    ],
)
def test_a_description_that_is_odd_or_incomplete_is_refused_as_a_whole(odd: bytes) -> None:
    assert head(odd) == REFUSED


def test_a_requirement_of_envoys_route_is_that_of_the_call_and_other_extensions_are_not() -> None:
    own = [(b"entity", b"things"), (b"operation", b"update"), (b"team", b"a/b c")]
    assert head(check(extensions=own)).startswith(b"GET /require/entity=things&operation=update/envoy/v1/things/1 HTTP")
    for odd in (b"a/envoy/open", b"a b", b"", b"a\r\n"):
        assert head(check(extensions=[(b"entity", b"things"), (b"operation", odd)])) in (
            REFUSED,
            b"GET /require/entity=things&operation=/envoy/v1/things/1 HTTP/1.1\r\nHost: app.example\r\n\r\n",
        )


TWO_VALUES = part(13, part(1, part(1, b"x-a") + part(2, b"1") + part(3, b"2")))


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x05ab", b"\xff" * 12, part(1, b"\x22\x7f"), check(more=TWO_VALUES)])
def test_bytes_that_are_no_message_are_an_error(data: bytes) -> None:
    with pytest.raises(MessageError):
        read_call(data)


def test_a_missing_host_or_source_is_left_to_the_parser_and_the_lists_of_proxies() -> None:
    assert head(check(host=b"")) == b"GET /envoy/v1/things/1 HTTP/1.1\r\n\r\n"


@pytest.mark.parametrize("odd", [{"path": b"/v1/a!b"}, {"path": b"/v1/a?q=!"}, {"method": b"GE!"}])
def test_a_target_that_envoy_may_have_rewritten_is_refused(odd: dict[str, Any]) -> None:
    """Outside a raw header, Envoy writes ``!`` for bytes that are not UTF-8, and forwards these bytes."""
    sent = [(b":path", odd.get("path", b"/v1/things/1")), (b":method", odd.get("method", b"GET"))]
    assert head(check(joined=sent, **odd)) == REFUSED
    assert head(check(**odd)) == REFUSED
    assert head(check(raw=sent[:1], **odd)) == REFUSED
    assert head(check(raw=sent, **odd)) != REFUSED


@pytest.mark.parametrize("name", [b"destination", b"Destination", b"if", b"x_destination"])
def test_a_second_target_that_envoy_may_have_rewritten_is_repeated_and_so_refused(name: bytes) -> None:
    made = head(check(joined=[(name, b"/v1/a!b")]))
    assert made.count(b"/v1/a!b\r\n") == (1 if name == b"x_destination" else 2)
    assert head(check(raw=[(name, b"/v1/a!b")])).count(b"/v1/a!b\r\n") == 1


@pytest.mark.parametrize("name", [b"Connection", b"content-length", b"te", b"upgrade", b"Expect", b"Transfer-Encoding"])
def test_fields_of_the_clients_connection_and_body_are_not_described(name: bytes) -> None:
    assert head(check(raw=[(name, b"1")])) == head(check())


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        (b"Bearer a", [b"Bearer a"]),
        (b"Bearer a,Bearer b", [b"Bearer a", b"Bearer b"]),
        (b"Basic dTpw, Bearer b", [b"Basic dTpw", b" Bearer b"]),
        (b'Digest username="u", realm="r"', [b'Digest username="u", realm="r"']),
        (b"AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature=c", None),
    ],
)
def test_two_credentials_that_envoy_has_joined_are_two_lines_again(value: bytes, lines: list[bytes] | None) -> None:
    made = head(check(joined=[(b"authorization", value)]))
    assert [line[15:] for line in made.split(b"\r\n") if line.startswith(b"auth")] == (lines or [value])
    # As single lines they are what they are.
    assert head(check(raw=[(b"authorization", value)])).count(b"authorization: ") == 1


def test_the_secret_is_that_of_the_metadata_and_never_the_clients() -> None:
    raw = [(b"x-patgate-secret", b"guess"), (b"X_Patgate.Secret", b"guess")]
    made = head(check(raw=raw), b"right", name=b"x-patgate-secret")
    assert b"guess" not in made and made.endswith(b"\r\nx-patgate-secret: right\r\n\r\n")
    assert b"secret" not in head(check(raw=raw), name=b"x-patgate-secret").lower()
    assert head(check(), b"a\r\nHost: b", name=b"x-patgate-secret") == head(check())
    # A call that cannot be read has it too, so that the refusal names what is wrong.
    assert head(b"", b"right", name=b"x-patgate-secret") == UNREADABLE + b"x-patgate-secret: right\r\n\r\n"


def test_credentials_claims_and_their_aliases_are_removed_and_nothing_else() -> None:
    names = (
        b"authorization", b"x-api-key", b"X_Api_Key", b"x-auth.role", b"x-auth-role", b"X-Accel-Redirect", b"accept",
        b"proxy-authorization", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-client-cert", b":path",
        b"x-envoy-internal", b"x-app", b"private-token",
    )  # fmt: skip
    call = read_call(check(raw=[(name, b"1") for name in names]))
    stripped, places = {b"x-auth-role"}, {b"authorization", b"x-api-key", b"private-token"}
    assert to_remove(call, stripped=stripped, places=places, credentials={b"authorization"}) == [
        *("authorization", "x_api_key", "x-auth.role", "x-auth-role", "x-accel-redirect", "proxy-authorization"),
        "x-forwarded-host",
    ]


def test_an_allowance_overwrites_every_identity_header_also_with_nothing() -> None:
    response = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nCache-Control: no-store\r\nX-Auth-User: u\r\nX-Auth-Org: \r\n"
        b"X-Request-Id: 1\r\nConnection: close\r\n\r\n"
    )
    found = verdict(answer_of(response, ["authorization", "x-auth-user"]))
    assert (found.code, found.body) == (0, b"")
    assert found.headers == [("X-Auth-User", "u", 2), ("X-Auth-Org", "", 2), ("X-Request-Id", "1", 2)]
    # What is written must not be removed afterwards.
    assert found.removed == ["authorization"]


def test_a_refusal_has_the_status_every_challenge_and_the_body() -> None:
    response = (
        b"HTTP/1.1 401 Unauthorized\r\nDate: x\r\nContent-Type: application/problem+json\r\nCache-Control: no-store\r\n"
        b"Content-Length: 2\r\nWWW-Authenticate: Bearer\r\nWWW-Authenticate: Basic\r\nX-Patgate-Status: 401\r\n\r\n{}"
    )
    found = verdict(answer_of(response, ["authorization"]))
    assert (found.code, found.status, found.body, found.removed) == (7, 401, b"{}", [])
    assert found.headers == [
        ("Content-Type", "application/problem+json", 2),
        ("Cache-Control", "no-store", 2),
        ("WWW-Authenticate", "Bearer", 2),
        ("WWW-Authenticate", "Basic", 0),
    ]
