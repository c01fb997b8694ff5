"""Requirements C1 to C10: one master token for an account, what it creates and ends, and the log of all that."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.support import operate
from tests.support.api import Api, cli, command, soon, status, through
from tests.support.gateway import Patgate, Token, token_of
from tests.support.leaks import secret_part
from tests.support.pool import Pool
from tests.support.recorder import Recorder

ADA, BOB = "ada@example.org", "bob@example.org"
OWN, LAB, SHOP, BILLING = "/v1/things/7", "/orgs/foundry/things/7", "/orgs/market/things/7", "/billing/cards/1"


@pytest.fixture(scope="module")
def node(gateways: Pool, backend: Recorder) -> Iterator[Patgate]:
    """Ada may do everything in her account and in ``foundry``, and read in ``market``. Bob is an editor."""
    config = {
        "workers": 1,
        "upstreams": {"app": {"servers": [backend.url]}},
        "roles": {"admin": ["*:*"], "editor": ["things:*"], "viewer": ["things:read"]},
        "routes": [
            {"path": "/billing/**", "upstream": "app", "access": "denied"},
            {"path": "/v1/{entity}/{id}", "upstream": "app"},
            {"path": "/orgs/{org}/{entity}/{id}", "upstream": "app"},
        ],
        "policy": {"org_tokens_per_org": 2},
    }
    with gateways.lend(config) as gateway:
        with gateway.control_socket() as control:
            control.call("POST", "/users", {"email": ADA, "role": "admin"})
            control.call("POST", "/users", {"email": BOB, "role": "editor"})
            for org in ("foundry", "market", "garage"):
                control.call("POST", "/orgs", {"name": org})
            for org, role in (("foundry", "admin"), ("market", "viewer")):
                control.call("PUT", f"/orgs/{org}/members/{ADA}", {"role": role})
        yield gateway


@pytest.fixture(scope="module")
def master(node: Patgate) -> Api:
    """The only token of Ada's account."""
    with node.control_socket() as control:
        wanted = {"user": ADA, "name": "master", "reach": "account"}
        return Api(node, token_of(control.call("POST", "/tokens", wanted)))


def key(master: Api, name: str, **wanted: object) -> Token:
    return token_of(master.call("POST", "/keys", {"name": name, **wanted}))


def about(found: list[Any], token: Token) -> list[Any]:
    return [event for event in found if event["target_id"] == token.id]


def test_c2_kinds_of_credentials_have_prefixes_of_their_own(node: Patgate, master: Api) -> None:
    by_command = cli(node, "key", "create", "--name", "deploy", "--org", "foundry", "--role", "viewer")["token"]
    for value in (key(master, "k2", org="foundry", role="viewer").value, by_command):
        assert value.startswith("acme_key_")
    assert master.token.value.startswith("acme_pat_")
    swapped = Token(id="", prefix="", value=by_command.replace("_key_", "_pat_"))
    assert status(node, "GET", LAB, swapped) == 401


def test_c3_a_master_token_reaches_all_that_its_owner_can_and_governs_the_others(node: Patgate, master: Api) -> None:
    reached = [master.through("PUT", path).status for path in (OWN, LAB, SHOP, "/orgs/garage/things/7")]
    assert reached == [200, 200, 403, 403]
    assert master.through("GET", SHOP).status == 200, "her role there is a viewer's"
    personal, team = master.mint("personal"), master.mint("team", org="foundry", scopes=["things:read"])
    assert [status(node, "GET", path, personal) for path in (OWN, LAB)] == [200, 403]
    assert [status(node, "GET", path, team) for path in (LAB, SHOP)] == [200, 403]
    renewed = token_of(master.verb(team, "rotate"))
    assert [status(node, "GET", LAB, value) for value in (team, renewed)] == [401, 200]
    for token in (personal, renewed):
        master.verb(token, "revoke")
    assert [status(node, "GET", OWN, personal), status(node, "GET", LAB, renewed)] == [401, 401]
    assert cli(node, "token", "show", personal.id)["parent_id"] == master.token.id
    # The command line creates one as well.
    by_command = token_of(cli(node, "token", "create", "--user", ADA, "--name", "master too", "--account"))
    assert [status(node, "GET", path, by_command) for path in (OWN, LAB, SHOP)] == [200, 200, 200]


