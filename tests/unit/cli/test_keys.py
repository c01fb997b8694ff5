"""``patgate key``, ``patgate org`` and the commands on existing tokens, with every option, without a gateway."""

import re
from typing import Any

import pytest

from tests.unit.cli.running import Desk, only_sentence

VALUE = re.compile(r"acme_(?:pat|key)_[0-9A-Za-z]{12}_[0-9A-Za-z]{38}")


@pytest.fixture
def desk(desk: Desk) -> Desk:
    """A directory whose store has two organisations."""
    desk.document("org", "add", "team")
    desk.document("org", "add", "shop")
    return desk


def made(desk: Desk, *options: str, noun: str = "key") -> dict[str, Any]:
    document: dict[str, Any] = desk.document(noun, "create", "--name", "k", *options)
    assert VALUE.fullmatch(document["token"])
    return document


def test_an_api_key_has_one_organisation_and_a_role(desk: Desk) -> None:
    """Requirements C2, D7."""
    options = ("--org", "team", "--role", "editor", "--expires", "365d", "--scope", "things:read", "--description", "d")
    key = made(desk, *options)
    assert key["token"].startswith("acme_key_")
    assert (key["org"], key["role"], key["scopes"], key["description"]) == ("team", "editor", ["things:read"], "d")
    assert (key["kind"], key["reach"], key["user"]) == ("key", "org", None)
    printed = desk.lines("key", "create", "--name", "k", "--org", "team", "--role", "viewer")
    assert VALUE.fullmatch(printed[-1])
    wrong: tuple[tuple[str, ...], ...] = (
        (),
        ("--org", "team"),
        ("--role", "editor"),
        ("--org", "team", "--role", "editor", "--grant", "team=things:read"),
        ("--grant", "team"),
        ("--grant", "=things:read"),
    )
    for mixed in wrong:
        assert desk.patgate("key", "create", "--name", "k", *mixed).returncode == 2
    assert "role" in desk.refused("key", "create", "--name", "k", "--org", "team", "--role", "nobody")
    desk.refused("key", "create", "--name", "k", "--org", "nowhere", "--role", "editor")


def test_an_organisation_token_has_permissions_by_organisation_and_is_attached_and_detached(desk: Desk) -> None:
    """Requirement C6."""
    key = made(desk, "--grant", "team=things:read", "--grant", "shop=things:read,things:update")
    assert {one["org"]: one["permissions"] for one in key["orgs"]} == {
        "team": ["things:read"],
        "shop": ["things:read", "things:update"],
    }
    view = desk.document("key", "detach", key["id"], "shop")
    assert [one["org"] for one in view["orgs"]] == ["team"]
    view = desk.document("key", "attach", key["prefix"], "shop=things:list")
    assert {one["org"]: one["permissions"] for one in view["orgs"]}["shop"] == ["things:list"]
    view = desk.document("key", "attach", key["id"], "shop=things:read")
    assert {one["org"]: one["permissions"] for one in view["orgs"]}["shop"] == ["things:read"]
    desk.document("key", "detach", key["id"], "shop")
    desk.refused("key", "detach", key["id"], "team")
    assert "things:read" in "\n".join(desk.lines("key", "show", key["id"]))


def test_organisation_tokens_take_a_seat_each(desk: Desk) -> None:
    """Requirement C6: an organisation has a number of seats; a token that ends or is detached frees one."""
    desk.document("policy", "set", "team", "--org-tokens", "1")
    first = made(desk, "--grant", "team=things:read", "--grant", "shop=things:read")
    second = ("key", "create", "--name", "k2", "--grant", "team=things:read")
    assert "(1)" in desk.refused(*second)
    other = made(desk, "--grant", "shop=things:read")
    desk.refused("key", "attach", other["id"], "team=things:read")
    desk.document("key", "detach", first["id"], "team")
    desk.document("key", "attach", other["id"], "team=things:read")
    desk.document("key", "revoke", other["id"])
    assert desk.document(*second)["orgs"][0]["org"] == "team"
    desk.refused("key", "regenerate", other["id"])


@pytest.mark.parametrize("noun", ["key", "token"])
def test_every_command_on_an_existing_token_or_key(desk: Desk, noun: str) -> None:
    """Requirements C5, E3, E4, E5, E6."""
    desk.document("user", "add", "ada@example.org", "--role", "editor")
    options = ("--org", "team", "--role", "editor") if noun == "key" else ("--user", "ada@example.org")
    one = made(desk, *options, "--description", "words", "--expires", "30d", "--scope", "things:read", noun=noun)
    id_, prefix = one["id"], one["prefix"]
    assert desk.document(noun, "scopes", "add", id_, "things:update", "things:list")["scopes"] == [
        "things:list",
        "things:read",
        "things:update",
    ]
    assert desk.document(noun, "scopes", "remove", prefix, "things:update")["scopes"] == ["things:list", "things:read"]
    assert desk.document(noun, "scopes", "set", id_, "things:*")["scopes"] == ["things:*"]
    desk.refused(noun, "scopes", "remove", id_, "things:read")
    assert desk.document(noun, "scopes", "clear", id_)["scopes"] == []
    assert "may do nothing" in "\n".join(desk.lines(noun, "show", id_))
    desk.document(noun, "scopes", "set", id_, "things:read")
    rotated = desk.document(noun, "rotate", prefix)
    assert (rotated["id"], rotated["token"] != one["token"]) == (id_, True)
    desk.refused(noun, "regenerate", id_)
    assert desk.lines(noun, "revoke", id_, "--descendants") == [f"{prefix} is revoked."]
    assert [row["id"] for row in desk.document(noun, "list", "--status", "revoked")] == [id_]
    assert desk.document(noun, "list", "--status", "active") == []
    again = desk.document(noun, "regenerate", id_, "--expires", "60d")
    kept = ("id", "name", "description", "scopes", "prefix")
    assert [again[name] for name in kept] == [id_, "k", "words", ["things:read"], prefix]
    assert again["token"] not in (one["token"], rotated["token"])
    assert desk.document(noun, "show", id_)["status"] == "active"
    assert VALUE.search("\n".join(desk.lines(noun, "show", id_))) is None
    assert desk.lines(noun, "delete", prefix) == [f"{prefix} is deleted."]
    assert desk.document(noun, "list") == []
    desk.refused(noun, "show", id_)


