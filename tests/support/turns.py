"""Locks between the workers of one run on one machine: a test marked ``alone`` runs while no other test does.

Such a test checks that the product keeps a time limit, which another test's work on the same two cores would break.

1. Every test holds the floor lock: shared with others, or exclusively if it is marked.
2. Taking the floor requires the gate lock, which a worker that waits for the floor keeps: otherwise other tests would
   come and go and the floor would never be free.
3. A worker whose next test is marked too keeps the floor, so that the others wait only once for a row of them.
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
        """Wait for the floor lock."""
        if self._stays:
            return
        fcntl.flock(self._gate, fcntl.LOCK_EX)
        fcntl.flock(self._floor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(self._gate, fcntl.LOCK_UN)

    def leave(self, *, stays: bool) -> None:
        """Release the floor lock, unless both this test and the worker's next one need it alone."""
        self._stays = stays
        if not stays:
            fcntl.flock(self._floor, fcntl.LOCK_UN)
