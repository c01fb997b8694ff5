"""systemd integration: sockets that it opened (sd_listen_fds(3)), and state notifications (sd_notify(3)).

The test acts as the service manager: a datagram socket, and a parent that passes listening sockets from descriptor 3
on.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

import pytest
import yaml

from tests.support import errors
from tests.support.gateway import ROOT, clean_environ, complete
from tests.support.operate import routes
from tests.support.process import (
    HANGS_SECONDS,
    LOOPBACK,
    Process,
    accepts,
    children,
    command_line,
    free_port,
    wait_until,
)
from tests.support.rawhttp import Connection
from tests.support.recorder import Recorder

PARENT = """
import os, sys
sockets = [int(fd) for fd in sys.argv[1].split(",") if fd]
for place, fd in enumerate(sockets):
    os.dup2(fd, 200 + place)
for place in range(len(sockets)):
    os.dup2(200 + place, 3 + place)
    os.close(200 + place)
os.environ["LISTEN_PID"] = os.environ["WATCHDOG_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = str(len(sockets))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


class Manager:
    """The service manager's end of ``NOTIFY_SOCKET``; a context manager.

    A thread reads all the time: few messages fit in the socket, and the gateway waits for none.
    """

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1))
        self._messages: SimpleQueue[dict[str, str]] = SimpleQueue()
        self._fed = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="service manager", daemon=True)

    def __enter__(self) -> Manager:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def heard(self) -> dict[str, str]:
        """The next message except watchdog ones, as variables."""
        return self._messages.get(timeout=HANGS_SECONDS)

    def fed(self) -> bool:
        """Wait for the next watchdog message; false if there is none."""
        self._fed.clear()
        return self._fed.wait(HANGS_SECONDS)

    def _listen(self) -> None:
        while message := self._socket.recv(65536):
            if message == b"WATCHDOG=1":
                self._fed.set()
            else:
                self._messages.put(dict(line.split("=", 1) for line in message.decode().splitlines()))


@pytest.fixture
def manager(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Manager, str]]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@patgate-test-{free_port()}"
    with Manager(address) as found:
        yield found, address


def serve(directory: Path, config: Mapping[str, object], environ: Mapping[str, str], *passed: socket.socket) -> Process:
    """Run ``patgate serve`` as a child of a service manager that passes these sockets."""
    whole = complete({"upstreams": {"app": {"servers": ["http://127.0.0.1:9"]}}, **config}, directory)
    file = directory / "patgate.yaml"
    file.write_text(yaml.safe_dump(whole))
    fds = [each.fileno() for each in passed]
    argv = [sys.executable, "-c", PARENT, ",".join(map(str, fds)), "-m", "proxy", "serve", "--config", str(file)]
    return Process(
        argv, name="patgate", directory=directory, environ=clean_environ(environ), cwd=ROOT, pass_fds=tuple(fds)
    )


@pytest.mark.parametrize("manager", ["path", "abstract"], indirect=True)
def test_the_manager_hears_of_the_start_of_reloads_of_the_end_and_that_it_lives(
    tmp_path: Path, manager: tuple[Manager, str]
) -> None:
    hears, address = manager
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "400000"}
    with serve(tmp_path, {"workers": 1}, environ) as process:
        errors.expect(process.log, "configuration problem", "reload refused: the previous configuration stays in use")
        ready = hears.heard()
        assert ready["READY"] == "1" and ready["STATUS"].startswith("serving on ")
        assert accepts(int(ready["STATUS"].rpartition(":")[2])), "ready means that requests are taken"
        assert hears.fed()
        for child in children(process.pid):
            variables = Path(f"/proc/{child}/environ").read_bytes()
            assert not [name for name in (b"NOTIFY_SOCKET", b"WATCHDOG_", b"LISTEN_") if name in variables]
        began = time.monotonic_ns() // 1000
        process.signal(signal.SIGHUP)
        reloading = hears.heard()
        assert reloading["RELOADING"] == "1"
        assert began <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        assert hears.heard() == {"READY": "1", "STATUS": "serving the configuration that was reloaded"}
        (tmp_path / "patgate.yaml").write_text("routes: 7\n")
        process.signal(signal.SIGHUP)
        assert hears.heard()["RELOADING"] == "1"
        assert hears.heard() == {"READY": "1", "STATUS": "reload refused: the former configuration stays in use"}
        process.signal(signal.SIGTERM)
        assert hears.heard()["STOPPING"] == "1"
        assert process.wait() == 0


@pytest.mark.parametrize("named", [True, False], ids=["by name", "by address"])
def test_sockets_that_were_passed_are_accepted_from_by_all_workers_and_outlive_the_gateway(
    tmp_path: Path, backend: Recorder, named: bool
) -> None:
    with socket.create_server((LOOPBACK, 0)) as proxy, socket.create_server((LOOPBACK, 0)) as control:
        ports = [each.getsockname()[1] for each in (control, proxy)]
        elsewhere = {"proxy": {"bind": f"{LOOPBACK}:1"}, "control": {"bind": f"{LOOPBACK}:2"}}
        here = {"proxy": {"bind": f"{LOOPBACK}:{ports[1]}"}, "control": {"bind": f"{LOOPBACK}:{ports[0]}"}}
        config = {
            "upstreams": {"app": {"servers": [backend.url]}},
            "routes": routes({"path": "/**", "access": "public"}),
            "listen": elsewhere if named else here,
            "workers": 2,
        }
        environ = {"LISTEN_FDNAMES": "control:proxy"} if named else {}
        with serve(tmp_path, config, environ, control, proxy) as process:
            # No wait until it listens: the connection stays in the queue of the socket that existed before.
            with Connection(ports[1]) as early:
                assert early.request("GET", "/early").status == 200
            # One of them may have answered before the other had begun.
            workers = wait_until(lambda: both_workers(process), "two workers", process=process)
            assert all(holds(pid, proxy) for pid in workers)
            with Connection(ports[0]) as asking:
                assert asking.request("GET", "/livez", host=f"{LOOPBACK}:{ports[0]}").status == 200
            process.signal(signal.SIGHUP)
            wait_until(lambda: '"reloaded"' in process.output, "a reload with passed sockets", process=process)
            process.signal(signal.SIGTERM)
            assert process.wait() == 0
        assert accepts(ports[1]), "systemd's socket is systemd's: clients wait for the next start"


def both_workers(process: Process) -> list[int]:
    """The pids of the two workers; none until both run."""
    found = [pid for pid in children(process.pid) if "gateway" in command_line(pid)]
    return found if len(found) == 2 else []


def holds(pid: int, sock: socket.socket) -> bool:
    wanted = (Path("/proc/self/fd") / str(sock.fileno())).readlink()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if fd.readlink() == wanted:
                return True
    return False


def test_a_socket_that_is_no_listeners_keeps_the_gateway_from_starting(tmp_path: Path) -> None:
    with (
        socket.create_server((LOOPBACK, 0)) as other,
        serve(tmp_path, {}, {"LISTEN_FDNAMES": "elsewhere"}, other) as process,
    ):
        assert process.wait() == 1
        assert "that belongs to no listener" in process.output
