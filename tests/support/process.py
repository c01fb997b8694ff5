"""Runs real processes: starts them with a log file, waits for them with a deadline, and always ends them."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from tests.support import errors

T = TypeVar("T")

POLL_SECONDS = 0.01
HANGS_SECONDS = 120.0
"""How long a test waits for what is sure to come: longer than on any busy machine, shorter than the end of the run."""
LOOPBACK = "127.0.0.1"
PORTS = (20_000, 32_000)

BLOCK = 100

#: Ports that ``free_port`` may still return: the rest of the last block that this process has claimed.
LEFT: list[int] = []

#: What holds the claims: names that the kernel gives to one process at a time and releases when it ends.
CLAIMS: list[socket.socket] = []

#: Every process that is running now, so that a failing test can show all their logs.
RUNNING: list[Process] = []


class Process:
    """A program that runs in its own session, with both outputs going to one log file; ``with`` ends it.

    It has its own session so that ``end`` reaches grandchildren and a Ctrl-C in the terminal does not race with the
    fixtures.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        name: str,
        directory: Path,
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        if "proxy" in argv and {"serve", "quickstart"} & {*argv}:
            errors.watch(self.log)
        if "quickstart" in argv and "--data" in argv:
            errors.watch((cwd or directory) / argv[argv.index("--data") + 1] / "patgate.log")
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if environ is None else dict(environ),
                cwd=cwd or directory,
                start_new_session=True,
                pass_fds=pass_fds,
            )
        RUNNING.append(self)

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative if a signal ended it, as in subprocess."""
        return self._popen.poll()

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        self._popen.send_signal(number)

    def wait(self, seconds: float = HANGS_SECONDS) -> int:
        """The exit code; fails with the log if the program does not end in time."""
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not exit within {seconds:g} s\n{self.tail()}") from None

    def tail(self, lines: int = 60) -> str:
        return f"--- {self.name} (pid {self.pid}) ---\n" + "\n".join(self.output.splitlines()[-lines:])

    def end(self, seconds: float = 15.0) -> None:
        """Send SIGTERM, then SIGKILL to the whole session if it does not end; never leave a process behind."""
        if self._popen.poll() is None:
            self._popen.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(seconds)
        self.kill_session()
        if self in RUNNING:
            RUNNING.remove(self)

    def kill_session(self) -> None:
        """Send SIGKILL to the program and everything that it started, at once."""
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()


def run(
    argv: Sequence[str],
    *,
    cwd: Path | None = None,
    environ: Mapping[str, str] | None = None,
    seconds: float = HANGS_SECONDS,
) -> subprocess.CompletedProcess[str]:
    """Run a program that ends by itself; return its exit code and both outputs as text."""
    return subprocess.run(
        list(argv),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        cwd=cwd,
        env=None if environ is None else dict(environ),
        timeout=seconds,
        check=False,
    )


def wait_until(
    condition: Callable[[], T | None], what: str, *, seconds: float = HANGS_SECONDS, process: Process | None = None
) -> T:
    """The first truthy value of the condition; fails at the deadline, or as soon as ``process`` has exited."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if process is not None and process.exit_code is not None:
            raise AssertionError(f"{process.name} exited ({process.exit_code}) before {what}\n{process.tail()}")
        if time.monotonic() > deadline:
            logs = process.tail() if process is not None else ""
            raise AssertionError(f"not within {seconds:g} s: {what}\n{logs}")
        time.sleep(POLL_SECONDS)


def free_port(*, in_a_row: int = 1) -> int:
    """The first of ``in_a_row`` consecutive free loopback ports; no two calls or runs get the same port.

    The ports are below the range that the kernel uses for outgoing connections, so that no client of ours has one by
    chance.
    """
    while True:
        while len(LEFT) < in_a_row:
            LEFT[:] = _claim()
        ports = LEFT[:in_a_row]
        del LEFT[:in_a_row]
        if all(_can_listen(port) for port in ports):
            return ports[0]


def _claim() -> range:
    """A block of ports that no other process has claimed, by an abstract unix(7) name."""
    blocks = [range(first, first + BLOCK) for first in range(*PORTS, BLOCK)]
    random.shuffle(blocks)
    for block in blocks:
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0patgate-tests-{block.start}")
        except OSError:
            claim.close()
        else:
            CLAIMS.append(claim)
            return block
    raise AssertionError("every block of ports is claimed: too many runs at a time")


def _can_listen(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def accepts(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server listens on the port."""
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The living direct children of a process, oldest first."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            # ``wait_until`` polls this a hundred times a second: pathlib would take three times as long.
            with open(f"/proc/{name}/stat", "rb", buffering=0) as file:
                stat = file.read(4096)
        except OSError:
            continue  # it ended after it was listed
        state, parent = stat.rpartition(b")")[2].split(maxsplit=2)[:2]
        if int(parent) == pid and state != b"Z":
            found.append(int(name))
    return sorted(found)


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and is not yet reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[0] != b"Z"


def command_line(pid: int) -> list[str]:
    """The arguments of a process; empty if it has ended."""
    return of_process(pid, "cmdline").decode(errors="replace").split("\0")[:-1]


def of_process(pid: int, name: str) -> bytes:
    """A file of proc(5) about a process; empty if it has ended, as a spare that a reload replaces does at any time."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def contents(directory: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file below a directory in which processes may create and remove files meanwhile, with its content."""
    for path in directory.rglob("*"):
        try:
            content = path.read_bytes() if path.is_file() else None
        except FileNotFoundError:
            continue  # removed since it was listed
        if content is not None:
            yield path, content
