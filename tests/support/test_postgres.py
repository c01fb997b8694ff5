"""The PostgreSQL of the tests ends with them, even if the run is killed, and starts again after any end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.postgres import Postgres
from tests.support.process import HANGS_SECONDS, alive, wait_until

_KILLED = """
import os, signal
from tests.support.postgres import Postgres

server = Postgres()
server.start()
print(server.directory, server.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_server_ends_and_leaves_no_file_if_the_run_is_killed() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _KILLED], cwd=root, capture_output=True, text=True, timeout=HANGS_SECONDS, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    directory, pid = done.stdout.split()
    wait_until(lambda: not alive(int(pid)) and not Path(directory).exists(), "the end of the server and of its files")


def test_a_server_starts_again_with_what_was_committed_whatever_ended_it() -> None:
    with Postgres() as server:
        server.psql("CREATE TABLE t (n int)")
        for number, mode in enumerate(("fast", "smart", "immediate", "kill")):
            server.psql(f"INSERT INTO t VALUES ({number})")
            pids = server.pids
            assert len(pids) > 1
            server.restart(mode)
            assert not any(alive(pid) for pid in pids)
        assert server.psql("SELECT n FROM t ORDER BY n").split() == ["0", "1", "2", "3"]
        directory = server.directory
    assert not directory.exists()


def test_statements_that_fail_fail_the_test(postgres: Postgres) -> None:
    with pytest.raises(AssertionError, match="division by zero"):
        postgres.psql("SELECT 1 / 0")


def test_a_standby_follows_and_can_be_promoted() -> None:
    with Postgres() as server, Postgres(copy_of=server) as standby:
        server.psql("CREATE TABLE t (n int); INSERT INTO t VALUES (1)")
        wait_until(lambda: standby.psql("SELECT to_regclass('t') IS NOT NULL") == "t", "the standby has the table")
        with pytest.raises(AssertionError, match="read-only"):
            standby.psql("INSERT INTO t VALUES (2)")
        server.stop("kill")
        standby.promote()
        standby.psql("INSERT INTO t VALUES (2)")
