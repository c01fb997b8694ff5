"""Shared memory page, writing end: ``data_dir/page``, mode 0600, mapped by every worker of the host.

Rules of this module:
1. The file is kept over restarts of the authority, so that workers with a mapping of it see the new authority's writes,
   and so that its epoch is the high-water mark of all changes announced on this host.
2. Taking the page over ends the former writer's lease: nothing is served from a cache until this authority has raised
   the epoch to the store's and renewed the lease. Only the *successor* of an authority that died under the same running
   supervisor keeps the lease: CLOCK_BOOTTIME is the same, no other process had the store, and no change was
   acknowledged since, so the lease is valid until it runs out.
3. An epoch in the page that is higher than the store's means that the store is an older one. It is refused. When
   the operator accepts it, the page is replaced by a new file: a worker that still maps the old one never gets a
   lease again.
4. One exception: a change announced in doubt, whose outcome was unknown, may be missing from the store. The caller then
   lets the store skip its number.
5. The file has its space on disk before it is mapped: a full disk is an error here and not a signal later.
"""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path
from typing import Final

from proxy.core.errors import PageError, StoreBehind, StoreUnavailable
from proxy.core.ipc.shared_memory import PAGE_SIZE, PageView

PAGE_FILE: Final = "page"


class PageWriter:
    """The page, opened for writing. Only the authority has one."""

    def __init__(self, path: Path, descriptor: int, *, keep_lease: bool) -> None:
        self._path = path
        self._identity = _identity(os.fstat(descriptor))
        self._map = mmap.mmap(descriptor, PAGE_SIZE, access=mmap.ACCESS_WRITE)
        self.overtaken = 0
        """The epoch announced on this host before the operator accepted an older store; 0 otherwise."""
        incarnation = int.from_bytes(os.urandom(8), "big") >> 1
        self._view = PageView.format(memoryview(self._map), incarnation, keep_lease=keep_lease)

    @property
    def epoch(self) -> int:
        """The epoch in the page: the number of the last announced change."""
        return self._view.epoch

    @property
    def lease_until_ns(self) -> int:
        """When the lease runs out, in nanoseconds of CLOCK_BOOTTIME."""
        return self._view.lease_until_ns

    @property
    def incarnation(self) -> int:
        """The random number of this writer, by which workers notice a new one."""
        return self._view.incarnation

    def raise_epoch(self, epoch: int) -> None:
        """Raise the epoch; a lower one changes nothing."""
        self._view.raise_epoch(epoch)

    @property
    def in_doubt(self) -> int:
        """The number of the change whose outcome is unknown; 0 for none."""
        return self._view.in_doubt

    def doubt(self, number: int) -> None:
        """Record the number of a change whose outcome is unknown; 0 for none."""
        self._view.doubt(number)

    def renew(self, until_ns: int) -> None:
        """Set the end of the lease, in nanoseconds of CLOCK_BOOTTIME; 0 ends it."""
        self._view.renew(until_ns)

    def set_ahead(self, seconds: float) -> None:
        """Let workers judge expiry by a clock that is ``seconds`` ahead of this host's; never by one that is behind."""
        self._view.set_ahead(seconds)

    def is_in_place(self) -> bool:
        """Whether the path still leads to this page; if not, the data directory is no longer ours."""
        try:
            return _identity(os.stat(self._path, follow_symlinks=False)) == self._identity
        except OSError:
            return False

    def close(self) -> None:
        """End the lease and unmap the page; the file stays."""
        self._view.renew(0)
        self._view.release()
        self._map.close()


def open_page(
    data_dir: Path, *, store_epoch: int | None, accept_older: bool = False, successor: bool = False
) -> PageWriter:
    """Take over or create the page of ``data_dir`` and raise its epoch to the store's. It may be one higher (rule 4).

    The lease is zero afterwards, or unchanged for a successor (rule 2). With ``store_epoch`` None the epoch stays: a
    store of several nodes is judged by more than its number (``consistency.judgement``).

    Raises StoreBehind when the page has a higher epoch, and StoreUnavailable when the file cannot be used.
    """
    path = data_dir / PAGE_FILE
    try:
        page = _open(path, keep_lease=successor)
        if store_epoch is None:
            return page
        seen = page.epoch - 1 if 0 < page.epoch == page.in_doubt else page.epoch
        if seen > store_epoch:
            page.close()
            if not accept_older:
                raise StoreBehind(
                    f"the store's last change is number {store_epoch}, but this node has already seen number {seen}: "
                    "an older store was put in its place"
                )
            path.unlink()
            page = _open(path, keep_lease=False)
            page.overtaken = seen
    except OSError as error:
        raise StoreUnavailable(f"the shared page in the data directory cannot be used: {error.strerror}") from error
    page.raise_epoch(store_epoch)
    return page


def seen_epoch(data_dir: Path) -> int:
    """The epoch in the page of ``data_dir``, which is not taken over; 0 without a page that can be read."""
    try:
        with open(data_dir / PAGE_FILE, "rb") as file:
            return PageView(memoryview(file.read(PAGE_SIZE))).epoch
    except (OSError, PageError):
        return 0


def _open(path: Path, *, keep_lease: bool) -> PageWriter:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise StoreUnavailable("the shared page in the data directory is not a regular file")
        os.fchmod(descriptor, 0o600)
        if status.st_uid != os.geteuid():
            raise StoreUnavailable("the shared page in the data directory belongs to another user")
        if status.st_size < PAGE_SIZE:
            os.pwrite(descriptor, bytes(PAGE_SIZE - status.st_size), status.st_size)
        return PageWriter(path, descriptor, keep_lease=keep_lease)
    finally:
        os.close(descriptor)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
