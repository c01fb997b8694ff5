"""Threat model §2: a token counts only in a place of its route, and reaches a backend from none."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.gateway import Patgate, Token
from tests.support.plugin import EDITOR, ROLES
from tests.support.pool import Pool
from tests.support.rawhttp import Connection, Response
from tests.support.recorder import Recorded, Recorder
from tests.support.websocket import ACCEPTED

ROUTES: list[dict[str, Any]] = [
    {"path": "/public/**", "access": "public"},
    {"path": "/ui/**", "access": "passthrough"},
    {"path": "/key/{entity}", "credentials": ["x-api-key"]},
    {"path": "/private/{entity}", "credentials": [{"header": "PRIVATE-TOKEN"}, {"header": "X-Login", "scheme": "key"}]},
    {"path": "/token/{entity}", "credentials": [{"header": "Authorization", "scheme": "Token"}, "x-api-key"]},
    {"path": "/raw/{entity}", "credentials": [{"header": "Authorization"}]},
    {"path": "/registry/{entity}", "credentials": ["bearer", "basic"], "challenge": ["basic"]},
    {"path": "/feed/{entity}", "credentials": ["websocket-protocol", "bearer"]},
    {"path": "/report/{entity}", "credentials": ["x-api-key"], "enforce": False},
    {"path": "/v1/{entity}"},
]
CONFIG = {
    "workers": 1,
    "listen": {"forward_auth": {"trusted": ["127.0.0.1/32"]}},
    "credentials": ["bearer", "x-api-key"],
    "roles": ROLES,
}
AWS = "AWS4-HMAC-SHA256 Credential=AKID/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0f"
DIGEST = 'Digest username="ann", realm="app", nonce="1", uri="/", response="2"'
THEIRS = "Basic " + base64.b64encode(b"ann:secret").decode()
MISPLACED = (400, "token_misplaced")


def basic(value: str) -> str:
    return "Basic " + base64.b64encode(f"any:{value}".encode()).decode()


@pytest.fixture(scope="module")
def node(gateways: Pool, backend: Recorder) -> Iterator[Patgate]:
    routes = [{"upstream": "app"} | route for route in ROUTES]
    with gateways.lend(CONFIG | {"routes": routes, "upstreams": {"app": {"servers": [backend.url]}}}) as lent:
        lent.add_user(EDITOR, "editor")
        yield lent


@pytest.fixture(scope="module")
def token(node: Patgate) -> Token:
    return node.token(EDITOR, name="places")


def ask(node: Patgate, target: str, *lines: str, method: str = "GET") -> Response:
    head = "\r\n".join((f"{method} {target} HTTP/1.1", "Host: gateway", *lines, "", ""))
    with node.connect() as connection:
        return connection.exchange(head.encode("latin-1"))


def described(node: Patgate, target: str, *lines: str) -> Response:
    """The answer to an ingress that describes the request and sends on its headers."""
    shape = ("X-Forwarded-Method: GET", f"X-Forwarded-Uri: {target}", "X-Forwarded-Host: gateway")
    head = "\r\n".join(("GET /traefik HTTP/1.1", "Host: patgate", *shape, *lines, "", ""))
    with Connection(node.forward_auth_port) as connection:
        return connection.exchange(head.encode("latin-1"))


def verdict(response: Response) -> tuple[int, str]:
    return response.status, "" if response.status == 200 else response.json()["reason"]


FORMS = {
    "bearer": "Authorization: Bearer {}",
    "basic": "Authorization: {basic}",
    "scheme": "Authorization: token {}",
    "raw": "Authorization: {}",
    "key": "X-API-Key: {}",
    "private": "Private-Token: {}",
    "login": "X-Login:Key {}",
}
TAKES = {
    "/v1/things": ("bearer", "key"),
    "/key/things": ("key",),
    "/private/things": ("private", "login"),
    "/token/things": ("scheme", "key"),
    "/raw/things": ("raw",),
    "/registry/things": ("bearer", "basic"),
}


def written(form: str, value: str) -> str:
    return FORMS[form].format(value, basic=basic(value))


@pytest.mark.parametrize(("target", "form"), [(target, form) for target, forms in TAKES.items() for form in forms])
def test_a_token_in_a_place_of_the_route_is_taken_and_stays_at_the_gateway(
    target: str, form: str, node: Patgate, recorder: Recorder, token: Token
) -> None:
    line = written(form, token.value)
    for again in range(2):
        assert verdict(ask(node, target, line, "X-Kept: yes")) == (200, ""), again
        seen = recorder.last()
        assert seen.all(line.partition(":")[0]) == []
        assert (seen.only("X-Kept"), seen.only("X-Auth-Token")) == ("yes", token.prefix)
        assert token.value.encode() not in seen.head
    assert verdict(described(node, target, line)) == (200, "")


@pytest.mark.parametrize("form", FORMS)
def test_the_same_value_is_not_taken_on_a_route_where_that_is_no_place(
    form: str, node: Patgate, recorder: Recorder, token: Token
) -> None:
    """Also while the gateway remembers the very value from the routes that take it."""
    line = written(form, token.value)
    for target in (target for target, forms in TAKES.items() if form in forms):
        assert ask(node, target, line).status == 200
    recorder.clear()
    expected = (401, "credential_unsupported") if line.startswith("Authorization") else MISPLACED
    for target in (target for target, forms in TAKES.items() if form not in forms):
        for answer in (ask, described):
            assert verdict(answer(node, target, line)) == expected, target
    assert recorder.requests == []


@pytest.mark.parametrize("foreign", [THEIRS, AWS, DIGEST, "Negotiate abc="])
@pytest.mark.parametrize("target", ["/key/things", "/v1/things", "/token/things"])
def test_an_authorization_of_the_applications_own_passes_beside_the_key(
    target: str, foreign: str, node: Patgate, recorder: Recorder, token: Token
) -> None:
    for line in (f"Authorization: {foreign}", f"authorization:{foreign}"):
        assert verdict(ask(node, target, f"X-API-Key: {token.value}", line)) == (200, "")
        seen = recorder.last()
        assert (seen.only("Authorization"), seen.all("X-API-Key")) == (foreign, [])
        assert seen.only("X-Auth-Token") == token.prefix
    assert verdict(described(node, target, f"X-API-Key: {token.value}", f"Authorization: {foreign}")) == (200, "")


def test_a_key_of_the_applications_own_passes_where_it_is_no_place(
    node: Patgate, recorder: Recorder, token: Token
) -> None:
    lines = ("X-API-Key: theirs", "PRIVATE-TOKEN: also theirs", "PRIVATE-TOKEN: twice")
    assert verdict(ask(node, "/raw/things", f"Authorization: {token.value}", *lines)) == (200, "")
    seen = recorder.last()
    assert seen.only("X-API-Key") == "theirs"
    assert seen.all("PRIVATE-TOKEN") == [b"also theirs", b"twice"]
    assert seen.all("Authorization") == []


@pytest.mark.parametrize(
    ("target", "lines"),
    [
        ("/v1/things", ("Authorization: Bearer {}", "X-API-Key: {}")),
        ("/v1/things", ("Authorization: Bearer theirs", "X-API-Key: {}")),
        ("/v1/things", ("Authorization:", "X-API-Key: {}")),
        ("/v1/things", ("X-API-Key: {}", "X-API-Key: {}")),
        ("/private/things", ("PRIVATE-TOKEN: {}", "X-Login: key {}")),
        ("/private/things", ("PRIVATE-TOKEN: {}", "private-token: {}")),
        ("/v1/things", ("Authorization: Bearer {}", "Authorization: Bearer {}")),
        ("/key/things", ("Authorization: Bearer {}", "Authorization: Basic abc", "X-API-Key: {}")),
    ],
)
def test_two_credentials_in_open_places_are_refused(
    target: str, lines: tuple[str, ...], node: Patgate, recorder: Recorder, token: Token
) -> None:
    given = [line.format(token.value) for line in lines]
    assert verdict(ask(node, target, *given)) == (400, "credential_ambiguous")
    assert verdict(described(node, target, *given)) == (400, "credential_ambiguous")
    assert recorder.requests == []


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("/key/things", "Authorization: Bearer {}"),
        ("/key/things", "Authorization: {}"),
        ("/key/things", "Authorization: basic"),
        ("/key/things", "PRIVATE-TOKEN: {}"),
        ("/key/things", "PRIVATE-TOKEN: basic"),
        ("/key/things", "X-Login: key {}"),
        ("/key/things", "Sec-WebSocket-Protocol: patgate.bearer.{}"),
        ("/token/things", "Authorization: Bearer {}"),
    ],
)
def test_a_token_that_is_also_in_a_field_of_the_application_never_arrives(
    target: str, line: str, node: Patgate, recorder: Recorder, token: Token
) -> None:
    name = line.partition(":")[0]
    given = f"{name}: {basic(token.value)}" if line.endswith("basic") else line.format(token.value)
    for answer in (ask, described):
        assert verdict(answer(node, target, given, f"X-API-Key: {token.value}")) == MISPLACED
    assert recorder.requests == []


@pytest.mark.parametrize("target", ["/public/x", "/ui/x"])
def test_on_open_routes_a_token_in_any_place_stays_behind_and_the_rest_passes(
    target: str, node: Patgate, recorder: Recorder, token: Token
) -> None:
    ours = (f"X-API-Key: {token.value}", f"PRIVATE-TOKEN: {basic(token.value)}", f"X-Login: key {token.value}")
    assert ask(node, target, *ours, f"Authorization: Token {token.value}").status == 200
    seen = recorder.last()
    for name in ("X-API-Key", "PRIVATE-TOKEN", "X-Login", "Authorization"):
        assert seen.all(name) == []
    assert ask(node, target, "PRIVATE-TOKEN: theirs", f"Authorization: {AWS}").status == 200
    assert (recorder.last().only("PRIVATE-TOKEN"), recorder.last().only("Authorization")) == ("theirs", AWS)


def test_a_report_only_route_forwards_what_is_not_ours_without_identity(
    node: Patgate, recorder: Recorder, token: Token
) -> None:
    assert ask(node, "/report/things", f"Authorization: {DIGEST}").status == 200
    seen = recorder.last()
    assert (seen.only("Authorization"), seen.only("X-Auth-User")) == (DIGEST, "")
    assert ask(node, "/report/things", f"Authorization: Token {token.value}").status == 200
    seen = recorder.last()
    assert (seen.all("Authorization"), seen.only("X-Auth-User")) == ([], "")


@pytest.mark.parametrize(
    ("target", "lines", "challenge"),
    [
        ("/v1/things", (), ['Bearer realm="acme"']),
        ("/v1/things", (f"Authorization: {DIGEST}",), ['Bearer realm="acme"']),
        ("/v1/things", ("Authorization: Bearer x",), ['Bearer realm="acme", error="invalid_token"']),
        ("/registry/things", (), ['Basic realm="acme", charset="UTF-8"']),
        ("/registry/things", ("Authorization: Bearer x",), ['Basic realm="acme", charset="UTF-8"']),
        ("/token/things", (), ['Token realm="acme"']),
        ("/token/things", ("Authorization: Bearer x",), ['Token realm="acme"']),
        ("/key/things", (), ['Header realm="acme", name="X-API-Key"']),
        ("/private/things", ("PRIVATE-TOKEN: x",), ['Header realm="acme", name="PRIVATE-TOKEN"']),
        ("/raw/things", (), ['Header realm="acme", name="Authorization"']),
    ],
)
def test_a_401_offers_what_the_route_takes_and_repeats_nothing(
    target: str, lines: tuple[str, ...], challenge: list[str], node: Patgate, recorder: Recorder
) -> None:
    for answer in (ask, described):
        response = answer(node, target, *lines)
        assert response.status == 401
        assert response.all("WWW-Authenticate") == challenge
        assert b"Digest" not in response.body
    assert recorder.requests == []


def test_the_explanation_of_a_request_has_the_challenge_of_its_route(node: Patgate, token: Token) -> None:
    for target, expected in (("/registry/others", []), ("/v1/others", ["Bearer"])):
        explained = node.cli("explain", token.id, "GET", target)
        assert [value.split(" ")[0] for value in explained["challenge"]] == expected
        assert explained["reason"] == "role_denies"


@pytest.mark.parametrize("alias", ["Private_Token", "private.token", "X_API_Key", "X_Login"])
def test_another_spelling_of_a_place_is_dropped(alias: str, node: Patgate, recorder: Recorder, token: Token) -> None:
    assert verdict(ask(node, "/private/things", f"{alias}: harmless", f"PRIVATE-TOKEN: {token.value}")) == (200, "")
    assert recorder.last().all(alias) == []
    assert verdict(ask(node, "/private/things", f"{alias}: {token.value}")) == MISPLACED


def test_a_nomination_by_connection_changes_no_caller(node: Patgate, recorder: Recorder, token: Token) -> None:
    for name in ("private-token", "X-API-Key"):
        lines = (f"Connection: {name}", f"PRIVATE-TOKEN: {token.value}")
        assert verdict(ask(node, "/private/things", *lines)) == (400, "request_malformed")
    assert recorder.requests == []


def upgrade(node: Patgate, target: str, *protocols: str, extra: tuple[str, ...] = ()) -> Response:
    lines = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAA")
    return ask(node, target, *lines, *(f"Sec-WebSocket-Protocol: {line}" for line in protocols), *extra)


def selecting(protocol: str) -> bytes:
    return ACCEPTED[:-2] + (f"Sec-WebSocket-Protocol: {protocol}\r\n\r\n" if protocol else "\r\n").encode()


@pytest.mark.parametrize(
    ("lines", "seen", "backends", "selected"),
    [
        (("chat, patgate.bearer.{}, v2",), [b"chat, v2"], "v2", "v2"),
        (("chat", "patgate.bearer.{}"), [b"chat"], "chat", "chat"),
        (("patgate.bearer.{}",), [], "", None),
        (("patgate.bearer.{}, patgate.bearer",), [], "", "patgate.bearer"),
        (("patgate.bearer.{}, patgate.bearer, chat",), [b"chat"], "chat", "chat"),
    ],
)
def test_a_websockets_token_is_removed_and_the_other_subprotocols_go_on(
    lines: tuple[str, ...], seen: list[bytes], backends: str, selected: str | None,
    node: Patgate, recorder: Recorder, token: Token,
) -> None:  # fmt: skip
    def switch(request: Recorded) -> bytes:
        return selecting(backends)

    recorder.script = switch
    for _ in range(2):
        response = upgrade(node, "/feed/things", *(line.format(token.value) for line in lines))
        assert response.status == 101
        assert response.get("Sec-WebSocket-Protocol") == selected
        request = recorder.last()
        assert request.all("Sec-WebSocket-Protocol") == seen
        assert request.only("X-Auth-Token") == token.prefix
        assert token.value.encode() not in request.head


def test_a_websockets_token_counts_in_an_upgrade_of_its_route_only(
    node: Patgate, recorder: Recorder, token: Token
) -> None:
    offered = f"patgate.bearer.{token.value}"
    line = f"Sec-WebSocket-Protocol: {offered}"
    assert verdict(ask(node, "/feed/things", line)) == MISPLACED
    assert verdict(ask(node, "/feed/things", line, "Connection: upgrade", "Upgrade: other")) == MISPLACED
    assert verdict(upgrade(node, "/v1/things", offered)) == MISPLACED
    assert verdict(upgrade(node, "/feed/things", f"chat, {token.value}")) == MISPLACED
    assert verdict(upgrade(node, "/feed/things", f"{offered}, x{token.value}")) == MISPLACED
    login = f"Authorization: Bearer {token.value}"
    assert verdict(upgrade(node, "/feed/things", offered, extra=(login,))) == (400, "credential_ambiguous")
    assert verdict(upgrade(node, "/feed/things", f"{offered}, {offered}")) == (400, "credential_ambiguous")
    assert verdict(upgrade(node, "/feed/things", "patgate.bearer.x")) == (401, "invalid_token")
    assert verdict(upgrade(node, f"/feed/things?access_token={token.value}")) == MISPLACED
    assert recorder.requests == []


def test_in_forward_auth_a_subprotocol_is_no_place(node: Patgate, token: Token) -> None:
    """The ingress would forward it with the token to the application."""
    lines = (f"Sec-WebSocket-Protocol: patgate.bearer.{token.value}", "Connection: Upgrade", "Upgrade: websocket")
    assert verdict(described(node, "/feed/things", *lines)) == MISPLACED


@pytest.fixture(scope="module")
def dropping(gateways: Pool, backend: Recorder) -> Iterator[Patgate]:
    routes = [{"upstream": "app"} | route for route in ROUTES]
    settings = {
        "routes": routes,
        "upstreams": {"app": {"servers": [backend.url]}},
        "headers": {"misplaced_tokens": "drop"},
    }
    with gateways.lend(CONFIG | settings) as lent:
        lent.add_user(EDITOR, "editor")
        yield lent


def test_a_field_with_a_token_is_dropped_where_the_operator_says_so(dropping: Patgate, recorder: Recorder) -> None:
    value = dropping.token(EDITOR).value
    key = f"X-API-Key: {value}"
    for line in (f"PRIVATE-TOKEN: {value}", f"Authorization: {basic(value)}", f"X-Login: key {value}"):
        assert verdict(ask(dropping, "/key/things", key, line, "X-Kept: yes")) == (200, ""), line
        seen = recorder.last()
        assert seen.all(line.partition(":")[0]) == []
        assert seen.only("X-Kept") == "yes"
        recorder.clear()
        # Alone it is not the credential either.
        assert ask(dropping, "/key/things", line).status == 401
        assert verdict(described(dropping, "/key/things", key, line)) == MISPLACED
    assert recorder.requests == []
