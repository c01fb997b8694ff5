"""The log file: what the next start would read from it, and whether the names still lead to the opened files."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from proxy.core.errors import StoreUnavailable
from proxy.store.dialects import sqlite_wal


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "patgate.db"


@pytest.fixture
def writer(database: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (a)")
        yield connection


def insert(connection: sqlite3.Connection, size: int = 1) -> None:
    connection.execute("INSERT INTO t VALUES (zeroblob(?))", (size,))


def undone(database: Path, writer: sqlite3.Connection, work: Callable[[], None], *, restarted: bool = False) -> bytes:
    """The log with what ``work`` commits, which is then hidden from SQLite: its index is restored.

    If ``work`` restarts the log at its beginning, the restored index knows of that, and counts no frame.
    """
    index = database.with_name("patgate.db-shm")
    before = index.read_bytes()[:136]
    work()
    log = sqlite_wal.log_of(database).read_bytes()
    with index.open("r+b") as file:
        if restarted:
            file.seek(16)
            file.write(bytes(4))
        else:
            file.write(before)
    return log


@pytest.mark.parametrize("checkpointed", [False, True], ids=["behind other frames", "at the beginning"])
@pytest.mark.parametrize("size", [1, 20_000], ids=["one frame", "several frames"])
def test_a_transaction_that_the_index_does_not_know_is_found(
    database: Path, writer: sqlite3.Connection, checkpointed: bool, size: int
) -> None:
    place = sqlite_wal.WalPosition(database)
    if checkpointed:
        writer.execute("PRAGMA wal_checkpoint(RESTART)")
    assert not place.has_tail()
    undone(database, writer, lambda: insert(writer, size), restarted=checkpointed)
    assert place.has_tail()
    place.close()


def test_a_transaction_without_its_end_is_not_found(database: Path, writer: sqlite3.Connection) -> None:
    place = sqlite_wal.WalPosition(database)
    length = sqlite_wal.log_of(database).stat().st_size
    log = undone(database, writer, lambda: insert(writer, 20_000))
    assert place.has_tail()
    for cut in range(length, len(log), 1000):
        os.truncate(sqlite_wal.log_of(database), cut)
        assert not place.has_tail(), cut
    for flipped in range(length, len(log), 997):
        broken = bytearray(log)
        broken[flipped] ^= 1
        sqlite_wal.log_of(database).write_bytes(broken)
        assert not place.has_tail(), flipped
    sqlite_wal.log_of(database).write_bytes(log)
    assert place.has_tail()
    place.close()


def test_the_log_is_overwritten_with_its_own_bytes(database: Path, writer: sqlite3.Connection) -> None:
    insert(writer, 3_000_000)
    before = sqlite_wal.log_of(database).read_bytes()
    assert sqlite_wal.rewrite(sqlite_wal.log_of(database))
    assert sqlite_wal.log_of(database).read_bytes() == before
    assert sqlite_wal.rewrite(database.with_name("none"))


def test_a_log_that_is_a_link_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"x")
    (tmp_path / "log").symlink_to(tmp_path / "target")
    with pytest.raises(StoreUnavailable, match="log cannot be opened"):
        sqlite_wal.rewrite(tmp_path / "log")


def test_files_are_kept_while_the_store_works_and_not_after_they_are_replaced(
    database: Path, writer: sqlite3.Connection
) -> None:
    place = sqlite_wal.WalPosition(database)
    for number in range(30):
        insert(writer, 100_000)
        if number % 10 == 0:
            writer.execute("PRAGMA wal_checkpoint(RESTART)")
        assert place.is_kept()
    shutil.copy(database, database.with_name("copy"))
    database.rename(database.with_name("away"))
    assert not place.is_kept()
    database.with_name("copy").rename(database)
    assert not place.is_kept()
    database.with_name("away").replace(database)
    assert place.is_kept()
    place.close()


@pytest.mark.parametrize("mode", [0o644, 0o666])
def test_existing_files_are_made_private(database: Path, mode: int) -> None:
    database.touch()
    database.chmod(mode)
    sqlite_wal.prepare(database)
    assert database.stat().st_mode & 0o777 == 0o600


def test_a_pipe_in_place_of_the_file_is_refused_without_hanging(database: Path) -> None:
    os.mkfifo(database)
    with pytest.raises(StoreUnavailable, match="is not a regular file"):
        sqlite_wal.prepare(database)


def test_a_file_of_another_user_is_refused_and_left_alone(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database.touch()
    database.chmod(0o644)
    monkeypatch.setattr(os, "geteuid", lambda: database.stat().st_uid + 1)
    with pytest.raises(StoreUnavailable, match="belongs to another user"):
        sqlite_wal.prepare(database)
    assert database.stat().st_mode & 0o777 == 0o644
