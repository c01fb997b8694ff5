"""Simulates disk failures: a preloaded library fails libc calls as instructed through a file shared with the test."""

from __future__ import annotations

import atexit
import errno
import functools
import mmap
import os
import shutil
import struct
import subprocess
import tempfile
from enum import IntEnum, IntFlag
from pathlib import Path

from tests.support.backends import program

SOURCE = Path(__file__).with_suffix(".c")
_LAYOUT = struct.Struct("=10I")


class Calls(IntFlag):
    """The system calls that may fail, on the store's files only."""

    WRITE = 1
    SYNC = 2
    TRUNCATE = 4
    LOCK = 8
    MAP = 16
    READ = 32


ALL = Calls.WRITE | Calls.SYNC | Calls.TRUNCATE | Calls.LOCK | Calls.MAP | Calls.READ


class Written(IntEnum):
    """What a failing write leaves in the file."""

    NOTHING = 0
    HALF = 1
    WHOLE = 2


@functools.cache
def library() -> Path:
    """The path of the compiled library, which is built once for each run."""
    directory = Path(tempfile.mkdtemp(prefix="failing-disk-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    made = directory / "disk.so"
    command = [os.environ.get("CC") or program("gcc"), "-shared", "-fPIC", "-O1", "-o", str(made), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return made


class FailingDisk:
    """Controls the failures in every process that is started with ``environ``."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "failing-disk"
        self.file.write_bytes(bytes(mmap.PAGESIZE))
        self._map = _mapped(self.file)
        self.environ = {"LD_PRELOAD": str(library()), "FAILING_DISK": str(self.file)}

    @classmethod
    def here(cls) -> FailingDisk:
        """The disk of this process, which must have been started with ``environ``."""
        disk = cls.__new__(cls)
        disk.file = Path(os.environ["FAILING_DISK"])
        disk._map = _mapped(disk.file)
        disk.environ = {}
        return disk

    def fail(
        self,
        calls: Calls = Calls.SYNC,
        *,
        nth: int = 1,
        times: int = 0,
        error: int = errno.EIO,
        written: Written = Written.NOTHING,
    ) -> None:
        """Make the ``nth`` of these calls from now on fail, and those after it: ``times`` calls, or 0 for all."""
        self.work()
        _LAYOUT.pack_into(self._map, 0, 0, calls, nth, times, error, written, 0, 0, self.unsynced, 0)
        struct.pack_into("=I", self._map, 0, 1)

    def work(self) -> None:
        """Stop all failures."""
        struct.pack_into("=I", self._map, 0, 0)

    @property
    def failed(self) -> int:
        """The number of calls that have failed since ``fail``."""
        return int(_LAYOUT.unpack_from(self._map)[7])

    @property
    def unsynced(self) -> int:
        """The number of writes to the log since its last sync."""
        return int(_LAYOUT.unpack_from(self._map)[8])


def _mapped(file: Path) -> mmap.mmap:
    with file.open("r+b") as opened:
        return mmap.mmap(opened.fileno(), mmap.PAGESIZE)
