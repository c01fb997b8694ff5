"""``patgate policy`` without a gateway: showing and setting it, listing violations and ending tokens."""

from typing import Any

import pytest

from tests.unit.cli.running import Desk

ADA = "ada@example.org"


@pytest.fixture
def desk(desk: Desk) -> Desk:
    """A directory with a deployment's policy, an organisation, and a person in it."""
    desk.config.write_text(desk.config.read_text() + "policy: { max_lifetime: 90d, tokens_per_user: 5 }\n")
    desk.document("org", "add", "team")
    desk.document("user", "add", ADA, "--role", "editor", "--org", "team")
    return desk


def own(desk: Desk) -> dict[str, Any]:
    document: dict[str, Any] = desk.document("policy", "show", "--org", "team")
    assert document["own"] is not None
    return dict(document["own"])


def test_the_policy_is_shown_with_the_source_of_each_limit(desk: Desk) -> None:
    printed = "\n".join(desk.lines("policy", "show"))
    assert "90d" in printed
    assert "organisation" not in printed
    desk.document("policy", "set", "team", "--max-lifetime", "36h", "--forbid-scope", "*:*", "--tokens-per-user", "7")
    printed = "\n".join(desk.lines("policy", "show", "--org", "team"))
    assert "36h" in printed and "(deployment and organisation)" in printed and "(organisation)" in printed
    document = desk.document("policy", "show", "--org", "team")
    assert (document["effective"]["max_lifetime"], document["effective"]["tokens_per_user"]) == (36 * 3600, 5)


def test_every_field_is_set_kept_and_removed(desk: Desk) -> None:
    fields: dict[str, tuple[tuple[str, ...], object]] = {
        "max_lifetime": (("--max-lifetime", "30d"), 30 * 86400),
        "require_expiry": (("--require-expiry",), True),
        "inactive_after": (("--inactive-after", "2w"), 14 * 86400),
        "tokens_per_user": (("--tokens-per-user", "1"), 1),
        "org_tokens_per_org": (("--org-tokens", "2"), 2),
        "require_scopes": (("--require-scopes",), True),
        "forbidden_scopes": (("--forbid-scope", "*:*", "--forbid-scope", "things:*"), ["*:*", "things:*"]),
        "admin_rights": (("--admin-right", "revoke", "--admin-right", "delete"), ["delete", "revoke"]),
    }
    expected: dict[str, object] = {}
    for name, (options, value) in fields.items():
        desk.document("policy", "set", "team", *options)
        expected[name] = value
        assert own(desk) == expected
    none = ("--max-lifetime", "--inactive-after", "--tokens-per-user", "--org-tokens", "--forbid-scope")
    desk.document("policy", "set", "team", *(word for option in none for word in (option, "none")))
    desk.document("policy", "set", "team", "--no-require-expiry", "--no-require-scopes", "--admin-right", "none")
    assert own(desk) == {
        "require_expiry": False,
        "require_scopes": False,
        "forbidden_scopes": [],
        "admin_rights": [],
    }
    desk.refused("policy", "set", "team", "--max-lifetime", "1s")
    desk.refused("policy", "set", "nowhere", "--require-expiry")
    assert desk.patgate("policy", "set", "team", "--admin-right", "rotate").returncode == 2


def test_new_tokens_must_follow_the_policy(desk: Desk) -> None:
    """Requirements B1, C1: longest lifetime, required expiry, one token per person, required scopes."""
    create = ("token", "create", "--user", ADA, "--org", "team", "--name", "t")
    desk.document("policy", "set", "team", "--max-lifetime", "30d", "--require-expiry", "--forbid-scope", "*:*")
    for options in (
        (),
        ("--expires", "31d", "--scope", "things:read"),
        ("--expires", "1d"),
        ("--expires", "1d", "--scope", "*:*"),
    ):
        desk.refused(*create, *options)
    assert desk.document("token", "list") == []
    good = (*create, "--expires", "30d", "--scope", "things:*")
    desk.document("policy", "set", "team", "--tokens-per-user", "1")
    desk.document(*good)
    assert "(1)" in desk.refused(*good)


def test_setting_a_policy_reports_how_many_tokens_break_it_and_expire_ends_them(desk: Desk) -> None:
    """Requirement B1: a stricter policy shows which tokens break it, and can end them."""
    create = ("token", "create", "--user", ADA, "--org", "team", "--name")
    long, wide = (desk.document(*create, name, "--expires", "60d")["prefix"] for name in ("long", "wide"))
    short = desk.document(*create, "short", "--expires", "1d")["prefix"]
    done = desk.patgate("policy", "set", "team", "--max-lifetime", "30d")
    assert done.returncode == 0
    assert "2 active tokens of the organisation break it" in done.stderr
    assert "patgate policy check --org team" in done.stderr
    checked = desk.document("policy", "check", "--org", "team")
    broken = {row["prefix"]: row["breaks"] for row in checked["violations"]}
    assert broken == {long: ["max_lifetime"], wide: ["max_lifetime"]}
    printed = "\n".join(desk.lines("policy", "check"))
    assert long in printed and wide in printed and short not in printed and "max_lifetime" in printed
    assert desk.lines("policy", "set", "team", "--expire")[-1] == "2 tokens are expired."
    states = {row["prefix"]: row["status"] for row in desk.document("token", "list")}
    assert states == {long: "expired", wide: "expired", short: "active"}
    assert desk.patgate("policy", "check", "--org", "team").stderr == "No active token breaks the policy.\n"
    assert desk.document("policy", "set", "team", "--max-lifetime", "30d")["breaking"] == 0


def test_expire_ends_violations_in_one_organisation_or_everywhere(desk: Desk) -> None:
    desk.document("user", "set-role", ADA, "editor")
    desk.document("token", "create", "--user", ADA, "--name", "own", "--expires", "80d")
    desk.document("token", "create", "--user", ADA, "--name", "team", "--org", "team", "--expires", "80d")
    desk.config.write_text(desk.config.read_text().replace("90d", "30d").replace("per_user: 5", "per_user: 1"))
    done = desk.patgate("policy", "check")
    assert f"{ADA} has 2 active tokens" in done.stderr
    assert desk.lines("policy", "expire", "--org", "team") == ["1 token is expired."]
    assert desk.document("policy", "expire") == {"expired": 1}
    assert desk.lines("policy", "expire") == ["0 tokens are expired."]
