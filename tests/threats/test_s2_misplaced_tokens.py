"""Threat model §2: a token in a cookie, the query or another header never reaches a backend."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from proxy.core.kinds import Kind
from proxy.core.token import TokenFormat
from tests.support.gateway import Patgate, Token
from tests.support.plugin import EDITOR, ROLES, ROUTES
from tests.support.pool import Pool
from tests.support.rawhttp import Connection, Response
from tests.support.recorder import Recorder

TARGETS = ["/v1/things/1", "/public/x", "/ui/x"]


@pytest.fixture(scope="module")
def token(gateway: Patgate) -> Token:
    return gateway.token(EDITOR, name="misplaced")


def escaped(text: str) -> str:
    """``text`` with its underscores and one letter percent-encoded."""
    return text.replace("_", "%5f").replace("a", "%61", 1)


def places(value: str) -> dict[str, str]:
    """Header lines that contain the token, by name."""
    basic = base64.b64encode(f"git:{value}".encode()).decode()
    registry = base64.urlsafe_b64encode(json.dumps({"username": "git", "password": value}).encode()).decode()
    return {
        "private-token": f"PRIVATE-TOKEN: {value}",
        "any header": f"X-Whatever: before{value}after",
        "cookie": f"Cookie: session=1; token={value}; theme=dark",
        "encoded cookie": f"Cookie: token={quote(value)}; other={escaped(value)}",
        "referer": f"Referer: http://gateway/ui/?private_token={value}",
        "user agent": f"User-Agent: tool ({value})",
        "stripped header": f"X-Auth-Token: {value}",
        "forwarding header": f"X-Forwarded-For: {value}",
        "proxy authorization": f"Proxy-Authorization: Basic {basic}",
        "other authorization": f"X-Authorization: Basic {basic}",
        "registry": f"X-Registry-Auth: {registry}",
        "versioned credential": f"X-Credential: v1/{basic}",
        "named secret": f"X-Client-Secret: basic-{basic}",
        "websocket protocol": "Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io."
        + base64.urlsafe_b64encode(value.encode()).decode().rstrip("="),
        "destination": f"Destination: /v1/things/{value}",
    }


def ask(node: Patgate, target: str, *lines: str) -> Response:
    head = "\r\n".join((f"GET {target} HTTP/1.1", "Host: gateway", *lines, "", ""))
    with node.connect() as connection:
        return connection.exchange(head.encode("latin-1"))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("place", places("x"))
@pytest.mark.parametrize("presented", [True, False], ids=["beside the credential", "alone"])
def test_a_token_in_another_header_is_refused_and_nothing_arrives(
    presented: bool, place: str, target: str, gateway: Patgate, recorder: Recorder, token: Token
) -> None:
    line = places(token.value)[place]
    login = (f"Authorization: Bearer {token.value}",) if presented else ()
    response = ask(gateway, target, line, *login)
    assert response.status == 400
    assert response.json()["reason"] == "token_misplaced"
    assert token.value.encode() not in response.body
    assert recorder.requests == []


@pytest.mark.parametrize("target", TARGETS)
def test_a_token_in_the_target_is_refused_and_nothing_arrives(
    target: str, gateway: Patgate, recorder: Recorder, token: Token
) -> None:
    for where in (f"{target}?private_token={token.value}", f"{target}?a=1&t={escaped(token.value)}"):
        response = ask(gateway, where, f"Authorization: Bearer {token.value}")
        assert (response.status, response.json()["reason"]) == (400, "token_misplaced")
    response = ask(gateway, f"/public/{token.value}")
    assert (response.status, response.json()["reason"]) == (400, "token_misplaced")
    assert recorder.requests == []


def test_what_is_no_token_of_the_brand_passes(gateway: Patgate, recorder: Recorder, token: Token) -> None:
    foreign = TokenFormat("other").mint(Kind.PAT).token
    lines = (
        f"X-Prefix: {token.prefix}",
        f"PRIVATE-TOKEN: {foreign}",
        "Cookie: a_b=%5F%61; acme_=acme_pat_short",
        "X-Registry-Auth: eyJ1c2VybmFtZSI6ImdpdCIsInBhc3N3b3JkIjoicGxhaW4gd29yZHMifQ==",
    )
    assert ask(gateway, "/v1/things/1?acme_pat=1", *lines, f"Authorization: Bearer {token.value}").status == 200
    seen = recorder.last()
    for line in lines:
        assert line.encode() in seen.head


@pytest.mark.parametrize("place", places("x"))
def test_forward_auth_refuses_it_too(place: str, gateway: Patgate, token: Token) -> None:
    """The ingress forwards the client's headers itself, so patgate cannot drop any."""
    described = ["X-Original-Method: GET", "X-Original-URI: /v1/things/1", f"Authorization: Bearer {token.value}"]
    with Connection(gateway.forward_auth_port) as connection:
        # nginx understands 403, so the true status is in a header.
        for extra, status, true in (("X-Harmless: 1", 200, []), (places(token.value)[place], 403, ["400"])):
            head = "\r\n".join(("GET /nginx HTTP/1.1", "Host: gateway", *described, extra, "", ""))
            response = connection.exchange(head.encode())
            assert (response.status, response.all("X-Patgate-Status")) == (status, true)
        for target in (f"/v1/things/1?t={token.value}", f"/v1/things/1?t={escaped(token.value)}"):
            lines = ("X-Original-Method: GET", f"X-Original-URI: {target}", described[2])
            head = "\r\n".join(("GET /nginx HTTP/1.1", "Host: gateway", *lines, "", ""))
            assert connection.exchange(head.encode()).json()["reason"] == "token_misplaced"