def test_c4_a_denied_route_is_open_to_no_token_whatever_it_may(node: Patgate, master: Api, recorder: Recorder) -> None:
    everything = master.mint("everything", scopes=["*:*"])
    org_key = key(master, "key of everything", org="foundry", role="admin")
    for token in (master.token, everything, org_key):
        refused = through(node, "GET", BILLING, token)
        assert (refused.status, refused.json()["reason"]) == (403, "route_denied")
    assert recorder.requests == []
    assert master.call("GET", "/explain", token=master.token.id, method="GET", path=BILLING)["reason"] == "route_denied"


def test_c5_rotated_in_place_the_id_and_name_stay_and_the_old_value_fails_on_its_next_use(
    node: Patgate, master: Api
) -> None:
    old = master.mint("rotated", scopes=["things:read"], expires=3600, description="for the test")
    with node.connect() as connection:
        assert connection.request("GET", OWN, headers=old.bearer).status == 200
        new = token_of(master.verb(old, "rotate"))
        assert connection.request("GET", OWN, headers=old.bearer).status == 401
        assert connection.request("GET", OWN, headers=new.bearer).status == 200
        newest = token_of(cli(node, "token", "rotate", new.id))
        assert connection.request("GET", OWN, headers=new.bearer).status == 401
        assert connection.request("GET", OWN, headers=newest.bearer).status == 200
    assert {token.id for token in (old, new, newest)} == {old.id}
    assert {token.prefix for token in (old, new, newest)} == {old.prefix}
    shown = master.call("GET", f"/tokens/{old.id}")
    assert (shown["name"], shown["description"], shown["scopes"]) == ("rotated", "for the test", ["things:read"])


def test_c6_an_organisation_token_has_permissions_in_each_organisation_mints_nothing_and_takes_a_seat(
    node: Patgate, master: Api
) -> None:
    with node.control_socket() as control:
        grants = {"foundry": ["things:read", "things:update"], "market": ["things:read"]}
        token = token_of(control.call("POST", "/keys", {"name": "sync", "grants": grants}))
    assert [status(node, "PUT", path, token) for path in (LAB, SHOP, OWN)] == [200, 403, 403]
    assert [status(node, "GET", path, token) for path in (LAB, SHOP, "/orgs/garage/things/7")] == [200, 200, 403]
    itself = Api(node, token)
    assert itself.refusal("POST", "/tokens", {"name": "minted"})[0] == 403
    assert itself.refusal("POST", "/keys", {"name": "minted", "grants": {"foundry": ["things:read"]}})[0] == 403
    assert itself.refusal("POST", f"/keys/{token.id}/rotate")[0] == 404, "to what it may not see there is nothing"
    # Each organisation has two seats; a key that leaves one frees its seat.
    second = token_of(
        cli(
            node, "key", "create", "--name", "second", "--grant", "foundry=things:read", "--grant", "garage=things:read"
        )
    )
    assert command(node, "key", "create", "--name", "third", "--grant", "foundry=things:read").exit_code == 1
    assert master.ask("POST", "/keys", {"name": "third", "grants": {"foundry": ["things:read"]}}).status in (409, 422)
    cli(node, "key", "detach", second.id, "foundry")
    assert [status(node, "GET", path, second) for path in (LAB, "/orgs/garage/things/7")] == [403, 200]
    third = key(master, "third", grants={"foundry": ["things:read"]})
    assert status(node, "GET", LAB, third) == 200
    # Its permissions are changed in place, by organisation.
    master.call("PUT", f"/keys/{third.id}/orgs/foundry", {"permissions": ["things:update"]})
    assert [status(node, method, LAB, third) for method in ("GET", "PUT")] == [403, 200]
    cli(node, "key", "attach", third.id, "market=things:read,things:list")
    assert [status(node, method, SHOP, third) for method in ("GET", "PUT")] == [200, 403]


def test_c7_only_a_hash_is_stored_and_the_value_is_shown_once(node: Patgate, master: Api) -> None:
    values = [master.mint("hashed").value, key(master, "hashed key", org="foundry", role="viewer").value]
    with closing(sqlite3.connect(f"file:{node.data / 'patgate.db'}?mode=ro", uri=True, timeout=30)) as store:
        dump = "\n".join(store.iterdump())
    assert "$argon2id$" in dump
    files = b"".join(path.read_bytes() for path in node.data.rglob("*") if path.is_file())
    for value in values:
        assert secret_part(value) not in dump
        assert secret_part(value).encode() not in files
    assert all("token" not in shown for shown in master.items("/tokens") + master.items("/keys"))


