"""Threat model §2: the backend gets patgate's identity headers once, or none, and never the client's."""

from __future__ import annotations

import base64

import pytest

from tests.support.gateway import Patgate, Token
from tests.support.plugin import EDITOR
from tests.support.pool import Pool
from tests.support.rawhttp import Response
from tests.support.recorder import Recorded, Recorder

MARK = b"mallory"

IDENTITY = ("User", "Email", "Org", "Role", "Scopes", "Token", "Token-Name", "Kind")

#: Spellings that some backend maps to the same variable (CGI, WSGI, PHP: ``-``, ``_`` and ``.``; letter case).
SPELLINGS = [
    b"X-Auth-User",
    b"x-auth-user",
    b"X-AUTH-USER",
    b"X_Auth_User",
    b"x_auth_user",
    b"X-Auth_User",
    b"X_Auth-User",
    b"X.Auth.User",
    b"X-Auth.User",
    b"x.auth_user",
    b"X-Auth-Email",
    b"X_AUTH_EMAIL",
    b"X-Auth-Org",
    b"X.Auth.Org",
    b"X-Auth-Role",
    b"X_auth.Role",
    b"X-Auth-Scopes",
    b"X-Auth-Token",
    b"X_Auth_Token",
    b"X-Auth-Token-Name",
    b"X-Auth-Token_Name",
    b"X-Auth-Kind",
    b"X-Request-Id",
    b"X_Request_Id",
]

#: Identity headers of other products, and claims about the request: stripped in every configuration.
FOREIGN = [
    b"X-Forwarded-User",
    b"X-Forwarded-Email",
    b"X-Forwarded-Groups",
    b"X-Forwarded-Preferred-Username",
    b"X_Forwarded_User",
    b"Remote-User",
    b"Remote_User",
    b"Remote-Groups",
    b"Remote-Name",
    b"Remote-Email",
    b"Forwarded",
    b"X-Real-Ip",
    b"X_Real_IP",
    b"X-Original-Url",
    b"X-Original-Uri",
    b"X-Original-Method",
    b"X-Rewrite-Url",
    b"X-Forwarded-Uri",
    b"X-Forwarded-Method",
    b"X-Forwarded-Prefix",
    b"X-Forwarded-Port",
    b"X-Forwarded-Server",
]

FORWARDED = [b"X-Forwarded-For", b"X-Forwarded-Proto", b"X-Forwarded-Host", b"X_Forwarded_For"]

NOMINATIONS = [
    b"Connection: x-auth-user\r\n",
    b"Connection: X-Auth-User, X-Auth-Role, X-Auth-Email\r\n",
    b"Connection: close, X-Forwarded-Host\r\n",
    b"Connection: keep-alive, x-auth-email, x-request-id\r\n",
    b"Connection: x-auth-user\r\nConnection: x-auth-role\r\n",
    b"Connection: x-auth-user,,  ,x-auth-scopes\r\n",
    b"Proxy-Connection: x-auth-user\r\nKeep-Alive: x-auth-user\r\n",
]


@pytest.fixture(scope="module")
def token(gateway: Patgate) -> Token:
    return gateway.token(EDITOR, name="identity")


def ask(gateway: Patgate, token: Token | None, extra: bytes, *, target: bytes = b"/v1/things/1") -> Response:
    login = f"Authorization: Bearer {token.value}\r\n".encode() if token else b""
    with gateway.connect() as connection:
        return connection.exchange(b"GET " + target + b" HTTP/1.1\r\nHost: gateway\r\n" + login + extra + b"\r\n")


def assert_ours_once(seen: Recorded, token: Token) -> None:
    for field in IDENTITY:
        seen.only(f"X-Auth-{field}")
    assert seen.only("X-Auth-Email") == EDITOR
    assert seen.only("X-Auth-Role") == "editor"
    assert seen.only("X-Auth-Token") == token.prefix
    assert seen.only("X-Auth-Token-Name") == "identity"
    assert seen.only("X-Auth-Kind") == "pat"
    assert seen.only("X-Auth-Org") == ""
    assert seen.only("X-Auth-User") not in ("", "mallory")
    assert seen.only("X-Request-Id") not in ("", "mallory")


@pytest.mark.parametrize("spelling", SPELLINGS + FOREIGN, ids=bytes.decode)
def test_a_clients_identity_header_is_replaced_by_ours(
    spelling: bytes, gateway: Patgate, recorder: Recorder, token: Token
) -> None:
    assert ask(gateway, token, spelling + b": " + MARK + b"\r\n").status == 200
    seen = recorder.last()
    assert MARK not in seen.head
    assert_ours_once(seen, token)


