"""From one host to PostgreSQL, and back from a backup: the commands of docs/operations.md, in their order."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import ROOT, Patgate, Token, token_of
from tests.support.postgres import SUPERUSER, Postgres, binary
from tests.support.process import HANGS_SECONDS, LOOPBACK, wait_until
from tests.support.rawhttp import ConnectionEnded
from tests.support.recorder import Recorder

OWNER = "eve@example.org"
OWN, TEAMS = "/v1/things/7", "/orgs/team/things/7"
PAGE = ROOT / "docs" / "operations.md"
URL = "postgresql://patgate@db.internal/patgate"


def documented(heading: str) -> list[str]:
    """The commands of this section, one a line."""
    text = PAGE.read_text("utf-8")
    found = re.search(rf"^### {re.escape(heading)}$(.*?)^##", text, re.MULTILINE | re.DOTALL)
    assert found is not None, heading
    blocks = re.findall(r"^```console\n(.*?)^```$", found[1], re.MULTILINE | re.DOTALL)
    return [line.removeprefix("# ") for block in blocks for line in block.splitlines()]


def config(backend: Recorder, **more: Any) -> dict[str, Any]:
    return {
        "upstreams": {"app": {"servers": [backend.url]}},
        "roles": {"editor": ["things:*"], "viewer": ["things:read"]},
        "routes": [
            {"path": "/orgs/{org}/{entity}/{id}", "upstream": "app"},
            {"path": "/v1/{entity}/{id}", "upstream": "app"},
        ],
        **more,
    }


class Shell:
    """Runs commands of the page, with the test's places in the place of the documented ones."""

    def __init__(self, node: Patgate, server: Postgres, directory: Path) -> None:
        self._node = node
        self._server = server
        self._directory = directory
        directory.mkdir()
        patgate = directory / "patgate"
        patgate.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m proxy "$@"\n')
        patgate.chmod(0o755)
        self.url = ""

    def run(self, documented: str, *, typed: str = "", status: int = 0, user: str = SUPERUSER) -> str:
        """Run one documented command; ``typed`` is its standard input. Returns what it prints."""
        words = documented.replace("…", self._server.owner_password).replace("/var/lib/patgate", str(self._node.data))
        if self.url:
            words = words.replace(URL, self.url)
        password = self._server.password if user == SUPERUSER else self._server.owner_password
        done = subprocess.run(
            ["bash", "-c", words],
            input=typed,
            capture_output=True,
            text=True,
            timeout=HANGS_SECONDS,
            check=False,
            cwd=self._directory,
            # Without a terminal, createuser asks on standard input.
            start_new_session=True,
            env={
                **self._node.environ,
                "PATH": f"{self._directory}:{binary('pg_dump').parent}:{os.environ['PATH']}",
                "PATGATE_CONFIG": str(self._node.config_file),
                "PGHOST": str(self._server.directory),
                "PGPORT": str(self._server.port),
                "PGUSER": user,
                "PGPASSWORD": password,
            },
        )
        assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr


@pytest.fixture
def server() -> Iterator[Postgres]:
    # Not the shared one: here its owner is created by the documented command.
    with Postgres() as server:
        yield server


def statuses(node: Patgate, *tokens: Token) -> list[int]:
    """The answers to a request with each token: to the team's things with a key, to people's things with the others."""
    with node.connect() as connection:
        targets = [TEAMS if "_key_" in token.prefix else OWN for token in tokens]
        return [
            connection.request("GET", target, headers=token.bearer).status
            for target, token in zip(targets, tokens, strict=True)
        ]


def tokens_of_each_kind(node: Patgate) -> list[Token]:
    """A personal token, a key and an organisation token, all of which work, and a revoked token."""
    node.add_user(OWNER, "editor")
    with node.control_socket() as control:
        control.call("POST", "/orgs", {"name": "team"})
        personal = control.create_token(OWNER, name="laptop", scopes=["things:read"])
        gone = control.create_token(OWNER, name="gone")
        key = token_of(control.call("POST", "/keys", {"name": "ci", "org": "team", "role": "viewer"}))
        several = token_of(control.call("POST", "/keys", {"name": "all", "grants": {"team": ["things:read"]}}))
        control.revoke(gone)
    return [personal, key, several, gone]


