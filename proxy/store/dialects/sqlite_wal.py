"""Checks of the SQLite database file and its write-ahead log: still the opened files, and is the log on disk.

Rules:

1. Closing any descriptor of a file drops the locks that this process has on it (fcntl(2)). So the database file is not
   opened here while SQLite has it open, and the index is closed after SQLite has closed it. The log has no locks.
2. ``WalPosition`` compares the names with the opened files: once a file was removed, replaced, moved, truncated or
   hidden by a mount, no commit may be acknowledged. SQLite itself would continue in files that no longer have a name.
3. ``rewrite`` overwrites the log with its own bytes. A process that died between write and sync has left frames that
   the next start reads, but that are only in the page cache; after a failed fsync even a later fsync does not write
   them. Frames that were written again and synced are on disk.
4. ``has_tail`` reads the log as the next start would: a transaction counts if every frame follows from the one before
   and the last frame marks a commit. The formats are SQLite's, "WAL-mode File Format" sections 4 and 2.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from proxy.core.errors import StoreUnavailable

JOURNAL_SIZE_LIMIT: Final = 64 * 1024 * 1024
"""Bytes to which SQLite truncates a larger log."""
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_HEADER_BYTES: Final = 32
_FRAME_HEADER_BYTES: Final = 24
_INDEX: Final = struct.Struct("=12xBBHII2I8s")
"""Initialised, big-endian checksums, page size, last frame, pages, checksum of the last frame, salts."""
_MAGICS: Final = frozenset({0x377F0682, 0x377F0683})
"""The magic numbers of a log (SQLite, "WAL-mode File Format", section 4.1)."""
_CHUNK: Final = 1024 * 1024
_SUFFIXES: Final = ("", "-wal", "-shm", "-journal")


def log_of(database: Path) -> Path:
    """The path of the write-ahead log of this database file."""
    return database.with_name(database.name + "-wal")


def prepare(database: Path) -> None:
    """Create the database file if it does not exist; make sure that it and the files beside it are ours, mode 0600.

    SQLite creates its other files with the same mode. Raises StoreUnavailable.
    """
    try:
        for suffix in _SUFFIXES:
            _owned(database.with_name(database.name + suffix), create=not suffix)
    except OSError as error:
        raise StoreUnavailable(f"the store's file {database} cannot be opened: {error.strerror}") from error


def _owned(path: Path, *, create: bool) -> None:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileNotFoundError:
        if create:
            raise
        return
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StoreUnavailable(f"the store's file {path} is a symbolic link; it must be a file") from error
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise StoreUnavailable(f"the store's file {path} is not a regular file")
        if status.st_uid != os.geteuid():
            raise StoreUnavailable(f"the store's file {path} belongs to another user")
        os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def rewrite(log: Path) -> bool:
    """Write the log to disk (rule 3) before SQLite opens it; false if the disk has no room for that.

    Raises StoreUnavailable for any other error: then it is unknown what the next start would read.
    """
    try:
        descriptor = os.open(log, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise StoreUnavailable(f"the store's log {log} cannot be opened: {error.strerror}") from error
    try:
        at = 0
        while chunk := os.pread(descriptor, _CHUNK, at):
            at += os.pwrite(descriptor, chunk, at)
        if at:
            os.fdatasync(descriptor)
    except OSError as error:
        if error.errno in NO_ROOM:
            return False
        raise StoreUnavailable(f"the store's log {log} cannot be written: {error.strerror}") from error
    finally:
        os.close(descriptor)
    return True


def sync_names(database: Path) -> None:
    """Sync the directory, so that a power cut does not take a new log's name, and with it every commit.

    Raises StoreUnavailable.
    """
    try:
        descriptor = os.open(database.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StoreUnavailable(
            f"the directory of the store's file {database} cannot be synced: {error.strerror}"
        ) from error


class WalPosition:
    """The opened files of a database. Created while SQLite has both files open; closed with ``close`` after it."""

    def __init__(self, database: Path) -> None:
        """Open the log and its index. Raises StoreUnavailable."""
        self._database = database
        self._log = log_of(database)
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(self._log, flags)
            self._index = os.open(database.with_name(database.name + "-shm"), flags)
            self._file = os.stat(database, follow_symlinks=False)
            self._size = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise StoreUnavailable(f"the store's file {database} cannot be used: {error.strerror}") from error

    def is_kept(self) -> bool:
        """Whether both names still lead to the opened files, and neither file has become shorter.

        Raises OSError if that cannot be checked now.
        """
        try:
            file = os.stat(self._database, follow_symlinks=False)
            log = os.stat(self._log, follow_symlinks=False)
            opened = os.fstat(self._descriptor)
            head = os.pread(self._descriptor, _HEADER_BYTES, 0)
        except (FileNotFoundError, NotADirectoryError):
            return False
        if not os.path.samestat(file, self._file) or file.st_size < self._file.st_size:
            return False
        if not os.path.samestat(log, opened) or opened.st_size < min(self._size, JOURNAL_SIZE_LIMIT):
            return False
        if opened.st_size and int.from_bytes(head[:4], "big") not in _MAGICS:
            return False
        self._file, self._size = file, opened.st_size
        return True

    def has_tail(self) -> bool:
        """Whether the log contains a transaction that SQLite ignores in this process, and would read at the next start.

        The caller holds the writer. Raises OSError.
        """
        _, big, size, last, _, first_sum, second_sum, salts = _INDEX.unpack(os.pread(self._index, _INDEX.size, 0))
        page = (size & 0xFE00) + ((size & 1) << 16)
        frame_bytes = _FRAME_HEADER_BYTES + page
        sums = (first_sum, second_sum)
        if not last:
            head = os.pread(self._descriptor, _HEADER_BYTES, 0)
            if len(head) < _HEADER_BYTES or head[16:24] != salts:
                return False
            sums = struct.unpack(">2I", head[24:32])
        order = ">" if big else "<"
        at = _HEADER_BYTES + last * frame_bytes
        while len(frame := os.pread(self._descriptor, frame_bytes, at)) == frame_bytes:
            number, pages, salted, *expected = struct.unpack(">II8s2I", frame[:_FRAME_HEADER_BYTES])
            sums = _checksum(sums, frame[:8] + frame[_FRAME_HEADER_BYTES:], order)
            if not number or salted != salts or sums != tuple(expected):
                return False
            if pages:
                return True
            at += frame_bytes
        return False

    def close(self) -> None:
        """Close the files, after SQLite has."""
        os.close(self._descriptor)
        os.close(self._index)


def _checksum(sums: tuple[int, int], data: bytes, order: str) -> tuple[int, int]:
    first, second = sums
    words: Iterator[tuple[int, int]] = struct.iter_unpack(f"{order}2I", data)
    for one, other in words:
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return first, second
