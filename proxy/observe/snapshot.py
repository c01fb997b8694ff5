"""Snapshots of one process's metrics, as a value and as the JSON of the worker link.

The JSON form, with names, label order and buckets from ``metrics.py``:

    {"counters":   {name: [[[label value, …], total], …]},
     "histograms": {name: [[[label value, …], [count per bucket, …, count above all], sum in seconds], …]},
     "gauges":     {name: [[[label value, …], value], …]}}

Bucket counts are not cumulative. Counters and histograms are totals since the process started.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from proxy.observe.metrics import BY_NAME, Merge, Metric, MetricKind

Labels = tuple[str, ...]
_COMBINE: Final[Mapping[Merge, Callable[[float, float], float]]] = {
    Merge.SUM: operator.add,
    Merge.MAX: max,
    Merge.MIN: min,
}


class SnapshotError(ValueError):
    """A snapshot does not have the documented form; the message names the metric."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """One histogram series: ``counts`` has a number for each bucket and, last, for values above all of them."""

    counts: tuple[int, ...]
    sum: float

    def plus(self, other: Tally) -> Tally:
        """The sum of both series."""
        return Tally(
            counts=tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)), sum=self.sum + other.sum
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """Series by metric name and then by label values, in the order of the metric's labels."""

    counters: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)
    histograms: Mapping[str, Mapping[Labels, Tally]] = field(default_factory=dict)
    gauges: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)

    def to_wire(self) -> dict[str, object]:
        """The JSON form."""
        return {
            "counters": {n: [[list(k), v] for k, v in s.items()] for n, s in self.counters.items()},
            "histograms": {
                n: [[list(k), list(t.counts), t.sum] for k, t in s.items()] for n, s in self.histograms.items()
            },
            "gauges": {n: [[list(k), v] for k, v in s.items()] for n, s in self.gauges.items()},
        }

    def gauge(self, metric: Metric) -> float | None:
        """The value of a gauge without labels, or None if it was not reported."""
        return self.gauges.get(metric.name, {}).get(())

    def totals(self) -> Snapshot:
        """The snapshot without gauges, which mean nothing after the process has ended."""
        return Snapshot(counters=self.counters, histograms=self.histograms)


def from_wire(document: object) -> Snapshot:
    """Parse the JSON form. Raises SnapshotError if any part of it is malformed."""
    if not isinstance(document, dict):
        raise SnapshotError("A snapshot is not an object.")
    known = {"counters", "histograms", "gauges"}
    if not document.keys() <= known:
        raise SnapshotError("A snapshot has a member that is not counters, histograms or gauges.")
    return Snapshot(
        counters=_numbers(document.get("counters", {}), MetricKind.COUNTER),
        histograms=_tallies(document.get("histograms", {})),
        gauges=_numbers(document.get("gauges", {}), MetricKind.GAUGE),
    )


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """The sum of snapshots; gauges are combined as their metric's ``merge`` says."""
    counters: dict[str, dict[Labels, float]] = {}
    tallies: dict[str, dict[Labels, Tally]] = {}
    gauges: dict[str, dict[Labels, float]] = {}
    for snapshot in snapshots:
        for name, series in snapshot.counters.items():
            into = counters.setdefault(name, {})
            for labels, value in series.items():
                into[labels] = into.get(labels, 0) + value
        for name, spread in snapshot.histograms.items():
            target = tallies.setdefault(name, {})
            for labels, tally in spread.items():
                before = target.get(labels)
                target[labels] = tally if before is None else before.plus(tally)
        for name, series in snapshot.gauges.items():
            combine = _COMBINE[BY_NAME[name].merge]
            into = gauges.setdefault(name, {})
            for labels, value in series.items():
                previous = into.get(labels)
                into[labels] = value if previous is None else combine(previous, value)
    return Snapshot(counters=counters, histograms=tallies, gauges=gauges)


def _series(section: object, kind: MetricKind) -> Iterable[tuple[Metric, list[object]]]:
    if not isinstance(section, dict):
        raise SnapshotError(f"The {kind} section of a snapshot is not an object.")
    for name, series in section.items():
        metric = BY_NAME.get(name)
        if metric is None or metric.kind is not kind:
            raise SnapshotError(f"A snapshot has an unknown {kind}.")
        if not isinstance(series, list):
            raise SnapshotError(f"The snapshot of {metric.name} is not a list of series.")
        yield metric, series


def _labels(metric: Metric, value: object) -> Labels:
    if not isinstance(value, list) or len(value) != len(metric.labels) or not all(isinstance(v, str) for v in value):
        raise SnapshotError(f"A series of {metric.name} does not have {len(metric.labels)} label values.")
    return tuple(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def _numbers(section: object, kind: MetricKind) -> dict[str, dict[Labels, float]]:
    out: dict[str, dict[Labels, float]] = {}
    for metric, series in _series(section, kind):
        into = out.setdefault(metric.name, {})
        for item in series:
            if not isinstance(item, list) or len(item) != 2 or not _is_number(item[1]):
                raise SnapshotError(f"A series of {metric.name} is not a pair of labels and a number.")
            if kind is MetricKind.COUNTER and item[1] < 0:
                raise SnapshotError(f"A series of {metric.name} is negative.")
            into[_labels(metric, item[0])] = item[1]
    return out


def _tallies(section: object) -> dict[str, dict[Labels, Tally]]:
    out: dict[str, dict[Labels, Tally]] = {}
    for metric, series in _series(section, MetricKind.HISTOGRAM):
        into = out.setdefault(metric.name, {})
        for item in series:
            if not isinstance(item, list) or len(item) != 3 or not isinstance(item[1], list) or not _is_number(item[2]):
                raise SnapshotError(f"A series of {metric.name} is not labels, bucket counts and a sum.")
            counts = item[1]
            whole = all(isinstance(c, int) and not isinstance(c, bool) and c >= 0 for c in counts)
            if len(counts) != len(metric.buckets) + 1 or not whole:
                raise SnapshotError(f"A series of {metric.name} does not have {len(metric.buckets) + 1} bucket counts.")
            into[_labels(metric, item[0])] = Tally(counts=tuple(counts), sum=float(item[2]))
    return out
