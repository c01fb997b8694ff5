"""Threat model §7 for people and organisations: joining, leaving, and access to people outside."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.api import Api, status
from tests.support.gateway import Patgate, token_of
from tests.support.pool import Pool
from tests.support.recorder import Recorder

ROOT, MEL, SOL = "root@example.org", "mel@example.org", "sol@example.org"
LAB_THING = "/orgs/east/things/7"


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Mel administers ``east`` with a team token, Sol ``west``; Root is an administrator of the account."""

    node: Patgate
    root: Api
    team: Api
    west: Api

    def sol(self) -> Api:
        """An account-wide token of Sol, created by the operator."""
        wanted = {"user": SOL, "name": "p", "reach": "account"}
        with self.node.control_socket() as control:
            return Api(self.node, token_of(control.call("POST", "/tokens", wanted)))


@pytest.fixture(scope="module")
def world(gateways: Pool, backend: Recorder) -> Iterator[World]:
    config = {
        "workers": 1,
        "upstreams": {"app": {"servers": [backend.url]}},
        "roles": {"admin": ["*:*"], "viewer": ["things:read"], "nothing": []},
        "routes": [{"path": "/orgs/{org}/{entity}/{id}", "upstream": "app"}],
    }
    with gateways.lend(config) as node, node.control_socket() as control:
        for email, role in ((ROOT, "admin"), (MEL, "nothing"), (SOL, "nothing")):
            control.call("POST", "/users", {"email": email, "role": role})
        tokens = {ROOT: token_of(control.call("POST", "/tokens", {"user": ROOT, "name": "root"}))}
        for email, org in ((MEL, "east"), (SOL, "west")):
            control.call("POST", "/orgs", {"name": org})
            control.call("PUT", f"/orgs/{org}/members/{email}", {"role": "admin"})
            tokens[email] = token_of(control.call("POST", "/tokens", {"user": email, "name": "t", "org": org}))
        yield World(node=node, root=Api(node, tokens[ROOT]), team=Api(node, tokens[MEL]), west=Api(node, tokens[SOL]))


def test_inviting_an_email_is_answered_alike_whether_anybody_has_it(world: World) -> None:
    """The responses are equal byte for byte except for id and email, also those for the invitation's state."""
    answers = []
    for email in (SOL, "nob@example.org"):
        body = {"email": email, "role": "viewer"}
        made = world.team.ask("POST", "/orgs/east/invitations", body)
        invitation = made.json()["id"]
        texts = [
            made.body,
            *(
                world.team.ask(method, path, sent).body
                for method, path, sent in (
                    ("GET", f"/invitations/{invitation}", None),
                    ("POST", "/orgs/east/invitations", body),
                    ("PUT", f"/orgs/east/members/{email}", {"role": "viewer"}),
                    ("POST", f"/invitations/{invitation}/accept", None),
                    ("DELETE", f"/invitations/{invitation}", None),
                )
            ),
        ]
        plain = [re.sub(rb'"(decision|(created|expires)_at)": "[^"]*"', b"", text) for text in texts]
        answers.append([text.replace(invitation.encode(), b"-").replace(email.encode(), b"-") for text in plain])
    assert answers[0] == answers[1]


def test_who_is_invited_accepts_with_a_token_of_theirs_and_leaves_again(world: World) -> None:
    """Membership begins and ends with the response."""
    invited = world.team.call("POST", "/orgs/east/invitations", {"email": SOL, "role": "admin"})
    sol = world.sol()
    assert status(world.node, "GET", LAB_THING, sol.token) == 403
    assert [one["id"] for one in sol.items("/invitations")] == [invited["id"]]
    assert world.west.refusal("POST", f"/invitations/{invited['id']}/accept")[0] == 404
    key = {**sol.token.bearer, "Idempotency-Key": "join"}
    joined = [sol.ask("POST", f"/invitations/{invited['id']}/accept", headers=key) for _ in range(2)]
    assert [answer.status for answer in joined] == [201, 201]
    assert [answer.json()["email"] for answer in joined] == [SOL, SOL]
    assert status(world.node, "GET", LAB_THING, sol.token) == 200
    team = sol.mint("of east", org="east")
    assert status(world.node, "GET", LAB_THING, team) == 200
    assert sol.call("DELETE", f"/orgs/east/members/{SOL}")["role"] == "admin"
    assert status(world.node, "GET", LAB_THING, team) == 401
    assert status(world.node, "GET", LAB_THING, sol.token) == 403
    sol.verb(sol.token, "revoke")


def test_an_organisations_policy_keeps_a_token_out_of_it_and_lets_it_be_made(world: World) -> None:
    """The deployment's policy applies to a member's own tokens; the organisation's applies inside it, at once."""
    world.root.call("PUT", f"/orgs/east/members/{SOL}", {"role": "viewer"})
    sol = world.sol()
    try:
        assert status(world.node, "GET", LAB_THING, sol.token) == 200
        world.team.call("PUT", "/orgs/east/policy", {"require_expiry": True})
        assert status(world.node, "GET", LAB_THING, sol.token) == 403
        made = sol.call("POST", "/tokens", {"name": "another", "reach": "account"})
        assert [text for text in made["warnings"] if "does not reach east" in text]
        short = sol.mint("short", reach="account", expires=60.0)
        assert status(world.node, "GET", LAB_THING, short) == 200
        world.team.call("PUT", "/orgs/east/policy", {})
        assert status(world.node, "GET", LAB_THING, sol.token) == 200
    finally:
        world.team.call("PUT", "/orgs/east/policy", {})
        world.root.call("DELETE", f"/orgs/east/members/{SOL}")


def test_an_organisations_administrator_puts_no_stranger_into_it(world: World) -> None:
    """No operation does, and no response shows whether a user outside the organisation exists."""
    answers = []
    for email in (SOL, "nob@example.org"):
        texts = []
        for method, path, body in (
            ("PUT", f"/orgs/east/members/{email}", {"role": "viewer"}),
            ("POST", "/users", {"email": email, "role": "viewer", "org": "east"}),
            ("POST", f"/users/{email}/role", {"role": "viewer", "org": "east"}),
            ("DELETE", f"/orgs/east/members/{email}", None),
        ):
            refused = world.team.ask(method, path, body)
            assert refused.status in (403, 404), (method, path)
            texts.append(re.sub(rb'"decision": "[^"]*"', b"", refused.body))
        answers.append(texts)
    assert answers[0] == answers[1]
    assert [one["email"] for one in world.root.items("/orgs/east/members")] == [MEL]
