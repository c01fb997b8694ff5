"""The record phase: counts, logs and reports each exchange once, when it has ended.

Counters are plain integers of this worker; ``snapshot`` returns them. ``telemetry.access_log`` writes the request's log
line; ``telemetry.usage_reporter`` sends usage and audit events to the authority.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Final

from proxy.core.reasons import TABLE, Reason
from proxy.core.routes import Route
from proxy.gateway.exchange import Exchange
from proxy.gateway.grants.cache import CacheEntry
from proxy.gateway.telemetry.access_log import BATCH, AccessLog
from proxy.gateway.telemetry.audit_events import READS, RequestEvents
from proxy.gateway.telemetry.usage_reporter import UsageReporter
from proxy.observe.logs import Logger, write_lines
from proxy.observe.metrics import (
    CACHE_ENTRIES,
    CACHE_HITS,
    CACHE_MISSES,
    CONNECTIONS,
    EPOCH_LAG,
    REQUEST_SECONDS,
    REQUESTS,
    SECONDS,
    Outcome,
)
from proxy.observe.snapshot import Snapshot, Tally
from proxy.settings.model import Audit as AuditSettings
from proxy.settings.model import Log as LogSettings

_DEFAULTS: Final = LogSettings()
_AUDIT_DEFAULTS: Final = AuditSettings()
NO_ROUTE_LABEL: Final = "-"
_GET: Final = b"GET"
_BOUNDS_NS: Final = tuple(int(second * 1e9) for second in SECONDS)
_USUAL: Final = 4
"""Number of bounds that are compared one by one: for fast requests that costs less than a binary search."""


class _RouteTally:
    __slots__ = ("allowed", "counts", "sum_ns")

    def __init__(self) -> None:
        self.allowed = 0
        self.counts = [0] * (len(_BOUNDS_NS) + 1)
        self.sum_ns = 0


class ExchangeRecorder:
    """Counts exchanges by route, outcome and reason, and logs them as ``settings`` says (``AccessLog``).

    ``prefix_of`` returns the public prefix that a request presents; ``process`` is one of ``workers`` that share the
    log. ``trail`` holds the usage and, as ``audit`` says, the audit events that are sent to the authority.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        log: Logger,
        *,
        prefix_of: Callable[[Exchange], str | None],
        settings: LogSettings = _DEFAULTS,
        audit: AuditSettings = _AUDIT_DEFAULTS,
        process: str = "gateway-0",
        workers: int = 1,
        write: Callable[[bytes], None] = write_lines,
    ) -> None:
        self._log = log
        self._prefix_of = prefix_of
        self._process = process
        self._write = write
        # By index; several routes of one name may share an index.
        self._routes: list[Route] = []
        self._unrouted = _RouteTally()
        # The last one, at the index of ``requirement.UNROUTED``, is for requests without a route.
        self._tallies: list[_RouteTally] = [self._unrouted]
        self._access = self._follow(routes, settings, workers)
        self._passed = self._access.passed if self._access.all else None
        self._events = RequestEvents(requests=audit.requests, prefix_of=prefix_of, workers=workers)
        self._writes, self._reads = self._events.writes, self._events.reads
        self.trail = UsageReporter(self._events)
        self._touched: list[CacheEntry] = self.trail.touched
        self._others: dict[tuple[str, Outcome, Reason], int] = {}
        self.connections = 0

    def record(self, x: Exchange, now_ns: int) -> None:
        """Count ``x``, whose response was completed or abandoned at ``now_ns`` (CLOCK_BOOTTIME)."""
        elapsed = now_ns - x.started
        match = x.match
        tally = self._unrouted if match is None else self._tallies[match.route.index]
        at = 0
        while at < _USUAL and elapsed > _BOUNDS_NS[at]:
            at += 1
        tally.counts[at if at < _USUAL else bisect_left(_BOUNDS_NS, elapsed)] += 1
        tally.sum_ns += elapsed
        entry, client = x.entry, x.client
        if entry is not None:
            if entry.uses == 0:
                self._touched.append(entry)
            entry.uses += 1
            entry.used_ns = now_ns
            if client is not None:
                entry.peer = client.peer if x.forwarded is None else client.address(x)
        if x.reason is None and x.reported is None:
            tally.allowed += 1
            if self._writes and (self._reads or (x.method != _GET and x.method not in READS)):
                self._events.passed(x, now_ns)
            passed = self._passed
            if passed is not None and client is not None:
                passed.append((x, now_ns, client))
                if len(passed) >= BATCH:
                    self._access.render()
            return
        self._count_other(x, now_ns)

    def follow(self, routes: Sequence[Route], settings: LogSettings, workers: int, audit: AuditSettings) -> None:
        """Count these routes too, and use these settings, from now on; all counters are kept.

        A route must have the same index as before if its name is known, else a new one.
        """
        self._access.flush()
        self._access = self._follow(routes, settings, workers)
        self._passed = self._access.passed if self._access.all else None
        self._events.follow(audit.requests, workers)
        self._writes, self._reads = self._events.writes, self._events.reads

    def _follow(self, routes: Sequence[Route], settings: LogSettings, workers: int) -> AccessLog:
        for route in sorted(routes, key=_index):
            if route.index < len(self._routes):
                self._routes[route.index] = route
            else:
                self._routes.append(route)
                self._tallies.insert(-1, _RouteTally())
        return AccessLog(
            self._routes,
            settings,
            log=self._log,
            prefix_of=self._prefix_of,
            process=self._process,
            workers=workers,
            write=self._write,
        )

    def flush(self) -> None:
        """Write the log lines that have accumulated since the last sweep."""
        self._access.flush()

    def snapshot(self, *, hits: int, misses: int, entries: int, lag: int) -> Snapshot:
        """All counters since the worker started."""
        requests: dict[tuple[str, ...], float] = {}
        seconds: dict[tuple[str, ...], Tally] = {}
        for route, tally in zip(self._routes, self._tallies[:-1], strict=True):
            key = (route.name, Outcome.ALLOWED.value, Reason.ALLOWED.value)
            requests[key] = requests.get(key, 0) + tally.allowed
            self._add_seconds(seconds, route.name, tally)
        self._add_seconds(seconds, NO_ROUTE_LABEL, self._unrouted)
        if self._unrouted.allowed:
            requests[NO_ROUTE_LABEL, Outcome.ALLOWED.value, Reason.ALLOWED.value] = self._unrouted.allowed
        for (name, outcome, reason), count in self._others.items():
            requests[(name, outcome.value, reason.value)] = count
        return Snapshot(
            counters={REQUESTS.name: requests, CACHE_HITS.name: {(): hits}, CACHE_MISSES.name: {(): misses}},
            histograms={REQUEST_SECONDS.name: seconds},
            gauges={
                CACHE_ENTRIES.name: {(): entries},
                CONNECTIONS.name: {(): self.connections},
                EPOCH_LAG.name: {(): lag},
            },
        )

    @staticmethod
    def _add_seconds(seconds: dict[tuple[str, ...], Tally], name: str, tally: _RouteTally) -> None:
        mine = Tally(counts=tuple(tally.counts), sum=tally.sum_ns / 1e9)
        held = seconds.get((name,))
        seconds[(name,)] = mine if held is None else held.plus(mine)

    def _count_other(self, x: Exchange, now_ns: int) -> None:
        reason = x.reason if x.reason is not None else x.reported
        assert reason is not None
        if x.reason is None:
            outcome = Outcome.REPORTED
        elif TABLE[reason].status >= 500 or reason is Reason.CLIENT_LEFT:
            outcome = Outcome.FAILED
        else:
            outcome = Outcome.REFUSED
        match = x.match
        name = NO_ROUTE_LABEL if match is None else match.route.name
        key = (name, outcome, reason)
        self._others[key] = self._others.get(key, 0) + 1
        self._access.other(x, now_ns, outcome, reason)
        self._events.other(x, now_ns, outcome, reason)
        if x.reason is None:
            self.trail.reported(x, now_ns, reason, self._prefix_of(x) if x.entry is None else x.entry.grant.prefix)


def _index(route: Route) -> int:
    return route.index
