"""``patgate store copy``: what the operator types and reads, with a real PostgreSQL."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from proxy.settings.store_urls import PostgresqlUrl, with_password
from proxy.supervisor import datadir
from tests.support.command import command
from tests.support.postgres import Postgres
from tests.unit.cli.running import Desk, only_sentence

ADA = "ada@example.com"


@pytest.fixture
def used(desk: Desk) -> Desk:
    desk.document("user", "add", ADA, "--role", "editor")
    desk.document("token", "create", "--user", ADA, "--name", "laptop")
    return desk


def run(desk: Desk, *arguments: str, **environ: str) -> CompletedProcess[str]:
    """Run a command with more variables of the environment."""
    return command(*arguments, environ={"NO_COLOR": "1", "PATGATE_CONFIG": str(desk.config)} | environ)


def without_password(url: str) -> str:
    return url.replace(f":{PostgresqlUrl.parse(url).password}@", "@")


def tokens_in(postgres: Postgres, url: str) -> str:
    return postgres.psql("SELECT count(*) FROM tokens", url)


def test_the_store_is_copied_and_the_next_steps_are_named(used: Desk, postgres: Postgres, postgres_url: str) -> None:
    done = used.patgate("store", "copy", "--to", postgres_url)
    assert done.returncode == 0, done.stderr
    rows = dict(line.split() for line in done.stdout.splitlines() if line.startswith(" ") and "─" not in line)
    assert (rows["TABLE"], rows["users"], rows["tokens"]) == ("ROWS", "1", "1")
    assert "Every row was read back and is the same." in done.stdout
    assert "The audit log is whole: 3 events." in done.stdout
    assert "secret_key" in done.stderr
    assert tokens_in(postgres, postgres_url) == "1"
    assert only_sentence(used.patgate("store", "copy", "--to", postgres_url)).startswith("The target has this store")
    assert used.document("token", "list")[0]["name"] == "laptop", "the embedded store still works"


def test_a_program_reads_one_document(used: Desk, postgres: Postgres, postgres_url: str) -> None:
    dry = used.document("store", "copy", "--to", postgres_url, "--dry-run")
    assert postgres.psql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", postgres_url) == "0"
    done = used.document("store", "copy", "--to", postgres_url)
    assert dry == {**done, "copied": False}
    assert done["copied"] and done["rows"]["tokens"] == 1 and done["change"] == 3
    assert done["audit"]["events"] == 3 and done["audit"]["problem"] is None
    number, _, digest = done["audit"]["head"].partition(":")
    assert number == "3" and len(digest) == 64


def test_the_password_comes_from_the_environment_or_a_file(
    used: Desk, postgres: Postgres, postgres_url: str, tmp_path: Path
) -> None:
    bare, password = without_password(postgres_url), PostgresqlUrl.parse(postgres_url).password
    assert run(used, "store", "copy", "--to", bare, "--dry-run", PGPASSWORD=password).returncode == 0
    secret = tmp_path / "password"
    secret.write_text(f"{password}\n")
    assert run(used, "store", "copy", "--to", bare, "--password-file", str(secret)).returncode == 0
    assert tokens_in(postgres, postgres_url) == "1"


def test_a_wrong_password_is_refused_and_no_password_is_shown(used: Desk, postgres_url: str, tmp_path: Path) -> None:
    bare = without_password(postgres_url)
    secret = tmp_path / "password"
    secret.write_text("hunter2")
    for done in (
        run(used, "store", "copy", "--to", with_password(bare, "hunter2")),
        run(used, "store", "copy", "--to", bare, PGPASSWORD="hunter2"),
        run(used, "store", "copy", "--to", bare, "--password-file", str(secret)),
    ):
        assert "refuses the user or the password" in only_sentence(done)
        assert "hunter2" not in done.stderr


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"a\0b", b"x" * 5000])
def test_a_file_without_a_password_is_a_usage_error(used: Desk, tmp_path: Path, content: bytes) -> None:
    secret = tmp_path / "password"
    secret.write_bytes(content)
    done = used.patgate("store", "copy", "--to", "postgresql://a@127.0.0.1:1/b", "--password-file", str(secret))
    assert done.returncode == 2 and "--password-file" in done.stderr
    missing = used.patgate("store", "copy", "--to", "postgresql://a@127.0.0.1:1/b", "--password-file", "/nowhere")
    assert missing.returncode == 2


@pytest.mark.parametrize(
    "address", ["mysql://ada:hunter2@db/x", "postgresql://ada:hun/ter2@db/x", "postgresql://ada:hunter2@db", "sqlite"]
)
def test_an_address_that_is_none_is_not_repeated(used: Desk, address: str) -> None:
    done = used.patgate("store", "copy", "--to", address)
    assert done.returncode == 2 and "--to" in done.stderr
    assert "hunter2" not in done.stderr and "ter2" not in done.stderr


def test_without_a_target_the_configured_store_is_it(used: Desk, postgres: Postgres, postgres_url: str) -> None:
    """As an operator does who has changed the configuration already: the key must be that of the embedded store."""
    assert used.patgate("store", "copy").returncode == 2
    configuration = used.config.read_text()
    used.config.write_text(f"{configuration}store: {without_password(postgres_url)}\nsecret_key: {'k' * 64}\n")
    password = PostgresqlUrl.parse(postgres_url).password
    refused = run(used, "store", "copy", PATGATE_STORE_PASSWORD=password)
    assert "another secret key" in only_sentence(refused)
    key = (used.data / "secret.key").read_text().strip()
    used.config.write_text(f"{configuration}store: {without_password(postgres_url)}\nsecret_key: '{key}'\n")
    done = run(used, "store", "copy", PATGATE_STORE_PASSWORD=password)
    assert done.returncode == 0, done.stderr
    assert tokens_in(postgres, postgres_url) == "1"


def test_a_store_in_use_is_refused(used: Desk, postgres: Postgres, postgres_url: str) -> None:
    held = datadir.try_lock(used.data, "a test")
    assert held is not None
    with held:
        for options in ((), ("--dry-run",)):
            assert "is in use by another patgate" in used.refused("store", "copy", "--to", postgres_url, *options)
    assert postgres.psql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", postgres_url) == "0"


def test_an_older_store_than_this_node_has_seen_is_refused(used: Desk, postgres_url: str) -> None:
    """Tokens that were revoked since would work again."""
    old = (used.data / "patgate.db").read_bytes()
    used.document("user", "suspend", ADA)
    (used.data / "patgate.db").write_bytes(old)
    assert "older store" in used.refused("store", "copy", "--to", postgres_url)


def test_what_postgresql_does_not_take_is_listed(used: Desk, postgres_url: str) -> None:
    with closing(sqlite3.connect(used.data / "patgate.db")) as connection:
        connection.execute("UPDATE users SET name = ?", ("hunter2\0",))
        connection.commit()
    done = used.patgate("store", "copy", "--to", postgres_url, "--dry-run")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines() == [
        "users row 1: name contains a NUL character",
        "PostgreSQL does not take 1 value of the store.",
    ]
    document = used.patgate("store", "copy", "--to", postgres_url, "--json").stdout
    assert '"users row 1: name contains a NUL character"' in document and "hunter2" not in document


def test_a_database_that_is_not_there_is_named_without_user_and_password(used: Desk) -> None:
    sentence = used.refused("store", "copy", "--to", "postgresql://ada:hunter2@127.0.0.1:1/patgate")
    assert "no server listens there" in sentence
    assert "ada" not in sentence and "hunter2" not in sentence
