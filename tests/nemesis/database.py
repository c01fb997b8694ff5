"""PostgreSQL in the middle of the network, as nodes reach it, and what a nemesis does to it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress

from tests.nemesis.faults import Database, Maker
from tests.support.netns import Namespace
from tests.support.postgres import Postgres, binary, name_of, user

CHANNEL = "patgate_changes"


class NetworkedPostgres(Postgres):
    """A server in a network namespace; tests reach it at its unix socket."""

    def __init__(
        self,
        namespace: Namespace,
        address: str,
        settings: Mapping[str, str] | None = None,
        copy_of: Postgres | None = None,
    ) -> None:
        self._namespace = namespace
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
        who = ["--setuid", str(account.pw_uid), "--setgid", str(account.pw_gid)] if os.geteuid() == 0 else []
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*self._namespace.prefix[:-1], *who, "--", str(binary("postgres")), "-D", str(self.data)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd="/",
            )  # fmt: skip

    def address_of(self, database: str, *, host: str = "") -> str:
        """The address of a database from a node's namespace."""
        return self.url(name_of(database), host=host or f"{self.address}:{self.port}", parameters="sslmode=disable")


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