def test_a_store_moves_to_postgresql_with_everything_in_it(tmp_path: Path, backend: Recorder, server: Postgres) -> None:
    commands = iter(documented("From one host to many"))
    server.psql("DROP ROLE patgate")
    with Patgate(tmp_path / "node", config(backend)) as node:
        shell = Shell(node, server, tmp_path / "shell")
        tokens = tokens_of_each_kind(node)
        before = statuses(node, *tokens)
        assert before == [200, 200, 200, 401]
        wait_until(lambda: node.cli("token", "show", tokens[0].id)["use_count"] == 1, "the use is stored")

        password = f"{server.owner_password}\n"
        shell.run(next(commands), typed=password * 2)
        shell.run(next(commands))
        stop, dry_run = next(commands), next(commands)
        shell.url = f"postgresql://patgate@{LOOPBACK}:{server.port}/patgate"
        assert "is in use by another patgate" in shell.run(dry_run, status=1)
        assert stop == "systemctl stop patgate"
        node.stop()
        assert "Nothing was written" in shell.run(dry_run)
        assert "Every row was read back and is the same" in shell.run(next(commands))

        secret = (node.data / "secret.key").read_text().strip()
        embedded = node.config
        node.begin({**embedded, "store": shell.url, "store_password": server.owner_password, "secret_key": secret})
        shell.run(next(commands).replace("/var/backups", str(tmp_path)))
        assert not list(node.data.glob("patgate.db*"))
        assert next(commands) == "systemctl start patgate"
        node.start()
        assert statuses(node, *tokens) == before
        assert "is intact" in shell.run(next(commands))
        assert next(commands, None) is None
        wait_until(lambda: node.cli("token", "show", tokens[0].id)["use_count"] == 2, "uses are added to")
        with node.control_socket() as control:
            control.revoke(tokens[1])
        assert statuses(node, *tokens) == [200, 401, 200, 401]
        node.stop()

        # The former file does not know of the revocation.
        for file in (tmp_path / "patgate").iterdir():
            shutil.move(file, node.data)
        node.begin(embedded)
        assert "older store" in node.here("audit", "verify").stderr


def test_a_restored_dump_fences_a_node_until_an_operator_accepts_it(
    tmp_path: Path, backend: Recorder, server: Postgres
) -> None:
    (dump,) = (line for line in documented("Back up and restore PostgreSQL") if line.startswith("pg_dump"))
    restore, serve, accept, listing, revoke = documented("Back up and restore PostgreSQL")[1:]
    url = server.create_database()
    with Patgate(tmp_path / "node", config(backend, store=url, secret_key="k" * 64)) as node:
        shell = Shell(node, server, tmp_path / "shell")
        shell.url = url
        kept, gone = tokens_of_each_kind(node)[:2]
        shell.run(dump, user="patgate")
        with node.control_socket() as control:
            control.revoke(gone)
        assert statuses(node, kept, gone) == [200, 401]
        node.stop()
        shell.run(restore, user="patgate")

        assert serve.endswith("patgate serve")
        node.expects("this node is fenced: it refuses requests and changes")
        node.launch()
        wait_until(lambda: "patgate nodes accept" in _readiness(node), "the fence in /readyz", process=node.process)
        assert statuses(node, kept, gone) == [503, 503]
        shell.run(accept)
        node.wait_ready()
        assert gone.prefix in shell.run(listing)
        shell.run(revoke.replace("ID", gone.id))
        assert statuses(node, kept, gone) == [200, 401]
        node.stop()
        node.start()
        assert statuses(node, kept, gone) == [200, 401]
        assert "account.store.accept_history" in {event["action"] for event in node.cli("audit", "--level", "account")}


def _readiness(node: Patgate) -> str:
    """Why the node is not ready; "" if it is, or does not answer yet."""
    try:
        answer = node.control("GET", "/readyz")
    except (OSError, ConnectionEnded):
        return ""
    return answer.body.decode() if answer.status == 503 else ""


@pytest.mark.parametrize("command", [".backup backup/patgate.db", "VACUUM INTO 'backup/patgate.db'"])
def test_a_running_embedded_store_is_backed_up_and_restored_on_a_new_host(
    tmp_path: Path, backend: Recorder, command: str
) -> None:
    """With SQLite's own command line, or, where that is not installed, with the same function of the library."""
    assert command in PAGE.read_text("utf-8")
    with Patgate(tmp_path / "node", config(backend)) as node:
        tokens = tokens_of_each_kind(node)
        backup = tmp_path / "backup" / "patgate.db"
        backup.parent.mkdir(0o700)
        with closing(sqlite3.connect(f"file:{node.data / 'patgate.db'}?mode=ro", uri=True)) as running:
            if command.startswith("."):
                with closing(sqlite3.connect(backup)) as copy:
                    running.backup(copy)
            else:
                running.execute(command.replace("backup/patgate.db", str(backup)))
        secret = node.data / "secret.key"
        other = Patgate(tmp_path / "other", config(backend))
        shutil.copy(secret, other.data)
        shutil.copy(backup, other.data)
        with other:
            assert statuses(other, *tokens) == [200, 200, 200, 401]
            assert other.cli("audit", "verify")["problem"] is None
