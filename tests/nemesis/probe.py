"""How late this machine runs a thread that is due: what a time limit must not be blamed for."""

from __future__ import annotations

import threading
import time
from array import array
from types import TracebackType
from typing import Final

from tests.nemesis.verdict import percentile

PERIOD_SECONDS: Final = 0.001
USUAL_SECONDS: Final = 0.001
"""A thread that is at most so late counts as in time: timers and a wake-up cost this much on an idle machine."""


class Lateness:
    """A thread that sleeps for a millisecond again and again, and notes how late it wakes; ``with`` runs it.

    It is a thread of the tests' process, which itself only waits: nothing but the machine delays it.
    """

    def __init__(self) -> None:
        self._woken = array("d")
        self._late = array("d")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lateness", daemon=True)

    def __enter__(self) -> Lateness:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            due = time.monotonic() + PERIOD_SECONDS
            time.sleep(PERIOD_SECONDS)
            self.note(due=due, woken=time.monotonic())

    def note(self, *, due: float, woken: float) -> None:
        """Note one wake-up (monotonic seconds)."""
        # In this order: a reader sees no time without its lateness.
        self._late.append(woken - due)
        self._woken.append(woken)

    @property
    def count(self) -> int:
        """How many wake-ups there were."""
        return len(self._woken)

    def withheld(self, begin: float, end: float) -> float:
        """The seconds of this interval (monotonic) in which the thread was due and did not run."""
        return sum(
            late
            for woken, late in zip(list(self._woken), list(self._late), strict=False)
            if late > USUAL_SECONDS and begin <= woken <= end
        )

    def percentile(self, share: float) -> float:
        """The lateness in seconds that this share of the wake-ups did not exceed."""
        return percentile(sorted(self._late), share)

    def __str__(self) -> str:
        shares = ", ".join(f"p{share * 100:g} {self.percentile(share) * 1e3:.2f} ms" for share in (0.5, 0.99, 0.999))
        return f"a sleeping thread woke late by {shares}, at most {max(self._late, default=0.0) * 1e3:.1f} ms"
