"""Quotas for log lines: limits the bytes that each kind of line may write.

A client can cause some lines as often as it likes, and a defect can cause a line for every request. Rules:

1. A kind is a logger and an event or, for a library, the place in its code that logs. There are at most ``MOST_KINDS``;
   all further ones share one quota.
2. Each kind has a quota that refills within a minute, and so has the whole process.
3. A line over its quota is counted and not made (``LogQuota.left_out``). The next line of its kind has the count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Final

KIND_BYTES: Final = 64 * 1024
"""Bytes that one kind of line may write at once, and again in each following minute; workers share them."""
LEAST_KIND_BYTES: Final = 4 * 1024
KINDS_AT_ONCE: Final = 4
"""How many kinds can use up their quotas before the quota of the whole process is used up."""
MOST_KINDS: Final = 256
REFILL_SECONDS: Final = 60.0
_OTHER: Final = "other kinds"


class _KindQuota:
    """The bytes that are left of a quota, and the number of lines left out because of it."""

    __slots__ = ("_at", "_bytes", "left", "left_out")

    def __init__(self, size: int, now: float) -> None:
        self._bytes = size
        self._at = now
        self.left = float(size)
        self.left_out = 0

    def refill(self, now: float) -> None:
        """Add the bytes for the time since the last call."""
        self.left = min(self._bytes, self.left + (now - self._at) * self._bytes / REFILL_SECONDS)
        self._at = now


class LogQuota:
    """The quotas of one process, which are its part of quotas for ``processes``."""

    def __init__(self, processes: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kind_bytes = max(LEAST_KIND_BYTES, KIND_BYTES // processes)
        self._all = _KindQuota(KINDS_AT_ONCE * self._kind_bytes, clock())
        self._kinds: dict[Hashable, _KindQuota] = {}

    def has_room(self, kind: Hashable) -> bool:
        """Whether a line of this kind may be written now; if not, counts it as left out.

        A line may exceed what is left, so that it is never cut.
        """
        now = self._clock()
        quota = self._of(kind, now)
        quota.refill(now)
        self._all.refill(now)
        if quota.left > 0 and self._all.left > 0:
            return True
        quota.left_out += 1
        return False

    def left_out(self, kind: Hashable) -> int:
        """The number of lines of this kind left out since the last call."""
        quota = self._of(kind, self._clock())
        count, quota.left_out = quota.left_out, 0
        return count

    def all_left_out(self) -> int:
        """The number of lines of all kinds left out and not reported yet."""
        count = 0
        for quota in self._kinds.values():
            count += quota.left_out
            quota.left_out = 0
        return count

    def take(self, kind: Hashable, size: int) -> None:
        """Count a written line of this kind and of ``size`` bytes."""
        self._of(kind, self._clock()).left -= size
        self._all.left -= size

    def _of(self, kind: Hashable, now: float) -> _KindQuota:
        quota = self._kinds.get(kind)
        if quota is None:
            if len(self._kinds) >= MOST_KINDS:
                kind = _OTHER
            quota = self._kinds.setdefault(kind, _KindQuota(self._kind_bytes, now))
        return quota
