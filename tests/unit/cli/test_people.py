"""``patgate user``, ``org`` and ``role`` on a store that no gateway serves."""

import json

from tests.unit.cli.running import Desk


def test_commands_are_processes_that_share_the_store(desk: Desk) -> None:
    added = desk.process("user", "add", "ada@example.com", "--role", "editor", "--json")
    assert (added.returncode, added.stderr) == (0, "")
    assert json.loads(desk.process("user", "list", "--json").stdout) == [json.loads(added.stdout)]


def test_a_person_is_added_listed_and_shown(desk: Desk) -> None:
    added = desk.document("user", "add", "ada@example.com", "--role", "editor", "--name", "Ada")
    assert added["email"] == "ada@example.com"
    assert added["role"] == "editor"
    assert added["status"] == "active"
    assert desk.document("user", "list") == [added]
    assert desk.document("user", "show", "ada@example.com") == added


def test_a_list_for_people_has_every_user(desk: Desk) -> None:
    desk.document("user", "add", "ada@example.com", "--role", "editor")
    desk.document("user", "add", "bob@example.com", "--role", "viewer")
    printed = "\n".join(desk.lines("user", "list"))
    assert "ada@example.com" in printed
    assert "bob@example.com" in printed


def test_an_empty_list_suggests_the_next_command_on_standard_error(desk: Desk) -> None:
    done = desk.patgate("user", "list")
    assert (done.returncode, done.stdout) == (0, "")
    assert "patgate user add" in done.stderr
    assert desk.document("user", "list") == []


def test_a_role_is_changed_and_a_person_suspended_resumed_and_removed(desk: Desk) -> None:
    desk.document("user", "add", "ada@example.com", "--role", "editor")
    assert desk.document("user", "set-role", "ada@example.com", "viewer")["role"] == "viewer"
    assert desk.document("user", "suspend", "ada@example.com")["status"] == "suspended"
    assert desk.document("user", "resume", "ada@example.com")["status"] == "active"
    desk.document("user", "remove", "ada@example.com")
    assert [user for user in desk.document("user", "list") if user["status"] != "removed"] == []


def test_an_unknown_person_is_reported_in_one_sentence(desk: Desk) -> None:
    assert desk.refused("user", "show", "nobody@example.com").endswith(".")


def test_a_refusal_is_one_document_for_programs_and_a_sentence_for_people(desk: Desk) -> None:
    done = desk.patgate("user", "show", "nobody@example.com", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["status"] == 404
    assert len(done.stderr.splitlines()) == 1


def test_an_unknown_role_is_refused(desk: Desk) -> None:
    desk.refused("user", "add", "ada@example.com", "--role", "no-such-role")
    assert desk.document("user", "list") == []


def test_a_person_can_be_a_member_of_an_organisation(desk: Desk) -> None:
    desk.document("org", "add", "engineering")
    desk.document("user", "add", "ada@example.com", "--role", "editor", "--org", "engineering")
    (membership,) = desk.document("user", "show", "ada@example.com")["memberships"]
    assert (membership["org"], membership["role"]) == ("engineering", "editor")
    desk.document("user", "set-role", "ada@example.com", "viewer", "--org", "engineering")
    (membership,) = desk.document("user", "show", "ada@example.com")["memberships"]
    assert membership["role"] == "viewer"
    assert "engineering: viewer" in "\n".join(desk.lines("user", "show", "ada@example.com"))


def test_organisations_are_listed_and_shown(desk: Desk) -> None:
    added = desk.document("org", "add", "engineering")
    assert added["name"] == "engineering"
    assert [org["name"] for org in desk.document("org", "list")] == ["engineering"]
    assert desk.document("org", "show", "engineering")["id"] == added["id"]
    assert "engineering" in "\n".join(desk.lines("org", "list"))


def test_roles_come_from_the_configuration_and_can_be_set(desk: Desk) -> None:
    assert {role["name"] for role in desk.document("role", "list")} == {"admin", "editor", "viewer"}
    assert desk.document("role", "set", "viewer", "things:read")["permissions"] == ["things:read"]
    assert desk.document("role", "show", "viewer")["permissions"] == ["things:read"]
    assert "things:read" in "\n".join(desk.lines("role", "list"))


def test_an_invalid_permission_is_refused(desk: Desk) -> None:
    desk.refused("role", "set", "viewer", "not a permission")


def test_a_command_leaves_only_the_store(desk: Desk) -> None:
    desk.document("user", "add", "ada@example.com", "--role", "editor")
    assert not (desk.data / "control.sock").exists()
    assert (desk.data.stat().st_mode & 0o777) == 0o700


def test_an_invitation_is_accepted_declined_or_withdrawn(desk: Desk) -> None:
    desk.document("org", "add", "engineering")
    desk.document("user", "add", "ada@example.com", "--role", "viewer")
    invited = desk.document("org", "invite", "engineering", "ada@example.com", "--role", "editor", "--expires", "7d")
    assert (invited["org"], invited["email"], invited["role"]) == ("engineering", "ada@example.com", "editor")
    assert (
        desk.document("invitation", "list") == [invited] == desk.document("invitation", "list", "--org", "engineering")
    )
    assert desk.document("invitation", "list", "--email", "bob@example.com") == []
    assert desk.document("invitation", "show", invited["id"]) == invited
    assert desk.document("org", "members", "engineering") == []
    assert "ada@example.com is a member now, with the role editor." in desk.lines("invitation", "accept", invited["id"])
    assert [member["email"] for member in desk.document("org", "members", "engineering")] == ["ada@example.com"]
    assert desk.refused("invitation", "accept", invited["id"]) == "There is no open invitation with this id."
    for verb, said in (("decline", "declined"), ("withdraw", "withdrawn")):
        again = desk.document("org", "invite", "engineering", "bob@example.com", "--role", "viewer")
        assert desk.lines("invitation", verb, again["id"]) == [
            f"The invitation of bob@example.com to engineering is {said}."
        ]
    assert desk.document("invitation", "list") == []
    assert desk.patgate("invitation", "list").stderr == "There are no open invitations.\n"
