"""The clock by which a worker judges whether a token has expired: not behind the clock of the store.

The authority measures how far the clock of a shared store is ahead of this host's and writes it to the shared page
(``core.ipc.shared_memory``), and the worker reads it there at every sweep. A host whose clock is slow, or was put back,
accepts no token longer than the other nodes do.
"""

from __future__ import annotations

from typing import Final


class ExpiryClock:
    """What to add to the wall clock, in seconds; never negative."""

    def __init__(self) -> None:
        self.ahead = 0.0


EXPIRY_CLOCK: Final = ExpiryClock()
"""Of this process: every decision adds ``ahead`` to ``time.time()``. It is one, because a host has one page."""