def test_keys_are_listed_by_organisation_and_not_as_tokens(desk: Desk) -> None:
    """Requirement E5."""
    team, shop = (made(desk, "--org", org, "--role", "viewer") for org in ("team", "shop"))
    both = made(desk, "--grant", "team=things:read", "--grant", "shop=things:read")
    ids = {org: {row["id"] for row in desk.document("key", "list", "--org", org)} for org in ("team", "shop")}
    assert ids == {"team": {team["id"], both["id"]}, "shop": {shop["id"], both["id"]}}
    assert len(desk.document("key", "list")) == 3
    assert desk.document("key", "list", "--org", "team", "--status", "expired") == []
    assert team["prefix"] in "\n".join(desk.lines("key", "list", "--org", "team"))
    assert desk.patgate("key", "list", "--status", "expired").stderr == "There are no such keys.\n"


def test_an_unknown_or_foreign_key_is_not_found(desk: Desk) -> None:
    key = made(desk, "--org", "team", "--role", "viewer")
    for reference in ("A" * 12, f"evil_key_{key['id']}", f"acme_pat_{key['id']}"):
        assert "A" * 12 not in desk.refused("key", "show", reference)


def test_of_a_whole_token_in_place_of_an_id_only_the_prefix_is_sent(desk: Desk) -> None:
    """docs/threat-model.md §9: a leaked token may be pasted whole; only its prefix is needed."""
    key = made(desk, "--org", "team", "--role", "viewer")
    done = desk.patgate("key", "revoke", key["token"])
    assert done.returncode == 0
    assert done.stdout == f"{key['prefix']} is revoked.\n"


def test_lists_are_filtered_by_every_option(desk: Desk) -> None:
    """Requirements E5, B4: by owner, organisation, expiry, use and creator."""
    desk.document("user", "add", "ada@example.org", "--role", "editor")
    desk.document("user", "add", "ada@example.org", "--role", "viewer", "--org", "team")
    create = ("token", "create", "--user", "ada@example.org", "--name")
    soon = desk.document(*create, "soon", "--expires", "6d")["id"]
    later = desk.document(*create, "later", "--expires", "20d", "--org", "team")["id"]
    never = desk.document(*create, "never", "--account")

    def listed(*options: str) -> set[str]:
        return {row["id"] for row in desk.document("token", "list", *options)}

    assert never["reach"] == "account"
    assert listed() == {soon, later, never["id"]}
    assert listed("--expiring") == {soon}
    assert listed("--expiring", "30d") == {soon, later}
    assert listed("--org", "team") == {later}
    assert listed("--user", "ada@example.org", "--status", "active") == {soon, later, never["id"]}
    assert listed("--unused", "1d") == set()
    assert listed("--parent", soon) == set()
    assert desk.patgate(*create, "x", "--account", "--org", "team").returncode == 2


def test_all_tokens_of_a_person_are_deleted_at_once(desk: Desk) -> None:
    """Requirement E6."""
    for email in ("ada@example.org", "bob@example.org"):
        desk.document("user", "add", email, "--role", "editor")
        for name in ("one", "two"):
            desk.document("token", "create", "--user", email, "--name", name)
    assert desk.lines("token", "delete", "--all", "--user", "ada@example.org") == ["2 tokens are deleted."]
    assert {row["user"] for row in desk.document("token", "list")} == {"bob@example.org"}
    for wrong in (("--all",), ("--user", "bob@example.org"), (), ("A" * 12, "--all", "--user", "bob@example.org")):
        assert desk.patgate("token", "delete", *wrong).returncode == 2


def test_organisations_are_suspended_resumed_and_left(desk: Desk) -> None:
    """Requirements A3, D3."""
    assert desk.document("org", "show", "team")["status"] == "active"
    assert desk.document("org", "suspend", "team")["status"] == "suspended"
    desk.refused("key", "create", "--name", "k", "--org", "team", "--role", "viewer")
    assert desk.document("org", "resume", "team")["status"] == "active"
    assert {row["name"] for row in desk.document("org", "list")} == {"team", "shop"}
    assert desk.patgate("org", "members", "team").stderr.startswith("It has no members")
    desk.document("user", "add", "ada@example.org", "--role", "viewer", "--org", "team")
    (member,) = desk.document("org", "members", "team")
    assert (member["email"], member["role"]) == ("ada@example.org", "viewer")
    desk.document("token", "create", "--user", "ada@example.org", "--name", "t", "--org", "team")
    assert desk.lines("org", "remove-member", "team", "ada@example.org") == ["ada@example.org is no longer in team."]
    assert desk.document("org", "members", "team") == []
    assert only_sentence(desk.patgate("org", "remove-member", "team", "ada@example.org")) == only_sentence(
        desk.patgate("org", "remove-member", "team", "nobody@example.org")
    )
    desk.refused("org", "show", "nowhere")
    desk.refused("org", "add", "team")
