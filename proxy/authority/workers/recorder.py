"""Request recorder: queues audit events, token uses and report-only results, and writes them to the store in batches.

Rules of this module:
1. Rows from a worker are validated when they arrive (``report_parsing``); invalid ones are counted and dropped, and the
   link stays open.
2. Bounded: at most ``EVENTS`` events, ``TOKENS`` tokens and ``REPORTS`` reports wait. Beyond that, new events and
   tokens are dropped, and dropped events are counted; new reports are summed by route and reason alone.
3. One task writes, at most ``BATCH`` rows in a transaction, so that a change never waits for long; of events at most
   ``events_at_once``, because those of several nodes wait for each other. Events are written every second, or as soon
   as a batch is full; uses and reports, which are sums, at most every ``SUMS_SECONDS``.
4. If the store cannot be used, writing is retried every second and the failure is logged once. A retry repeats the same
   batch under the same number: the store may have written it after all, and recognises it (``upkeep.batches``). A batch
   that contradicts the store is dropped, so that it does not block all others.
5. ``close`` writes the queue, within ``CLOSE_SECONDS``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final, Protocol, TypeVar

from proxy.authority.workers import report_parsing
from proxy.authority.workers.metrics_aggregator import Counters
from proxy.authority.workers.report_parsing import InvalidReport
from proxy.core.errors import PatgateError, StoreUnavailable
from proxy.core.ipc.wire import Message
from proxy.observe import defects, metrics
from proxy.observe.logs import get_logger
from proxy.store.audit.chain import Event
from proxy.store.audit.reports import Report
from proxy.store.audit.request_events import RequestEvent
from proxy.store.tokens.usage import Use
from proxy.store.upkeep.batches import Batch, Batches

EVENTS: Final = 20_000
TOKENS: Final = 200_000
REPORTS: Final = 10_000
BATCH: Final = 500
SHARED_EVENTS: Final = 100
"""Events in one transaction of a store with several writers: all append to one chain, one after another."""
EVENTS_SECONDS: Final = 1.0
SUMS_SECONDS: Final = 5.0
CLOSE_SECONDS: Final = 3.0

_log = get_logger("authority.recorder")
_Key = TypeVar("_Key")
_Row = TypeVar("_Row")


class RequestStore(Protocol):
    """The part of the store that the recorder uses.

    Every method raises PatgateError after it has written nothing or, when the outcome is in doubt, everything.
    """

    async def add_uses(self, uses: Sequence[Use], batch: Batch) -> None:
        """Add to the tokens' uses, unless this batch is stored already."""
        ...

    async def add_reports(self, reports: Sequence[Report], batch: Batch) -> None:
        """Add to the report-only results, unless this batch is stored already."""
        ...

    async def append_requests(self, events: Sequence[RequestEvent], batch: Batch) -> None:
        """Append audit events, unless this batch is stored already."""
        ...


