"""Requirements D1 to D10: tokens that follow their owner's role, and keys of organisations beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.api import Api, cli, command, soon, status, through
from tests.support.gateway import Patgate, token_of
from tests.support.leaks import secret_part
from tests.support.pool import Pool
from tests.support.recorder import Recorder

ADA, EVE = "ada@example.org", "eve@example.org"
OWN, LAB, SHOP = "/v1/things/7", "/orgs/forge/things/7", "/orgs/mart/things/7"


@pytest.fixture(scope="module")
def node(gateways: Pool, backend: Recorder) -> Iterator[Patgate]:
    """Ada administers the account and ``forge``; each test adds and removes the other users."""
    config = {
        "workers": 1,
        "upstreams": {"app": {"servers": [backend.url]}},
        "roles": {
            "admin": ["*:*"],
            "editor": ["things:*"],
            "viewer": ["things:read"],
            "lead": ["things:read", "things:list", "patgate.keys:*"],
        },
        "routes": [
            {"path": "/v1/{entity}/{id}", "upstream": "app"},
            {"path": "/orgs/{org}/{entity}/{id}", "upstream": "app"},
        ],
    }
    with gateways.lend(config) as gateway:
        with gateway.control_socket() as control:
            control.call("POST", "/users", {"email": ADA, "role": "admin"})
            for org in ("forge", "mart"):
                control.call("POST", "/orgs", {"name": org})
            control.call("PUT", f"/orgs/forge/members/{ADA}", {"role": "admin"})
        yield gateway


@pytest.fixture(scope="module")
def ada(node: Patgate) -> Api:
    with node.control_socket() as control:
        return Api(node, token_of(control.call("POST", "/tokens", {"user": ADA, "name": "admin", "reach": "account"})))


def joins(ada: Api, email: str, role: str, **orgs: str) -> Api:
    """Add a user with these roles in organisations; return a client with the user's account-wide token."""
    ada.call("POST", "/users", {"email": email, "role": role})
    with ada.node.control_socket() as control:
        for org, there in orgs.items():
            control.call("PUT", f"/orgs/{org}/members/{email}", {"role": there})
        wanted = {"user": email, "name": "of " + email, "reach": "account"}
        return Api(ada.node, token_of(control.call("POST", "/tokens", wanted)))


def test_d1_a_token_has_the_role_that_its_owner_has_now(node: Patgate, ada: Api, recorder: Recorder) -> None:
    one = joins(ada, "d1@example.org", "viewer")
    made_as_viewer = one.mint("made as a viewer")
    assert status(node, "PUT", OWN, made_as_viewer) == 403
    ada.call("POST", "/users/d1@example.org/role", {"role": "editor"})
    assert status(node, "PUT", OWN, made_as_viewer) == 200
    assert recorder.last().only("X-Auth-Role") == "editor"
    cli(node, "user", "set-role", "d1@example.org", "viewer")
    assert status(node, "PUT", OWN, made_as_viewer) == 403


def test_d2_a_lower_role_counts_for_every_token_at_once(node: Patgate, ada: Api) -> None:
    one = joins(ada, "d2@example.org", "editor")
    tokens = [one.token, one.mint("second"), one.mint("third", scopes=["things:*"])]
    with node.connect() as connection:

        def statuses() -> list[int]:
            return [connection.request("PUT", OWN, headers=token.bearer).status for token in tokens]

        assert statuses() == [200] * 3
        ada.call("POST", "/users/d2@example.org/role", {"role": "viewer"})
        assert statuses() == [403] * 3


def test_d3_whoever_is_suspended_or_removed_has_no_token_from_then_on(node: Patgate, ada: Api) -> None:
    one = joins(ada, "d3@example.org", "editor", forge="editor")
    tokens = [one.token, one.mint("personal"), one.mint("team", org="forge")]
    paths = [OWN, OWN, LAB]
    with node.connect() as connection:

        def statuses() -> list[int]:
            asked = zip(paths, tokens, strict=True)
            return [connection.request("GET", path, headers=token.bearer).status for path, token in asked]

        assert statuses() == [200] * 3
        ada.call("POST", "/users/d3@example.org/suspend")
        assert statuses() == [401] * 3
        assert one.ask("POST", "/tokens", {"name": "minted while suspended"}).status == 401
        cli(node, "user", "resume", "d3@example.org")
        assert statuses() == [200] * 3
        ada.call("DELETE", "/users/d3@example.org")
        assert statuses() == [401] * 3
    # The next user with the same address gets none of these tokens.
    joins(ada, "d3@example.org", "editor", forge="editor")
    assert [status(node, "GET", path, token) for path, token in zip(paths, tokens, strict=True)] == [401] * 3


def test_d4_a_token_stays_with_its_organisation_though_its_owner_moves(node: Patgate, ada: Api) -> None:
    one = joins(ada, "d4@example.org", "viewer", forge="editor")
    team = one.mint("of forge", org="forge")
    assert [status(node, "PUT", path, team) for path in (LAB, SHOP)] == [200, 403]
    ada.call("PUT", "/orgs/mart/members/d4@example.org", {"role": "editor"})
    cli(node, "org", "remove-member", "forge", "d4@example.org")
    assert [status(node, "PUT", path, team) for path in (LAB, SHOP)] == [401, 401]
    assert [one.through("PUT", path).status for path in (LAB, SHOP)] == [403, 200], "an account-wide one goes along"
    ada.call("PUT", "/orgs/forge/members/d4@example.org", {"role": "viewer"})
    assert [status(node, method, LAB, team) for method in ("GET", "PUT")] == [200, 403], "as what they are there now"


