"""Reading the memory page that the authority shares with its workers.

The page has the number of the last acknowledged change (the epoch) and the time until which the authority vouches for
it (the lease, on CLOCK_BOOTTIME, which all processes of a host share). Layout and units are in
``core.ipc.shared_memory``.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from proxy.core.ipc.shared_memory import PAGE_SIZE, PageView


class PageReader:
    """A read-only mapping of ``path``. Raises OSError if it cannot be mapped, PageError if its content is invalid."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(descriptor, PAGE_SIZE, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        self.view = PageView(memoryview(self._map))

    def close(self) -> None:
        """Unmap the page."""
        self.view.release()
        self._map.close()
