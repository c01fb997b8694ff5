"""How many events of one kind are recorded: so many for each sweep, and a little saved up.

Anybody can send refusals without end, and the audit log is kept: the bounds below hold for whatever records them, the
workers together and the control API (docs/threat-model.md §8).
"""

from __future__ import annotations

from typing import Final

SWEEP_SECONDS: Final = 0.5
STRANGERS: Final = 5
"""Refusals for each sweep that no proven token stands behind."""
STRANGERS_BURST: Final = 20
"""How many of these where it was quiet before."""
REFUSALS: Final = 40
"""Refusals of proven tokens for each sweep."""


class EventQuota:
    """So many a sweep, and what was not used up to ``most``, which is one at least."""

    __slots__ = ("_left", "_more", "_most")

    def __init__(self, more: float, most: float) -> None:
        self._more = more
        self._most = self._left = max(1.0, most)

    def take(self) -> bool:
        """Use one up, if one is left."""
        if self._left >= 1:
            self._left -= 1
            return True
        return False

    def share(self, more: float, most: float) -> None:
        """Give so many from now on."""
        self._more, self._most = more, max(1.0, most)

    def renew(self, sweeps: float = 1.0) -> None:
        """Add what so many sweeps give."""
        self._left = min(self._most, self._left + self._more * sweeps)


class TimedEventQuota:
    """The same where no sweep comes by: the monotonic seconds that have passed are counted in sweeps."""

    __slots__ = ("_allowance", "_at")

    def __init__(self, more: float, most: float, now: float) -> None:
        self._allowance = EventQuota(more, most)
        self._at = now

    def take(self, now: float) -> bool:
        """Use one up, if one is left at ``now``."""
        self._allowance.renew(max(0.0, now - self._at) / SWEEP_SECONDS)
        self._at = now
        return self._allowance.take()
