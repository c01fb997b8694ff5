"""Identity headers for tokens that reach organisations, by route and role; C2, C3, C6, D7."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.gateway import Patgate, Token, token_of
from tests.support.pool import Pool
from tests.support.rawhttp import Connection
from tests.support.recorder import Recorder

EVE = "eve@example.org"
LAB, SHOP = "/orgs/harbour/things/1", "/orgs/quay/things/1"
OWN = "/v1/things/1"


@pytest.fixture(scope="module")
def node(gateways: Pool, backend: Recorder) -> Iterator[Patgate]:
    """Eve is a viewer in the account, an admin of harbour and an editor of quay."""
    config = {
        "workers": 1,
        "upstreams": {"app": {"servers": [backend.url]}},
        "roles": {"admin": ["*:*"], "editor": ["things:*"], "viewer": ["things:read", "things:list"]},
        "routes": [
            {"path": "/orgs/{org}/{entity}/{id}", "upstream": "app"},
            {"path": "/v1/{entity}/{id}", "upstream": "app"},
        ],
    }
    with gateways.lend(config) as node:
        with node.control_socket() as control:
            control.call("POST", "/users", {"email": EVE, "role": "viewer"})
            for org, role in (("harbour", "admin"), ("quay", "editor")):
                control.call("POST", "/orgs", {"name": org})
                control.call("PUT", f"/orgs/{org}/members/{EVE}", {"role": role})
        yield node


@pytest.fixture
def connection(node: Patgate) -> Iterator[Connection]:
    with node.connect() as connection:
        yield connection


def statuses(connection: Connection, token: Token, *targets: str) -> list[int]:
    return [
        connection.request(method, target, headers=token.bearer).status
        for target in targets
        for method in ("GET", "PUT")
    ]


def told(recorder: Recorder, *names: str) -> list[str]:
    """The identity headers of the last request; "" for one that was not sent."""
    request = recorder.requests[-1]
    return [request.only(name) if request.all(name) else "" for name in names]


def api(node: Patgate, token: Token, method: str, path: str, body: bytes = b"") -> int:
    with Connection(node.control_port) as control:
        headers = token.bearer | {"Content-Type": "application/json", "Connection": "close"}
        host = f"127.0.0.1:{node.control_port}"
        return control.request(method, "/api/v1" + path, headers=headers, body=body, host=host).status


WHO = ("X-Auth-Kind", "X-Auth-Org", "X-Auth-Role", "X-Auth-Email")


def test_an_account_wide_token_has_the_role_of_each_place(
    node: Patgate, connection: Connection, recorder: Recorder
) -> None:
    """C3, A3."""
    with node.control_socket() as control:
        token = token_of(control.call("POST", "/tokens", {"user": EVE, "name": "wide", "reach": "account"}))
    expected = {LAB: ("harbour", "admin", 200), SHOP: ("quay", "editor", 200), OWN: ("", "viewer", 403)}
    for target, (org, role, put) in expected.items():
        assert connection.request("GET", target, headers=token.bearer).status == 200
        assert told(recorder, *WHO) == ["pat", org, role, EVE]
        assert connection.request("PUT", target, headers=token.bearer).status == put
    assert connection.request("GET", "/orgs/nowhere/things/1", headers=token.bearer).status in (403, 404)


def test_an_organisation_token_may_in_each_what_it_was_given_there(
    node: Patgate, connection: Connection, recorder: Recorder
) -> None:
    """C6: it works only on its organisations' routes, acts for no user, and is refused at once where it is detached."""
    grants = {"harbour": ["things:read"], "quay": ["things:*"]}
    with node.control_socket() as control:
        token = token_of(control.call("POST", "/keys", {"name": "sync", "grants": grants}))
        assert token.value.startswith("acme_key_")
        for org, target in (("harbour", LAB), ("quay", SHOP)):
            assert connection.request("GET", target, headers=token.bearer).status == 200
            assert told(recorder, *WHO) == ["key", org, "", ""]
        assert statuses(connection, token, LAB, SHOP, OWN) == [200, 403, 200, 200, 403, 403]
        control.call("PUT", f"/keys/{token.id}/orgs/harbour", {"permissions": ["things:update"]})
        assert statuses(connection, token, LAB) == [403, 200]
        control.call("DELETE", f"/keys/{token.id}/orgs/quay")
        assert statuses(connection, token, SHOP) == [403, 403]
        control.call("POST", "/orgs/harbour/suspend")
        assert 200 not in statuses(connection, token, LAB)
        control.call("POST", "/orgs/harbour/resume")
        assert statuses(connection, token, LAB) == [403, 200]


def test_seats_are_taken_and_freed(node: Patgate) -> None:
    """C6."""
    with node.control_socket() as control:
        control.call("POST", "/orgs", {"name": "pool"})
        control.call("PUT", "/orgs/pool/policy", {"org_tokens_per_org": 1})
    grant = ("key", "create", "--name", "seat", "--grant", "pool=things:read")
    first = node.cli(*grant)
    assert node.run(*grant).returncode == 1
    node.cli("key", "revoke", first["id"])
    assert node.cli(*grant)["orgs"][0]["org"] == "pool"


def test_an_api_key_outlives_whoever_made_it_and_mints_nothing(
    node: Patgate, connection: Connection, recorder: Recorder
) -> None:
    """D7, C2: a key that a person's token makes has at most the person's role, and outlives the person."""
    maker_email = "maker@example.org"
    with node.control_socket() as control:
        control.call("PUT", f"/orgs/harbour/members/{maker_email}", {"role": "admin"})
        maker = token_of(control.call("POST", "/tokens", {"user": maker_email, "name": "t", "org": "harbour"}))
        assert api(node, maker, "POST", "/orgs/harbour/keys", b'{"name": "deploy", "role": "editor"}') == 201
        (listed,) = control.call("GET", "/orgs/harbour/keys")["items"][-1:]
        key = token_of(control.call("POST", f"/keys/{listed['id']}/rotate"))
        control.call("DELETE", f"/users/{maker_email}")
    assert statuses(connection, maker, LAB) == [401, 401]
    assert statuses(connection, key, LAB, SHOP) == [200, 200, 403, 403]
    # On a route that names no organisation the backend must set the bounds: it gets the key's organisation.
    for target in (LAB, OWN):
        assert connection.request("GET", target, headers=key.bearer).status == 200
        assert told(recorder, *WHO) == ["key", "harbour", "editor", ""]
    for path, body in (
        ("/tokens", b'{"name": "t"}'),
        ("/orgs/harbour/tokens", b'{"name": "t"}'),
        ("/orgs/harbour/keys", b'{"name": "k", "role": "viewer"}'),
        ("/keys", b'{"name": "o", "grants": {"harbour": ["things:read"]}}'),
    ):
        assert api(node, key, "POST", path, body) == 403, path
