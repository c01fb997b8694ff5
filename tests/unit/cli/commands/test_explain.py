"""``patgate explain`` and ``patgate routes`` on a store that no gateway serves."""

import pytest

from tests.unit.cli.running import Desk


@pytest.fixture
def desk(desk: Desk) -> Desk:
    """A directory with a person in its store who may read things."""
    desk.document("user", "add", "ada@example.com", "--role", "viewer")
    return desk


def test_a_request_is_explained_check_by_check_for_people_and_for_programs(desk: Desk) -> None:
    made = desk.document("token", "create", "--user", "ada@example.com", "--name", "ci")
    lines = desk.lines("explain", made["id"], "PUT", "https://api.example.com/v1/things/7?q=1")
    assert lines[0] == "Refused: role_denies. The owner's role does not permit this operation."
    steps = {line.split()[1]: line for line in lines if line.split()[:1] in (["pass"], ["FAIL"], ["-"])}
    assert list(steps) == [
        "route",
        "token",
        "expiry",
        "owner",
        "address",
        "organisation",
        "operation",
        "role",
        "scopes",
    ]
    assert "does not have things/7:update; it has things:list, things:read" in steps["role"]
    assert '  WWW-Authenticate: Bearer realm="acme", error="insufficient_scope", scope="things:update"' in lines
    found = desk.document("explain", made["prefix"], "GET", "/v1/things/7")
    assert (found["verdict"], found["route"], found["operation"], found["role"], found["role_entry"]) == (
        "allowed", "/v1/{entity}/{id}", "read", "viewer", "things:read",
    )  # fmt: skip
    assert "Allowed" in desk.lines("explain", made["id"], "GET", "/v1/things/7")


def test_a_token_with_ip_ranges_is_explained_for_an_address(desk: Desk) -> None:
    made = desk.document("token", "create", "--user", "ada@example.com", "--name", "ci", "--ip", "10.0.0.0/8")
    asked = ("explain", made["id"], "GET", "/v1/things/7")
    assert "pass   address        10.1.2.3 is in 10.0.0.0/8" in "\n".join(desk.lines(*asked, "--ip", "::ffff:10.1.2.3"))
    lines = desk.lines(*asked, "--ip", "192.0.2.7")
    assert lines[0].startswith("Refused: address_refused. ")
    assert " FAIL   address        192.0.2.7 is not in 10.0.0.0/8" in lines
    assert "The client gets 403 with the reason address_refused" in lines
    unknown = desk.document(*asked)
    assert (unknown["verdict"], unknown["ip"], unknown["token"]["ip_ranges"]) == ("allowed", None, ["10.0.0.0/8"])
    [step] = [step for step in unknown["steps"] if step["step"] == "address"]
    assert step["text"] == "none is given; any that is not in 10.0.0.0/8 is refused"
    assert desk.refused(*asked, "--ip", "nowhere").endswith("an IP address such as 192.0.2.7 or 2001:db8::7.")
    assert desk.patgate("explain", "f" * 24, "--ip", "192.0.2.7").returncode == 2


def test_a_whole_token_is_refused_without_repeating_it(desk: Desk) -> None:
    made = desk.document("token", "create", "--user", "ada@example.com", "--name", "ci")
    for arguments in (
        (made["token"],),
        (made["token"], "GET", "/v1/things"),
        (made["id"], "GET", f"/v1/{made['token']}"),
    ):
        said = desk.refused("explain", *arguments)
        assert "give only its id or public prefix" in said
        assert made["token"] not in said


def test_an_unknown_token_or_decision_is_reported_in_one_sentence(desk: Desk) -> None:
    assert desk.refused("explain", "000000000000", "GET", "/") == "There is no token with this id or prefix."
    assert "audit.requests" in desk.refused("explain", "f" * 24)
    for arguments in (("a", "b"), ("a", "b", "c", "d"), ("a", "--host", "x"), ()):
        assert desk.patgate("explain", *arguments).returncode == 2


def test_a_path_that_is_not_utf_8_is_explained(desk: Desk) -> None:
    made = desk.document("token", "create", "--user", "ada@example.com", "--name", "ci")
    assert desk.document("explain", made["id"], "GET", "/v1/\udcff")["reason"] == "target_not_canonical"
    assert desk.document("explain", made["id"], "GET", "/v1/\x1b[31m")["reason"] == "request_malformed"
    assert "\x1b" not in "".join(desk.lines("explain", made["id"], "GET", "/v1/\x1b[31m"))


def test_the_routes_are_listed_and_an_empty_report_is_reported(desk: Desk) -> None:
    assert [row["path"] for row in desk.document("routes", "list")] == [
        "/billing/**",
        "/v1/{entity}",
        "/v1/{entity}/{id}",
    ]
    assert any("/v1/{entity}/{id}" in line and "GET:read" in line for line in desk.lines("routes", "list"))
    assert desk.document("routes", "report", "--since", "7d") == []
    assert desk.document("routes", "report", "--clear", "--route", "/v1/{entity}") == []
    assert desk.patgate("routes", "report").stderr == "Nothing would have been refused.\n"
    assert desk.patgate("routes", "report", "--since", "soon").returncode == 2
    assert desk.patgate("routes", "report", "--clear", "--since", "7d").returncode == 2
