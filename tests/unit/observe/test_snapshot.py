"""Snapshots survive the worker link, can be merged, and are refused if malformed."""

from __future__ import annotations

import json

import pytest

from proxy.observe import metrics
from proxy.observe.snapshot import Snapshot, SnapshotError, Tally, from_wire, merge

BUCKETS = len(metrics.SECONDS) + 1


def _snapshot(requests: int, entries: int, lag: int) -> Snapshot:
    return Snapshot(
        counters={metrics.REQUESTS.name: {("/a", "allowed", "allowed"): requests}},
        histograms={metrics.REQUEST_SECONDS.name: {("/a",): Tally(counts=(requests,) + (0,) * (BUCKETS - 1), sum=0.5)}},
        gauges={metrics.CACHE_ENTRIES.name: {(): entries}, metrics.EPOCH_LAG.name: {(): lag}},
    )


def test_the_wire_format_keeps_a_snapshot_unchanged() -> None:
    snapshot = _snapshot(3, 4, 5)
    assert from_wire(json.loads(json.dumps(snapshot.to_wire()))) == snapshot


def test_merging_sums_counts_and_takes_the_largest_lag() -> None:
    total = merge([_snapshot(3, 10, 2), _snapshot(4, 20, 7)])
    assert total.counters[metrics.REQUESTS.name] == {("/a", "allowed", "allowed"): 7}
    assert total.histograms[metrics.REQUEST_SECONDS.name][("/a",)] == Tally(counts=(7,) + (0,) * (BUCKETS - 1), sum=1.0)
    assert total.gauge(metrics.CACHE_ENTRIES) == 30
    assert total.gauge(metrics.EPOCH_LAG) == 7


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {"other": {}},
        {"counters": []},
        {"counters": {"patgate_nothing_total": []}},
        {"counters": {"patgate_cache_entries": []}},
        {"counters": {"patgate_cache_hits_total": {}}},
        {"counters": {"patgate_cache_hits_total": [[[], -1]]}},
        {"counters": {"patgate_cache_hits_total": [[[], True]]}},
        {"counters": {"patgate_cache_hits_total": [[[], float("nan")]]}},
        {"counters": {"patgate_cache_hits_total": [[["extra"], 1]]}},
        {"counters": {"patgate_cache_hits_total": [[[]]]}},
        {"counters": {"patgate_requests_total": [[["/a", "allowed", 1], 1]]}},
        {"histograms": {"patgate_request_seconds": [[["/a"], [1, 2], 0.1]]}},
        {"histograms": {"patgate_request_seconds": [[["/a"], [-1] * BUCKETS, 0.1]]}},
        {"histograms": {"patgate_request_seconds": [[["/a"], [1] * BUCKETS]]}},
    ],
)
def test_a_malformed_snapshot_is_refused_whole(document: object) -> None:
    with pytest.raises(SnapshotError):
        from_wire(document)
