"""A discrete-event simulation: a clock, stations that serve first come first served, and a disk that groups its syncs.

Everything is a callback, and equal seeds give equal runs. The stations are textbook ones, so that the tests can compare
them with closed forms (M/M/1, M/M/c, M/D/1).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush

Then = Callable[[], None]


class Simulator:
    """Runs callbacks in the order of their times (seconds)."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self._events: list[tuple[float, int, Then]] = []
        self._count = 0

    def after(self, seconds: float, then: Then) -> None:
        """Call ``then`` in ``seconds``."""
        self._count += 1
        heappush(self._events, (self.now + seconds, self._count, then))

    def run(self, until: float) -> None:
        """Call everything that is due by ``until``."""
        while self._events and self._events[0][0] <= until:
            self.now, _, then = heappop(self._events)
            then()
        self.now = until

    def varied(self, seconds: float, variability: float) -> float:
        """A time with this mean: fixed for ``variability`` 0, exponentially distributed for 1, between them a sum."""
        if not variability:
            return seconds
        return seconds * (1 - variability) + seconds * variability * self.random.expovariate(1.0)


class Station:
    """``servers`` servers with one queue, first come first served."""

    def __init__(self, simulator: Simulator, servers: int, *, variability: float) -> None:
        self._simulator = simulator
        self._free = servers
        self._servers = servers
        self._variability = variability
        self._waiting: deque[tuple[float, Then, Then | None]] = deque()
        self.busy_seconds = 0.0
        """Service given or begun, over all servers."""

    def serve(self, seconds: float, then: Then, began: Then | None = None) -> None:
        """Serve a job that takes ``seconds`` on average, and call ``then``; ``began`` is called when it is begun."""
        if self._free:
            self._free -= 1
            self._start(seconds, then, began)
        else:
            self._waiting.append((seconds, then, began))

    def utilisation(self, since: float, busy_before: float) -> float:
        """The share of all servers that was busy since then."""
        return (self.busy_seconds - busy_before) / (self._servers * (self._simulator.now - since))

    @property
    def waiting(self) -> int:
        """The number of jobs that no server has begun."""
        return len(self._waiting)

    def _start(self, seconds: float, then: Then, began: Then | None) -> None:
        if began is not None:
            began()
        taken = self._simulator.varied(seconds, self._variability)
        self.busy_seconds += taken

        def done() -> None:
            if self._waiting:
                self._start(*self._waiting.popleft())
            else:
                self._free += 1
            then()

        self._simulator.after(taken, done)


class Turns:
    """A lock whose holders take turns in the order of their asking."""

    def __init__(self) -> None:
        self._held = False
        self._waiting: deque[Then] = deque()

    def take(self, then: Then) -> None:
        """Call ``then`` when the lock is the caller's, who has to give it back."""
        if self._held:
            self._waiting.append(then)
        else:
            self._held = True
            then()

    def give_back(self) -> None:
        """Pass the lock to the next."""
        if self._waiting:
            self._waiting.popleft()()
        else:
            self._held = False


class Disk:
    """A log that is synced for all who wait: a sync that is under way is too early for those who come meanwhile."""

    def __init__(self, simulator: Simulator, seconds: float, *, variability: float) -> None:
        self._simulator = simulator
        self._seconds = seconds
        self._variability = variability
        self._waiting: list[Then] = []
        self._syncing = False
        self.syncs = 0

    def sync(self, then: Then) -> None:
        """Call ``then`` when what was written before now is on the disk."""
        self._waiting.append(then)
        if not self._syncing:
            self._start()

    def _start(self) -> None:
        self._syncing = True
        self.syncs += 1
        served, self._waiting = self._waiting, []

        def done() -> None:
            self._syncing = False
            if self._waiting:
                self._start()
            for then in served:
                then()

        self._simulator.after(self._simulator.varied(self._seconds, self._variability), done)
