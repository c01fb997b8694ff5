"""The verdicts of patgate through every ingress, with the files that the documentation shows."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.e2e.ingress.matrix import Row
from tests.support.gateway import Patgate, Token
from tests.support.ingress import Ingress
from tests.support.plugin import EDITOR
from tests.support.rawhttp import Connection, request_bytes
from tests.support.recorder import Recorder

IDENTITY = ("User", "Email", "Org", "Role", "Scopes", "Token", "Token-Name", "Kind")

#: Identity headers from a client, in spellings that a WSGI or CGI backend reads as patgate's headers.
SPOOFED = {
    "X-Auth-User": "mallory",
    "x-auth-role": "admin",
    "X_Auth_Email": "mallory@example.org",
    "X-Auth_Org": "evil",
    "X-Auth.Scopes": "*:*",
    "X-AUTH-KIND": "root",
}

#: Headers from a client that describe the request, which only an ingress may set.
CLAIMS = {
    "X-Original-Method": "GET",
    "X-Original-URI": "/healthz",
    "X-Forwarded-Method": "GET",
    "X-Forwarded-Uri": "/healthz",
    "X-Forwarded-Prefix": "/healthz",
    "X-Http-Method-Override": "GET",
}


Request = tuple[str, str, dict[str, str], str]


@pytest.fixture(scope="module")
def scoped(asked: Patgate) -> Token:
    return asked.token(EDITOR, name="ingress", scopes=["things:read"])


@pytest.mark.row(Row.ALLOWED)
def test_an_allowed_request_reaches_the_backend_with_our_identity(
    ingress: Ingress, behind: Recorder, editor: Token
) -> None:
    """F6: with the ingress file that the documentation shows."""
    with Connection(ingress.port) as connection:
        response = connection.request("GET", "/v1/things/a%2Db?x=1&y=%2F", headers=editor.bearer)
    assert response.status == 200
    seen = behind.last()
    assert seen.target == (b"/v1/things/a-b?x=1&y=%2F" if ingress.cleans_paths else b"/v1/things/a%2Db?x=1&y=%2F")
    assert seen.only("X-Auth-Email") == EDITOR
    assert seen.only("X-Auth-Role") == "editor"
    assert seen.only("X-Auth-Token") == editor.prefix
    assert seen.only("X-Auth-Kind") == "pat"
    assert seen.only("X-Auth-User")


@pytest.mark.row(Row.ALLOWED)
def test_the_credential_does_not_reach_the_backend(ingress: Ingress, behind: Recorder, editor: Token) -> None:
    with Connection(ingress.port) as connection:
        assert connection.request("GET", "/v1/things/1", headers=editor.bearer).status == 200
        assert connection.request("GET", "/v1/things/1", headers={"X-API-Key": editor.value}).status == 200
    assert not any(editor.value.encode() in received for received in behind.received)


@pytest.mark.row(Row.IDENTITY)
def test_a_clients_identity_headers_never_arrive(ingress: Ingress, behind: Recorder, editor: Token) -> None:
    with Connection(ingress.port) as connection:
        response = connection.request("GET", "/v1/things/1", headers=editor.bearer | SPOOFED)
    assert response.status == 200
    seen = behind.last()
    assert seen.only("X-Auth-Email") == EDITOR
    assert seen.only("X-Auth-Role") == "editor"
    assert seen.all("X-Auth-Org") in ([], [b""])
    for value in SPOOFED.values():
        assert b": " + value.encode() + b"\r\n" not in seen.head, value


@pytest.mark.row(Row.IDENTITY)
def test_on_a_public_route_the_backend_sees_no_identity(ingress: Ingress, behind: Recorder) -> None:
    with Connection(ingress.port) as connection:
        assert connection.request("GET", "/healthz", headers=SPOOFED).status == 200
    seen = behind.last()
    for field in IDENTITY:
        assert seen.all(f"X-Auth-{field}") in ([], [b""]), field


REFUSALS: Mapping[str, Request] = {
    "no credential": ("GET", "/v1/things/1", {}, ""),
    "an unknown token": ("GET", "/v1/things/1", {"Authorization": "Bearer acme_pat_0123456789ab_nothing"}, ""),
    "two credentials": ("GET", "/v1/things/1", {"X-API-Key": "acme_pat_nothing"}, "viewer"),
    "a role that does not reach": ("PUT", "/v1/things/1", {}, "viewer"),
    "a scope that does not reach": ("DELETE", "/v1/things/1", {}, "scoped"),
    "no route": ("GET", "/nowhere", {}, "viewer"),
    "a denied route": ("GET", "/billing/x", {}, "viewer"),
    "a target that is not canonical": ("GET", "/v1/things/a%5cb", {}, "viewer"),
    "a second target that is not canonical": ("COPY", "/public/a", {"Destination": "/public/%2e%2e/b"}, ""),
}
"""Requests that are refused, each by another rule, and whose token they present."""


@pytest.mark.row(Row.REFUSED)
@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_what_patgate_itself_would_have_answered(
    case: str, ingress: Ingress, behind: Recorder, asked: Patgate, viewer: Token, scoped: Token
) -> None:
    method, target, headers, presents = REFUSALS[case]
    headers |= {"viewer": viewer.bearer, "scoped": scoped.bearer, "": {}}[presents]
    call = {"X-Forwarded-Method": method, "X-Forwarded-Uri": target, "X-Forwarded-Host": "gateway"}
    with Connection(asked.forward_auth_port) as connection:
        own = connection.request("GET", "/caddy", headers=headers | call)
    with Connection(ingress.port) as connection:
        response = connection.request(method, target, headers=headers)
    assert (response.status, response.get("Content-Type")) == (own.status, "application/problem+json")
    assert response.all("WWW-Authenticate") == own.all("WWW-Authenticate")
    assert response.all("Retry-After") == own.all("Retry-After")
    assert response.get("Cache-Control") == "no-store"
    document = response.json()
    assert document.pop("decision") == response.get("X-Request-Id")
    assert document == {key: value for key, value in own.json().items() if key != "decision"}
    assert behind.requests == []


@pytest.mark.row(Row.REFUSED)
def test_no_credential_is_refused_with_a_challenge(ingress: Ingress, behind: Recorder) -> None:
    with Connection(ingress.port) as connection:
        response = connection.request("GET", "/v1/things/1")
    assert response.status == 401
    challenges = response.all("WWW-Authenticate")
    assert 'Bearer realm="acme"' in challenges
    assert any(challenge.startswith("Basic realm=") for challenge in challenges), "git and pip would not send a token"
    assert behind.requests == []


@pytest.mark.row(Row.REFUSED)
def test_an_unknown_token_is_refused_with_a_challenge(ingress: Ingress, behind: Recorder) -> None:
    with Connection(ingress.port) as connection:
        response = connection.request("GET", "/v1/things/1", headers={"Authorization": "Bearer acme_pat_nothing"})
    assert response.status == 401
    assert 'error="invalid_token"' in ", ".join(response.all("WWW-Authenticate"))
    assert behind.requests == []


@pytest.mark.row(Row.REFUSED)
def test_a_role_that_does_not_reach_is_refused(ingress: Ingress, behind: Recorder, viewer: Token) -> None:
    with Connection(ingress.port) as connection:
        response = connection.request("PUT", "/v1/things/1", headers=viewer.bearer, body=b"{}")
    assert response.status == 403
    assert 'error="insufficient_scope"' in (response.get("WWW-Authenticate") or "")
    assert response.get("Content-Type") == "application/problem+json"
    assert response.json()["reason"] == "role_denies"
    assert behind.requests == []


@pytest.mark.row(Row.FORGED)
def test_a_client_cannot_say_what_its_request_is(ingress: Ingress, behind: Recorder, viewer: Token) -> None:
    with Connection(ingress.port) as connection:
        assert connection.request("PUT", "/v1/things/1", headers=viewer.bearer | CLAIMS, body=b"{}").status == 403
        assert connection.request("GET", "/billing/x", headers=viewer.bearer | CLAIMS).status == 403
        assert connection.request("GET", "/v1/things/1", headers=CLAIMS).status == 401
    assert behind.requests == []


@pytest.mark.row(Row.FORGED)
def test_a_method_override_or_another_target_does_not_reach_the_backend(
    ingress: Ingress, behind: Recorder, editor: Token
) -> None:
    more = {"X-Original-URL": "/billing/x", "X-Rewrite-URL": "/billing/x", "X-Method-Override": "DELETE"}
    with Connection(ingress.port) as connection:
        assert connection.request("GET", "/v1/things/1", headers=editor.bearer | CLAIMS | more).status == 200
    for name in (*CLAIMS, *more):
        assert behind.last().all(name) == [], name


@pytest.mark.row(Row.REFUSED)
def test_a_second_credential_is_refused(ingress: Ingress, behind: Recorder, editor: Token) -> None:
    request = request_bytes("GET", "/v1/things/1", headers=editor.bearer | {"X-API-Key": editor.value})
    with Connection(ingress.port) as connection:
        response = connection.exchange(request)
    assert response.status == 400
    assert behind.requests == []


@pytest.mark.row(Row.ALLOWED)
def test_a_body_still_reaches_the_backend_after_the_verdict(ingress: Ingress, behind: Recorder, editor: Token) -> None:
    with Connection(ingress.port) as connection:
        response = connection.request("POST", "/v1/things", headers=editor.bearer, body=b'{"a":1}' * 1000)
    assert response.status == 200
    assert b'{"a":1}' * 1000 in behind.last().body


@pytest.mark.row(Row.STALE)
def test_a_lowered_role_counts_at_once(ingress: Ingress, behind: Recorder, asked: Patgate) -> None:
    person = asked.add_user(f"lowered-{ingress.name}@example.org", "editor")
    token = asked.token(person)
    with Connection(ingress.port) as connection, asked.control_socket() as control:
        assert connection.request("PUT", "/v1/things/1", headers=token.bearer, body=b"{}").status == 200
        assert behind.last().only("X-Auth-Role") == "editor"
        control.set_role(person, "viewer")
        assert connection.request("PUT", "/v1/things/1", headers=token.bearer, body=b"{}").status == 403
        assert len(behind.requests) == 1
        assert connection.request("GET", "/v1/things/1", headers=token.bearer).status == 200
        assert behind.last().only("X-Auth-Role") == "viewer"


@pytest.mark.row(Row.STALE)
def test_a_revoked_token_is_refused_at_once(ingress: Ingress, behind: Recorder, asked: Patgate) -> None:
    token = asked.token(EDITOR, name="to be revoked")
    with Connection(ingress.port) as connection:
        assert connection.request("GET", "/v1/things/1", headers=token.bearer).status == 200
        asked.cli("token", "revoke", token.id)
        assert connection.request("GET", "/v1/things/1", headers=token.bearer).status == 401