@pytest.mark.parametrize("spelling", [b"X-Auth-User", b"X_Auth_User", b"X-Auth-Role"], ids=bytes.decode)
def test_an_identity_header_sent_twice_is_replaced(
    spelling: bytes, gateway: Patgate, recorder: Recorder, token: Token
) -> None:
    line = spelling + b": " + MARK + b"\r\n"
    assert ask(gateway, token, line + b"Accept: */*\r\n" + line.lower()).status == 200
    assert MARK not in recorder.last().head
    assert_ours_once(recorder.last(), token)


@pytest.mark.parametrize(
    "folded",
    [
        b"X-Auth-User:\r\n mallory\r\n",
        b"Accept: a\r\n X-Auth-User: mallory\r\n",
        b"Accept: a\r\n\tX-Auth-User: mallory\r\n",
        b"X-Auth-User : mallory\r\n",
        b" X-Auth-User: mallory\r\n",
        b"Accept: a\nX-Auth-User: mallory\r\n",
        b"Accept: a\rX-Auth-User: mallory\r\n",
        b"X-Auth-User\x00: mallory\r\n",
        b"X-Auth-\xc3\x9cser: mallory\r\n",
    ],
    ids=repr,
)
def test_a_folded_or_broken_header_is_refused_and_nothing_arrives(
    folded: bytes, gateway: Patgate, recorder: Recorder, token: Token
) -> None:
    assert ask(gateway, token, folded).status == 400
    with gateway.connect() as connection:
        assert connection.request("GET", "/public/afterwards").status == 200
    assert [request.target for request in recorder.requests] == [b"/public/afterwards"]


@pytest.mark.parametrize("nomination", NOMINATIONS, ids=repr)
def test_a_nomination_by_connection_does_not_remove_ours(
    nomination: bytes, gateway: Patgate, recorder: Recorder, token: Token
) -> None:
    response = ask(gateway, token, nomination)
    seen = recorder.last()
    assert response.status == 200
    assert_ours_once(seen, token)
    assert len(seen.all("Host")) == 1
    for name in (b"x-auth", b"x-forwarded", b"x-request"):
        assert not any(name in value.lower() for value in seen.all("Connection"))


@pytest.mark.parametrize("name", [b"host", b"authorization", b"Content-Length", b"transfer-encoding", b"cookie"])
def test_nominating_what_the_request_is_made_of_is_refused(
    name: bytes, gateway: Patgate, recorder: Recorder, token: Token
) -> None:
    """Without it, the request would have another caller or another meaning."""
    assert ask(gateway, token, b"Cookie: a=b\r\nConnection: close, " + name + b"\r\n").status == 400
    with gateway.connect() as connection:
        assert connection.request("GET", "/public/afterwards").status == 200
    assert [request.target for request in recorder.requests] == [b"/public/afterwards"]


def test_a_nominated_ordinary_header_is_removed(gateway: Patgate, recorder: Recorder, token: Token) -> None:
    """RFC 9110 §7.6.1: fields that Connection names are for this hop only."""
    assert ask(gateway, token, b"X-Hop: secret\r\nConnection: X-Hop\r\n").status == 200
    assert recorder.last().all("X-Hop") == []


@pytest.mark.parametrize(
    "trailer", [b"X-Auth-User: mallory\r\n", b"X_Auth_Role: mallory\r\n", b"Ordinary: mallory\r\n"], ids=repr
)
def test_a_trailer_does_not_arrive(trailer: bytes, gateway: Patgate, recorder: Recorder, token: Token) -> None:
    head = b"POST /v1/things HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\nTrailer: X-Auth-User\r\n"
    login = f"Authorization: Bearer {token.value}\r\n\r\n".encode()
    with gateway.connect() as connection:
        response = connection.exchange(head + login + b"4\r\nbody\r\n0\r\n" + trailer + b"\r\n")
    assert response.status == 200
    seen = recorder.last()
    assert b"body" in seen.body
    assert not any(MARK in received for received in recorder.received)
    assert_ours_once(seen, token)


@pytest.mark.parametrize("target", [b"/healthz", b"/public/x", b"/ui/x"])
@pytest.mark.parametrize("spelling", [b"X-Auth-User", b"X_Auth_User", b"x.auth.role", b"Remote-User"], ids=bytes.decode)
def test_on_public_and_passthrough_routes_the_backend_sees_none(
    spelling: bytes, target: bytes, gateway: Patgate, recorder: Recorder
) -> None:
    assert ask(gateway, None, spelling + b": " + MARK + b"\r\n", target=target).status == 200
    seen = recorder.last()
    assert MARK not in seen.head
    for field in IDENTITY:
        assert seen.all(f"X-Auth-{field}") == []
    assert len(seen.all("X-Request-Id")) == 1


