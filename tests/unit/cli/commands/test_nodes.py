"""``patgate nodes`` and ``patgate role apply`` on an embedded store that no gateway serves."""

from __future__ import annotations

from typing import Any

from proxy.cli.commands.nodes import _COLUMNS, _row
from proxy.cli.output import Output
from tests.unit.cli.running import Desk

NOW = 1_790_000_000.0
NODE: dict[str, Any] = {
    "id": "0123456789abcdef" * 2,
    "name": "a-host-with-a-long-name.example.org",
    "version": "10.20.30rc1.dev5",
    "schema": "0006",
    "applied": 1_234_567,
    "lease": 60.0,
    "lease_seconds": 59.96,
    "started_at": "2025-01-01T00:00:00.000Z",
    "config_hash": "0" * 64,
    "config_matches": False,
    "self": True,
}


def test_an_embedded_store_has_one_node(desk: Desk) -> None:
    desk.document("org", "add", "team")
    (node,) = desk.document("nodes")
    assert (node["self"], node["config_matches"], node["lease"]) == (True, True, 5.0)
    header, _, row = desk.lines("nodes")
    assert header.split() == ["NODE", "ID", "VERSION", "CHANGE", "LEASE", "UP", "CONFIG"]
    assert row.split()[0] == "*" and node["id"][:8] in row and row.split()[-1] == "same"


def test_a_row_fits_into_80_columns(capsys: Any) -> None:
    Output(as_json=False).columns(_COLUMNS, [_row(NODE, NOW)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    row = lines[-1]
    assert "a-host-with…" in row and "10.20.3…" in row and "60.0/60s" in row and "other" in row


def test_accepting_explains_and_asks_first(desk: Desk) -> None:
    desk.document("org", "add", "team")
    asked = desk.patgate("nodes", "accept")
    assert asked.returncode == 1
    assert "Whatever was revoked in those changes is valid again" in asked.stderr
    assert "--accept-older-store" in desk.refused("nodes", "accept", "--yes")


def test_options_stand_behind_the_last_word(desk: Desk) -> None:
    wrong = desk.patgate("nodes", "--json", "accept")
    assert (wrong.returncode, "Write options after `accept`." in wrong.stderr) == (2, True)


def test_roles_are_applied_under_both_names(desk: Desk) -> None:
    desk.document("org", "add", "team")
    for noun in ("role", "roles"):
        assert desk.document(noun, "apply") == {"changed": []}
    assert "none had changed" in desk.lines("role", "apply")[-1]
