"""Real servers behind a gateway; each reports how it understood the request that it received.

Their configurations and programs are in tests/threats/servers. Each answers with a line ``NAME=value`` for each
property that it derived, with CGI names (RFC 3875): method, path, scheme, address, user, headers, and (all but nginx)
the digest of the body that it read. Each writes method and path of every request to a file.
"""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.backends import program
from tests.support.builds import is_compiled
from tests.support.gateway import ROOT
from tests.support.pathservers import APACHE_MODULES
from tests.support.process import LOOPBACK, Process, accepts, free_port, wait_until
from tests.support.rawhttp import Response

SERVERS = ROOT / "tests" / "threats" / "servers"
PYTHON = ROOT / ".venv-backends" / "bin" / "python"

BELIEFS = ("REQUEST_METHOD", "PATH_INFO", "SCRIPT_NAME", "REQUEST_SCHEME", "REMOTE_ADDR", "REMOTE_USER", "HTTP_HOST")
"""The values that a server acts on; it may pass on others to the program that it runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RealServer:
    """One running server. ``host`` is the ``Host`` for which the gateway routes to it."""

    name: str
    port: int
    seen: Path
    """The file to which it writes the requests it receives."""
    files: Path
    """The directory that a file server serves."""

    @property
    def host(self) -> str:
        return f"{self.name}.test"

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def requests(self) -> list[str]:
        """Method and path of every request so far, in the order in which they ended."""
        return self.seen.read_text(errors="replace").splitlines()


def told(response: Response) -> dict[str, str]:
    """Everything that the server reports in its response."""
    assert response.status == 200, response
    lines = response.body.decode("latin-1").splitlines()
    return {name: value for name, mark, value in (line.partition("=") for line in lines) if mark}


def believed(response: Response) -> dict[str, str]:
    """The values that it acts on; unknown ones are empty."""
    found = told(response)
    return {name: found.get(name, "") for name in BELIEFS}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    directory: Path
    """Its own directory."""
    open: Path
    """Another directory, which the user that Apache runs as may read and write."""
    port: int
    seen: Path
    files: Path
    """The directory that a file server serves."""

    def configured(self, name: str) -> Path:
        """One of our configuration files with its placeholders filled in."""
        values = {
            "directory": self.directory,
            "open": self.open,
            "port": self.port,
            "seen": self.seen,
            "files": self.files,
            "user": getpass.getuser(),
            "nobody": pwd.getpwnam("nobody").pw_gid,
            "modules": APACHE_MODULES,
        }
        path = self.directory / name
        path.write_text((SERVERS / name).read_text().format_map(values))
        return path


def _gunicorn(place: _Place) -> list[str]:
    """Use its defaults: a client on the loopback may set SCRIPT_NAME and PATH_INFO, and the scheme."""
    bind = f"{LOOPBACK}:{place.port}"
    return [program("gunicorn"), "--bind", bind, "--chdir", str(SERVERS), "application:application"]


def _waitress(place: _Place) -> list[str]:
    return [str(PYTHON), str(SERVERS / "application.py"), str(place.port)]


def _nginx(place: _Place) -> list[str]:
    config = place.configured("nginx.conf")
    return [program("nginx"), "-c", str(config), "-p", str(place.directory), "-e", "stderr"]


def _node(place: _Place) -> list[str]:
    return [program("node"), str(SERVERS / "server.mjs"), str(place.port), str(place.seen)]


def _apache(place: _Place) -> list[str]:
    shutil.copy(SERVERS / "tell.sh", place.open)
    return [program("apache2"), "-f", str(place.configured("apache.conf")), "-D", "FOREGROUND"]


def _wsgidav(place: _Place) -> list[str]:
    return [str(PYTHON), str(SERVERS / "dav.py"), str(place.port), str(place.files)]


def _nginx_dav(place: _Place) -> list[str]:
    config = place.configured("nginx-dav.conf")
    return [program("nginx"), "-c", str(config), "-p", str(place.directory), "-e", "stderr"]


def _apache_dav(place: _Place) -> list[str]:
    return [program("apache2"), "-f", str(place.configured("apache-dav.conf")), "-D", "FOREGROUND"]


Commands = Mapping[str, Callable[[_Place], list[str]]]

COMMANDS: Commands = {
    "gunicorn": _gunicorn,
    "waitress": _waitress,
    "nginx": _nginx,
    "node": _node,
    "apache": _apache,
}

FILE_SERVERS: Commands = {
    "wsgidav": _wsgidav,
    "nginx-dav": _nginx_dav,
    "apache-dav": _apache_dav,
}

IN_BOTH_BUILDS = ("gunicorn", "node", "wsgidav")
"""The servers that are tested with the compiled package too: the most trusting, the strictest, and a file server.

Both builds have the same sources, and a server sees only the bytes that were sent. One server of each sort reveals
wrong bytes from the compiled build; how other servers interpret the bytes is tested with the pure build.
"""


def of_this_build(commands: Commands) -> Commands:
    """The commands of the servers that the build under test is tested with."""
    return {name: command for name, command in commands.items() if name in IN_BOTH_BUILDS or not is_compiled()}


@contextmanager
def real_servers(directory: Path, commands: Commands) -> Iterator[dict[str, RealServer]]:
    """Run all of them and yield them by name; each has a directory of its own below ``directory``."""
    with ExitStack() as stack:
        found = {}
        for name, command in commands.items():
            own = directory / name
            own.mkdir(parents=True)
            # If root starts Apache, the user that it runs as cannot enter the tests' own directories.
            public = Path(stack.enter_context(TemporaryDirectory(prefix="patgate-servers-")))
            place = _Place(directory=own, open=public, port=free_port(), seen=own / "seen.log", files=public / "files")
            place.seen.touch()
            place.files.mkdir()
            if os.getuid() == 0:
                for path in (place.open, place.files):
                    os.chown(path, pwd.getpwnam("nobody").pw_uid, -1)
            process = Process(
                command(place),
                name=name,
                directory=own,
                environ={"PATH": os.environ["PATH"], "SEEN_FILE": str(place.seen)},
            )
            stack.enter_context(process)
            wait_until(partial(accepts, place.port), f"{name} listening", process=process)
            found[name] = RealServer(name=name, port=place.port, seen=place.seen, files=place.files)
        yield found
