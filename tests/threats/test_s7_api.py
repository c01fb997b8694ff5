"""Threat model §7, over the control API: no token exceeds its own permissions or its organisation.

Two callers of ``north`` who may do everything there, a key and a team token, call every operation of the OpenAPI
document, so that a new operation is tested automatically.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.api import Api, both, status, through
from tests.support.gateway import Patgate, Token, token_of
from tests.support.pool import Pool
from tests.support.process import wait_until
from tests.support.rawhttp import Response
from tests.support.recorder import Recorder
from tests.support.tokens import forged
from tests.threats.api_bodies import BODIES, READ

ROOT, MEL, SOL = "root@example.org", "mel@example.org", "sol@example.org"
LAB_THING = "/orgs/north/things/7"
WRITES = ("post", "put", "patch", "delete")
OWN_WORDS = frozenset({"x-request-id", "date", "content-length"})
"""Headers that differ in every response; the length is that of the body, which is compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """``foreign`` has ids of objects of ``south`` by parameter name, ``own`` those of ``north``."""

    node: Patgate
    root: Api
    sol: Api
    team: Api
    key: Api
    mel_id: str
    own: Mapping[str, str]
    foreign: Mapping[str, str]
    operations: tuple[tuple[str, str, str], ...]
    """Name, method and path of every operation."""


UNKNOWN = {
    "token": "A" * 12,
    "key": "A" * 12,
    "org": "org_" + "A" * 12,
    "user": "usr_" + "A" * 12,
    "role": "nobodys",
    "invitation": "inv_" + "A" * 12,
}


@pytest.fixture(scope="module")
def world(gateways: Pool, backend: Recorder) -> Iterator[World]:
    config = {
        "workers": 1,
        "upstreams": {"app": {"servers": [backend.url]}},
        "roles": {"admin": ["*:*"], "viewer": READ, "nothing": []},
        "routes": [
            {"path": "/v1/{entity}/{id}", "upstream": "app"},
            {"path": "/orgs/{org}/{entity}/{id}", "upstream": "app"},
        ],
    }
    with gateways.lend(config) as node, node.control_socket() as control:

        def minted(user: str, **more: object) -> Token:
            return token_of(control.call("POST", "/tokens", {"user": user, "name": "of " + user, **more}))

        ids = {}
        for email, role in ((ROOT, "admin"), (MEL, "nothing"), (SOL, "nothing")):
            ids[email] = control.call("POST", "/users", {"email": email, "role": role})["id"]
        orgs = {org: control.call("POST", "/orgs", {"name": org})["id"] for org in ("north", "south")}
        control.call("PUT", f"/orgs/north/members/{MEL}", {"role": "admin"})
        control.call("PUT", f"/orgs/south/members/{SOL}", {"role": "admin"})
        keys = {
            org: token_of(control.call("POST", "/keys", {"name": "k", "org": org, "role": "admin"})) for org in orgs
        }
        invited = {
            org: control.call("POST", f"/orgs/{org}/invitations", {"email": "ida@example.org", "role": "viewer"})["id"]
            for org in orgs
        }
        sol = minted(SOL, org="south")
        team = minted(MEL, org="north")
        document = node.control("GET", "/api/v1/openapi.json").json()
        yield World(
            node=node,
            root=Api(node, minted(ROOT)),
            sol=Api(node, sol),
            team=Api(node, team),
            key=Api(node, keys["north"]),
            mel_id=ids[MEL],
            own={
                "token": team.id,
                "key": keys["north"].id,
                "org": orgs["north"],
                "user": ids[MEL],
                "role": "viewer",
                "invitation": invited["north"],
            },
            foreign={
                "token": sol.id,
                "key": keys["south"].id,
                "org": orgs["south"],
                "user": ids[SOL],
                "role": "viewer",
                "invitation": invited["south"],
            },
            operations=tuple(
                (operation["operationId"], method, path.removeprefix("/api/v1"))
                for path, methods in document["paths"].items()
                for method, operation in methods.items()
                if isinstance(operation, dict) and "operationId" in operation
            ),
        )


