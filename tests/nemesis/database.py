"""PostgreSQL in the middle of the network, as nodes reach it, and what a nemesis does to it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tests.nemesis.faults import Database, Maker
from tests.support.netns import Namespace
from tests.support.postgres import OWNER, SUPERUSER, Postgres, binary, finish, give, name_of, user
from tests.support.process import wait_until

CHANNEL = "patgate_changes"
STANDBY = "standby"


class NetworkedPostgres(Postgres):
    """A server in a network namespace; tests reach it at its unix socket."""

    def __init__(
        self,
        namespace: Namespace,
        address: str,
        settings: Mapping[str, str] | None = None,
        copy_of: Postgres | None = None,
    ) -> None:
        self.namespace = namespace
        self.address = address
        super().__init__({"listen_addresses": f"{address},127.0.0.1", **(settings or {})}, copy_of=copy_of)

    def _make(self) -> None:
        super()._make()
        self._let_in()

    def _copy(self, other: Postgres) -> None:
        super()._copy(other)
        self._let_in()

    def _let_in(self) -> None:
        """Nodes and standbys come from other addresses than the loopback one."""
        with (self.data / "pg_hba.conf").open("a") as file:
            file.write("host all all 10.0.0.0/8 scram-sha-256\nhost replication all 10.0.0.0/8 scram-sha-256\n")

    def _spawn(self) -> subprocess.Popen[bytes]:
        account = user()
        uid, gid = str(account.pw_uid), str(account.pw_gid)
        if os.geteuid() == 0:
            enter = [*self.namespace.prefix[:-1], "--setuid", uid, "--setgid", gid, "--"]
        else:
            # In the user namespace we are root, as which PostgreSQL does not run; in one inside it we are not.
            enter = [*self.namespace.prefix, "unshare", "--user", f"--map-user={uid}", f"--map-group={gid}", "--"]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*enter, str(binary("postgres")), "-D", str(self.data)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd="/",
            )  # fmt: skip

    def address_of(self, database: str, *, host: str = "") -> str:
        """The address of a database from a node's namespace."""
        return self.url(name_of(database), host=host or f"{self.address}:{self.port}", parameters="sslmode=disable")


class Standby(NetworkedPostgres):
    """A hot standby of a running server, by streaming replication. ``promote`` makes it the primary."""

    def __init__(self, primary: NetworkedPostgres, *, synchronous: bool) -> None:
        self._primary = primary
        self._synchronous = synchronous
        super().__init__(primary.namespace, primary.address, {"hot_standby": "on"}, copy_of=primary)

    def start(self) -> None:
        super().start()
        wait_until(lambda: self._state() == "streaming", "a streaming standby")
        if self._synchronous:
            self._primary.configure({"synchronous_standby_names": STANDBY})
            self._primary.reload()
            wait_until(lambda: self._state("sync_state") == "sync", "a synchronous standby")

    def _state(self, column: str = "state") -> str:
        return self._primary.psql(f"SELECT {column} FROM pg_stat_replication WHERE application_name = '{STANDBY}'")

    def fall_behind(self) -> None:
        """Receive nothing more: what the primary commits from now on is not here."""
        self.configure({"primary_conninfo": ""})
        self.reload()
        wait_until(lambda: self.psql("SELECT count(*) FROM pg_stat_wal_receiver") == "0", "no replication")

    def catch_up(self) -> None:
        """Wait until all that is committed on the primary by now is applied here."""
        target = self._primary.psql("SELECT pg_current_wal_flush_lsn()")
        wait_until(
            lambda: self.psql(f"SELECT pg_last_wal_replay_lsn() >= '{target}'::pg_lsn") == "t", "a standby without lag"
        )

    def promote(self) -> None:
        """End the replication and accept writes, on a new timeline."""
        assert self.psql("SELECT pg_promote(true, 60)") == "t"
        # It has no standby of its own: a primary that waited for one would commit nothing.
        self.configure({"synchronous_standby_names": ""})
        self.reload()


def dump(server: Postgres, database: str, file: Path) -> None:
    """Write a dump of the database, as a nightly backup does."""
    file.touch()
    give(file)
    finish([binary("pg_dump"), "--format=custom", f"--dbname={_superuser(server, database)}", f"--file={file}"])


def restore(server: Postgres, database: str, file: Path) -> None:
    """Put the dump in the place of the database, under the nodes that use it."""
    name = name_of(database)
    server.psql(f"DROP DATABASE {name} WITH (FORCE)")
    server.psql(f"CREATE DATABASE {name} OWNER {OWNER}")
    finish([binary("pg_restore"), f"--dbname={_superuser(server, database)}", str(file)])


def _superuser(server: Postgres, database: str) -> str:
    return (
        f"host={server.directory} port={server.port} user={SUPERUSER} password={server.password} "
        f"dbname={name_of(database)}"
    )


class Operations:
    """The faults of the database that nodes use: it is restarted, frozen, its sessions end, its NOTIFY is forged."""

    def __init__(self, server: Postgres, database: str, longest: float) -> None:
        self.server = server
        self.database = name_of(database)
        self._longest = longest
        self._lock = threading.Lock()

    def makers(self) -> dict[str, Maker]:
        return {
            "restart immediate": lambda chance: Database(
                "restart immediate", chance.uniform(0.0, min(4.0, self._longest)), self._stop, self.server.start
            ),
            "terminate backends": lambda chance: Database(
                "terminate backends", 0.1, lambda: self.server.terminate_backends(self.database)
            ),
            "freeze database": lambda chance: Database(
                "freeze database", chance.uniform(0.1, min(4.0, self._longest)), self._freeze, self._thaw
            ),
            "forge notify": lambda chance: Database("forge notify", 0.1, lambda: self._forge(chance.random())),
        }

    def _stop(self) -> None:
        self.server.stop("immediate")

    def _freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def _thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        for pid in self.server.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _forge(self, word: float) -> None:
        """Anybody who may connect may notify: nothing in it is believed."""
        self.server.psql(f"NOTIFY {CHANNEL}; NOTIFY {CHANNEL}, '9223372036854775807'; NOTIFY {CHANNEL}, '{word}'",
                         self.database)  # fmt: skip