def test_d5_permissions_narrow_the_inherited_role_and_widen_it_never(node: Patgate, ada: Api) -> None:
    one = joins(ada, "d5@example.org", "viewer")
    cli(node, "user", "set-role", "d5@example.org", "editor")
    made = cli(node, "token", "create", "--user", "d5@example.org", "--name", "narrow", "--scope", "things/7:update")
    narrow = token_of(made)
    asked = (("PUT", OWN), ("PUT", "/v1/things/8"), ("DELETE", OWN))
    assert [status(node, method, path, narrow) for method, path in asked] == [200, 403, 403]
    wide = one.call("POST", "/tokens", {"name": "wide", "scopes": ["*:*"]})
    assert any("role" in warning for warning in wide["warnings"])
    assert status(node, "GET", "/v1/others/1", token_of(wide)) == 403


def test_d6_the_prefix_is_what_lists_and_logs_show(node: Patgate, ada: Api, recorder: Recorder) -> None:
    token = ada.mint("shown", scopes=["things:read", "things:update"])
    assert token.value.startswith(token.prefix + "_")
    assert token.prefix in {shown["prefix"] for shown in ada.items("/tokens", user=ADA)}
    listing = command(node, "token", "list", "--user", ADA).stdout
    assert token.prefix in listing
    assert status(node, "PUT", OWN, token) == 200
    assert recorder.last().only("X-Auth-Token") == token.prefix
    refused = through(node, "DELETE", OWN, token).json()["decision"]

    def logged() -> list[Any]:
        return [record for record in node.records() if record.get("decision") == refused]

    (record,) = soon(logged, "a line of the log", node)
    assert record["token"] == token.prefix
    # The prefix works wherever an id is required, including the audit log.
    assert ada.call("GET", f"/tokens/{token.prefix}")["id"] == token.id
    soon(lambda: ada.items("/audit", actor=token.prefix), "what it did", node)
    assert secret_part(token.value) not in listing + node.log


def test_d7_a_key_is_its_organisations_with_a_fixed_role_no_higher_than_its_makers(node: Patgate, ada: Api) -> None:
    lead = joins(ada, "d7@example.org", "viewer", forge="lead", mart="viewer")
    higher = {"name": "higher", "role": "editor"}
    assert lead.refusal("POST", "/orgs/forge/keys", higher) == (403, ["role"])
    assert lead.ask("POST", "/orgs/mart/keys", {"name": "elsewhere", "role": "viewer"}).status == 403
    org_key = token_of(lead.call("POST", "/orgs/forge/keys", {"name": "deploy", "role": "viewer"}))
    by_command = token_of(cli(node, "key", "create", "--org", "forge", "--role", "editor", "--name", "operator's"))
    assert [status(node, "GET", path, org_key) for path in (LAB, SHOP)] == [200, 403]
    assert [status(node, "PUT", LAB, key) for key in (org_key, by_command)] == [403, 200]
    assert Api(node, org_key).refusal("POST", "/tokens", {"name": "minted by a key"})[0] == 403
    ada.call("DELETE", "/users/d7@example.org")
    assert lead.through("GET", LAB).status == 401
    assert status(node, "GET", LAB, org_key) == 200, "it outlives whoever made it"
    shown = ada.call("GET", f"/keys/{org_key.id}")
    assert (shown["user"], shown["org"], shown["role"]) == (None, "forge", "viewer")


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
def test_d8_tokens_and_keys_go_in_the_same_headers(node: Patgate, ada: Api, recorder: Recorder, header: str) -> None:
    org_key = token_of(ada.call("POST", "/orgs/forge/keys", {"name": f"by {header}", "role": "viewer"}))
    for token, kind in ((ada.token, "pat"), (org_key, "key")):
        assert through(node, "GET", LAB, token, header=header).status == 200
        assert recorder.last().only("X-Auth-Kind") == kind
        assert not recorder.last().all("X-API-Key") and not recorder.last().all("Authorization")
        sent = token.bearer if header == "Authorization" else {header: token.value}
        assert ada.ask("GET", "/me", headers=sent).json()["kind"] == kind
        both = {"Authorization": f"Bearer {token.value}", "X-API-Key": token.value}
        assert ada.ask("GET", "/me", headers=both).status == 400, "one and only one"


def test_d9_the_slow_hash_is_computed_once_and_not_for_each_request(node: Patgate, ada: Api) -> None:
    def matched() -> float:
        page = node.control("GET", "/metrics").body.decode()
        found = re.search(r'^patgate_argon2_total\{[^}]*outcome="matched"[^}]*\} (\S+)$', page, re.MULTILINE)
        return float(found[1]) if found else 0.0

    token = ada.mint("hot")
    before = matched()
    with node.connect() as connection:
        for _ in range(300):
            assert connection.request("GET", OWN, headers=token.bearer).status == 200

    def all_counted() -> bool:
        return bool(ada.call("GET", f"/tokens/{token.id}")["use_count"] == 300)

    soon(all_counted, "every use", node)
    # Hashed once; uses of other tests' tokens may be counted late.
    assert matched() - before < 30


def test_d10_a_revocation_by_the_api_counts_when_it_is_answered(node: Patgate, ada: Api) -> None:
    with node.connect() as connection:
        for number in range(8):
            token = ada.mint(f"revoked {number}")
            assert connection.request("GET", OWN, headers=token.bearer).status == 200
            ada.verb(token, "revoke")
            assert connection.request("GET", OWN, headers=token.bearer).status == 401
