"""Totals over all workers never decrease, whichever process dies."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.authority.workers.metrics_aggregator import ENDED_KEPT, Counters, WorkerKey
from proxy.observe import metrics
from proxy.observe.snapshot import Snapshot, Tally


def _snapshot(hits: int, entries: int = 0) -> Snapshot:
    counts = (hits, *(0 for _ in metrics.SECONDS))
    return Snapshot(
        counters={metrics.CACHE_HITS.name: {(): hits}},
        histograms={metrics.REQUEST_SECONDS.name: {("/a",): Tally(counts=counts, sum=float(hits))}},
        gauges={metrics.CACHE_ENTRIES.name: {(): entries}},
    )


def _hits(counters: Counters) -> float:
    return counters.total().counters.get(metrics.CACHE_HITS.name, {}).get((), 0)


def test_the_totals_of_an_ended_worker_stay_and_its_gauges_are_dropped() -> None:
    counters = Counters()
    counters.update(WorkerKey(worker=0, pid=1), _snapshot(5, entries=10))
    counters.update(WorkerKey(worker=1, pid=2), _snapshot(7, entries=20))
    counters.retire(WorkerKey(worker=0, pid=1))
    assert _hits(counters) == 12
    assert counters.total().gauge(metrics.CACHE_ENTRIES) == 20


def test_a_link_that_returns_does_not_count_twice() -> None:
    counters, key = Counters(), WorkerKey(worker=0, pid=1)
    counters.update(key, _snapshot(5))
    counters.retire(key)
    counters.update(key, _snapshot(6))
    assert _hits(counters) == 6


def test_a_new_process_with_the_same_process_id_counts_beside_the_old_one() -> None:
    counters, key = Counters(), WorkerKey(worker=0, pid=1)
    counters.update(key, _snapshot(5))
    counters.retire(key)
    counters.update(key, _snapshot(2))
    assert _hits(counters) == 7
    assert counters.total().histograms[metrics.REQUEST_SECONDS.name][("/a",)].counts[0] == 7


def test_ended_workers_take_bounded_memory() -> None:
    counters = Counters()
    for pid in range(3 * ENDED_KEPT):
        counters.update(WorkerKey(worker=0, pid=pid), _snapshot(1))
        counters.retire(WorkerKey(worker=0, pid=pid))
    assert _hits(counters) == 3 * ENDED_KEPT


def test_a_worker_that_never_reported_can_end() -> None:
    counters = Counters()
    counters.retire(WorkerKey(worker=0, pid=1))
    assert _hits(counters) == 0


def test_the_authoritys_own_counts_are_part_of_the_total() -> None:
    counters = Counters()
    counters.count(metrics.ARGON2, "matched")
    counters.count(metrics.ARGON2, "matched", by=2)
    assert counters.total().counters[metrics.ARGON2.name] == {("matched",): 3}


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["report", "break", "die"])), max_size=60))
def test_the_sum_is_monotonic_under_any_order_of_reports_breaks_and_deaths(steps: list[tuple[int, str]]) -> None:
    counters, pids, counts, before, truth = Counters(), [1, 2, 3], [0, 0, 0], 0.0, 0
    for worker, step in steps:
        key = WorkerKey(worker=worker, pid=pids[worker])
        if step == "report":
            counts[worker] += 1
            truth += 1
            counters.update(key, _snapshot(counts[worker]))
        else:
            counters.retire(key)
            if step == "die":
                pids[worker] += 10
                counts[worker] = 0
        assert _hits(counters) >= before
        before = _hits(counters)
    assert before == truth
