"""``patgate check``, ``patgate config schema``, ``patgate token pattern``: commands that need no store."""

import json
import re
import subprocess
import sys

from tests.support.process import HANGS_SECONDS
from tests.unit.cli.running import CONFIGURATION, Desk, environment


def test_a_valid_configuration_is_summarised(bare: Desk) -> None:
    printed = "\n".join(bare.lines("check"))
    assert "is valid" in printed
    assert "/v1/{entity}/{id}" in printed
    assert "127.0.0.1:0" in printed


def test_the_summary_is_one_document_for_programs(bare: Desk) -> None:
    document = bare.document("check")
    assert document["ok"] is True
    assert [route["path"] for route in document["routes"]] == ["/billing/**", "/v1/{entity}", "/v1/{entity}/{id}"]
    assert document["listeners"] == {"proxy": "127.0.0.1:0", "control": "127.0.0.1:0"}


def test_a_setting_that_is_probably_not_intended_is_a_warning(bare: Desk) -> None:
    bare.config.write_text(CONFIGURATION.replace('"/billing/**"', '"/v1/billing/**"'))
    done = bare.patgate("check")
    assert done.returncode == 0
    below, spelled = done.stderr.splitlines()
    assert below.startswith('warning: routes[0].path: denies only the paths below "/v1/billing"')
    assert spelled.startswith("warning: routes[0].path: denies this spelling only")
    document = bare.document("check")
    assert document["ok"] is True
    assert [warning["path"] for warning in document["warnings"]] == ["routes[0].path"] * 2


def test_an_unknown_variable_is_a_warning_without_its_value(bare: Desk) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "check", "--json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=HANGS_SECONDS,
        env=environment() | {"PATGATE_CONFIG": str(bare.config), "PATGATE_TOKEN": "acme_pat_secret"},
    )
    assert json.loads(done.stdout)["warnings"] == [
        {"path": "PATGATE_TOKEN", "message": "names no setting and is ignored"}
    ]
    assert "secret" not in done.stdout + done.stderr
    assert "PATGATE_TOKEN" in done.stderr


def test_every_problem_has_its_line_and_nothing_is_started(bare: Desk) -> None:
    broken = CONFIGURATION.replace("brand: acme", "brnd: acme").replace("workers: 1", "workers: none")
    bare.config.write_text(broken.replace('"/v1/{entity}", upstream: app', '"/v1/{entity}", upstream: nowhere'))
    for command in (["check"], ["serve"], ["user", "list"]):
        done = bare.process(*command)
        assert done.returncode == 1
        assert done.stdout == ""
        lines = [re.match(rf"{re.escape(str(bare.config))}:(\d+): ", line) for line in done.stderr.splitlines()]
        assert [int(found[1]) for found in lines if found] == [1, 3, 15]
        assert len(lines) == 3
    assert not bare.data.exists()


def test_problems_are_one_document_for_programs(bare: Desk) -> None:
    bare.config.write_text("brnd: acme\n")
    done = bare.patgate("check", "--json")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document["ok"] is False
    assert document["problems"][0]["line"] == 1
    assert len(done.stderr.splitlines()) == len(document["problems"])


def test_a_missing_file_is_reported_in_one_sentence(bare: Desk) -> None:
    bare.config.unlink()
    assert "cannot be read" in bare.refused("check")


def test_a_missing_configuration_option_is_a_usage_error(bare: Desk) -> None:
    done = bare.patgate("check", configured=False)
    assert done.returncode == 2
    assert "--config FILE" in done.stderr
    assert bare.patgate("check", "--config", str(bare.config), configured=False).returncode == 0


def test_an_unknown_option_is_a_usage_error(bare: Desk) -> None:
    assert bare.patgate("token", "list", "--no-such-option").returncode == 2


def test_a_duration_without_a_unit_is_a_usage_error(bare: Desk) -> None:
    done = bare.patgate("token", "create", "--user", "a@example.com", "--name", "ci", "--expires", "soon")
    assert done.returncode == 2
    assert "30d" in done.stderr


def test_the_schema_is_a_json_schema_of_the_settings(bare: Desk) -> None:
    bare.config.unlink()
    document = bare.document("config", "schema")
    assert "routes" in document["properties"]


def test_the_pattern_finds_tokens_of_the_brand_only(bare: Desk) -> None:
    (pattern,) = bare.lines("token", "pattern")
    assert bare.document("token", "pattern") == {"pattern": pattern}
    value = "_pat_" + "0" * 12 + "_" + "0" * 38
    assert re.search(pattern, f'token = "acme{value}"')
    assert not re.search(pattern, f'token = "other{value}"')


def test_help_lists_the_commands_in_order(bare: Desk) -> None:
    printed = "\n".join(bare.lines("--help"))
    places = [printed.index(f"\n  {noun} ") for noun in ("quickstart", "serve", "check", "user", "token", "whoami")]
    assert places == sorted(places)


def test_health_fails_without_a_gateway(bare: Desk) -> None:
    assert "does not answer /livez" in bare.refused("health")
    assert not bare.data.exists()
