"""The database file and its write-ahead log as files: are they still the ones that were opened, and is the log on disk?

Rules:

1. Closing any descriptor of a file drops the locks that this process has on it (fcntl(2)). So the database file is not
   opened here while SQLite has it open, and the index is closed after SQLite has closed it. The log has no locks.
2. ``Place`` compares names with what was opened: removed, replaced, moved, cut short or behind another mount, nothing
   that is committed may be acknowledged. SQLite itself would go on in files that no longer have a name.
3. ``rewrite`` writes the log over with its own bytes. A process that died between write and sync has left frames that
   the next start reads, but that are only in the page cache; after an fsync that failed, even a later fsync does not
   write them. What was written again and synced is on disk.
4. ``has_tail`` reads the log as the next start would: a transaction counts when every frame of it follows from the one
   before and the last says that it is the last. The formats are SQLite's, "WAL-mode File Format" sections 4 and 2.
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
"""Bytes to which SQLite cuts a log that has become larger."""
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_HEADER_BYTES: Final = 32
_FRAME_HEADER_BYTES: Final = 24
_INDEX: Final = struct.Struct("=12xBBHII2I8s")
"""Initialised, big-endian checksums, page size, last frame, pages, checksum of the last frame, salts."""
_MAGICS: Final = frozenset({0x377F0682, 0x377F0683})
"""How a log begins (SQLite, "WAL-mode File Format", section 4.1)."""
_CHUNK: Final = 1024 * 1024
_SUFFIXES: Final = ("", "-wal", "-shm", "-journal")


def log_of(database: Path) -> Path:
    """Where SQLite keeps the write-ahead log of this database file."""
    return database.with_name(database.name + "-wal")


def prepare(database: Path) -> None:
    """Make the database file if there is none, and see that it and the files beside it are ours, mode 0600.

    SQLite gives its other files the same mode. Raises StoreUnavailable.
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
    """Put what is in the log on disk (rule 3), before SQLite opens it; false where the disk has no room for that.

    Raises StoreUnavailable where it fails in any other way: then nobody can say what the next start would read.
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


class WalPosition:
    """What the names of an open database lead to. Made while SQLite has both files open; ``close`` when it is done."""

    def __init__(self, database: Path) -> None:
        """Raises StoreUnavailable."""
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
        """Whether both names still lead to the files that were opened, and neither has lost anything.

        Raises OSError where that cannot be seen now.
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
        """Whether a transaction lies in the log that SQLite does not know here, and would find at the next start.

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
        """Let go of the files, once SQLite has."""
        os.close(self._descriptor)
        os.close(self._index)


def _checksum(sums: tuple[int, int], data: bytes, order: str) -> tuple[int, int]:
    first, second = sums
    words: Iterator[tuple[int, int]] = struct.iter_unpack(f"{order}2I", data)
    for one, other in words:
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return first, second
