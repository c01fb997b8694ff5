"""Requirements A1 to A5: branded tokens that act for their creator, for the account or for one team."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.support.api import Api, cli, command, soon, status
from tests.support.gateway import Patgate, Token, token_of
from tests.support.pool import Pool
from tests.support.recorder import Recorder

EVE, MEL, LEA = "eve@example.org", "mel@example.org", "lea@example.org"
OWN, LAB, SHOP = "/v1/things/7", "/orgs/atelier/things/7", "/orgs/boutique/things/7"


@pytest.fixture(scope="module")
def node(gateways: Pool, backend: Recorder) -> Iterator[Patgate]:
    """Eve has no team; Mel is a member of the team ``atelier``, and Lea leads it."""
    config = {
        "workers": 1,
        "upstreams": {"app": {"servers": [backend.url]}},
        "roles": {
            "editor": ["things:*"],
            "viewer": ["things:read"],
            "lead": ["things:*", "patgate.tokens:*"],
        },
        "routes": [
            {"path": "/v1/{entity}/{id}", "upstream": "app"},
            {"path": "/orgs/{org}/{entity}/{id}", "upstream": "app"},
        ],
        "policy": {"admin_rights": ["revoke"]},
    }
    with gateways.lend(config) as gateway:
        with gateway.control_socket() as control:
            for org in ("atelier", "boutique"):
                control.call("POST", "/orgs", {"name": org})
            for email, role, in_lab in ((EVE, "editor", None), (MEL, "viewer", "editor"), (LEA, "viewer", "lead")):
                control.call("POST", "/users", {"email": email, "role": role})
                if in_lab is not None:
                    control.call("PUT", f"/orgs/atelier/members/{email}", {"role": in_lab})
        yield gateway


def of(node: Patgate, email: str, **more: object) -> Api:
    """A client for this user, with a token that the operator created."""
    with node.control_socket() as control:
        return Api(node, token_of(control.call("POST", "/tokens", {"user": email, "name": "first", **more})))


def test_a1_every_token_begins_with_the_brand_and_scanners_find_it(node: Patgate) -> None:
    eve = of(node, EVE)
    by_command = cli(node, "token", "create", "--user", EVE, "--name", "branded", "--expires", "1d")["token"]
    pattern = command(node, "token", "pattern").stdout.strip()
    for value in (by_command, eve.mint("by API").value):
        assert value.startswith("acme_pat_")
        found = re.search(pattern, f"password = '{value}'")
        assert found is not None
        assert found[0] == value
    # A token with another brand is not accepted.
    other = Token(id="", prefix="", value="umbrella" + eve.token.value.removeprefix("acme"))
    assert status(node, "GET", OWN, other) == 401


def test_a2_a_token_is_its_makers_and_acts_with_their_permissions(node: Patgate, recorder: Recorder) -> None:
    tokens = {email: of(node, email).mint("job") for email in (EVE, MEL)}
    assert [status(node, "PUT", OWN, tokens[email]) for email in (EVE, MEL)] == [200, 403]
    assert status(node, "GET", OWN, tokens[MEL]) == 200
    assert [request.only("X-Auth-Email") for request in recorder.requests] == [EVE, MEL]
    assert cli(node, "token", "show", tokens[MEL].id)["user"] == MEL
    assert of(node, EVE).refusal("GET", f"/tokens/{tokens[MEL].id}")[0] == 404


def test_a3_a_team_token_reaches_its_team_only_and_a_personal_one_its_users_own_only(
    node: Patgate, recorder: Recorder
) -> None:
    mel = of(node, MEL, reach="account")
    team = token_of(mel.call("POST", "/orgs/atelier/tokens", {"name": "of the team"}))
    personal = mel.mint("personal", reach="personal")
    by_command = token_of(cli(node, "token", "create", "--user", MEL, "--name", "team too", "--org", "atelier"))
    for token in (team, by_command):
        assert [status(node, "PUT", path, token) for path in (LAB, SHOP)] == [200, 403]
    assert [status(node, "GET", path, personal) for path in (LAB, SHOP)] == [403, 403]
    # If the path names no organisation, the backend gets the organisation that the token belongs to.
    for token, org in ((team, "atelier"), (by_command, "atelier"), (personal, "")):
        recorder.clear()
        assert status(node, "GET", OWN, token) == 200
        assert recorder.last().only("X-Auth-Org") == org
    # The API hides the team's tokens from a personal token, and personal tokens from the team's.
    seen = {token["id"] for token in Api(node, team).items("/tokens")}
    assert team.id in seen
    assert personal.id not in seen
    assert Api(node, personal).refusal("GET", f"/tokens/{team.id}")[0] == 404


def test_a4_a_teams_administrators_see_its_tokens_and_its_maker_alone_ends_one_unless_policy_says_else(
    node: Patgate,
) -> None:
    with node.control_socket() as control:
        control.call("PUT", "/orgs/atelier/policy", {"admin_rights": []})
    lea, mel = of(node, LEA, org="atelier"), of(node, MEL, org="atelier")
    tokens = [mel.mint(f"of the team {number}", org="atelier") for number in range(3)]
    for token in tokens:
        assert token.id in {shown["id"] for shown in lea.items("/orgs/atelier/tokens")}
        assert lea.call("GET", f"/tokens/{token.id}")["user"] == MEL
    assert {token.id for token in tokens} <= {shown["id"] for shown in cli(node, "token", "list", "--org", "atelier")}
    assert lea.refusal("POST", f"/tokens/{tokens[0].id}/revoke")[0] == 403
    assert lea.refusal("POST", f"/tokens/{tokens[0].id}/rotate")[0] == 403
    assert status(node, "GET", LAB, tokens[0]) == 200
    mel.verb(tokens[0], "revoke")
    assert status(node, "GET", LAB, tokens[0]) == 401
    # The organisation's policy does not set it, and the deployment's policy lets administrators revoke.
    cli(node, "policy", "set", "atelier", "--admin-right", "revoke")
    lea.verb(tokens[1], "revoke")
    assert status(node, "GET", LAB, tokens[1]) == 401
    assert lea.refusal("DELETE", f"/tokens/{tokens[2].id}")[0] == 403, "a right to revoke is none to delete"
    assert of(node, EVE).refusal("GET", f"/tokens/{tokens[2].id}")[0] == 404, "who is not of the team sees nothing"


def test_a5_an_expiry_can_be_set_and_whoever_sets_none_is_nudged(node: Patgate) -> None:
    eve = of(node, EVE)
    made = eve.call("POST", "/tokens", {"name": "for ever"})
    assert made["expires_at"] is None
    assert any("expires" in warning for warning in made["warnings"])
    nudged = command(node, "token", "create", "--user", EVE, "--name", "nudged")
    assert nudged.exit_code == 0
    assert "never expires" in nudged.stderr
    made = eve.call("POST", "/tokens", {"name": "an hour", "expires": 3600})
    assert made["warnings"] == []
    assert made["expires_at"] > made["created_at"]
    assert status(node, "GET", OWN, token_of(made)) == 200
    brief = eve.mint("brief", expires=1)
    soon(lambda: status(node, "GET", OWN, brief) == 401, "the end of a token's time", node)
    assert eve.call("GET", f"/tokens/{brief.id}")["status"] == "expired"
