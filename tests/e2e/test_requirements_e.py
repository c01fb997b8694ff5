"""Requirements E1 to E7: operations on entities, and the life cycle of a token that is scoped to them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.api import Api, cli, soon, status
from tests.support.gateway import Patgate, Token, token_of
from tests.support.pool import Pool
from tests.support.recorder import Recorder

EVE, ZED = "eve@example.org", "zed@example.org"
OWN = "/v1/things/7"
OPERATIONS = {
    "create": ("POST", "/v1/things"),
    "list": ("GET", "/v1/things"),
    "read": ("GET", OWN),
    "update": ("PUT", OWN),
    "delete": ("DELETE", OWN),
    "share": ("POST", "/v1/things/7/share"),
    "unshare": ("DELETE", "/v1/things/7/share"),
    "publish": ("POST", "/v1/things/7/messages"),
    "subscribe": ("GET", "/v1/things/7/messages"),
}
TERM = 3600


@pytest.fixture(scope="module")
def node(gateways: Pool, backend: Recorder) -> Iterator[Patgate]:
    things = {"upstream": "app", "entity": "things"}
    config = {
        "workers": 1,
        "upstreams": {"app": {"servers": [backend.url]}},
        "roles": {"editor": ["things:*"]},
        "routes": [
            things | {"path": "/v1/things/{id}/share", "operations": {"POST": "share", "DELETE": "unshare"}},
            things | {"path": "/v1/things/{id}/messages", "operations": {"POST": "publish", "GET": "subscribe"}},
            {"path": "/v1/{entity}", "upstream": "app"},
            {"path": "/v1/{entity}/{id}", "upstream": "app"},
        ],
    }
    with gateways.lend(config) as gateway:
        for email in (EVE, ZED):
            gateway.add_user(email, "editor")
        yield gateway


@pytest.fixture(scope="module")
def eve(node: Patgate) -> Api:
    return Api(node, node.token(EVE, name="master"))


def statuses(node: Patgate, token: Token, *operations: str) -> list[int]:
    return [status(node, *OPERATIONS[operation], token) for operation in operations]


def test_e1_scopes_are_operations_on_entities_all_of_them_or_one(node: Patgate, eve: Api) -> None:
    for operation, (method, path) in OPERATIONS.items():
        token = eve.mint(f"may {operation}", scopes=[f"things:{operation}"])
        allowed = {other for other in OPERATIONS if statuses(node, token, other) == [200]}
        assert allowed == {operation}
        if path not in ("/v1/things",):
            one = eve.mint(f"may {operation} one", scopes=[f"things/7:{operation}"])
            assert status(node, method, path, one) == 200
            assert status(node, method, path.replace("/7", "/8"), one) == 403
    everything = eve.mint("may all", scopes=["things:*"])
    assert statuses(node, everything, *OPERATIONS) == [200] * len(OPERATIONS)


def test_e2_a_token_has_a_name_a_description_if_wanted_and_a_duration(node: Patgate, eve: Api) -> None:
    plain = eve.call("POST", "/tokens", {"name": "no more than a name", "expires": TERM})
    assert plain["description"] == ""
    made = cli(
        node,
        *("token", "create", "--user", EVE, "--name", "sync"),
        *("--description", "nightly, to the warehouse", "--expires", "30d"),
    )
    shown = eve.call("GET", f"/tokens/{made['id']}")
    assert (shown["name"], shown["description"]) == ("sync", "nightly, to the warehouse")
    assert shown["expires_at"] > plain["expires_at"] > shown["created_at"]
    assert eve.refusal("POST", "/tokens", {"name": "x", "expires": -1}) == (422, ["expires"])


def test_e3_scopes_are_added_deleted_and_cleared_on_a_living_token_from_its_next_use_on(
    node: Patgate, eve: Api
) -> None:
    token = eve.mint("changing", scopes=["things:read"])
    asked = ("read", "update", "delete")
    with node.connect() as connection:

        def now() -> list[int]:
            return [
                connection.request(method, path, headers=token.bearer).status
                for method, path in (OPERATIONS[name] for name in asked)
            ]

        assert now() == [200, 403, 403]
        added = eve.call("POST", f"/tokens/{token.id}/scopes", {"scopes": ["things:update", "things:delete"]})
        assert set(added["scopes"]) == {"things:read", "things:update", "things:delete"}
        assert now() == [200, 200, 200]
        eve.call("DELETE", f"/tokens/{token.id}/scopes", scope="things:delete")
        assert now() == [200, 200, 403]
        cli(node, "token", "scopes", "remove", token.id, "things:read")
        assert now() == [403, 200, 403]
        eve.call("DELETE", f"/tokens/{token.id}/scopes")
        assert eve.call("GET", f"/tokens/{token.id}/scopes")["scopes"] == []
        assert now() == [403, 403, 403], "none is nothing, and not everything"
        cli(node, "token", "scopes", "add", token.id, "things:delete")
        assert now() == [403, 403, 200]


def test_e4_a_revoked_or_expired_token_is_regenerated_with_another_secret_and_duration(node: Patgate, eve: Api) -> None:
    wanted = {"description": "comes back", "scopes": ["things:read"]}
    revoked = eve.mint("revoked", **wanted, expires=TERM)
    expired = eve.mint("expired", **wanted, expires=2)
    assert eve.refusal("POST", f"/tokens/{revoked.id}/regenerate", {"expires": TERM})[0] == 409, "it lives still"
    eve.verb(revoked, "revoke")
    soon(lambda: statuses(node, expired, "read") == [401], "the end of a token's time", node)
    by_api = eve.verb(revoked, "regenerate", {"expires": 2 * TERM})
    by_command = cli(node, "token", "regenerate", expired.id, "--expires", "2h")
    for old, made in ((revoked, by_api), (expired, by_command)):
        new = token_of(made)
        assert (new.id, new.prefix) == (old.id, old.prefix)
        assert new.value != old.value
        assert statuses(node, old, "read") == [401]
        assert statuses(node, new, "read", "update") == [200, 403]
        shown = eve.call("GET", f"/tokens/{new.id}")
        assert (shown["description"], shown["scopes"], shown["status"]) == ("comes back", ["things:read"], "active")
        assert shown["expires_at"] > shown["updated_at"]
    assert (by_api["name"], by_command["name"]) == ("revoked", "expired")


def test_e5_tokens_are_listed_by_status_and_one_is_viewed(node: Patgate, eve: Api) -> None:
    made = {
        "active": eve.mint("listed: active"),
        "revoked": eve.mint("listed: revoked"),
        "expired": eve.mint("listed: expired", expires=1),
    }
    eve.verb(made["revoked"], "revoke")
    soon(lambda: statuses(node, made["expired"], "read") == [401], "the end of a token's time", node)
    for wanted, token in made.items():
        listed = eve.items("/tokens", user=EVE, status=wanted, limit="200")
        assert token.id in {shown["id"] for shown in listed}
        assert {shown["status"] for shown in listed} == {wanted}
        assert eve.call("GET", f"/tokens/{token.id}")["status"] == wanted
    listed = cli(node, "token", "list", "--user", EVE, "--status", "expired")
    assert made["expired"].id in {shown["id"] for shown in listed}
    assert cli(node, "token", "show", made["revoked"].id)["status"] == "revoked"
    # Another user's tokens are answered like tokens that do not exist.
    stranger = Api(node, node.token(ZED))
    assert stranger.ask("GET", f"/tokens/{made['active'].id}").status == 404
    assert not {token.id for token in made.values()} & {shown["id"] for shown in stranger.items("/tokens")}


def test_e6_one_token_is_deleted_or_all_of_mine(node: Patgate) -> None:
    zed = Api(node, node.token(ZED, name="zed's master"))
    tokens = [zed.mint(f"to be deleted {number}") for number in range(4)]
    zed.call("DELETE", f"/tokens/{tokens[0].id}")
    cli(node, "token", "delete", tokens[1].id)
    for token in tokens[:2]:
        assert statuses(node, token, "read") == [401]
        assert zed.ask("GET", f"/tokens/{token.id}").status == 404
    assert statuses(node, tokens[2], "read") == [200]
    assert zed.call("DELETE", "/tokens", keep_current="true")["deleted"] >= 2
    assert [shown["id"] for shown in zed.items("/tokens")] == [zed.token.id]
    assert [statuses(node, token, "read") for token in (tokens[2], tokens[3], zed.token)] == [[401], [401], [200]]
    zed.call("DELETE", "/tokens")
    assert statuses(node, zed.token, "read") == [401]
    last = node.token(ZED, name="the last one")
    assert cli(node, "token", "delete", "--all", "--user", ZED)["deleted"] == 1
    assert statuses(node, last, "read") == [401]


def test_e7_publishing_and_subscribing_are_operations_of_their_own(node: Patgate, eve: Api) -> None:
    """test_event_streams.py and test_websocket_clients.py check that live streams are carried and cut."""
    for scope, expected in (("publish", [200, 403]), ("subscribe", [403, 200])):
        token = eve.mint(f"may {scope} there", scopes=[f"things/7:{scope}"])
        assert statuses(node, token, "publish", "subscribe") == expected
