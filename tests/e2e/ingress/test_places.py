"""Tokens in places of the operator's own, behind every ingress file with the line that docs/ingress.md says to add."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.e2e.ingress.matrix import Row
from tests.support import ingress as files
from tests.support import ingress_places
from tests.support.gateway import Patgate, Token
from tests.support.ingress import ENVOY_GRPC, INGRESSES, Ingress, envoy_grpc
from tests.support.plugin import EDITOR, ROLES, ROUTES, VIEWER
from tests.support.pool import Pool
from tests.support.rawhttp import Connection, Response
from tests.support.recorder import Recorder

PLACES = [
    "bearer",
    "basic",
    "x-api-key",
    {"header": ingress_places.HEADER},
    {"header": "Authorization", "scheme": "token"},
    {"header": "Authorization"},
]
PRESENTED = {
    "a header": f"{ingress_places.HEADER}: {{token}}",
    "a header in lower case": f"{ingress_places.HEADER.lower()}: {{token}}",
    "a scheme": "Authorization: token {token}",
    "a scheme in capitals": "Authorization: TOKEN {token}",
    "no scheme": "Authorization: {token}",
}


@pytest.fixture(scope="module")
def node(gateways: Pool) -> Iterator[Patgate]:
    """A gateway with places of its own, and a route where only the usual ones are on."""
    usual = {"path": "/usual/{entity}/{id}", "upstream": "app", "credentials": ["bearer"]}
    config = {
        "workers": 1,
        "credentials": PLACES,
        "listen": {"forward_auth": {"trusted": ["127.0.0.1/32"]}, "ext_authz": {"trusted": ["127.0.0.1/32"]}},
        "upstreams": {"app": {"servers": ["http://127.0.0.1:9"]}},
        "roles": ROLES,
        "routes": [usual, *ROUTES],
    }
    with gateways.lend(config) as running:
        running.add_user(EDITOR, "editor")
        running.add_user(VIEWER, "viewer")
        yield running


@pytest.fixture(scope="module", params=[*INGRESSES, ENVOY_GRPC])
def ingress(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, node: Patgate, application: Recorder
) -> Iterator[Ingress]:
    """An ingress with its shipped files, changed as the page says."""
    directory = tmp_path_factory.mktemp(request.param)
    changed = directory / "config"
    shutil.copytree(files.INGRESS, changed / "ingress")
    for name, said in ingress_places.rows().items():
        if name.startswith("ingress/"):
            (changed / name).write_text(ingress_places.changed(name, said))
    grpc = request.param == ENVOY_GRPC
    start = envoy_grpc if grpc else INGRESSES[request.param]
    port = node.ext_authz_port if grpc else node.forward_auth_port
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "INGRESS", changed / "ingress")
        with start(directory, application=application.port, forward_auth=port) as running:
            yield running


@pytest.fixture(scope="module")
def token(node: Patgate) -> Token:
    return node.token(VIEWER, name="places")


def ask(ingress: Ingress, method: str, target: str, *lines: str) -> Response:
    head = "".join(f"{line}\r\n" for line in (f"{method} {target} HTTP/1.1", "Host: gateway", *lines, ""))
    with Connection(ingress.port) as connection:
        return connection.exchange(head.encode("latin-1"))


def never_arrived(behind: Recorder, token: Token) -> bool:
    return not any(token.value.encode() in data for data in behind.received)


@pytest.mark.parametrize("place", PRESENTED.values(), ids=PRESENTED)
@pytest.mark.row(Row.PLACES)
def test_a_token_in_a_place_of_ones_own_is_taken_and_does_not_reach_the_application(
    place: str, ingress: Ingress, behind: Recorder, token: Token
) -> None:
    line = place.format(token=token.value)
    assert ask(ingress, "GET", "/v1/things/1", line).status == 200
    seen = behind.last()
    assert seen.only("X-Auth-Email") == VIEWER
    assert seen.all(ingress_places.HEADER) == seen.all("Authorization") == []
    assert ask(ingress, "PUT", "/v1/things/1", line).json()["reason"] == "role_denies"
    assert len(behind.requests) == 1
    assert never_arrived(behind, token)


@pytest.mark.row(Row.PLACES)
def test_two_credentials_are_refused(ingress: Ingress, behind: Recorder, token: Token) -> None:
    for other in ("Authorization: Bearer {}", "X-API-Key: {}", "Authorization: token {}", "PRIVATE-TOKEN: {}"):
        lines = (f"{ingress_places.HEADER}: {token.value}", other.format(token.value))
        # Envoy joins lines of one name by commas before it asks over HTTP: then the value is no token.
        statuses = (400, 401) if other.startswith(ingress_places.HEADER) else (400,)
        assert ask(ingress, "GET", "/v1/things/1", *lines).status in statuses, other
    assert behind.requests == []


@pytest.mark.row(Row.PLACES)
def test_a_place_of_another_route_is_no_place_here(ingress: Ingress, behind: Recorder, token: Token) -> None:
    for place in PRESENTED.values():
        assert ask(ingress, "GET", "/usual/things/1", place.format(token=token.value)).status in (400, 401), place
    assert behind.requests == []


@pytest.mark.parametrize("target", ["/v1/things/1", "/public/x", "/ui/x"])
@pytest.mark.row(Row.PLACES)
def test_a_token_in_another_spelling_of_the_place_does_not_reach_the_application(
    target: str, ingress: Ingress, behind: Recorder, token: Token
) -> None:
    for name in ("PRIVATE_TOKEN", "Private.Token", "PRIVATE-TOKEN"):
        for login in ((), (f"Authorization: Bearer {token.value}",)):
            ask(ingress, "GET", target, f"{name}: {token.value}", *login)
    assert never_arrived(behind, token)


@pytest.mark.parametrize("target", ["/v1/things/1", "/public/x", "/ui/x"])
@pytest.mark.row(Row.PLACES)
def test_a_token_among_the_subprotocols_of_a_websocket_does_not_reach_the_application(
    target: str, ingress: Ingress, behind: Recorder, token: Token
) -> None:
    """In forward auth this is no place, because the ingress would forward the token."""
    upgrade = (
        "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )  # fmt: skip
    offered = f"Sec-WebSocket-Protocol: chat, patgate.bearer.{token.value}, patgate.bearer"
    for login in ((), (f"{ingress_places.HEADER}: {token.value}",)):
        assert ask(ingress, "GET", target, *upgrade, offered, *login).status in (400, 401)
    assert behind.requests == []


@pytest.mark.row(Row.PLACES)
def test_a_token_in_a_cookie_beside_the_place_does_not_reach_the_application(
    ingress: Ingress, behind: Recorder, token: Token
) -> None:
    login = f"{ingress_places.HEADER}: {token.value}"
    assert ask(ingress, "GET", "/v1/things/1", login, "Cookie: theme=dark").status == 200
    assert behind.last().only("Cookie") == "theme=dark"
    for cookie in (f"session={token.value}", f"a=b; private_token={token.value}"):
        answer = ask(ingress, "GET", "/v1/things/1", login, f"Cookie: {cookie}")
        assert (answer.status, answer.json()["reason"]) == (400, "token_misplaced")
    assert len(behind.requests) == 1
