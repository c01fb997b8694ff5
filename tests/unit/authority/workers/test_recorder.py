"""Workers' reports are queued with a bound, written in batches, and retried while the store cannot be used."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from proxy.authority.workers import recorder as module
from proxy.authority.workers.metrics_aggregator import Counters
from proxy.authority.workers.recorder import BATCH, RequestRecorder
from proxy.core.errors import Conflict, StoreUnavailable
from proxy.observe import metrics
from proxy.store.audit.reports import Report
from proxy.store.audit.request_events import RequestEvent
from proxy.store.tokens.usage import Use
from proxy.store.upkeep.batches import Batch
from tests.unit.authority.memory import MemoryRequests
from tests.unit.authority.waiting import until

DOWN = StoreUnavailable("the store cannot be used now because its disk is full")


class World:
    def __init__(self, *, seconds: float = 0.01, events_at_once: int = BATCH) -> None:
        self.store = MemoryRequests()
        self.counters = Counters()
        self.recorder = RequestRecorder(
            self.store,
            self.counters,
            clock=lambda: 99.0,
            events_seconds=seconds,
            sums_seconds=seconds,
            events_at_once=events_at_once,
        )

    def counted(self, metric: metrics.Metric, *labels: str) -> float:
        return self.counters.total().counters.get(metric.name, {}).get(labels, 0)

    @property
    def written(self) -> list[RequestEvent]:
        return [event for batch in self.store.events for event in batch]


@asynccontextmanager
async def world(*, seconds: float = 0.01, events_at_once: int = BATCH) -> AsyncIterator[World]:
    found = World(seconds=seconds, events_at_once=events_at_once)
    found.recorder.start()
    try:
        yield found
    finally:
        await found.recorder.close()


def row(decision: str = "d1", **changes: Any) -> dict[str, Any]:
    plain = {
        "at": 12.5,
        "prefix": "acme_pat_aaaaaaaaaaaa",
        "proven": True,
        "action": "request.create",
        "target": "things/1",
        "route": "/v1/{entity}/{id}",
        "org": "",
        "outcome": "refused",
        "reason": "role_denies",
        "address": "127.0.0.1",
        "decision": decision,
        "method": "POST",
        "host": "",
        "path": "/v1/things/1",
        "status": 403,
    }
    return plain | changes


def rows(count: int) -> list[dict[str, Any]]:
    return [row(f"d{number}") for number in range(count)]


def report(count: int = 1, permission: str = "things:read", at: float = 5.0) -> list[Any]:
    return ["/v1/{entity}", "role_denies", permission, "a" * 12, count, at, at, "GET", f"d{count}"]


async def test_events_are_written_unchanged_in_order() -> None:
    async with world() as w:
        w.recorder.take({"op": "requests", "events": rows(3), "omitted": 0})
        await until(lambda: len(w.written) == 3)
        assert [event.event.decision_id for event in w.written] == ["d0", "d1", "d2"]
        first = w.written[0]
        assert (first.at, first.prefix, first.proven) == (12.5, "acme_pat_aaaaaaaaaaaa", True)
        assert first.event.request_id == "d0"
        assert first.event.details == {"method": "POST", "path": "/v1/things/1", "status": 403}


async def test_a_full_batch_is_written_at_once() -> None:
    async with world(seconds=3600.0) as w:
        w.recorder.take({"op": "requests", "events": rows(BATCH + 1)})
        await until(lambda: len(w.written) == BATCH + 1)
        assert [len(batch) for batch in w.store.events] == [BATCH, 1]


async def test_uses_and_reports_are_summed_and_written_as_one() -> None:
    async with world(seconds=3600.0) as w:
        for at, ip in ((5.0, "::1"), (9.0, "::2"), (7.0, "::3")):
            w.recorder.take({"op": "uses", "uses": [["a" * 12, 2, at, ip]]})
        w.recorder.take({"op": "reports", "reports": [report(1), report(2, at=8.0), report(4, "things:list")]})
        assert w.recorder.waiting == 3
    ((use,),) = w.store.uses
    assert (use.count, use.at, use.ip) == (6, 9.0, "::2")
    ((both, other),) = w.store.reports
    assert (both.count, both.first_at, both.last_at, both.decision_id, other.count) == (3, 5.0, 8.0, "d2", 4)


async def test_a_transaction_has_at_most_one_batch() -> None:
    async with world(seconds=3600.0) as w:
        uses = [[f"{number:012d}", 1, 1.0, "::1"] for number in range(2 * BATCH + 1)]
        w.recorder.take({"op": "uses", "uses": uses})
    assert [len(batch) for batch in w.store.uses] == [BATCH, BATCH, 1]


async def test_left_out_events_are_counted_and_recorded_by_one_event() -> None:
    async with world(seconds=3600.0) as w:
        w.recorder.take({"op": "requests", "events": rows(1), "omitted": 3})
        w.recorder.take({"op": "requests", "events": [], "omitted": 4})
    assert w.counted(metrics.AUDIT_OMITTED) == 7
    refused, omitted = w.written
    assert refused.event.action == "request.create"
    assert (omitted.event.action, omitted.event.details, omitted.at) == ("request.omitted", {"count": 7}, 99.0)


async def test_while_the_store_cannot_be_used_everything_is_queued_and_the_failure_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="patgate"):
        async with world() as w:
            w.store.failure = DOWN
            w.recorder.take({"op": "requests", "events": rows(2)})
            w.recorder.take({"op": "uses", "uses": [["a" * 12, 1, 1.0, "::1"]]})
            w.recorder.take({"op": "reports", "reports": [report()]})
            await until(lambda: w.store.tried >= 6)
            w.recorder.take({"op": "uses", "uses": [["a" * 12, 2, 3.0, "::2"]]})
            w.store.failure = None
            await until(lambda: w.recorder.waiting == 0)
            assert [event.event.decision_id for event in w.written] == ["d0", "d1"]
            assert len(set(w.store.batches)) == 1, "a retry is the same batch"
            ((first,), (second,)) = w.store.uses
            assert (first.count, first.ip, second.count, second.ip) == (1, "::1", 2, "::2"), "a failed one is kept"
            assert len(w.store.reports) == 1
            w.recorder.take({"op": "requests", "events": rows(1)})
            await until(lambda: len(w.written) == 3)
            assert len(set(w.store.batches)) == 2
    said = [record.message for record in caplog.records]
    assert said == [
        "events and usage of requests cannot be written yet",
        "events and usage of requests are written again",
    ]


async def test_a_queue_that_stays_full_does_not_cause_retries_without_a_pause() -> None:
    async with world(seconds=3600.0) as w:
        w.store.failure = DOWN
        w.recorder.take({"op": "requests", "events": rows(BATCH)})
        await until(lambda: w.store.tried == 1)
        for _ in range(20):
            w.recorder.take({"op": "requests", "events": rows(1)})
            await asyncio.sleep(0)
        assert w.store.tried == 1
        w.store.failure = None
    assert len(w.written) == BATCH + 20, "the queue is written at the end"


@pytest.mark.parametrize("failure", [Conflict("contradicted"), ValueError("a defect")])
async def test_a_batch_that_can_never_be_written_does_not_block_the_others(failure: Exception) -> None:
    async with world() as w:
        w.store.failure = failure
        w.recorder.take({"op": "requests", "events": rows(2)})
        await until(lambda: w.recorder.waiting == 0)
        w.store.failure = None
        w.recorder.take({"op": "requests", "events": rows(1)})
        await until(lambda: len(w.written) == 1)
        assert w.counted(metrics.AUDIT_LOST, "refused") == 2


async def test_beyond_the_bound_the_newest_events_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVENTS", 5)
    monkeypatch.setattr(module, "TOKENS", 2)
    monkeypatch.setattr(module, "REPORTS", 2)
    async with world(seconds=3600.0) as w:
        w.recorder.take({"op": "requests", "events": rows(8)})
        w.recorder.take({"op": "uses", "uses": [[f"{number:012d}", 1, 1.0, "::1"] for number in range(4)]})
        w.recorder.take({"op": "reports", "reports": [report(1, f"t{number}:read") for number in range(4)]})
        assert w.recorder.waiting == 5 + 2 + 3
    assert [event.event.decision_id for event in w.written] == ["d0", "d1", "d2", "d3", "d4"]
    assert w.counted(metrics.AUDIT_LOST, "overflow") == 3
    ((_, _, rest),) = w.store.reports
    assert (rest.route, rest.permission, rest.token_id, rest.count) == ("/v1/{entity}", "", "", 2), "none is lost"


@dataclass(kw_only=True)
class InDoubt(MemoryRequests):
    """A store that stores a batch once and then reports a failure: a commit whose answer was lost."""

    stored: set[Batch] = field(default_factory=set)

    async def append_requests(self, events: Sequence[RequestEvent], batch: Batch) -> None:
        if self._is_new(batch):
            self.events.append(list(events))
        await super()._try()

    async def add_uses(self, uses: Sequence[Use], batch: Batch) -> None:
        if self._is_new(batch):
            self.uses.append(list(uses))
        await super()._try()

    async def add_reports(self, reports: Sequence[Report], batch: Batch) -> None:
        if self._is_new(batch):
            self.reports.append(list(reports))
        await super()._try()

    def _is_new(self, batch: Batch) -> bool:
        new = batch not in self.stored
        self.stored.add(batch)
        return new


async def test_rows_after_a_batch_in_doubt_are_not_taken_for_a_part_of_it() -> None:
    async with world() as w:
        w.recorder._store = w.store = store = InDoubt(failure=DOWN)

        def take(event: dict[str, Any]) -> None:
            w.recorder.take({"op": "requests", "events": [event]})
            w.recorder.take({"op": "uses", "uses": [["a" * 12, 1, 1.0, "::1"]]})
            w.recorder.take({"op": "reports", "reports": [report(1)]})

        take(row("first"))
        await until(lambda: len(store.stored) == 3)
        take(row("later"))
        tried = store.tried
        await until(lambda: store.tried >= tried + 6)
        store.failure = None
        await until(lambda: w.recorder.waiting == 0)
        assert [event.event.decision_id for event in w.written] == ["first", "later"], "none twice, none lost"
        assert [use.count for batch in store.uses for use in batch] == [1, 1]
        assert [one.count for batch in store.reports for one in batch] == [1, 1]


async def test_a_batch_of_events_is_as_small_as_the_store_wants_it() -> None:
    async with world(seconds=3600.0, events_at_once=2) as w:
        w.recorder.take({"op": "requests", "events": rows(5)})
    assert [len(batch) for batch in w.store.events] == [2, 2, 1]


async def test_events_left_out_while_nothing_can_be_written_are_summed_and_not_queued() -> None:
    async with world() as w:
        w.store.failure = DOWN
        for _ in range(5):
            w.recorder.take({"op": "requests", "events": [], "omitted": 2})
            tried = w.store.tried
            await until(lambda tried=tried: w.store.tried > tried)  # type: ignore[misc]
        assert w.recorder.waiting == 1
        w.store.failure = None
        await until(lambda: len(w.written) == 2)
    assert sum(int(str(event.event.details["count"])) for event in w.written) == 10


async def test_a_store_that_never_answers_does_not_delay_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.05)

    class Stuck(MemoryRequests):
        async def _try(self) -> None:
            await asyncio.Event().wait()

    recorder = RequestRecorder(Stuck(), Counters())
    recorder.start()
    recorder.take({"op": "requests", "events": rows(1)})
    await recorder.close()
    assert recorder.waiting == 1
