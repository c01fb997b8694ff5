"""Four real servers that interpret paths differently; each reports how it understood the request.

Their configurations are in tests/differential/servers. Each answers 204 with ``X-Case`` (the number that the request
carried), ``X-Area`` (the operation that its own router chose), ``X-Entity`` and ``X-Id`` (what that router captured),
``X-Path`` (the path as it reads it) and ``X-Method``, and writes the number of every request it receives to a file.
"""

from __future__ import annotations

import getpass
import pwd
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.support.backends import program
from tests.support.gateway import ROOT
from tests.support.process import LOOPBACK, Process, accepts, free_port, wait_until

SERVERS = ROOT / "tests" / "differential" / "servers"
APACHE_MODULES = Path("/usr/lib/apache2/modules")


@dataclass(frozen=True, kw_only=True, slots=True)
class PathServer:
    """One running server. ``host`` is the ``Host`` for which the gateway routes to it."""

    name: str
    port: int
    seen: Path

    @property
    def host(self) -> str:
        return f"{self.name}.test"

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def lines_since(self, offset: int) -> tuple[list[bytes], int]:
        """The complete lines in the server's file from ``offset`` on, and the offset of their end."""
        with self.seen.open("rb") as log:
            log.seek(offset)
            data = log.read()
        data = data[: data.rfind(b"\n") + 1]
        return data.splitlines(), offset + len(data)


def _configured(name: str, directory: Path, port: int) -> Path:
    """One of our configuration files with its placeholders filled in."""
    path = directory / name
    text = (SERVERS / name).read_text()
    values = {
        "directory": directory,
        "port": port,
        "user": getpass.getuser(),
        "nobody": pwd.getpwnam("nobody").pw_gid,
        "modules": APACHE_MODULES,
    }
    path.write_text(text.format_map(values))
    return path


def _nginx(directory: Path, port: int, seen: Path) -> list[str]:
    del seen  # its configuration contains the file's name
    config = _configured("nginx.conf", directory, port)
    return [program("nginx"), "-c", str(config), "-p", str(directory), "-e", "stderr"]


def _apache(directory: Path, port: int, seen: Path) -> list[str]:
    del seen
    config = _configured("apache.conf", directory, port)
    return [program("apache2"), "-f", str(config), "-D", "FOREGROUND"]


def _wsgi(directory: Path, port: int, seen: Path) -> list[str]:
    del directory
    python = ROOT / ".venv-backends" / "bin" / "python"
    return [str(python), str(SERVERS / "application.py"), str(port), str(seen)]


def _node(directory: Path, port: int, seen: Path) -> list[str]:
    del directory
    return [program("node"), str(SERVERS / "server.mjs"), str(port), str(seen)]


COMMANDS: Mapping[str, Callable[[Path, int, Path], list[str]]] = {
    "nginx": _nginx,
    "apache": _apache,
    "wsgi": _wsgi,
    "node": _node,
}


@contextmanager
def path_servers(directory: Path) -> Iterator[list[PathServer]]:
    """Run all of them, each with a directory of its own below ``directory``."""
    with ExitStack() as stack:
        found = []
        for name, command in COMMANDS.items():
            own = directory / name
            own.mkdir(parents=True)
            server = PathServer(name=name, port=free_port(), seen=own / "seen.log")
            server.seen.touch()
            process = stack.enter_context(Process(command(own, server.port, server.seen), name=name, directory=own))
            wait_until(partial(accepts, server.port), f"{name} listening", process=process)
            found.append(server)
        yield found
