"""A patgate node under test, with its own configuration, ports and data directory; operated as an operator would."""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

import yaml

from tests.support import errors
from tests.support.command import command
from tests.support.leaks import DIRECTORIES, SECRETS
from tests.support.process import (
    HANGS_SECONDS,
    LOOPBACK,
    Process,
    accepts,
    alive,
    children,
    command_line,
    free_port,
    run,
    wait_until,
)
from tests.support.rawhttp import Connection, ConnectionEnded, Response
from tests.support.sockets import serving_pid
from tests.support.stores import migrated

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    id: str
    prefix: str
    value: str

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.value}"}


class CommandFailed(AssertionError):
    """A command that the test needs to succeed has failed."""


class Patgate:
    """One node. ``with Patgate(…)`` starts it and waits until it is ready; leaving the block ends every process.

    ``config`` is as in docs/configuration.md; ports and the data directory are filled in if it does not set them.
    ``prefix`` is a program that runs the command that follows it.
    """

    def __init__(
        self,
        directory: Path,
        config: Mapping[str, Any],
        *,
        environ: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.prefix = prefix
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.config_file = directory / "patgate.yaml"
        self._log_begins = 0
        self.begin(config)
        self.data = Path(self.config["data_dir"])
        if not self.data.exists():
            self.data.mkdir(0o700)
            configured = "secret_key" in self.config or any(
                name.startswith("PATGATE_SECRET_KEY") for name in environ or ()
            )
            migrated(self.data, key=not configured)
        self.environ = clean_environ(environ)
        self._process: Process | None = None
        DIRECTORIES.add(directory)

    def begin(self, config: Mapping[str, Any]) -> None:
        """Write this configuration, for the next start or reload."""
        self.config = complete(config, self.directory)
        draft = self.config_file.with_suffix(".new")
        draft.write_text(yaml.safe_dump(self.config, sort_keys=False))
        draft.replace(self.config_file)
        listen = self.config["listen"]
        self.port = port_of(listen["proxy"])
        self.control_port = port_of(listen["control"])
        self.forward_auth_port = port_of(listen["forward_auth"]) if "forward_auth" in listen else 0
        self.ext_authz_port = port_of(listen["ext_authz"]) if "ext_authz" in listen else 0
        self.base_url = f"http://{LOOPBACK}:{self.port}"

    def __enter__(self) -> Patgate:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- start and stop ---

    def start(self) -> None:
        self.launch()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise

    def launch(self) -> None:
        """Start the node without waiting for it."""
        self._process = Process(
            [*self.prefix, sys.executable, "-m", "proxy", "serve", "--config", str(self.config_file)],
            name="patgate",
            directory=self.directory,
            environ=self.environ,
            cwd=ROOT,
        )

    def wait_ready(self, seconds: float = HANGS_SECONDS) -> None:
        wait_until(self.is_ready, "patgate ready", seconds=seconds, process=self.process)

    def is_ready(self) -> bool:
        try:
            return self.control("GET", "/readyz").status == 200 and accepts(self.port)
        except (OSError, ConnectionEnded):
            return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None

    def kill_everything(self) -> None:
        """Send SIGKILL to supervisor, authority and workers at once, and wait until all are gone."""
        pids = children(self.process.pid)
        self.process.kill_session()
        wait_until(lambda: not any(alive(pid) for pid in pids), "the end of every process")

    @property
    def process(self) -> Process:
        assert self._process is not None, "this gateway is not running"
        return self._process

    @property
    def log(self) -> str:
        """The log since the node's start, or since ``forget_log``."""
        with (self.directory / "patgate.log").open("rb") as file:
            file.seek(self._log_begins)
            return file.read().decode(errors="replace")

    def forget_log(self) -> None:
        """Make ``log`` begin at the current end of the file."""
        self._log_begins = (self.directory / "patgate.log").stat().st_size

    def expects(self, *events: str) -> None:
        """Declare events of level error that the test causes; undeclared ones fail the run (``support.errors``)."""
        errors.expect(self.directory / "patgate.log", *events)

    def records(self) -> list[dict[str, Any]]:
        """The log lines that are JSON objects."""
        found = []
        for line in self.log.splitlines():
            if line.startswith("{"):
                try:
                    found.append(json.loads(line))
                except ValueError:
                    continue  # the last line may be incomplete
        return found

    # --- processes ---

    def worker_pids(self) -> list[int]:
        """The pids of the gateway workers that are alive."""
        return self._children_that_are("gateway")

    def spare_pids(self) -> list[int]:
        """The pids of the spare processes that replace one that dies, still loading or loaded."""
        return [*self._children_that_are("authority-spare"), *self._children_that_are("gateway-spare")]

    def authority_pid(self) -> int:
        pids = wait_until(lambda: self._children_that_are("authority"), "an authority process", process=self.process)
        return pids[0]

    def all_workers(self) -> list[int]:
        """Wait for as many workers as the configuration sets and return their pids."""
        count = int(self.config["workers"])

        def complete_set() -> list[int] | None:
            pids = self.worker_pids()
            return pids if len(pids) == count else None

        return wait_until(complete_set, f"{count} workers", process=self.process)

    def _children_that_are(self, role: str) -> list[int]:
        return [pid for pid in children(self.process.pid) if role in command_line(pid)]

    def connect(self) -> Connection:
        return Connection(self.port)

    def connection_to_each_worker(self) -> dict[int, Connection]:
        """One open, accepted connection to each worker, by its pid."""
        pids = self.all_workers()
        found: dict[int, Connection] = {}

        def covered() -> bool:
            with ExitStack() as unless_kept:
                connection = unless_kept.enter_context(self.connect())
                pid = serving_pid(self.port, connection.local_port, pids)
                if pid not in found:
                    found[pid] = connection
                    unless_kept.pop_all()
            return len(found) == len(pids)

        try:
            wait_until(covered, "a connection to each worker", process=self.process)
        except BaseException:
            for connection in found.values():
                connection.close()
            raise
        return found

    def kill(self, pid: int) -> None:
        """Send SIGKILL to a child and wait until it is gone: until then, it is listed as alive."""
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not alive(pid), f"the end of process {pid}", process=self.process)

    # --- the operator's tools ---

    def run(self, *arguments: str, seconds: float = HANGS_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run a patgate command with this node's configuration in a new process. Any exit code is returned."""
        return patgate(*arguments, "--config", str(self.config_file), environ=self.environ, seconds=seconds)

    def here(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a patgate command in this process, which takes a tenth of the time."""
        return command(*arguments, "--config", str(self.config_file), environ=self.environ)

    def cli(self, *arguments: str) -> Any:
        """Run a command that must succeed in this process and return its JSON document."""
        done = self.here(*arguments, "--json")
        if done.returncode != 0:
            raise CommandFailed(f"patgate {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        document = json.loads(done.stdout)
        if isinstance(document, dict) and isinstance(document.get("token"), str):
            SECRETS.add(document["token"])
        return document

    def add_user(self, email: str, role: str) -> str:
        """Create a user over the control socket, because a command takes a second; return the address."""
        with self.control_socket() as control:
            control.call("POST", "/users", {"email": email, "role": role})
        return email

    def token(self, user: str, *, name: str = "test", scopes: Iterable[str] = ()) -> Token:
        """Create a token over the control socket."""
        with self.control_socket() as control:
            return control.create_token(user, name=name, scopes=scopes)

    def control(self, method: str, path: str) -> Response:
        """Send one request to the control listener (TCP): health and metrics."""
        with Connection(self.control_port) as connection:
            return connection.request(
                method, path, headers={"Connection": "close"}, host=f"{LOOPBACK}:{self.control_port}"
            )

    def control_socket(self) -> ControlClient:
        return ControlClient(self.data / "control.sock")


class ControlClient:
    """The control API over one kept-alive connection to the unix socket, where a change takes milliseconds."""

    def __init__(self, path: Path, *, seconds: float = HANGS_SECONDS) -> None:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(seconds)
        try:
            client.connect(os.fspath(path))
        except OSError:
            client.close()
            raise
        self._connection = Connection(sock=client, seconds=seconds)

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def ready(self) -> bool:
        """Whether the node says that it can serve requests."""
        return not self.unready()

    def unready(self) -> str:
        """Why the node cannot serve requests, as JSON; "" if it can."""
        response = self._connection.request("GET", "/readyz", host="localhost")
        return "" if response.status == 200 else response.body.decode()

    def metrics(self) -> str:
        """The page of metrics."""
        return self._connection.request("GET", "/metrics", host="localhost").body.decode()

    def call(self, method: str, path: str, document: Any = None) -> Any:
        """The response's document; fails unless the response is a success."""
        body = b"" if document is None else json.dumps(document).encode()
        headers = {"Content-Type": "application/json"} if body else {}
        response = self._connection.request(method, "/api/v1" + path, headers=headers, body=body, host="localhost")
        assert 200 <= response.status < 300, f"{method} {path}: {response.status} {response.body[:500]!r}"
        answer = response.json() if response.body else None
        if isinstance(answer, dict) and isinstance(answer.get("token"), str):
            SECRETS.add(answer["token"])
        return answer

    def create_token(self, user: str, *, name: str = "test", scopes: Iterable[str] = ()) -> Token:
        return token_of(self.call("POST", "/tokens", {"user": user, "name": name, "scopes": list(scopes) or None}))

    def rotate(self, token: Token) -> Token:
        return token_of(self.call("POST", f"/tokens/{token.id}/rotate"))

    def revoke(self, token: Token) -> None:
        self.call("POST", f"/tokens/{token.id}/revoke")

    def set_role(self, user: str, role: str) -> None:
        self.call("POST", f"/users/{user}/role", {"role": role})

    def suspend(self, user: str) -> None:
        self.call("POST", f"/users/{user}/suspend")

    def take_away(self, how: str, token: Token, owner: str, *, role: str, scopes: Sequence[str]) -> None:
        """End or lessen a grant: ``role`` is a lower one for the owner, ``scopes`` are what the token loses."""
        match how:
            case "revoked":
                self.revoke(token)
            case "rotated":
                self.rotate(token)
            case "suspended":
                self.suspend(owner)
            case "downgraded":
                self.set_role(owner, role)
            case "restricted":
                self.call("PUT", f"/tokens/{token.id}/ip-ranges", {"ip_ranges": ["192.0.2.0/24"]})
            case "narrowed":
                self.call("DELETE", f"/tokens/{token.id}/scopes?{urlencode({'scope': scopes}, doseq=True)}")
            case _:
                raise AssertionError(how)

    def resume(self, user: str) -> None:
        self.call("POST", f"/users/{user}/resume")


def patgate(
    *arguments: str, environ: Mapping[str, str] | None = None, seconds: float = HANGS_SECONDS, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run a patgate command in a new process."""
    return run(
        [sys.executable, "-m", "proxy", *arguments],
        cwd=cwd,
        environ=environ if environ is not None else clean_environ(None),
        seconds=seconds,
    )


def clean_environ(extra: Mapping[str, str] | None) -> dict[str, str]:
    """Our environment without the operator's own PATGATE_ settings, wide enough that no table is wrapped."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PATGATE_")}
    # A run that tests the compiled build puts that build first.
    environ["PYTHONPATH"] = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT)])
    return environ | {"COLUMNS": "200", "NO_COLOR": "1"} | dict(extra or {})


