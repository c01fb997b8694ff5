"""Kills a process, or lets a system call fail, at a chosen system call (``strace -e inject``, attached to it).

Unlike a preloaded library (``tests.support.disk``), strace sees each call that reaches the kernel.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.backends import program

CALLS: Final = (
    *("write", "writev", "pwrite64", "pwritev", "pwritev2", "sendfile", "copy_file_range"),
    *("fsync", "fdatasync", "sync_file_range", "msync", "ftruncate", "fallocate"),
    *("rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat"),
)
"""Every call that changes a file or a directory, or that waits for the disk."""

_PR_SET_PTRACER: Final = 0x59616D61
_ANY: Final = ctypes.c_ulong(-1)
_LINE: Final = re.compile(r"(?P<thread>\d+) +(?P<call>\w+)\((?P<rest>.*)")
_PATH: Final = re.compile(r"<(/[^>]*)>|\"(/[^\"]*)\"")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Call:
    """One system call of a traced process; ``path`` is "" for one on no file."""

    thread: int
    name: str
    path: str
    injected: bool


def allow_tracing() -> None:
    """Let any process of this user trace this one, where the kernel (Yama) otherwise lets only parents do it."""
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANY, 0, 0, 0)


class Tracer:
    """strace attached to all threads of process ``pid``, which runs on when this returns.

    ``inject`` is what strace does at one call of a thread: ``pwrite64:signal=KILL:when=3``, where 3 counts that
    thread's calls of that name. "" is nothing. strace ends with the process.
    """

    def __init__(self, pid: int, output: Path, *, inject: str = "") -> None:
        fault = () if not inject else ("-e", f"inject={inject}")
        # The names that this kernel's architecture does not have are left out.
        names = ",".join(f"?{name}" for name in CALLS)
        command = [program("strace"), "-f", "-y", "-p", str(pid), "-o", str(output), "-e", f"trace={names}", *fault]
        self._output = output
        self._strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._strace.stderr is not None
        said = self._strace.stderr.readline()
        assert "attached" in said, f"strace cannot trace process {pid}: {said}{self._strace.stderr.read()}"

    def calls(self, timeout: float = 60.0) -> list[Call]:
        """All calls, once the process has ended."""
        self._strace.communicate(timeout=timeout)
        found = (_LINE.match(line) for line in self._output.read_text(errors="replace").splitlines())
        return [
            Call(
                thread=int(line["thread"]),
                name=line["call"],
                path=next((one or other for one, other in _PATH.findall(line["rest"])), ""),
                injected="(INJECTED)" in line["rest"],
            )
            for line in found
            if line is not None
        ]