def test_c8_what_is_done_to_tokens_is_on_the_accounts_log_and_what_they_do_on_the_organisations(
    node: Patgate, master: Api
) -> None:
    team = master.mint("courier", reach="account")
    renewed = token_of(master.verb(team, "rotate"))
    assert status(node, "PUT", LAB, renewed) == 200
    master.verb(renewed, "revoke")
    for found in (master.items("/audit", user=ADA, target=team.id), cli(node, "audit", "--target", team.id)):
        events = {event["action"]: event for event in about(found, team)}
        assert set(events) >= {"account.pat.mint", "account.pat.rotate", "account.pat.revoke"}
        for event in events.values():
            assert (event["actor_kind"], event["actor_id"], event["actor_name"]) == ("pat", master.token.id, "master")
            assert (event["level"], event["user"], event["outcome"]) == ("account", ADA, "done")

    def written() -> list[Any]:
        return master.items("/orgs/foundry/audit", actor=team.id)

    (event,) = soon(written, "what the token did on the organisation's log", node)
    assert (event["level"], event["org"], event["action"]) == ("organisation", "foundry", "request.update")
    assert (event["actor_kind"], event["actor_id"], event["actor_name"]) == ("pat", team.id, "courier")
    assert (event["target_id"], event["outcome"]) == ("things/7", "allowed")
    assert master.items("/orgs/garage/audit", actor=team.id) == []


def test_c9_the_log_is_filtered_by_kind_and_name_of_who_acted_and_denied_attempts_can_be_switched_on(
    node: Patgate, master: Api
) -> None:
    # Names of this test's own: the audit log of a shared gateway has the tokens of other files.
    narrow = master.mint("c9-narrow", scopes=["things:read"])
    org_key = key(master, "c9-robot", org="foundry", role="viewer")

    def attempts() -> list[str]:
        """The decision ids of two refused requests: one with a token and one with a key."""
        refused = [through(node, "PUT", OWN, narrow), through(node, "PUT", LAB, org_key)]
        assert [answer.status for answer in refused] == [403, 403]
        return [answer.json()["decision"] for answer in refused]

    def told() -> set[str]:
        return {event["decision_id"] for event in master.items("/audit", denied="true", limit="100")}

    operate.write(node, audit={"requests": "off"})
    operate.reload(node)
    silent = attempts()
    operate.write(node, audit={"requests": "refused"})
    operate.reload(node)
    loud = attempts()
    soon(lambda: set(loud) <= told(), "the denied attempts on the log", node)
    assert not set(silent) & told()
    for kind, name, decision in (("pat", "c9-narrow", loud[0]), ("key", "c9-robot", loud[1])):
        by_name = master.items("/audit", actor_kind=kind, actor_name=name)
        assert [event["decision_id"] for event in by_name] == [decision]
        assert by_name[0]["outcome"] == "refused"
        assert {event["actor_kind"] for event in master.items("/audit", actor_kind=kind)} == {kind}
        assert [event["decision_id"] for event in cli(node, "audit", "--token", name, "--denied")] == [decision]
    assert {event["actor_kind"] for event in cli(node, "audit", "--actor-kind", "key")} == {"key"}


def test_c10_http_clients_of_every_sort_authenticate_with_it_as_a_bearer_token(node: Patgate, master: Api) -> None:
    """test_http_clients.py and test_mcp.py have the plain and MCP clients; this test covers the API itself."""
    for token in (master.token, master.mint("for a tool", scopes=["things:read"])):
        assert Api(node, token).call("GET", "/me")["kind"] == "pat"
        assert status(node, "GET", OWN, token) == 200


def test_c1_policy_allows_exactly_one_token_per_account(node: Patgate, master: Api) -> None:
    first, before = node.token(BOB, name="the one"), node.config["policy"]
    operate.write(node, policy={"tokens_per_user": 1})
    operate.reload(node)
    try:
        assert Api(node, first).ask("POST", "/tokens", {"name": "another"}).status in (409, 422)
        refused = command(node, "token", "create", "--user", BOB, "--name", "another")
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert [shown["id"] for shown in Api(node, first).items("/tokens")] == [first.id]
        assert token_of(Api(node, first).verb(first, "rotate")).id == first.id, "rotation needs no second one"
        assert ADA in {crowd["user"] for crowd in master.items("/policy/crowded")}
        with node.control_socket() as control:
            control.revoke(first)
            control.create_token(BOB, name="its successor")
    finally:
        operate.write(node, policy=before)
        operate.reload(node)
