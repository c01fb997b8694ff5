"""A private PostgreSQL with durable commits, for the measurements: started in a directory, stopped with the context.

PostgreSQL refuses to run as root, so a root user starts it as another one (``postgres``, else ``nobody``). It listens
on a Unix socket in its own directory and nowhere else. Its files are on a disk (TMPDIR), not in memory as those of the
tests are, because the time of a sync is one of the measurements.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.errors import BenchError

_BINARIES: Final = Path("/usr/lib/postgresql")
USER: Final = "patgate"
_CONFIGURATION: Final = """
listen_addresses = ''
unix_socket_directories = '{sockets}'
max_connections = 300
shared_buffers = 256MB
# No checkpoint and no vacuum falls into a short measurement; what they add is on the page.
checkpoint_timeout = 1h
max_wal_size = 8GB
autovacuum = off
# As the protocol requires (docs/consistency.md).
fsync = on
synchronous_commit = on
full_page_writes = on
jit = off
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """A running PostgreSQL."""

    sockets: str
    """The directory of its Unix socket, which is also the host to connect to."""
    data: Path
    version: str
    postmaster: int
    """The process id of the server."""

    def size(self, database: str) -> int:
        """The bytes of a database on the disk."""
        query = "SELECT pg_database_size(current_database())"
        found = subprocess.run(
            [binaries() / "psql", "-h", self.sockets, "-U", USER, "-XqAt", "-c", query, database],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        if found.returncode:
            raise BenchError(f"psql failed: {found.stderr.strip()[-300:]}")
        return int(found.stdout)


def binaries() -> Path:
    """The directory of the newest PostgreSQL that is installed. Raises BenchError if there is none."""
    found = sorted(_BINARIES.glob("*/bin/postgres"), key=lambda path: int(path.parent.parent.name))
    if found:
        return found[-1].parent
    if program := shutil.which("postgres"):
        return Path(program).resolve().parent
    raise BenchError("PostgreSQL is not installed; on Debian it is in the package postgresql.")


def _owner() -> pwd.struct_passwd | None:
    """The user to start the server as, or None for the current one."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise BenchError("PostgreSQL does not run as root, and there is no user postgres or nobody.")


@contextmanager
def run_server() -> Iterator[Server]:
    """Run a new PostgreSQL until the context ends. Raises BenchError if it does not start."""
    place, owner = binaries(), _owner()
    directory = Path(tempfile.mkdtemp(prefix="patgate-pg-"))
    ids = {} if owner is None else {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    try:
        if owner is not None:
            os.chown(directory, owner.pw_uid, owner.pw_gid)
        data = directory / "data"

        def run(program: str, *arguments: str) -> str:
            done = subprocess.run(
                [place / program, *arguments], cwd=directory, capture_output=True, text=True, timeout=120, check=False,
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}, **ids,
            )  # type: ignore[call-overload]  # fmt: skip
            if done.returncode:
                raise BenchError(f"{program} failed: {(done.stderr or done.stdout).strip()[-300:]}")
            return str(done.stdout)

        run("initdb", "-D", str(data), "-U", USER, "-E", "UTF8", "--locale=C", "-A", "trust", "--no-sync")
        with (data / "postgresql.conf").open("a") as file:
            file.write(_CONFIGURATION.format(sockets=directory))
        run("pg_ctl", "-D", str(data), "-l", str(directory / "log"), "-w", "-t", "60", "start")
        try:
            postmaster = int((data / "postmaster.pid").read_text().split()[0])
            version = run("postgres", "--version").split()[2]
            yield Server(sockets=str(directory), data=data, version=version, postmaster=postmaster)
        finally:
            run("pg_ctl", "-D", str(data), "-w", "-t", "60", "-m", "fast", "stop")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
