"""Every list command: the limit, the number of further items, and how to continue."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from subprocess import CompletedProcess
from typing import Any

import click
import pytest

from bench.datasets.aged_store import fill
from proxy.cli.client import Control
from proxy.cli.listing import SHOWN
from proxy.services.policy import service
from proxy.store.audit import queries
from tests.support.process import HANGS_SECONDS
from tests.unit.cli.running import CONFIGURATION, Desk, environment
from tests.unit.cli.test_documentation import LEAVES

NOW = 1_790_000_000.0
TOKENS, PEOPLE, ORGS, ROLES, INVITED = 1_200, 200, 200, 110, 101
CURSOR = re.compile(r"--cursor (\S+?)[, ]")
#: Lists whose command is not named ``list``.
OTHERS = {"patgate org members", "patgate routes report", "patgate policy check"}
WHOLE = {"patgate role list", "patgate routes list", "patgate routes report"}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A store with more items of every kind than a list prints by default."""
    desk = Desk(directory=tmp_path_factory.mktemp("full"))
    roles = "".join(f'  role{number}: ["things:read"]\n' for number in range(ROLES))
    limits = f"invitations: {{ per_org: {INVITED} }}\npolicy: {{ require_scopes: true }}\n"
    desk.config.write_text(CONFIGURATION.replace("routes:\n", f"{roles}routes:\n") + limits)
    filled = fill(desk.data, tokens=TOKENS, seed=3, now=NOW)
    assert len(filled.users) == PEOPLE and len(filled.orgs) == ORGS
    for number in range(3):
        desk.document("org", "invite", filled.orgs[-1], f"guest{number}@example.org", "--role", "viewer")
    (desk.directory / "org").write_text(filled.orgs[0])
    return desk


def arguments(full: Desk, name: str) -> list[str]:
    words = name.split()[1:]
    return [*words, (full.directory / "org").read_text()] if words == ["org", "members"] else words


LISTS = sorted({name for name in LEAVES if name.endswith(" list")} | OTHERS - {"patgate routes report"})


def items(document: Any) -> list[Any]:
    found: list[Any] = document["violations"] if isinstance(document, dict) else document
    return found


def rows(done: CompletedProcess[str]) -> list[str]:
    """The lines of a table for people, without its header."""
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[2:]


@pytest.mark.parametrize("name", sorted({name for name in LEAVES if name.endswith(" list")} | OTHERS))
def test_every_list_takes_a_limit_and_can_be_printed_completely(name: str) -> None:
    """A new list command is tested here without a change."""
    options = {option for parameter in LEAVES[name].params for option in parameter.opts}
    assert {"--limit", "--all"} <= options
    assert ("--cursor" in options) == (name not in WHOLE)


def test_every_command_that_requests_a_list_has_the_options_of_lists() -> None:
    limited = {
        name
        for name, command in LEAVES.items()
        if any(isinstance(one, click.Option) and "--limit" in one.opts for one in command.params)
    }
    assert limited == {name for name in LEAVES if name.endswith(" list")} | OTHERS | {"patgate audit"}