class RequestRecorder:
    """Takes the workers' reports (``take``) and writes them between ``start`` and ``close``.

    ``events_seconds`` and ``sums_seconds``: how long events, and uses and reports, are collected before a write.
    ``events_at_once``: the most events in one transaction.
    """

    def __init__(
        self,
        store: RequestStore,
        counters: Counters,
        *,
        clock: Callable[[], float] = time.time,
        events_seconds: float = EVENTS_SECONDS,
        sums_seconds: float = SUMS_SECONDS,
        events_at_once: int = BATCH,
    ) -> None:
        self._store = store
        self._counters = counters
        self._clock = clock
        self._events_seconds = events_seconds
        self._sums_seconds = sums_seconds
        self._events_at_once = events_at_once
        self._events: deque[RequestEvent] = deque()
        self._tried = 0
        """Length of the failed batch at the front of the queue; 0 for none."""
        self._omitted = 0
        self._uses: dict[str, Use] = {}
        self._reports: dict[tuple[str, str, str, str], Report] = {}
        self._tried_uses: list[Use] = []
        self._tried_reports: list[Report] = []
        """The failed batch, which is repeated as it is; empty for none."""
        self._batches = (Batches(), Batches(), Batches())
        """Of events, uses and reports. Each has its own numbers, because a failed one of another kind may wait."""
        self._full = asyncio.Event()
        self._stop = asyncio.Event()
        self._failing = False
        self._writer: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Number of events, tokens and reports that are not yet written."""
        tried = len(self._tried_uses) + len(self._tried_reports)
        return tried + len(self._events) + len(self._uses) + len(self._reports)

    def take(self, message: Message) -> None:
        """Take a message of the operation ``requests``, ``uses`` or ``reports``."""
        take, rows = {
            "requests": (self._take_event, message.get("events")),
            "uses": (self._take_use, message.get("uses")),
            "reports": (self._take_report, message.get("reports")),
        }[message["op"]]
        invalid = 0
        for row in rows if isinstance(rows, list) else (None,):
            try:
                take(row)
            except InvalidReport:
                invalid += 1
        try:
            self.omit(report_parsing.integer(message.get("omitted", 0)))
        except InvalidReport:
            invalid += 1
        if invalid:
            self._lost("invalid", invalid)
            _log.warning("a worker's report has invalid rows", count=invalid)

    def record(self, event: RequestEvent) -> None:
        """Queue an event of this process."""
        if len(self._events) >= EVENTS:
            self._lost("overflow", 1)
            return
        self._events.append(event)
        if len(self._events) >= BATCH:
            self._full.set()

    def omit(self, count: int) -> None:
        """Record that ``count`` events were left out."""
        if count:
            self._omitted += count
            self._counters.count(metrics.AUDIT_OMITTED, by=count)

    def start(self) -> None:
        """Begin to write."""
        self._writer = asyncio.create_task(self._run(), name="request recorder")
        self._writer.add_done_callback(defects.noted)

    async def close(self) -> None:
        """Write the queue and end. What cannot be written in time is lost."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        self._stop.set()
        self._full.set()
        await asyncio.wait((writer,), timeout=CLOSE_SECONDS)
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
        if self._events:
            _log.warning("events of requests were not written", count=len(self._events))
        if uses := len(self._uses) + len(self._tried_uses):
            _log.warning("uses of tokens were not written", tokens=uses)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        next_sums = 0.0
        last = False
        while not last:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._events_seconds):
                    # While writes fail, a full queue must not cause retries without a pause.
                    await (self._stop if self._failing else self._full).wait()
            # Read before the writes: rows that arrive during the last writes must not be missed.
            last = self._stop.is_set()
            self._full.clear()
            await self._write_events()
            if self.waiting > len(self._events) and (loop.time() >= next_sums or last):
                next_sums = loop.time() + self._sums_seconds
                await self._write_uses()
                await self._write_reports()

    async def _write_events(self) -> None:
        """Write the queued events until the queue is empty or a write fails."""
        while True:
            if self._omitted and not self._tried:
                self._events.append(self._omission())
            rows = list(islice(self._events, self._tried or self._events_at_once))
            if not rows:
                return
            if not await self._write(self._store.append_requests, rows, self._batches[0]):
                self._tried = len(rows)
                return
            self._tried = 0
            for _ in rows:
                self._events.popleft()

    async def _write_uses(self) -> None:
        while uses := self._tried_uses or _first(self._uses):
            self._tried_uses = uses
            if not await self._write(self._store.add_uses, uses, self._batches[1]):
                return
            self._tried_uses = []

    async def _write_reports(self) -> None:
        while reports := self._tried_reports or _first(self._reports):
            self._tried_reports = reports
            if not await self._write(self._store.add_reports, reports, self._batches[2]):
                return
            self._tried_reports = []

    async def _write(
        self, write: Callable[[list[_Row], Batch], Awaitable[None]], rows: list[_Row], batches: Batches
    ) -> bool:
        """Write rows; false when they must be written again later, true when they are written or dropped."""
        try:
            await write(rows, batches.current)
        except StoreUnavailable as error:
            if not self._failing:
                _log.error("events and usage of requests cannot be written yet", error=error)
            self._failing = True
            return False
        except PatgateError as error:
            _log.error("events or usage of requests contradict the store and are dropped", error=error)
            self._refused(rows)
        except Exception:  # noqa: BLE001 - a defect with one batch must not stop the others
            _log.exception("events or usage of requests cannot be written and are dropped")
            self._refused(rows)
        else:
            if self._failing:
                self._failing = False
                _log.info("events and usage of requests are written again")
        batches.done()
        return True

    def _take_event(self, row: object) -> None:
        self.record(report_parsing.event(row))

    def _omission(self) -> RequestEvent:
        count, self._omitted = self._omitted, 0
        event = Event(action=report_parsing.OMITTED, target_kind="route", target_id="", details={"count": count})
        return RequestEvent(event=event, prefix="", proven=False, at=self._clock())

    def _take_use(self, row: object) -> None:
        self._add_use(report_parsing.use(row))

    def _add_use(self, use: Use) -> None:
        sum_ = self._uses.get(use.token_id)
        if sum_ is not None:
            self._uses[use.token_id] = sum_.plus(use)
        elif len(self._uses) < TOKENS:
            self._uses[use.token_id] = use

    def _take_report(self, row: object) -> None:
        self._add_report(report_parsing.report(row))

    def _add_report(self, report: Report) -> None:
        sum_ = self._reports.get(report.key)
        if sum_ is None and len(self._reports) >= REPORTS:
            # Bounded by the numbers of routes and reasons.
            report = replace(report, permission="", token_id="")
            sum_ = self._reports.get(report.key)
        self._reports[report.key] = report if sum_ is None else sum_.plus(report)

    def _refused(self, rows: Sequence[object]) -> None:
        self._lost("refused", sum(isinstance(row, RequestEvent) for row in rows))

    def _lost(self, cause: str, count: int) -> None:
        if count:
            self._counters.count(metrics.AUDIT_LOST, cause, by=count)


def _first(rows: dict[_Key, _Row]) -> list[_Row]:
    """Remove and return the oldest rows, as many as one transaction writes."""
    return [rows.pop(key) for key in list(islice(rows, BATCH))]
