"""A real PostgreSQL server for tests: Debian's, as an unprivileged user, on a free loopback port.

A server runs with ``fsync = on``, because patgate refuses any other, and therefore in memory if there is room. It ends
with the test run, even a run that is killed: a keeper waits for the end of a pipe.

Its databases compare texts by the rules of a language (ICU), where PostgreSQL can, because people's databases do.
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType

import pytest

from tests.support.process import HANGS_SECONDS, LOOPBACK, alive, children, command_line, free_port, wait_until

SUPERUSER = "postgres"
OWNER = "patgate"
_MEMORY = Path("/dev/shm")
_ROOM = 1 << 30
_USERS = ("postgres", "nobody")
_MODES = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT, "smart": signal.SIGTERM}

# Waits for the end of the pipe that only the test run holds, and then ends the server whose process id is in the file,
# if it is one that runs in the directory.
_KEEPER = """
read -r word && exit
pid=$(head -n 1 "$1/$2" 2>/dev/null) &&
    tr '\\0' ' ' < "/proc/$pid/cmdline" 2>/dev/null | grep -qF "$1" && kill -QUIT "$pid"
while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
rm -rf "$1"
"""


class Keeper:
    """Ends a server and removes its directory if this process ends without ``dismiss``, even by SIGKILL."""

    def __init__(self, directory: Path, pid_file: str) -> None:
        self._process = subprocess.Popen(
            ["sh", "-c", _KEEPER, "keeper", str(directory), pid_file],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )

    def dismiss(self) -> None:
        """The server has ended."""
        self._process.communicate(b"done\n")


SETTINGS: Mapping[str, str] = {
    "listen_addresses": LOOPBACK,
    "max_connections": "200",
    "shared_buffers": "32MB",
    "fsync": "on",
    "log_line_prefix": "%m [%p] %a ",
    "log_min_messages": "warning",
    "max_wal_size": "256MB",
    "min_wal_size": "32MB",
    "wal_level": "replica",
}


@cache
def binary(name: str) -> Path:
    """A program of PostgreSQL: the newest of /usr/lib/postgresql, where Debian has them all, or from PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    where = found[-1] if found else shutil.which(name)
    assert where is not None, f"{name} is missing: `make bootstrap` installs PostgreSQL"
    return Path(where)