@pytest.fixture
def narrow(world: World) -> Api:
    """A team token of an administrator of ``north``, with scopes and an expiry."""
    scopes = ["things:read", "patgate.tokens:*", "patgate.members:*", "patgate.keys:*"]
    return Api(world.node, world.team.mint("narrow", org="north", scopes=scopes, expires=5000.0))


@pytest.fixture
def sibling(world: World) -> Token:
    """A token of the same owner with all permissions, without an expiry."""
    return world.team.mint("sibling", org="north")


def said(answer: Response) -> tuple[int, list[tuple[bytes, bytes]], Any]:
    """A response without the parts that differ in every request."""
    headers = [(name, value) for name, value in answer.headers if name.decode().lower() not in OWN_WORDS]
    try:
        document = json.loads(answer.body)
    except ValueError:
        return answer.status, headers, answer.body
    if isinstance(document, dict):
        document.pop("decision", None)
    return answer.status, headers, document


def tokens_of_lab(world: World) -> set[str]:
    return {item["id"] for item in world.root.items("/orgs/north/tokens", limit="500")}


# --- above itself ---

MINTS: dict[str, tuple[dict[str, object], set[str]]] = {
    "without scopes": ({"org": "north", "expires": 60.0}, {"scopes"}),
    "with a wider scope": ({"org": "north", "expires": 60.0, "scopes": ["things:*"]}, {"scopes[0]"}),
    "with a wildcard": ({"org": "north", "expires": 60.0, "scopes": ["*:read"]}, {"scopes[0]"}),
    "with a wildcard among its own": (
        {"org": "north", "expires": 60.0, "scopes": ["things:read", "patgate.*:read".replace("patgate.*", "*/x")]},
        {"scopes[1]"},
    ),
    "with an escaped name": ({"org": "north", "expires": 60.0, "scopes": ["t%68ings:update"]}, {"scopes[0]"}),
    "without an end": ({"org": "north", "scopes": READ}, {"expires"}),
    "with a later end": ({"org": "north", "scopes": READ, "expires": 6000.0}, {"expires"}),
    "for the account": ({"expires": 60.0, "scopes": READ}, {"org"}),
    "for everything": ({"reach": "account"}, {"org", "expires", "scopes"}),
    "for somebody else": ({"user": SOL, "org": "north", "expires": 60.0, "scopes": READ}, {"user"}),
}


@pytest.mark.parametrize("what", MINTS)
def test_a_token_mints_none_that_is_more_than_itself(what: str, world: World, narrow: Api) -> None:
    body, fields = MINTS[what]
    before = tokens_of_lab(world)
    refused, named = narrow.refusal("POST", "/tokens", {"name": "more", **body})
    assert (refused, set(named)) == (403, fields)
    assert tokens_of_lab(world) == before


def test_a_token_mints_what_is_within_itself(world: World, narrow: Api) -> None:
    made = narrow.mint("less", org="north", scopes=["things/7:read"], expires=60.0)
    assert status(world.node, "GET", LAB_THING, made) == 200
    assert status(world.node, "PUT", LAB_THING, made) == 403


def test_a_token_edits_neither_itself_nor_another_up(narrow: Api, sibling: Token) -> None:
    wide = {"scopes": ["things:*"]}
    for method in ("POST", "PUT"):
        assert narrow.refusal(method, f"/tokens/{narrow.token.id}/scopes", wide)[0] == 403
    assert narrow.refusal("PUT", f"/tokens/{narrow.token.prefix}/scopes", {"scopes": ["*:*"]})[0] == 403
    for verb in ("rotate", "regenerate"):
        assert narrow.refusal("POST", f"/tokens/{sibling.id}/{verb}")[0] in (403, 409)
    narrow.verb(sibling, "revoke")
    assert narrow.refusal("POST", f"/tokens/{sibling.id}/regenerate")[0] == 403
    assert narrow.refusal("POST", f"/tokens/{sibling.id}/regenerate", {"expires": 60.0})[0] == 403
    # Its permissions are as before.
    assert narrow.call("GET", f"/tokens/{narrow.token.id}")["scopes"] == sorted(
        ["things:read", "patgate.tokens:*", "patgate.members:*", "patgate.keys:*"]
    )