@pytest.fixture(scope="module")
def dropping(gateways: Pool, backend: Recorder) -> Iterator[Patgate]:
    config = {
        "workers": 1,
        "upstreams": {"app": {"servers": [backend.url]}},
        "roles": ROLES,
        "routes": ROUTES,
        "headers": {"misplaced_tokens": "drop"},
    }
    with gateways.lend(config) as node:
        node.add_user(EDITOR, "editor")
        yield node


def test_an_operator_may_have_the_header_dropped_instead(dropping: Patgate, recorder: Recorder) -> None:
    token = dropping.token(EDITOR)
    for target in TARGETS:
        for place, line in places(token.value).items():
            if place in ("forwarding header", "destination"):
                continue
            login = f"Authorization: Bearer {token.value}"
            assert ask(dropping, target, "Accept: a/b", line, "X-Kept: yes", login).status == 200, place
            seen = recorder.last()
            name = line.partition(":")[0]
            if place != "stripped header":  # an identity header: the backend gets patgate's
                assert seen.all(name) == [], place
            assert (seen.only("X-Kept"), seen.only("Accept")) == ("yes", "a/b")


def test_a_target_is_refused_even_then_because_it_is_never_rewritten(dropping: Patgate, recorder: Recorder) -> None:
    token = dropping.token(EDITOR)
    response = ask(dropping, f"/v1/things/1?t={token.value}", f"Authorization: Bearer {token.value}")
    assert (response.status, response.json()["reason"]) == (400, "token_misplaced")
    assert recorder.requests == []


@pytest.mark.parametrize("target", TARGETS)
def test_a_token_as_host_is_refused_even_then(target: str, dropping: Patgate, recorder: Recorder) -> None:
    """A request needs its Host, and X-Forwarded-Host would also carry the token to the backend."""
    value = dropping.token(EDITOR).value
    for host in (value, f"{value}:80", f"a.{value}.example"):
        head = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {value}\r\n\r\n"
        with dropping.connect() as connection:
            response = connection.exchange(head.encode())
        assert (response.status, response.json()["reason"]) == (400, "token_misplaced")
    assert recorder.requests == []


def test_a_token_in_a_forwarding_header_is_refused_even_then(dropping: Patgate, recorder: Recorder) -> None:
    """These headers say where a request comes from, so that none of them can be left out."""
    value = dropping.token(EDITOR).value
    line = places(value)["forwarding header"]
    response = ask(dropping, "/v1/things/1", line, f"Authorization: Bearer {value}")
    assert (response.status, response.json()["reason"]) == (400, "token_misplaced")
    assert recorder.requests == []
