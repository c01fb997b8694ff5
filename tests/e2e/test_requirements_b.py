"""Requirements B1, B2 and B4 to B6: named, opaque tokens that policy limits and their owners end."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.support.api import Api, cli, command, status, through
from tests.support.gateway import Patgate, token_of
from tests.support.leaks import secret_part
from tests.support.pool import Pool
from tests.support.recorder import Recorder

EVE = "eve@example.org"
OWN, LAB = "/v1/things/7", "/orgs/clinic/things/7"


@pytest.fixture(scope="module")
def node(gateways: Pool, backend: Recorder) -> Iterator[Patgate]:
    """Eve, an editor, is a member of two organisations: ``clinic`` gets a policy, and ``kiosk`` has none."""
    config = {
        "workers": 1,
        "upstreams": {"app": {"servers": [backend.url]}},
        "roles": {"editor": ["things:*"], "keeper": ["patgate.orgs:read", "patgate.policy:*", "patgate.tokens:*"]},
        "routes": [
            {"path": "/v1/{entity}/{id}", "upstream": "app"},
            {"path": "/orgs/{org}/{entity}/{id}", "upstream": "app"},
        ],
    }
    with gateways.lend(config) as gateway:
        with gateway.control_socket() as control:
            control.call("POST", "/users", {"email": EVE, "role": "editor"})
            control.call("POST", "/users", {"email": "kim@example.org", "role": "keeper"})
            for org in ("clinic", "kiosk"):
                control.call("POST", "/orgs", {"name": org})
                control.call("PUT", f"/orgs/{org}/members/{EVE}", {"role": "editor"})
        yield gateway


@pytest.fixture(scope="module")
def eve(node: Patgate) -> Api:
    with node.control_socket() as control:
        return Api(node, token_of(control.call("POST", "/tokens", {"user": EVE, "name": "master", "reach": "account"})))


def test_b1_a_token_never_expires_unless_the_administrator_says_so(node: Patgate, eve: Api) -> None:
    before = eve.mint("from before", org="clinic")
    assert eve.call("GET", f"/tokens/{before.id}")["expires_at"] is None
    kim = Api(node, node.token("kim@example.org"))
    kim.call("PUT", "/orgs/clinic/policy", {"require_expiry": True, "max_lifetime": 3600})
    assert kim.call("GET", "/orgs/clinic/policy")["effective"]["require_expiry"] is True
    assert cli(node, "policy", "show", "--org", "clinic")["effective"]["max_lifetime"] == 3600
    team = Api(node, before)
    for wanted in ({"expires": 3601}, {"expires": 1e9}):
        assert team.refusal("POST", "/tokens", {"name": "too long", "org": "clinic", **wanted}) == (422, ["expires"])
    assert team.refusal("POST", "/tokens", {"name": "for ever", "org": "clinic"}) == (422, ["expires"])
    assert status(node, "GET", LAB, team.mint("an hour", org="clinic", expires=3600)) == 200
    # The owner may create an account-wide token, but it does not reach the organisation whose policy it breaks.
    assert status(node, "GET", LAB, eve.token) == 403
    assert status(node, "GET", LAB.replace("clinic", "kiosk"), eve.token) == 200
    assert eve.call("POST", "/tokens", {"name": "master", "reach": "account"})["expires_at"] is None
    assert status(node, "GET", LAB, eve.mint("master", reach="account", expires=3600)) == 200
    assert eve.call("POST", "/tokens", {"name": "elsewhere", "org": "kiosk"})["expires_at"] is None
    # Tokens created before the policy remain valid until an administrator expires them.
    assert status(node, "GET", LAB, before) == 200
    broken = {found["id"]: found["breaks"] for found in kim.items("/policy/violations", org="clinic")}
    assert set(broken) == {before.id}
    assert "require_expiry" in broken[before.id]
    assert cli(node, "policy", "expire", "--org", "clinic")["expired"] == 1
    assert status(node, "GET", LAB, before) == 401


def test_b2_a_token_is_taken_wherever_a_standard_access_token_is(node: Patgate, eve: Api, recorder: Recorder) -> None:
    """As a bearer token (RFC 6750 §2.1), whose scheme ignores case (RFC 9110 §11.1), by the gateway and the API."""
    for scheme in ("Bearer", "bearer", "BEARER"):
        headers = {"Authorization": f"{scheme} {eve.token.value}"}
        with node.connect() as connection:
            assert connection.request("GET", OWN, headers=headers).status == 200
        assert recorder.last().only("X-Auth-Email") == EVE
        assert eve.ask("GET", "/me", headers=headers).json()["user"]["email"] == EVE
    refused = through(node, "GET", OWN, None)
    assert (refused.status, refused.all("WWW-Authenticate")[0]) == (401, 'Bearer realm="acme"')


def test_b4_every_token_has_a_name_that_people_can_read(node: Patgate, eve: Api, recorder: Recorder) -> None:
    assert eve.refusal("POST", "/tokens", {}) == (422, ["name"])
    assert eve.refusal("POST", "/tokens", {"name": ""}) == (422, ["name"])
    assert command(node, "token", "create", "--user", EVE).exit_code == 2
    token = eve.mint("nightly build of Zoë")
    listed = {shown["id"]: shown["name"] for shown in cli(node, "token", "list", "--user", EVE)}
    assert listed[token.id] == "nightly build of Zoë"
    assert status(node, "GET", OWN, token) == 200
    assert recorder.last().only("X-Auth-Token-Name") == "nightly%20build%20of%20Zo%C3%AB"
    assert eve.call("PATCH", f"/tokens/{token.id}", {"name": "hourly build"})["name"] == "hourly build"
    assert status(node, "GET", OWN, token) == 200, "another name is the same token"


def test_b5_owners_revoke_at_any_time_by_api_and_operators_by_command(node: Patgate, eve: Api) -> None:
    by_api, by_command, itself = (eve.mint(name) for name in ("by API", "by command", "itself"))
    with node.connect() as connection:
        for token in (by_api, by_command, itself):
            assert connection.request("GET", OWN, headers=token.bearer).status == 200
        eve.verb(by_api, "revoke")
        assert connection.request("GET", OWN, headers=by_api.bearer).status == 401
        assert cli(node, "token", "revoke", by_command.prefix)["status"] == "revoked"
        assert connection.request("GET", OWN, headers=by_command.bearer).status == 401
        Api(node, itself).verb(itself, "revoke")
        assert connection.request("GET", OWN, headers=itself.bearer).status == 401
        assert eve.verb(by_api, "revoke")["status"] == "revoked", "revoking twice is revoking once"


def test_b6_a_token_is_opaque_and_is_shown_once(node: Patgate, eve: Api) -> None:
    one, other = (eve.mint("identical", scopes=["things:read"]) for _ in range(2))
    assert secret_part(one.value) != secret_part(other.value), "the same wish is no reason for the same token"
    # Words of a few letters stand in one of some thousand tokens by chance.
    for hidden in ("example", "things", "identical"):
        assert hidden not in one.value
    seen = [
        json.dumps(eve.call("GET", f"/tokens/{one.id}")),
        json.dumps(eve.items("/tokens")),
        json.dumps(eve.items("/audit", target=one.id)),
        command(node, "token", "show", one.id).stdout,
        json.dumps(eve.call("PATCH", f"/tokens/{one.id}", {"description": "shown again"})),
    ]
    assert all(one.prefix in text or one.id in text for text in seen)
    assert not any(secret_part(one.value) in text for text in seen)
    with closing(sqlite3.connect(f"file:{node.data / 'patgate.db'}?mode=ro", uri=True, timeout=30)) as store:
        assert secret_part(one.value) not in "\n".join(store.iterdump())