def complete(config: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Add a data directory, two workers, cheap hashes and free ports to a configuration that does not set them."""
    whole = copy.deepcopy(dict(config))
    whole.setdefault("brand", "acme")
    whole.setdefault("data_dir", str(directory / "data"))
    whole.setdefault("workers", 2)
    # A hash with the default settings takes 30 ms of CPU time, and tests need hundreds of them.
    whole.setdefault("argon2", {"memory": "64KiB", "iterations": 1})
    listen = whole.setdefault("listen", {})
    for name in ("proxy", "control"):
        listen.setdefault(name, {}).setdefault("bind", f"{LOOPBACK}:{free_port()}")
    for name in {"forward_auth", "ext_authz"} & listen.keys():
        listen[name].setdefault("bind", f"{LOOPBACK}:{free_port()}")
    return whole


def port_of(listener: Mapping[str, Any]) -> int:
    """The port of a listener; 0 if it is a unix socket."""
    bind = str(listener["bind"])
    return 0 if bind.startswith("unix:") else int(bind.rpartition(":")[2])


def token_of(document: Mapping[str, Any]) -> Token:
    """The secret and its public names from the only response that contains them."""
    value = str(document["token"])
    SECRETS.add(value)
    return Token(id=str(document["id"]), prefix=str(document["prefix"]), value=value)
