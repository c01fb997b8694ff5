"""Metrics aggregation: sums the workers' snapshots so that totals never decrease while the authority runs.

Rules:
1. A worker is identified by its slot and process id; its link may break and return without counting its totals twice.
2. When a link ends, the totals of its last snapshot stay and its gauges are dropped.
3. A snapshot with lower totals than the one before it, under the same key, comes from another process (a reused process
   id): the former totals are kept beside it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from proxy.observe.metrics import Metric
from proxy.observe.snapshot import Labels, Snapshot, merge

ENDED_KEPT: Final = 64
"""Ended processes whose totals are kept apart in case their link returns; older ones are merged into one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerKey:
    """One worker process: the supervisor's slot number and the process id."""

    worker: int
    pid: int


class Counters:
    """The last snapshot of each linked worker, the totals of ended ones, and the authority's own counts."""

    def __init__(self) -> None:
        self._living: dict[WorkerKey, Snapshot] = {}
        self._ended: dict[WorkerKey, Snapshot] = {}
        self._retired = Snapshot()
        self._own: dict[str, Counter[Labels]] = {}

    def count(self, metric: Metric, *labels: str, by: int = 1) -> None:
        """Add to one of the authority's own counters."""
        self._own.setdefault(metric.name, Counter())[labels] += by

    def update(self, key: WorkerKey, snapshot: Snapshot) -> None:
        """Take a worker's snapshot."""
        before = self._living.get(key) or self._ended.pop(key, None)
        if before is not None and _went_back(before, snapshot):
            self._retired = merge((self._retired, before.totals()))
        self._living[key] = snapshot

    def retire(self, key: WorkerKey) -> None:
        """Keep only the totals of a worker whose link has ended; does nothing if it never sent a snapshot."""
        last = self._living.pop(key, None)
        if last is None:
            return
        self._ended[key] = last.totals()
        while len(self._ended) > ENDED_KEPT:
            oldest = next(iter(self._ended))
            self._retired = merge((self._retired, self._ended.pop(oldest)))

    def last(self, key: WorkerKey) -> Snapshot | None:
        """The last snapshot of a linked worker, if it has sent one."""
        return self._living.get(key)

    def total(self) -> Snapshot:
        """The sum of all counts of this host."""
        own = Snapshot(counters={name: dict(series) for name, series in self._own.items()})
        return merge((own, self._retired, *self._ended.values(), *self._living.values()))


def _went_back(before: Snapshot, after: Snapshot) -> bool:
    for name, series in before.counters.items():
        now = after.counters.get(name, {})
        if any(now.get(labels, 0) < value for labels, value in series.items()):
            return True
    for name, spread in before.histograms.items():
        tallies = after.histograms.get(name, {})
        for labels, tally in spread.items():
            current = tallies.get(labels)
            if current is None or sum(current.counts) < sum(tally.counts):
                return True
    return False
