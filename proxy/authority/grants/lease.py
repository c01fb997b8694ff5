"""Lease renewal: how long workers may use their caches without a sign of the authority.

Every request checks the lease in ``gateway/phases/authenticate.py``.

Rules of this module:
1. A renewal reads the clock first, so that a slow renewal, or a process that is frozen during one, gives a shorter
   lease and never a longer one.
2. The clock is CLOCK_BOOTTIME, which all processes of the host share; steps of the wall clock have no effect.
3. Only the owner of the store renews. When ownership is lost, the lease ends at once and is never renewed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from proxy.authority.grants.page_writer import PageWriter
from proxy.core.ipc.clock import boottime_ns
from proxy.observe.logs import get_logger

RENEWALS_PER_LEASE: Final = 5

_log = get_logger("authority.lease")


class LeaseHolder(Protocol):
    """Holds the lease of this host: ``LeaseKeeper``, or ``consistency.membership`` with a store of several nodes."""

    async def start(self) -> None:
        """Take the first lease."""
        ...

    async def run(self) -> None:
        """Renew until cancelled; returns when ownership of the data directory is lost."""
        ...

    async def allow_lease(self, lease: float) -> None:
        """Let leases be ``lease`` seconds long. Raises StoreError."""
        ...

    def last(self, lease: float) -> None:
        """Change the length of the lease to ``lease`` seconds, which are allowed, and renew it at once."""
        ...

    def look(self) -> None:
        """Renew now instead of at the next interval."""
        ...

    def remaining(self) -> float:
        """Seconds until the lease runs out; 0 when it has."""
        ...

    def unready(self) -> Mapping[str, str]:
        """Why there is no lease, by check; empty where the lease itself says enough."""
        ...


class LeaseKeeper:
    """Renews a lease of ``lease`` seconds five times in that time, while ``owned`` returns that the store is ours."""

    def __init__(self, page: PageWriter, lease: float, *, owned: Callable[[], bool]) -> None:
        self._page = page
        self._lease_ns = int(lease * 1e9)
        self._every = lease / RENEWALS_PER_LEASE
        self._owned = owned
        self._lost = False
        self._wake = asyncio.Event()

    @property
    def lost(self) -> bool:
        """Whether ownership was lost; then the authority must end."""
        return self._lost

    async def start(self) -> None:
        """Take the first lease."""
        self.renew()

    async def allow_lease(self, lease: float) -> None:
        """Nobody else is concerned."""

    def unready(self) -> Mapping[str, str]:
        """The lease itself says enough."""
        return {}

    def last(self, lease: float) -> None:
        """Change the length of the lease to ``lease`` seconds, and renew it at once."""
        self._lease_ns = int(lease * 1e9)
        self._every = lease / RENEWALS_PER_LEASE
        # Do not wait for the former interval: a shorter lease may run out within it.
        self._wake.set()
        self.renew()

    def look(self) -> None:
        """Renew now instead of at the next interval, because the store may no longer be ours."""
        self._wake.set()

    def remaining(self) -> float:
        """Seconds until the lease runs out; 0 when it has."""
        return max(0.0, (self._page.lease_until_ns - boottime_ns()) / 1e9)

    def renew(self) -> bool:
        """Renew once; false when the store is no longer ours."""
        before = boottime_ns()
        if self._lost or not self._owned():
            self._lost = True
            self._page.renew(0)
            return False
        self._page.renew(before + self._lease_ns)
        return True

    async def run(self) -> None:
        """Renew until cancelled; returns when ownership is lost."""
        while True:
            self._wake.clear()
            if not self.renew():
                break
            with contextlib.suppress(TimeoutError):
                # Not wait_for: up to Python 3.11 it loses a cancellation that arrives together with the event.
                async with asyncio.timeout(self._every):
                    await self._wake.wait()
        _log.error("the data directory is no longer ours; the lease is not renewed")