def test_the_credential_is_never_forwarded(gateway: Patgate, recorder: Recorder, token: Token) -> None:
    basic = base64.b64encode(f"git:{token.value}".encode()).decode()
    for header in (
        f"Authorization: Bearer {token.value}",
        f"X-API-Key: {token.value}",
        f"Authorization: Basic {basic}",
    ):
        recorder.clear()
        assert ask(gateway, None, header.encode() + b"\r\n").status == 200
        seen = recorder.last()
        assert seen.all("Authorization") == [] and seen.all("X-Api-Key") == []
        assert token.value.encode() not in seen.head and basic.encode() not in seen.head
        assert_ours_once(seen, token)


def test_a_passthrough_route_keeps_the_backends_own_login(gateway: Patgate, recorder: Recorder) -> None:
    assert ask(gateway, None, b"Authorization: Basic Ym9iOnB3\r\nCookie: a=b\r\n", target=b"/ui/x").status == 200
    assert recorder.last().all("Authorization") == [b"Basic Ym9iOnB3"]
    assert recorder.last().all("Cookie") == [b"a=b"]


@pytest.mark.parametrize("spelling", FORWARDED, ids=bytes.decode)
def test_an_untrusted_clients_forwarding_headers_are_replaced_by_ours(
    spelling: bytes, gateway: Patgate, recorder: Recorder, token: Token
) -> None:
    assert ask(gateway, token, spelling + b": 203.0.113.9, " + MARK + b"\r\n").status == 200
    seen = recorder.last()
    assert MARK not in seen.head and b"203.0.113.9" not in seen.head
    assert seen.only("X-Forwarded-For") == "127.0.0.1"
    assert seen.only("X-Forwarded-Proto") == "http"
    assert seen.only("X-Forwarded-Host") == "gateway"


def test_headers_of_the_client_arrive_as_they_came(gateway: Patgate, recorder: Recorder, token: Token) -> None:
    """Order, letter case and repetitions are unchanged."""
    lines = b"aCCept: a\r\nX-Thing: 1\r\nx-thing:2\r\nCookie: c=d; e=f\r\nTraceparent: 00-ab-cd-01\r\n"
    assert ask(gateway, token, lines).status == 200
    names = [name for name, _ in recorder.last().headers]
    ordinary = [name for name in names if name.lower() in (b"accept", b"x-thing", b"cookie", b"traceparent")]
    assert ordinary == [b"aCCept", b"X-Thing", b"x-thing", b"Cookie", b"Traceparent"]
    assert recorder.last().all("x-thing") == [b"1", b"2"]


def test_a_name_that_is_not_ascii_arrives_percent_encoded(gateway: Patgate, recorder: Recorder) -> None:
    token = gateway.token(EDITOR, name="Zoë's token 100%")
    assert ask(gateway, token, b"").status == 200
    value = recorder.last().only("X-Auth-Token-Name")
    assert all(" " <= character <= "~" for character in value)
    assert "Zo%C3%AB's" in value


@pytest.mark.parametrize("preset", ["oauth2-proxy", "remote-user"])
def test_a_preset_sends_its_names_once_and_strips_every_other(preset: str, gateways: Pool, recorder: Recorder) -> None:
    names = {
        "oauth2-proxy": (
            "X-Forwarded-User",
            "X-Forwarded-Email",
            "X-Forwarded-Groups",
            "X-Forwarded-Preferred-Username",
        ),
        "remote-user": ("Remote-User", "Remote-Groups", "Remote-Name", "Remote-Email"),
    }[preset]
    config = {
        "workers": 1,
        "identity": {"preset": preset},
        "upstreams": {"app": {"servers": [recorder.url]}},
        "roles": {"editor": ["things:*"]},
        "routes": [{"path": "/v1/{entity}/{id}", "upstream": "app"}],
    }
    spoofed = b"".join(name + b": " + MARK + b"\r\n" for name in SPELLINGS + FOREIGN)
    with gateways.lend(config) as node:
        node.add_user(EDITOR, "editor")
        assert ask(node, node.token(EDITOR), spoofed).status == 200
    seen = recorder.last()
    assert MARK not in seen.head
    for name in names:
        seen.only(name)
    assert seen.only(names[1] if preset == "oauth2-proxy" else names[3]) == EDITOR
    assert all(seen.all(f"X-Auth-{field}") == [] for field in IDENTITY)
