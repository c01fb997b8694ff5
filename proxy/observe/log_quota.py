"""How many bytes of the log each kind of line may take.

A client can cause some lines as often as it likes, and a defect can cause a line for every request. Rules:

1. A kind is a logger and an event or, in a library, the place in its code that logs. There are at most ``MOST_KINDS``;
   all further ones share one allowance.
2. Each kind has an allowance that refills within a minute, and so has the whole process: ``Room.left_out``.
3. A line that finds no room is counted and not made. The next line of its kind says how many there were.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Final

KIND_BYTES: Final = 64 * 1024
"""Bytes that one kind of line may take at once, and again in each minute that follows; workers share them."""
LEAST_KIND_BYTES: Final = 4 * 1024
KINDS_AT_ONCE: Final = 4
"""How many kinds may use up their allowance before the whole process has used up its own."""
MOST_KINDS: Final = 256
_REFILL_SECONDS: Final = 60.0
_OTHER: Final = "other kinds"


class _Allowance:
    """Bytes that may be written, and the lines that were left out for want of them."""

    __slots__ = ("_at", "_bytes", "left", "left_out")

    def __init__(self, size: int, now: float) -> None:
        self._bytes = size
        self._at = now
        self.left = float(size)
        self.left_out = 0

    def refill(self, now: float) -> None:
        """Add what the time since the last call has earned."""
        self.left = min(self._bytes, self.left + (now - self._at) * self._bytes / _REFILL_SECONDS)
        self._at = now


class LogQuota:
    """The allowances of one process, which is one of ``processes`` that share them."""

    def __init__(self, processes: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kind_bytes = max(LEAST_KIND_BYTES, KIND_BYTES // processes)
        self._all = _Allowance(KINDS_AT_ONCE * self._kind_bytes, clock())
        self._kinds: dict[Hashable, _Allowance] = {}

    def has(self, kind: Hashable) -> bool:
        """Whether a line of this kind may be written now; if not, it is counted as left out.

        The last line that finds any room is written whole.
        """
        now = self._clock()
        allowance = self._of(kind, now)
        allowance.refill(now)
        self._all.refill(now)
        if allowance.left > 0 and self._all.left > 0:
            return True
        allowance.left_out += 1
        return False

    def left_out(self, kind: Hashable) -> int:
        """How many lines of this kind were left out since this was last asked."""
        allowance = self._of(kind, self._clock())
        count, allowance.left_out = allowance.left_out, 0
        return count

    def all_left_out(self) -> int:
        """How many lines of any kind were left out and not said yet."""
        count = 0
        for allowance in self._kinds.values():
            count += allowance.left_out
            allowance.left_out = 0
        return count

    def take(self, kind: Hashable, size: int) -> None:
        """A line of this kind and ``size`` is written."""
        self._of(kind, self._clock()).left -= size
        self._all.left -= size

    def _of(self, kind: Hashable, now: float) -> _Allowance:
        found = self._kinds.get(kind)
        if found is None:
            if len(self._kinds) >= MOST_KINDS:
                kind = _OTHER
            found = self._kinds.setdefault(kind, _Allowance(self._kind_bytes, now))
        return found
