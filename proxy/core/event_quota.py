"""Quotas for audit events of one kind: a rate for each sweep and a small burst.

Anyone can send refused requests without end, and the audit log is kept. ``STRANGERS`` holds for all gateway workers
together and ``REFUSALS`` for each worker; both hold for the control API again (docs/threat-model.md §8).
"""

from __future__ import annotations

from typing import Final

SWEEP_SECONDS: Final = 0.5
STRANGERS: Final = 5
"""Recorded refusals of requests without a verified token, for each sweep."""
STRANGERS_BURST: Final = 20
"""Most of these at once, after a quiet time."""
REFUSALS: Final = 40
"""Recorded refusals of requests with a verified token, for each sweep."""


class EventQuota:
    """Allows ``rate`` events a sweep and saves unused ones up to ``burst``, which is at least 1."""

    __slots__ = ("_burst", "_left", "_rate")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = self._left = max(1.0, burst)

    def take(self) -> bool:
        """Use one event of the quota; false if none is left."""
        if self._left >= 1:
            self._left -= 1
            return True
        return False

    def share(self, rate: float, burst: float) -> None:
        """Set another rate and burst; what is left now stays."""
        self._rate, self._burst = rate, max(1.0, burst)

    def renew(self, sweeps: float = 1.0) -> None:
        """Add the events of this many sweeps."""
        self._left = min(self._burst, self._left + self._rate * sweeps)


class TimedEventQuota:
    """An ``EventQuota`` without a sweep: it converts the monotonic seconds that have passed to sweeps."""

    __slots__ = ("_at", "_quota")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._quota = EventQuota(rate, burst)
        self._at = now

    def take(self, now: float) -> bool:
        """Use one event of the quota; false if none is left at ``now``."""
        self._quota.renew(max(0.0, now - self._at) / SWEEP_SECONDS)
        self._at = now
        return self._quota.take()