def test_the_same_verb_by_another_path_is_the_same(world: World, narrow: Api, sibling: Token) -> None:
    for method, path in (
        ("POST", f"/keys/{sibling.id}/rotate"),
        ("PUT", f"/keys/{sibling.id}/scopes"),
        ("POST", f"/tokens/{sibling.id}%2Frotate"),
        ("POST", f"/tokens/../tokens/{sibling.id}/rotate"),
        ("POST", f"/tokens//{sibling.id}/rotate"),
        ("POST", f"/TOKENS/{sibling.id}/rotate"),
    ):
        body = {"scopes": ["things:*"]} if method == "PUT" else None
        assert narrow.ask(method, path, body).status in (404, 405), path
    assert narrow.call("GET", f"/tokens/{sibling.id}")["rotated_at"] is None
    before = tokens_of_lab(world)
    named, fields = narrow.refusal("POST", "/orgs/north/tokens", {"name": "more", "expires": 60.0})
    assert (named, fields) == (403, ["scopes"])
    assert narrow.refusal("POST", "/keys", {"name": "more", "org": "north", "role": "admin"})[0] == 403
    assert narrow.refusal("POST", "/keys", {"name": "more", "grants": {"north": ["*:*"]}, "expires": 60.0})[0] == 403
    assert tokens_of_lab(world) == before


