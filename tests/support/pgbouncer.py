"""A real PgBouncer for tests, in transaction mode: each transaction may run on another session of the server."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Mapping
from types import TracebackType

from tests.support.postgres import OWNER, Keeper, Postgres, give, make_directory, run_as
from tests.support.process import HANGS_SECONDS, LOOPBACK, accepts, free_port, wait_until


class PgBouncer:
    """A pooler before one server, for ``OWNER`` and every database. ``with`` starts and ends it.

    It has fewer sessions of the server than a node has connections to it. ``settings`` are those of pgbouncer.ini.
    """

    def __init__(self, server: Postgres, settings: Mapping[str, str] | None = None) -> None:
        self._server = server
        self._settings = {
            "listen_addr": LOOPBACK,
            "auth_type": "scram-sha-256",
            "pool_mode": "transaction",
            "default_pool_size": "3",
            "max_client_conn": "100",
            **(settings or {}),
        }
        self.port = free_port()
        self.directory = make_directory("patgate-pgbouncer-")
        self._keeper = Keeper(self.directory, "pid")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> PgBouncer:
        where = shutil.which("pgbouncer", path="/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/usr/local/bin")
        assert where is not None, "pgbouncer is missing: `make bootstrap` installs it"
        users = self.directory / "users"
        users.write_text(f'"{OWNER}" "{self._server.owner_password}"\n')
        settings = {
            **self._settings,
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_file": str(users),
            "pidfile": str(self.directory / "pid"),
        }
        file = self.directory / "pgbouncer.ini"
        lines = [f"[databases]\n* = host={LOOPBACK} port={self._server.port}\n[pgbouncer]\n"]
        lines += [f"{name} = {value}\n" for name, value in settings.items()]
        file.write_text("".join(lines))
        for path in (users, file):
            give(path)
        with (self.directory / "log").open("ab") as log:
            self._process = run_as([where, str(file)], stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until(self._is_ready, "PgBouncer ready")
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _is_ready(self) -> bool:
        assert self._process is not None and self._process.poll() is None, f"PgBouncer ended\n{self.log}"
        return accepts(self.port)

    def remove(self) -> None:
        """End it at once and remove its files."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(HANGS_SECONDS)
        self._keeper.dismiss()
        shutil.rmtree(self.directory)

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.directory / "log").read_text(errors="replace")

    def through(self, url: str) -> str:
        """The address of a database of the server, through the pooler."""
        return url.replace(f"{LOOPBACK}:{self._server.port}/", f"{LOOPBACK}:{self.port}/")