@cache
def version() -> int:
    """The major version."""
    text = subprocess.run([binary("postgres"), "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"\d+", text)
    assert found is not None, text
    return int(found[0])


def user() -> pwd.struct_passwd:
    """Whom servers run as: the user of the tests, or an unprivileged one instead of root, as PostgreSQL demands."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    for name in _USERS:
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise AssertionError(f"root needs one of the users {', '.join(_USERS)} to run servers as")


def run_as(argv: Sequence[str | Path], **options: object) -> subprocess.Popen[bytes]:
    """Start a program as ``user()``, in a session of its own."""
    account = user()
    who = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        [str(part) for part in argv],
        **{"stdin": subprocess.DEVNULL, "start_new_session": True, "cwd": "/", "env": environ, **who, **options},
    )


def finish(argv: Sequence[str | Path]) -> str:
    """Run a program as ``user()`` to its end. Returns its output; fails with it if the program failed."""
    process = run_as(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        output = process.communicate(timeout=HANGS_SECONDS)[0].decode(errors="replace")
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, f"{argv[0]} failed ({process.returncode}):\n{output}"
    return output


def make_directory(prefix: str) -> Path:
    """A new directory that ``user()`` owns and may reach: in memory if there is room."""
    place = _MEMORY if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM else None
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    give(directory)
    return directory


def give(path: Path) -> None:
    """Make ``user()`` the owner of a file or directory."""
    if os.geteuid() == 0:
        os.chown(path, user().pw_uid, user().pw_gid)


class Postgres:
    """One server, with a database owner that is no superuser (``OWNER``). ``with`` starts and removes it.

    ``settings`` are added to postgresql.conf. With ``tls`` (certificate and key, PEM files) it offers TLS.
    With ``copy_of`` it is a standby of that server, by streaming replication, until it is promoted.
    """

    def __init__(
        self,
        settings: Mapping[str, str] | None = None,
        *,
        tls: tuple[Path, Path] | None = None,
        copy_of: Postgres | None = None,
    ) -> None:
        self.port = free_port()
        self.password: str = secrets.token_hex(12) if copy_of is None else copy_of.password
        self.owner_password: str = secrets.token_hex(12) if copy_of is None else copy_of.owner_password
        self.directory = make_directory("patgate-postgres-")
        self.data = self.directory / "data"
        self._settings = {**SETTINGS, **(settings or {})}
        self._tls = tls
        self._server: subprocess.Popen[bytes] | None = None
        self._has_owner = copy_of is not None
        self._databases = 0
        self._keeper = Keeper(self.directory, "data/postmaster.pid")
        try:
            self._make() if copy_of is None else self._copy(copy_of)
        except BaseException:
            self.remove()
            raise

    def __enter__(self) -> Postgres:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _make(self) -> None:
        secret = self.directory / "password"
        secret.write_text(self.password)
        give(secret)
        # Provider ICU: the server sorts "a" before "B", as people's databases do.
        locale = ["--locale=C.UTF-8", *(["--locale-provider=icu", "--icu-locale=en-US"] if version() >= 15 else [])]
        finish(
            [
                binary("initdb"),
                f"--pgdata={self.data}",
                f"--username={SUPERUSER}",
                f"--pwfile={secret}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--no-sync",
                *locale,
            ]
        )
        self.configure()

    def _copy(self, other: Postgres) -> None:
        # By its socket, which is reached from every network namespace.
        place = f"host={other.directory} port={other.port} user={SUPERUSER} password={other.password}"
        finish(
            [binary("pg_basebackup"), f"--pgdata={self.data}", f"--dbname={place}", "--checkpoint=fast", "--no-sync"]
        )
        signal_file = self.data / "standby.signal"
        signal_file.touch()
        give(signal_file)
        self.configure({"primary_conninfo": f"{place} application_name=standby"})

    def promote(self) -> None:
        """Make this standby a primary, and wait until it is one."""
        assert self.psql("SELECT pg_promote()") == "t"

    def configure(self, settings: Mapping[str, str] | None = None) -> None:
        """Write postgresql.conf, with more settings; a running server needs a restart or ``reload`` to notice."""
        self._settings.update(settings or {})
        values = {**self._settings, "port": str(self.port), "unix_socket_directories": str(self.directory)}
        if self._tls is not None:
            for source, name in zip(self._tls, ("server.crt", "server.key"), strict=True):
                shutil.copyfile(source, self.data / name)
                (self.data / name).chmod(0o600)
                give(self.data / name)
            values |= {"ssl": "on", "ssl_cert_file": "server.crt", "ssl_key_file": "server.key"}
        lines = (f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in values.items())
        file = self.data / "postgresql.conf"
        file.write_text("".join(lines))
        give(file)

    @property
    def log(self) -> Path:
        """What the server has logged."""
        return self.directory / "server.log"

    @property
    def running(self) -> bool:
        """Whether the server's main process runs."""
        return self._server is not None and self._server.poll() is None

    @property
    def pid(self) -> int:
        """The server's main process."""
        assert self._server is not None
        return self._server.pid

    @property
    def pids(self) -> list[int]:
        """The server's main process and its children; none if it does not run."""
        return [] if self._server is None or not self.running else [self._server.pid, *children(self._server.pid)]

    def start(self) -> None:
        """Start the server and wait until it answers."""
        assert not self.running
        self._server = self._spawn()
        wait_until(self._is_ready, f"PostgreSQL ready\n{self.tail()}")
        if not self._has_owner:
            self._has_owner = True
            self.psql(f"CREATE ROLE {OWNER} LOGIN PASSWORD '{self.owner_password}'")

    def _spawn(self) -> subprocess.Popen[bytes]:
        """The server's main process, in the network of the tests."""
        with self.log.open("ab") as log:
            return run_as([binary("postgres"), "-D", self.data], stdout=log, stderr=subprocess.STDOUT)

    def _is_ready(self) -> bool:
        assert self.running, f"PostgreSQL ended\n{self.tail()}"
        # The last line of this file says "ready" once connections are accepted.
        with suppress(FileNotFoundError):
            lines = (self.data / "postmaster.pid").read_text().split()
            # The file may be that of a server that was killed.
            return lines[:1] == [str(self.pid)] and lines[-1] in ("ready", "standby")
        return False

    def stop(self, mode: str = "fast") -> None:
        """End the server: ``fast``, ``smart``, ``immediate`` (as after a crash), or ``kill``: every process at once."""
        if self._server is None or not self.running:
            return
        pids = self.pids
        if mode == "kill":
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        else:
            self._server.send_signal(_MODES[mode])
        self._server.wait(HANGS_SECONDS)
        wait_until(lambda: not any(alive(pid) and self._is_ours(pid) for pid in pids), "the end of every process")

    def _is_ours(self, pid: int) -> bool:
        return any("postgres" in part for part in command_line(pid)[:1])

    def restart(self, mode: str = "fast") -> None:
        """Stop the server, and start it with its present configuration."""
        self.stop(mode)
        self.start()

    def reload(self) -> None:
        """Let the running server read its configuration again."""
        self.psql("SELECT pg_reload_conf()")

    def remove(self) -> None:
        """End the server at once and remove its files."""
        try:
            self.stop("immediate")
        finally:
            self._keeper.dismiss()
            shutil.rmtree(self.directory)

    def tail(self, lines: int = 60) -> str:
        """The end of the server's log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def url(self, database: str, *, host: str = "", parameters: str = "") -> str:
        """The address of a database, as the settings name it."""
        query = f"?{parameters}" if parameters else ""
        return f"postgresql://{OWNER}:{self.owner_password}@{host or f'{LOOPBACK}:{self.port}'}/{database}{query}"

    def socket_url(self, database: str) -> str:
        """The address of a database by the server's Unix socket."""
        return f"postgresql://{OWNER}:{self.owner_password}@/{database}?host={self.directory}&port={self.port}"

    def create_database(self, template: str = "template1") -> str:
        """A new database that ``OWNER`` owns: its address. ``template`` is the name of a database to copy."""
        name = self.new_name()
        self.psql(f"CREATE DATABASE {name} OWNER {OWNER} TEMPLATE {template}")
        return self.url(name)

    def new_name(self) -> str:
        """A name that no database has yet."""
        self._databases += 1
        return f"test_{os.getpid()}_{self._databases}"

    def drop_database(self, url: str) -> None:
        """Drop a database, with every connection to it."""
        self.psql(f"DROP DATABASE IF EXISTS {name_of(url)} WITH (FORCE)")

    def psql(self, sql: str, database: str = "postgres", *, user: str = SUPERUSER) -> str:
        """Run SQL by psql over the Unix socket, each statement by itself: its rows, columns separated by ``|``.

        ``database`` is a name or an address. Fails with psql's message if a statement fails.
        """
        password = self.password if user == SUPERUSER else self.owner_password
        done = subprocess.run(
            [binary("psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", "-f", "-"],
            input=sql,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("PG")},
                "PGHOST": str(self.directory),
                "PGPORT": str(self.port),
                "PGUSER": user,
                "PGPASSWORD": password,
                "PGDATABASE": name_of(database),
                "PGOPTIONS": "-c client_min_messages=warning",
            },
            capture_output=True,
            text=True,
            timeout=HANGS_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"psql failed: {done.stderr}\n{sql}"
        return done.stdout.rstrip("\n")

    def terminate_backends(self, database: str) -> int:
        """End every connection to a database (a name or an address). Returns how many there were."""
        query = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{name_of(database)}'"
        return int(self.psql(query))


def name_of(database: str) -> str:
    """The name of the database at this address; a name stays as it is."""
    return database.partition("?")[0].rpartition("/")[2]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for the tests of this process. Who stops it or changes its settings needs a server of their own."""
    with Postgres() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """The address of a new, empty database."""
    url = postgres.create_database()
    yield url
    postgres.drop_database(url)
