"""The machine: division of its cores, pinning of processes, installed programs, and facts for the report."""

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from bench.errors import BenchError
from bench.system import interpreter

_ROOT: Final = Path(__file__).resolve().parent.parent.parent
_PLACES: Final = (str(Path(sys.executable).parent), str(_ROOT / ".venv-bench" / "bin"), "/usr/sbin", "/usr/local/sbin")
"""Directories of programs besides PATH: the environments of ``make bench``, and those that only root has in PATH."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cores:
    """The division of cores: numbers as in sched_setaffinity(2)."""

    subject: frozenset[int]
    """The one core of the gateway under test, which nothing else uses."""
    rest: frozenset[int]
    """Load generator, backend, authority, supervisor."""

    @property
    def shared(self) -> bool:
        return self.subject == self.rest


def divide_cores(*, together: bool = False) -> Cores:
    """One core for the subject and the others for the rest; the same one for both if ``together`` or there is only one.

    On two cores of a virtual machine a fast gateway lets the other core fall asleep and pays to wake it with every
    write; together on one core there is no wake-up across cores.
    """
    usable = sorted(os.sched_getaffinity(0))
    first = frozenset(usable[:1])
    return Cores(subject=first, rest=first if together else frozenset(usable[1:]) or first)


def pin(pid: int, cores: frozenset[int]) -> None:
    """Bind every thread of the process ``pid``."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cores)


def children(pid: int) -> tuple[int, ...]:
    """The processes whose parent is ``pid``."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return tuple(int(field) for field in text.split())


def descendants(pid: int) -> tuple[int, ...]:
    """Every process below ``pid``, parents before their children."""
    found: list[int] = []
    for child in children(pid):
        found += [child, *descendants(child)]
    return tuple(found)


def command_line(pid: int) -> tuple[str, ...]:
    raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    return tuple(part.decode(errors="replace") for part in raw.split(b"\0") if part)


def require(program: str, package: str) -> str:
    """The path of ``program``. Raises BenchError naming its Debian package."""
    path = shutil.which(program) or shutil.which(program, path=os.pathsep.join(_PLACES))
    if path is None:
        raise BenchError(f"{program} is not installed; on Debian it is in the package {package}.")
    return path


def require_wheel(program: str) -> str:
    """The path of a ``program`` from a wheel in our environment or in that of ``make bench``. Raises BenchError."""
    path = shutil.which(program, path=os.pathsep.join(_PLACES))
    if path is None:
        raise BenchError(f"{program} is not installed; `make bench` installs it.")
    return path


def until(condition: Callable[[], bool], what: str, deadline: float = 15.0) -> None:
    """Poll ``condition`` for at most ``deadline`` seconds. Raises BenchError naming ``what`` if it does not happen."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise BenchError(f"Not within {deadline:g} s: {what}.")
        time.sleep(0.01)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(program: str, argument: str, pattern: str) -> str:
    path = shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_PLACES]))
    if path is None:
        return "(not installed)"
    done = subprocess.run([path, argument], capture_output=True, text=True, timeout=30, check=False)
    found = re.search(pattern, done.stdout + done.stderr)
    return found.group(1) if found else "(unknown)"


def _packages(names: Iterable[str]) -> str:
    held: list[str] = []
    for name in names:
        try:
            held.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            held.append(f"{name} none")
    return ", ".join(held)


def facts(build: str) -> dict[str, str]:
    """What a reader needs to judge or repeat a figure; ``build`` names the build of patgate."""
    return {
        "processor": f"{_cpu_model()}, {os.cpu_count()} cores",
        "kernel": f"{platform.system()} {platform.release()}",
        **interpreter.running().facts(),
        "patgate": f"{_packages(['patgate'])} ({build}), {_packages(['uvloop'])}",
        "peers": ", ".join(f"{name} {version}" for name, version in _peers()),
        "wrk": _version("wrk", "-v", r"wrk (\S+)"),
    }


def _peers() -> list[tuple[str, str]]:
    return [
        ("nginx", _version("nginx", "-v", r"nginx/(\S+)")),
        ("HAProxy", _version("haproxy", "-v", r"version (\S+)")),
        ("Envoy", _version("envoy", "--version", r"/(\d[\d.]*)/")),
        ("Traefik", _version("traefik", "version", r"Version:\s+(\S+)")),
        ("Caddy", _version("caddy", "version", r"v(\S+)")),
        ("aiohttp", metadata.version("aiohttp")),
    ]


def require_linux() -> None:
    """Raise BenchError if there is no /proc/<pid>/task/<tid>/schedstat to read CPU time from."""
    if not Path("/proc/self/task").is_dir():
        raise BenchError("The benchmark reads CPU time from Linux's /proc, which this machine does not have.")
