"""``patgate token`` on a store that no gateway serves."""

import re

import pytest

from tests.unit.cli.running import Desk

VALUE = re.compile(r"acme_pat_[0-9A-Za-z]{12}_[0-9A-Za-z]{38}")


@pytest.fixture
def desk(desk: Desk) -> Desk:
    """A directory with a person in its store who may have tokens."""
    desk.document("user", "add", "ada@example.com", "--role", "editor")
    return desk


def test_a_new_token_has_what_scripts_need(desk: Desk) -> None:
    made = desk.document("token", "create", "--user", "ada@example.com", "--name", "ci", "--expires", "30d")
    assert VALUE.fullmatch(made["token"])
    assert made["token"].startswith(made["prefix"] + "_")
    assert made["prefix"] == f"acme_pat_{made['id']}"
    assert made["name"] == "ci"
    assert made["expires_at"].endswith("Z")
    assert made["scopes"] is None


def test_the_value_is_on_a_separate_line_and_only_there(desk: Desk) -> None:
    done = desk.patgate("token", "create", "--user", "ada@example.com", "--name", "x" * 60, "--description", "y" * 200)
    assert done.returncode == 0
    assert len([line for line in done.stdout.splitlines() if VALUE.fullmatch(line)]) == 1
    assert len(VALUE.findall(done.stdout + done.stderr)) == 1


def test_a_token_without_an_expiry_gets_a_note(desk: Desk) -> None:
    create = ("token", "create", "--user", "ada@example.com", "--json", "--name")
    assert "--expires" in desk.patgate(*create, "forever").stderr
    assert desk.patgate(*create, "for now", "--expires", "1h30m").stderr == ""


def test_a_token_is_created_with_scopes(desk: Desk) -> None:
    scopes = ("--scope", "things:read", "--scope", "things/7:*")
    made = desk.document("token", "create", "--user", "ada@example.com", "--name", "ci", *scopes)
    assert sorted(made["scopes"]) == ["things/7:*", "things:read"]


def test_a_token_is_created_for_an_organisation(desk: Desk) -> None:
    desk.document("org", "add", "engineering")
    desk.document("user", "add", "bob@example.com", "--role", "viewer", "--org", "engineering")
    create = ("token", "create", "--user", "bob@example.com", "--name", "ci", "--org", "engineering")
    assert desk.document(*create)["org"] == "engineering"


def test_lists_show_the_public_prefix_and_never_the_value(desk: Desk) -> None:
    made = desk.document("token", "create", "--user", "ada@example.com", "--name", "ci")
    (listed,) = desk.document("token", "list", "--user", "ada@example.com", "--status", "active")
    assert listed["prefix"] == made["prefix"]
    assert "token" not in listed
    printed = "\n".join(desk.lines("token", "list"))
    assert made["prefix"] in printed
    assert not VALUE.search(printed)
    assert not VALUE.search("\n".join(desk.lines("token", "show", made["id"])))


def test_rotation_keeps_the_id_and_shows_another_value(desk: Desk) -> None:
    made = desk.document("token", "create", "--user", "ada@example.com", "--name", "ci")
    again = desk.document("token", "rotate", made["prefix"])
    assert (again["id"], again["name"]) == (made["id"], "ci")
    assert again["token"] != made["token"]


def test_a_revoked_token_is_listed_and_a_deleted_one_is_not(desk: Desk) -> None:
    made = desk.document("token", "create", "--user", "ada@example.com", "--name", "ci")
    assert desk.document("token", "revoke", made["id"])["status"] == "revoked"
    assert desk.document("token", "list", "--status", "active") == []
    assert [token["id"] for token in desk.document("token", "list", "--status", "revoked")] == [made["id"]]
    desk.document("token", "delete", made["id"])
    assert desk.document("token", "list") == []
    desk.refused("token", "show", made["id"])


def test_a_name_cannot_control_the_terminal(desk: Desk) -> None:
    done = desk.patgate("token", "create", "--user", "ada@example.com", "--name", "a\x1b[2Jb[red]c")
    for arguments in (("token", "list"), ("token", "list", "--json")):
        assert "\x1b" not in desk.patgate(*arguments).stdout
    if done.returncode == 0:
        assert "[red]" in desk.patgate("token", "list").stdout


def test_an_unknown_owner_is_reported_in_one_sentence(desk: Desk) -> None:
    desk.refused("token", "create", "--user", "nobody@example.com", "--name", "ci")
