"""Draws faults from a seed, begins and ends them, and keeps the nodes running that should run."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final

from tests.nemesis.faults import Fault, Maker
from tests.nemesis.node import Node

TICK_SECONDS: Final = 0.02
USUAL: Final = 4
_WEIGHTS: Final = {
    # What strikes every node leaves little to see meanwhile.
    "restart immediate": 1,
    "freeze database": 1,
    "terminate backends": 2,
    "proxy doubt on": 6,
    "proxy lose on": 2,
}
RESTART_SECONDS: Final = 1.0
"""After how long a node that has ended by itself is started again, as a service manager does."""


class Nemesis:
    """A thread that causes faults until the block is left; then it ends all of them.

    It begins with one fault of each kind, in random order, and draws by ``_WEIGHTS`` afterwards. ``at_once`` faults of
    different targets overlap, and ``gap`` are the least and most seconds between two beginnings.
    """

    def __init__(
        self,
        makers: Mapping[str, Maker],
        nodes: Sequence[Node],
        *,
        seed: int,
        at_once: int = 2,
        gap: tuple[float, float] = (0.3, 2.0),
    ) -> None:
        self._makers = dict(makers)
        self._nodes = nodes
        self._random = random.Random(seed)
        self._at_once = at_once
        self._gap = gap
        self._active: list[tuple[float, Fault]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nemesis", daemon=True)
        self._failed: BaseException | None = None
        self.serving = len(nodes)
        """How many nodes serve now, as the run reports it."""
        self._ended: dict[int, float] = {}
        self.counts: Counter[str] = Counter()
        self.log: list[tuple[int, int, str]] = []
        """Begin and end (ns of CLOCK_MONOTONIC) of each fault, and its words."""
        self._begun: dict[int, int] = {}
        self._first = list(self._makers)
        self._random.shuffle(self._first)

    def __enter__(self) -> Nemesis:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        while self._active:
            self._end(self._active.pop()[1])
        for node in self._nodes:
            self._keep(node, at_once=True)
        if self._failed is not None and error is None:
            raise self._failed

    def check(self) -> None:
        """Raise what the nemesis itself failed with."""
        if self._failed is not None:
            raise self._failed

    def failed(self) -> bool:
        return self._failed is not None

    @property
    def all_kinds_seen(self) -> bool:
        return set(self._makers) <= set(self.counts)

    def _run(self) -> None:
        following = time.monotonic() + self._gap[0]
        try:
            while not self._stopping.wait(TICK_SECONDS):
                now = time.monotonic()
                for entry in [entry for entry in self._active if entry[0] <= now]:
                    self._active.remove(entry)
                    self._end(entry[1])
                for node in self._nodes:
                    self._keep(node)
                if now >= following and self._may_begin and self._begin():
                    following = time.monotonic() + self._random.uniform(*self._gap)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            self._failed = error

    @property
    def _may_begin(self) -> bool:
        """Not while fewer than half of the nodes serve: on a slow machine they would never recover."""
        return bool(self._makers) and len(self._active) < self._at_once and self.serving * 2 >= len(self._nodes)

    def _begin(self) -> bool:
        """Begin the next fault, unless its target has one."""
        kind = self._first[-1] if self._first else self._drawn()
        fault = self._makers[kind](self._random)
        if fault.target in {active.target for _, active in self._active}:
            if self._first:
                self._random.shuffle(self._first)
            return False
        if self._first:
            self._first.pop()
        self.counts[kind] += 1
        self._begun[id(fault)] = time.monotonic_ns()
        fault.begin()
        self._active.append((time.monotonic() + fault.seconds, fault))
        return True

    def _drawn(self) -> str:
        kinds = list(self._makers)
        return self._random.choices(kinds, [_WEIGHTS.get(kind, USUAL) for kind in kinds])[0]

    def _end(self, fault: Fault) -> None:
        fault.end()
        self.log.append((self._begun.pop(id(fault)), time.monotonic_ns(), str(fault)))

    def _keep(self, node: Node, *, at_once: bool = False) -> None:
        """Start a node again that has ended by itself, such as one that had no store for too long."""
        if not node.ended():
            self._ended.pop(node.number, None)
            return
        since = self._ended.setdefault(node.number, time.monotonic())
        if at_once or time.monotonic() - since > RESTART_SECONDS:
            node.restarts += 1
            node.launch()
