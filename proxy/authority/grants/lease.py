"""The lease: for how long workers may believe their caches without hearing from the authority.

Rules of this module:
1. The clock is read before anything else of a renewal happens, so that a renewal that takes long, or a process that is
   frozen in the middle of one, gives a shorter lease and never a longer one.
2. The clock is CLOCK_MONOTONIC, which all processes of the host share; steps of the wall clock move nothing.
3. Only the owner of the store renews. When ownership is lost the lease is ended at once and never renewed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final

from proxy.authority.grants.shared_memory import PageWriter
from proxy.observe.logs import get_logger

RENEWALS_PER_LEASE: Final = 5

_log = get_logger("authority.lease")


class LeaseKeeper:
    """Renews the lease of ``lease`` seconds every fifth of it, while ``owned`` says that the store is still ours."""

    def __init__(self, page: PageWriter, lease: float, *, owned: Callable[[], bool]) -> None:
        self._page = page
        self._lease_ns = int(lease * 1e9)
        self._every = lease / RENEWALS_PER_LEASE
        self._owned = owned
        self._lost = False
        self._moved = asyncio.Event()

    @property
    def lost(self) -> bool:
        """Whether ownership was found lost; the authority must end then."""
        return self._lost

    def last(self, lease: float) -> None:
        """Renew for ``lease`` seconds from the next renewal on; the one that runs is renewed at once."""
        self._lease_ns = int(lease * 1e9)
        self._every = lease / RENEWALS_PER_LEASE
        # Not when the time of before is over: the shorter lease may have run out by then.
        self._moved.set()
        self.renew()

    def look(self) -> None:
        """Renew soon, not when the time has come: whether the store is ours is in question."""
        self._moved.set()

    def remaining(self) -> float:
        """Seconds that the lease has left; 0 when it has run out."""
        return max(0.0, (self._page.lease_until_ns - time.monotonic_ns()) / 1e9)

    def renew(self) -> bool:
        """Renew once; false when the store is no longer ours."""
        before = time.monotonic_ns()
        if self._lost or not self._owned():
            self._lost = True
            self._page.renew(0)
            return False
        self._page.renew(before + self._lease_ns)
        return True

    async def run(self) -> None:
        """Renew until cancelled or until ownership is lost, which is when this returns."""
        while True:
            self._moved.clear()
            if not self.renew():
                break
            with contextlib.suppress(TimeoutError):
                # Not wait_for: up to Python 3.11 it overlooks a cancellation at the moment of a change.
                async with asyncio.timeout(self._every):
                    await self._moved.wait()
        _log.error("the data directory is no longer ours; the lease is not renewed")
