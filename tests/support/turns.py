"""Whose turn it is, where the workers of one run share the machine: a test marked ``alone`` runs while no other does.

It holds the product to a promise about time, which another test's work on the same two cores would break.

1. Every test holds the floor: together with others, or by itself where it is marked.
2. The way to the floor leads through a gate, which one that waits for the floor keeps shut: or the others, coming and
   going, would never all be gone.
3. A worker whose next test is marked too stays on the floor, so that everybody waits once for a row of them.
4. The locks are the kernel's: a worker that dies holds none.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

MARK = "alone"


class Turns:
    """One worker's side of the locks, which are two files of ``directory``, the same for every worker of a run."""

    def __init__(self, directory: Path) -> None:
        self._gate, self._floor = (os.open(directory / name, os.O_RDWR | os.O_CREAT) for name in ("gate", "floor"))
        self._stays = False

    def take(self, *, alone: bool) -> None:
        """Wait for the floor."""
        if self._stays:
            return
        fcntl.flock(self._gate, fcntl.LOCK_EX)
        fcntl.flock(self._floor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(self._gate, fcntl.LOCK_UN)

    def leave(self, *, stays: bool) -> None:
        """Leave the floor, unless this worker's next test needs it alone as this one did."""
        self._stays = stays
        if not stays:
            fcntl.flock(self._floor, fcntl.LOCK_UN)
