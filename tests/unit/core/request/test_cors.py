"""CORS policies: exact origins, the lines of responses, and the policy of a site."""

from __future__ import annotations

import pytest

from proxy.core.request.cors import CorsPolicy, CorsRequest, CorsSites, owned
from proxy.core.routes import Match, Route

APP = "https://app.example.com"
POLICY = CorsPolicy(
    origins=frozenset({APP, "http://localhost:3000"}), methods=("GET", "PUT"), headers=("Authorization",),
    expose=("WWW-Authenticate",), max_age=600,
)  # fmt: skip
ANY = CorsPolicy(origins=frozenset({"*"}), methods=("GET",), max_age=5)


@pytest.mark.parametrize(
    "origin",
    [
        b"https://APP.example.com", b"https://app.example.com:443", b"https://app.example.com/", b"https://app.example.com.",
        b"https://evil.example.com", b"https://app.example.com.evil.com", b"http://app.example.com", b"null", b"*", b"",
        b"https://app.example.com, https://app.example.com", b"\xff", b"http://localhost", b"http://localhost:30000",
    ],
)  # fmt: skip
def test_an_origin_that_is_not_listed_exactly_gets_no_allowance(origin: bytes) -> None:
    assert not POLICY.allows(origin)
    assert POLICY.response_lines(origin) == b"\r\nVary: Origin"


def test_a_listed_origin_is_named_and_the_response_varies_by_it() -> None:
    assert POLICY.response_lines(APP.encode()) == (
        b"\r\nAccess-Control-Allow-Origin: https://app.example.com"
        b"\r\nAccess-Control-Expose-Headers: WWW-Authenticate\r\nVary: Origin"
    )
    assert POLICY.preflight_lines(b"http://localhost:3000") == (
        b"\r\nAccess-Control-Allow-Origin: http://localhost:3000\r\nAccess-Control-Allow-Methods: GET, PUT"
        b"\r\nAccess-Control-Allow-Headers: Authorization\r\nAccess-Control-Max-Age: 600\r\nVary: Origin"
    )
    assert POLICY.response_lines(None) == b"\r\nVary: Origin"


def test_credentials_are_allowed_only_to_named_origins() -> None:
    named = CorsPolicy(origins=frozenset({APP}), credentials=True)
    assert named.response_lines(APP.encode()).startswith(
        b"\r\nAccess-Control-Allow-Origin: https://app.example.com\r\nAccess-Control-Allow-Credentials: true"
    )
    assert b"Credentials" not in named.response_lines(b"https://other.example")


def test_every_origin_is_allowed_with_a_star_and_nothing_of_the_request() -> None:
    assert ANY.response_lines(b"https://anything") == b"\r\nAccess-Control-Allow-Origin: *"
    assert ANY.response_lines(None) == b""
    assert b"anything" not in ANY.preflight_lines(b"https://anything")
    assert b"Vary" not in ANY.preflight_lines(b"https://anything")


def test_a_second_origin_makes_one_that_no_configuration_has() -> None:
    request = CorsRequest()
    for _ in range(2):
        request.has_origin(APP.encode())
    assert not POLICY.allows(request.origin)


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (b"\r\nA: b", b"\r\nA: b\r\nO: x\r\nVary: Origin"),
        (b"\r\nAccess-Control-Allow-Origin: *\r\nA: b", b"\r\nA: b\r\nO: x\r\nVary: Origin"),
        (b"\r\naccess-control-ALLOW-credentials: true\r\nA: b", b"\r\nA: b\r\nO: x\r\nVary: Origin"),
        (b"\r\nVary: Accept", b"\r\nVary: Accept\r\nO: x\r\nVary: Origin"),
        (b"\r\nvary: Accept, origin", b"\r\nvary: Accept, origin\r\nO: x"),
        (b"\r\nVary: *", b"\r\nVary: *\r\nO: x"),
        (b"\r\nVaryx: origin", b"\r\nVaryx: origin\r\nO: x\r\nVary: Origin"),
    ],
)
def test_the_backends_cors_fields_are_replaced_and_vary_is_not_doubled(kept: bytes, expected: bytes) -> None:
    assert owned(kept, b"\r\nO: x\r\nVary: Origin") == expected


def test_the_first_site_of_a_host_applies_and_a_routes_own_policy_comes_first() -> None:
    off = CorsPolicy(origins=frozenset())
    first, wide, other = (CorsPolicy(origins=frozenset({f"https://{n}"})) for n in ("a", "b", "c"))
    sites = CorsSites([("api.example", first), ("*.example", wide)], [None, other, off])
    assert sites.policy(None, "api.example") is first
    assert sites.policy(None, "api.example.") is first
    assert sites.policy(None, "x.example") is wide
    assert sites.policy(None, "example") is None
    assert sites.policy(None, "notexample") is None
    assert sites.policy(_match(None), "api.example") is first
    assert sites.policy(_match(other), "api.example") is other
    assert sites.policy(_match(off), "api.example") is None
    assert CorsSites([(None, wide)], []).policy(None, "anything") is wide


def test_cors_is_off_unless_a_policy_has_origins() -> None:
    off, passing = CorsPolicy(origins=frozenset()), CorsPolicy(origins=frozenset({APP}), answers=False)
    assert [(each.on, each.owns) for each in (CorsSites([], []), CorsSites([(None, off)], [off]))] == [
        (False, False)
    ] * 2
    assert (CorsSites([], [passing]).on, CorsSites([], [passing]).owns) == (True, False)
    assert (CorsSites([(None, POLICY)], []).on, CorsSites([(None, POLICY)], []).owns) == (True, True)


def _match(cors: CorsPolicy | None) -> Match:
    return Match(Route(index=0, path="/x", entity="things", cors=cors), "things", None, "read", None)
