"""``patgate audit``: the log for people and for programs; following, exporting and verifying it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from proxy.authority.runtime import Authority
from proxy.authority.sockets import bind_unix
from proxy.cli.client import Control
from proxy.cli.commands.audit import follow_log
from proxy.control.server import serving
from proxy.settings.model import Argon2, Settings
from tests.contract.kit import ADMIN
from tests.unit.authority.waiting import until
from tests.unit.cli.running import Desk

ADA = "ada@example.com"


@pytest.fixture
def used(desk: Desk) -> Desk:
    """A directory with some events in its audit log."""
    desk.document("user", "add", ADA, "--role", "editor")
    desk.document("org", "add", "engineering")
    desk.document("user", "set-role", ADA, "viewer")
    return desk


def test_the_newest_event_is_last_for_people_and_for_programs(used: Desk) -> None:
    events = used.document("audit", "--action", "account.")
    assert [event["action"] for event in events][-3:] == [
        "account.user.add",
        "account.org.add",
        "account.user.set_role",
    ]
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    lines = [line for line in used.lines("audit", "--action", "account.") if re.search(r"\d{4}-\d\d-\d\dT", line)]
    assert len(lines) == len(events)
    assert "account.user.set_role" in lines[-1]
    assert ADA in lines[-1]
    assert used.document("audit", "--action", "account.", "--limit", "2") == events[-2:]


def test_events_are_filtered_and_an_empty_result_is_reported(used: Desk) -> None:
    user = used.document("user", "show", ADA)["id"]

    def actions(*filters: str) -> list[str]:
        return [event["action"] for event in used.document("audit", *filters)]

    assert actions("--target", user) == ["account.user.add", "account.user.set_role"]
    assert actions("--action", "account.org.") == actions("--target-kind", "org") == ["account.org.add"]
    assert actions("--since", "1h", "--target", user, "--action", "account.user.add") == ["account.user.add"]
    everything = actions("--action", "account.")
    assert actions("--until", "1h") == actions("--denied") == actions("--outcome", "failed") == []
    assert actions("--actor-kind", "system", "--action", "account.") == everything
    assert actions("--outcome", "done", "--since", "1h") == everything
    for filters in (("--token", "ci"), ("--reason", "scope_denies"), ("--address", "192.0.2.1"), ("--decision", "x")):
        assert actions(*filters) == []
    assert actions("--level", "account", "--actor", f"uid:{os.geteuid()}")
    done = used.patgate("audit", "--denied")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "There are no such events.\n")
    assert used.refused("audit", "--org", "nowhere") == "There is no organisation with this name or id."
    assert used.refused("audit", "--user", "nobody@example.com").endswith(".")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--since", "yesterday"),
        ("--outcome", "perhaps"),
        ("--limit", "0"),
        ("--actor-kind", "robot"),
        ("--since", "1h", "export"),
        ("--json", "verify"),
    ],
)
def test_invalid_options_are_usage_errors(desk: Desk, arguments: tuple[str, ...]) -> None:
    assert desk.patgate("audit", *arguments).returncode == 2


def test_an_export_has_one_document_per_line_the_oldest_first(used: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.cli.commands.audit.PAGE", 2)
    exported = [json.loads(line) for line in used.lines("audit", "export")]
    assert exported == used.document("audit")[:-1], "all events except that of this export"
    some = [json.loads(line) for line in used.lines("audit", "export", "--action", "account.user.", "--json")]
    assert some == [event for event in exported if event["action"].startswith("account.user.")]
    assert used.lines("audit", "export", "--denied") == []


def test_a_verification_prints_the_head_and_accepts_it_later(used: Desk) -> None:
    said, head = used.lines("audit", "verify")
    assert "is intact" in said
    assert re.fullmatch(r"\d+:[0-9a-f]{64}", head)
    found = used.document("audit", "verify", "--head", head)
    assert found == {"events": int(head.partition(":")[0]), "problem": None, "head": head}
    used.document("org", "add", "sales")
    assert used.document("audit", "verify", "--head", head)["events"] == found["events"] + 1
    assert used.refused("audit", "verify", "--head", "1:" + "0" * 64).startswith("Event 1 is another")
    assert "N:HASH" in used.refused("audit", "verify", "--head", "1")


def test_a_verification_of_an_altered_log_names_the_event_and_fails(used: Desk) -> None:
    with sqlite3.connect(used.data / "patgate.db") as file:
        file.execute("UPDATE audit_events SET actor_name = 'somebody else' WHERE n = 2")
    file.close()
    assert used.refused("audit", "verify") == "Event 2 was altered."
    done = used.patgate("audit", "verify", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["problem"] == "event 2 was altered"


def test_values_in_an_event_cannot_control_the_terminal(desk: Desk) -> None:
    desk.document("user", "add", ADA, "--role", "editor")
    with sqlite3.connect(desk.data / "patgate.db") as file:
        file.execute("UPDATE audit_events SET target_name = char(27) || '[31m' || char(10) || 'x'")
    file.close()
    assert all(line.isprintable() for line in desk.lines("audit"))


async def test_following_shows_the_newest_and_new_events_across_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.cli.commands.audit.FOLLOW_SECONDS", 0.02)
    shown: list[Any] = []
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        path = Path(name) / "control.sock"
        cheap = Argon2(memory=64 * 1024, iterations=1)
        settings = Settings(brand="acme", data_dir=Path(name), workers=1, roles={"r": ("a:b",)}, argon2=cheap)
        follower = asyncio.create_task(
            follow_log(Control(path), {"action": "account.org."}, 2, shown.append), name="follower"
        )

        async def serve(*orgs: str, shows: int) -> None:
            """Serve until the follower has shown ``shows`` events."""
            async with (
                Authority(settings, linked=False) as authority,
                serving(authority, tcp=[], unix=[bind_unix(path)], hosts=[]),
            ):
                for org in orgs:
                    await authority.services.orgs.add(ADMIN, org)
                await until(lambda: len(shown) >= shows or follower.done())
            path.unlink(missing_ok=True)

        async with Authority(settings, linked=False) as authority:
            for org in ("a", "b", "c"):
                await authority.services.orgs.add(ADMIN, org)
        try:
            await serve(shows=2)
            await serve("d", shows=3)
            await serve("e", "f", shows=5)
        finally:
            follower.cancel()
            with suppress(asyncio.CancelledError):
                await follower
    assert [event["target_name"] for event in shown] == ["b", "c", "d", "e", "f"]