@pytest.mark.parametrize("name", LISTS)
def test_the_last_line_of_a_list_has_the_number_of_further_items_and_the_cursor(full: Desk, name: str) -> None:
    command = arguments(full, name)
    whole = items(full.document(*command))
    assert len(whole) >= 3, "too few items to continue"
    limit = max(1, len(whole) // 3)
    done = full.patgate(*command, "--limit", str(limit))
    assert len(rows(done)) == limit
    note = done.stderr.splitlines()[-1]
    assert note.startswith(f"{len(whole) - limit} more: ") and "--all" in note
    if name in WHOLE:
        assert note == f"{len(whole) - limit} more: --all lists everything."
        return
    seen: list[Any] = []
    cursor: list[str] = []
    while True:
        part = full.patgate(*command, "--json", "--limit", str(limit), *cursor)
        page = items(json.loads(part.stdout))
        assert len(page) <= limit
        seen += page
        found = CURSOR.search(part.stderr)
        if found is None:
            assert part.stderr == ""
            break
        assert part.stderr.splitlines()[-1].startswith(f"{len(whole) - len(seen)} more: ")
        cursor = ["--cursor", found[1]]
    assert seen == whole


@pytest.mark.parametrize("words", [("policy", "check"), ("audit", "--action", "account.")])
def test_further_items_are_counted_once_for_any_number_of_pages(
    full: Desk, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """A count may read many more items than a page."""
    monkeypatch.setattr(service, "_AT_ONCE", 50)
    monkeypatch.setattr(queries, "LOOKED_AT", 1)
    whole = items(full.document(*words, "--limit", "1000"))
    limit = len(whole) - 1
    asked: list[Mapping[str, str | None]] = []
    get = Control.get

    async def noted(control: Control, path: str, query: Mapping[str, str | None] | None = None) -> Any:
        if path in ("/audit", "/policy/violations"):
            asked.append(query or {})
        return await get(control, path, query)

    monkeypatch.setattr(Control, "get", noted)
    done = full.patgate(*words, "--limit", str(limit))
    assert len(rows(done)) == limit
    assert done.stderr.splitlines()[-1].startswith(f"{len(whole) - limit} ")
    assert len(asked) > 2, "the list has pages with few items"
    assert len([query for query in asked if query.get("count")]) == 1


@pytest.mark.parametrize("name", ["patgate token list", "patgate user list", "patgate org list", "patgate role list"])
def test_the_default_is_a_limited_list_for_people_and_the_whole_array_for_programs(full: Desk, name: str) -> None:
    command = arguments(full, name)
    first = full.patgate(*command)
    assert len(rows(first)) == SHOWN
    assert len(first.stderr.splitlines()) == 1
    whole = full.patgate(*command, "--json")
    assert whole.stderr == ""
    everything = full.patgate(*command, "--all")
    assert everything.stderr == ""
    assert len(rows(everything)) == len(json.loads(whole.stdout)) > SHOWN


def test_a_json_array_is_written_as_by_one_dump(full: Desk) -> None:
    """The array is written page by page, and equals the output of one ``json.dumps`` call byte for byte."""
    done = full.patgate("token", "list", "--json")
    assert done.stdout == json.dumps(json.loads(done.stdout), indent=2, ensure_ascii=False) + "\n"


def test_invalid_list_options_are_refused(full: Desk) -> None:
    for wrong in (["--limit", "0"], ["--limit", "-1"], ["--limit", "3", "--all"], ["--limit", "x"]):
        assert full.patgate("token", "list", *wrong).returncode == 2
    done = full.patgate("token", "list", "--cursor", "nonsense", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["errors"][0]["field"] == "cursor"


def test_older_events_continue_at_the_cursor_of_the_newer_ones(full: Desk) -> None:
    # Reading the log adds an event.
    changes = ("audit", "--action", "account.")
    whole = full.document(*changes, "--limit", "10000")
    seen: list[Any] = []
    cursor: list[str] = []
    while True:
        part = full.patgate(*changes, "--limit", "2", "--json", *cursor)
        seen = json.loads(part.stdout) + seen
        found = CURSOR.search(part.stderr)
        if found is None:
            break
        cursor = ["--cursor", found[1]]
        assert part.stderr.splitlines()[-1].startswith(f"{len(whole) - len(seen)} older: ")
    assert len(whole) > 3
    assert seen == whole
    assert full.patgate("audit", "--follow", "--cursor", "x").returncode == 2


@pytest.mark.parametrize(("form", "read"), [([], 1), (["--json"], 0)])
def test_a_reader_that_closes_the_pipe_early_gets_no_error(full: Desk, form: list[str], read: int) -> None:
    """``patgate token list --all | head -1`` prints nothing to standard error."""
    out, into = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "proxy", "token", "list", "--all", *form],
        stdout=into,
        stderr=subprocess.PIPE,
        cwd=full.directory,
        env=environment() | {"PATGATE_CONFIG": str(full.config)},
    ) as process:
        os.close(into)
        os.read(out, read)
        os.close(out)
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(HANGS_SECONDS) == 1
    assert full.patgate("token", "list", "--limit", "1").returncode == 0