@pytest.mark.parametrize("header", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
def test_no_header_makes_another_method(header: str, world: World, narrow: Api, recorder: Recorder) -> None:
    path = f"/tokens/{narrow.token.id}"
    headers = {**narrow.token.bearer, header: "DELETE"}
    assert narrow.ask("GET", path, headers=headers).json()["status"] == "active"
    assert narrow.ask("POST", path + "?_method=DELETE", headers=headers).status == 405
    assert narrow.call("GET", path)["status"] == "active"
    reading = {**narrow.token.bearer, header: "PUT"}
    with world.node.connect() as connection:
        assert connection.request("GET", LAB_THING, headers=reading).status == 200
        assert recorder.last().request_line.startswith(b"GET ")
        writing = {**narrow.token.bearer, header: "GET"}
        assert connection.request("PUT", LAB_THING, headers=writing).status == 403


def test_a_token_gives_no_role_that_is_more_than_itself(world: World, narrow: Api) -> None:
    for method, path, body in (
        ("PUT", "/roles/viewer", {"permissions": ["*:*"]}),
        ("PUT", "/roles/nothing", {"permissions": READ}),
        ("PUT", "/roles/fresh", {"permissions": READ}),
        ("POST", "/orgs/north/invitations", {"email": "friend@example.org", "role": "admin"}),
        ("PUT", f"/orgs/north/members/{MEL}", {"role": "admin"}),
        ("POST", f"/users/{MEL}/role", {"role": "admin"}),
        ("POST", "/users", {"email": "friend@example.org", "role": "admin"}),
        ("POST", "/users", {"email": "friend@example.org", "role": "admin", "org": "north"}),
    ):
        assert narrow.refusal(method, path, body)[0] == 403, path
    # Nor does one without scopes outside its organisation: there, its owner's role there counts.
    for method, path, sent in (
        ("PUT", "/roles/viewer", {"permissions": ["*:*"]}),
        ("POST", f"/users/{MEL}/role", {"role": "admin"}),
        ("POST", "/orgs", {"name": "south"}),
        ("POST", "/orgs/north/suspend", None),
        ("POST", f"/users/{MEL}/suspend", None),
    ):
        assert world.team.refusal(method, path, sent)[0] == 403, path
    assert world.root.call("GET", f"/users/{MEL}")["role"] == "nothing"


def test_a_key_that_may_do_everything_changes_nothing(world: World) -> None:
    before = world.root.call("GET", "/audit", actor=world.key.token.id, outcome="done")["items"]
    assert {name for name, method, _ in world.operations if method in WRITES} >= set(BODIES)
    for name, method, path in world.operations:
        if method not in WRITES or name == "explain.post":
            continue
        target = path.format_map(world.own)
        answer = world.key.ask(method.upper(), target, BODIES.get(name))
        # Not found: the object is not a key. Invalid: ``DELETE /tokens``, because a key has no tokens.
        assert answer.status in (403, 404, 422), (name, answer.status, answer.body)
    after = world.root.call("GET", "/audit", actor=world.key.token.id, outcome="done")["items"]
    assert before == after == []
    assert world.key.call("GET", "/me")["token"]["status"] == "active"


# --- beside itself ---


def foreign_and_unknown(world: World) -> Iterator[tuple[str, str, str, str, object, object]]:
    """Name, method, and path and body for an object of another organisation and for one that does not exist."""
    for name, method, path in world.operations:
        for parameter in ("token", "key", "org", "user", "invitation"):
            if "{" + parameter + "}" not in path:
                continue
            one, other = (path.format_map({**world.own, parameter: ids[parameter]}) for ids in (world.foreign, UNKNOWN))
            yield name, method.upper(), one, other, BODIES.get(name), BODIES.get(name)
    for method, path, parameter in (
        ("GET", "/tokens?parent={}", "token"),
        ("GET", "/tokens?org={}", "org"),
        ("GET", "/tokens?user={}", "user"),
        ("DELETE", "/tokens?user={}", "user"),
        ("GET", "/keys?org={}", "org"),
        ("GET", "/policy?org={}", "org"),
        ("GET", "/invitations?org={}", "org"),
        ("GET", "/policy/violations?org={}", "org"),
        ("POST", "/policy/expire?org={}", "org"),
        ("GET", "/audit?org={}", "org"),
        ("GET", "/audit?user={}", "user"),
        ("GET", "/audit?actor={}", "token"),
        # Only changes: the caller's log has its refusals with the ids that it requested.
        ("GET", "/audit?action=account.&target={}", "token"),
        ("GET", "/audit?action=account.&target={}", "org"),
        ("GET", "/audit?after=0&actor={}", "token"),
        ("GET", "/explain?token={}&method=GET&path=/v1/things/1", "token"),
    ):
        yield (
            path,
            method,
            path.format(world.foreign[parameter]),
            path.format(UNKNOWN[parameter]),
            None,
            None,
        )
    for path, field in (("/tokens", "org"), ("/tokens", "user"), ("/keys", "org")):
        bodies = [
            {"name": "x", "role": "viewer", "org": "north", field: ids[field]}
            if path == "/keys"
            else {"name": "x", "scopes": READ, field: ids[field]}
            for ids in (world.foreign, UNKNOWN)
        ]
        yield f"{path} {field}", "POST", path, path, bodies[0], bodies[1]
    grants = [{"name": "x", "grants": {ids["org"]: READ}} for ids in (world.foreign, UNKNOWN)]
    yield "/keys grants", "POST", "/keys", "/keys", grants[0], grants[1]
    emails = [f"/orgs/north/members/{email}" for email in (SOL, "nobody@example.org")]
    for method, sent in (("PUT", {"role": "viewer"}), ("DELETE", None)):
        yield f"members {method}", method, emails[0], emails[1], sent, sent
    roles = [{"role": "viewer", "org": ids["org"]} for ids in (world.foreign, UNKNOWN)]
    yield "users.set_role org", "POST", f"/users/{MEL}/role", f"/users/{MEL}/role", roles[0], roles[1]
    people = [{"email": "x@example.org", **role} for role in roles]
    yield "users.add org", "POST", "/users", "/users", people[0], people[1]
    people = [{"email": email, "role": "viewer", "org": "north"} for email in (SOL, "nobody@example.org")]
    yield "users.add email", "POST", "/users", "/users", people[0], people[1]


@pytest.mark.parametrize("asker", ["team", "key"])
def test_what_is_anothers_is_answered_like_what_there_is_not(asker: str, world: World) -> None:
    api: Api = getattr(world, asker)
    shown = []
    for name, method, one, other, body, another in foreign_and_unknown(world):
        theirs, nobodys = both(api, method, (one, body), (other, another))
        assert said(theirs) == said(nobodys), name
        if theirs.status < 300:
            shown.append((name, theirs.json().get("items")))
    # Only searches of its own log are empty; all else is refused.
    assert all(items == [] for _, items in shown), shown
    assert world.sol.call("GET", "/me")["token"]["status"] == "active"


@pytest.mark.parametrize("asker", ["team", "key"])
def test_no_answer_has_anything_of_another_organisation(asker: str, world: World) -> None:
    api: Api = getattr(world, asker)
    theirs = [*(world.foreign[name] for name in ("token", "key", "org", "user", "invitation")), SOL, "south"]
    for name, method, path in world.operations:
        if method != "get":
            continue
        answer = api.ask("GET", path.format_map(world.own), query=None)
        shown = answer.json()
        if name.startswith("audit."):
            # It has refusals of this organisation's callers, with the ids that they requested.
            shown["items"] = [event for event in shown["items"] if not event["action"].startswith("api.")]
        found = [one for one in theirs if one in json.dumps(shown)]
        assert found == [], name


def test_a_cursor_of_another_list_shows_no_more(world: World) -> None:
    """A cursor is only a position: every request checks again whose list it is."""
    # Only changes: the organisation's log has the caller's refusals with the ids that it requested.
    changes = "/audit?action=account."
    for path in ("/tokens", "/keys", "/orgs", "/users", "/audit", "/orgs/north/members"):
        cursor = world.root.call("GET", path, limit="1")["next_cursor"]
        for target in ("/tokens", "/keys", "/orgs", "/orgs/north/members", changes, "/policy/violations?org=north"):
            if cursor is None:
                continue
            joint = "&" if "?" in target else "?"
            answer = world.team.ask("GET", f"{target}{joint}cursor={cursor}")
            assert answer.status in (200, 422), (path, target)
            assert world.foreign["token"].encode() not in answer.body
            assert world.foreign["key"].encode() not in answer.body


def test_a_team_token_knows_its_owner_as_a_member_of_that_team_only(world: World) -> None:
    world.root.call("PUT", f"/orgs/south/members/{MEL}", {"role": "viewer"})
    try:
        for path in ("/me", f"/users/{MEL}", f"/users/{world.mel_id}"):
            answer = world.team.ask("GET", path)
            assert answer.status == 200
            assert b"south" not in answer.body
            assert b'"nothing"' not in answer.body, "the role in the account"
    finally:
        world.root.call("DELETE", f"/orgs/south/members/{MEL}")


# --- behind itself ---


def test_a_child_keeps_what_it_was_made_with_and_a_narrowed_parent_gives_it_no_new_value(world: World) -> None:
    parent = Api(world.node, world.team.mint("parent", org="north", scopes=["things:*"]))
    child = parent.mint("child", org="north", scopes=["things:update"])
    world.team.call("PUT", f"/tokens/{parent.token.id}/scopes", {"scopes": READ})
    assert status(world.node, "PUT", LAB_THING, parent.token) == 403
    assert status(world.node, "PUT", LAB_THING, child) == 200
    assert parent.refusal("POST", f"/tokens/{child.id}/rotate")[0] == 403
    told = world.team.call("POST", f"/tokens/{parent.token.id}/revoke", {"descendants": True})
    assert told["warnings"] == []
    assert status(world.node, "PUT", LAB_THING, child) == 401


def test_nothing_is_made_by_what_has_been_revoked(world: World) -> None:
    """The hash of a new token takes long enough to revoke the creating token meanwhile."""
    for number in range(10):
        maker = Api(world.node, world.team.mint(f"maker {number}", org="north"))
        answers: list[int] = []

        def mint(by: Api = maker, into: list[int] = answers) -> None:
            into.append(by.ask("POST", "/tokens", {"name": "late", "org": "north"}).status)

        threads = [threading.Thread(target=mint) for _ in range(4)]
        for thread in threads:
            thread.start()
        world.team.verb(maker.token, "revoke")
        made = len(world.root.items("/tokens", parent=maker.token.id))
        for thread in threads:
            thread.join()
        assert set(answers) <= {201, 401}
        assert len(world.root.items("/tokens", parent=maker.token.id)) == made, "made after the answer"
        assert through(world.node, "GET", LAB_THING, maker.token).status == 401


def once(api: Api, path: str, body: object, key: str) -> Response:
    return api.ask("POST", path, body, headers={**api.token.bearer, "Idempotency-Key": key})


def test_a_retry_shows_what_may_be_seen_now(world: World) -> None:
    world.root.call("PUT", "/orgs/north/members/ned@example.org", {"role": "admin"})
    with world.node.control_socket() as control:
        wanted = {"user": "ned@example.org", "name": "n", "org": "north"}
        ned = Api(world.node, token_of(control.call("POST", "/tokens", wanted)))
    body = {"name": "kept", "org": "north", "role": "viewer"}
    made = token_of(once(ned, "/keys", body, "one").json())
    again = once(ned, "/keys", body, "one")
    assert (again.status, again.json()["token"], again.json()["id"]) == (201, None, made.id)
    assert once(world.team, "/keys", body, "one").json()["id"] != made.id
    world.root.call("PUT", "/orgs/north/members/ned@example.org", {"role": "viewer"})
    lost = once(ned, "/keys", body, "one")
    assert lost.status == 404
    assert made.id.encode() not in lost.body
    world.root.call("DELETE", f"/keys/{made.id}")
    assert once(ned, "/keys", body, "one").status in (404, 409)


def test_a_whole_token_in_the_place_of_an_id_is_not_repeated(world: World, sibling: Token) -> None:
    value = sibling.value
    for method, path, body in (
        ("GET", f"/tokens/{value}", None),
        ("POST", f"/tokens/{value}/revoke", None),
        ("GET", f"/keys/{value}", None),
        ("GET", f"/users/{value}", None),
        ("GET", f"/orgs/{value[:63]}", None),
        ("GET", f"/tokens?parent={value}", None),
        ("GET", f"/tokens?cursor={value}", None),
        ("GET", f"/tokens?{value}=1", None),
        ("GET", f"/audit?actor={value}", None),
        ("GET", f"/explain?token={value}&method=GET&path=/", None),
        ("POST", "/tokens", {"name": "x", "org": value}),
        ("POST", "/tokens", {"name": "x", value: 1}),
        ("POST", "/tokens", {"name": "x", "org": "north", "scopes": [value]}),
        ("PUT", "/orgs/north/members/" + value, {"role": value}),
    ):
        answer = world.team.ask(method, path, body)
        assert value[-20:].encode() not in answer.body, path
        assert answer.status < 500
    assert world.node.control("GET", f"/api/v1/me?access_token={value}").status == 401


def test_who_was_refused_what_is_in_the_audit_log(world: World, narrow: Api) -> None:
    """Escalation, foreign objects and invalid credentials: each event has the decision id of the response."""
    wrong = Api(world.node, Token(id=narrow.token.id, prefix=narrow.token.prefix, value=forged(narrow.token.prefix)))
    wider = {"name": "x", "org": "north", "scopes": ["*:*"]}
    asked = [
        (narrow.ask("POST", "/tokens", wider), "api.tokens.create", "forbidden", narrow.token.id),
        (narrow.ask("GET", f"/tokens/{world.foreign['token']}"), "api.tokens.show", "not_found", narrow.token.id),
        (narrow.ask("GET", f"/orgs/{world.foreign['org']}"), "api.orgs.show", "not_found", narrow.token.id),
        (world.key.ask("POST", "/tokens", wider), "api.tokens.create", "forbidden", world.key.token.id),
        (wrong.ask("GET", "/me"), "api.me.show", "token_wrong_secret", narrow.token.id),
    ]
    for answer, action, reason, actor in asked:
        decision = answer.json()["decision"]

        def found(decision: str = decision) -> list[Any]:
            return world.root.items("/audit", request=decision)

        (event,) = wait_until(found, "the event", process=world.node.process)
        assert (event["action"], event["reason"], event["actor_id"], event["outcome"]) == (
            action,
            reason,
            actor,
            "refused",
        )
        # The log of the other organisation has nothing of it.
        assert world.sol.items("/audit", request=decision) == []
