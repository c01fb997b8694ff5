"""The record phase: what is counted and logged of an exchange, once, when it has ended.

Counters are plain integers of this worker; `snapshot` gives them to whoever renders them. Lines about refusals and
failures are kept until the next sweep and written together, at most `LINES_PER_SWEEP` of them and at most
`BYTES_PER_MINUTE` by all workers together, so that a flood of bad requests costs little and fills no disk (threats.md
section 8). What was left out is counted and said.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Final

from proxy.core.reasons import TABLE, Reason
from proxy.core.routes import Route
from proxy.gateway.exchange import Exchange
from proxy.observe.logs import Logger
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

LINES_PER_SWEEP: Final = 40
BYTES_PER_MINUTE: Final = 900_000
"""What the lines of all workers together may come to; the rest of a megabyte is for what else there is to say."""
SWEEPS_PER_MINUTE: Final = 120
_SAVED_UP: Final = BYTES_PER_MINUTE // 6
"""What of a minute's bytes may be written at once; the rest comes sweep by sweep."""
_FRAME_BYTES: Final = 200
"""Time, process and the like, which every line has beside its own fields."""
NO_ROUTE_LABEL: Final = "-"
_BOUNDS_NS: Final = tuple(int(second * 1e9) for second in SECONDS)


class _RouteTally:
    __slots__ = ("allowed", "counts", "sum_ns")

    def __init__(self) -> None:
        self.allowed = 0
        self.counts = [0] * (len(_BOUNDS_NS) + 1)
        self.sum_ns = 0


class Recorder:
    """Counts exchanges by route, outcome and reason. `prefix_of` gives the public prefix that a request presents;
    `workers` is the number of processes that share the bytes of the log."""

    def __init__(
        self, routes: Sequence[Route], log: Logger, *, prefix_of: Callable[[Exchange], str | None], workers: int = 1
    ) -> None:
        self._prefix_of = prefix_of
        self._routes = tuple(routes)
        self._tallies = [_RouteTally() for _ in routes]
        self._others: dict[tuple[str, Outcome, Reason], int] = {}
        self._unrouted = _RouteTally()
        self._log = log
        self._lines: list[dict[str, object]] = []
        self._left_out = 0
        self._most_room = _SAVED_UP // workers
        self._more_room = (BYTES_PER_MINUTE - _SAVED_UP) / SWEEPS_PER_MINUTE / workers
        self._room: float = self._most_room
        self.connections = 0

    def record(self, x: Exchange, now_ns: int) -> None:
        """Count `x`, whose response has been written or given up at `now_ns` (CLOCK_MONOTONIC)."""
        elapsed = now_ns - x.started
        match = x.match
        tally = self._unrouted if match is None else self._tallies[match.route.index]
        tally.counts[bisect_left(_BOUNDS_NS, elapsed)] += 1
        tally.sum_ns += elapsed
        if x.reason is None and x.reported is None:
            tally.allowed += 1
            return
        self._count_other(x, elapsed)

    def flush(self) -> None:
        """Write the lines that have gathered since the last sweep, as far as there is room for them."""
        self._room = min(self._most_room, self._room + self._more_room)
        lines, self._lines = self._lines, []
        for line in lines:
            size = _FRAME_BYTES + len(json.dumps(line))
            if size > self._room:
                self._left_out += 1
                continue
            self._room -= size
            self._log.info("request", **line)
        if self._left_out and self._room > 0:
            self._room -= _FRAME_BYTES
            self._log.warning("requests not logged", count=self._left_out)
            self._left_out = 0

    def snapshot(self, *, hits: int, misses: int, entries: int, lag: int) -> Snapshot:
        """Everything counted since the worker started."""
        requests: dict[tuple[str, ...], float] = {}
        seconds: dict[tuple[str, ...], Tally] = {}
        for route, tally in zip(self._routes, self._tallies, strict=True):
            key = (route.name, Outcome.ALLOWED.value, Reason.ALLOWED.value)
            requests[key] = requests.get(key, 0) + tally.allowed
            self._add_seconds(seconds, route.name, tally)
        self._add_seconds(seconds, NO_ROUTE_LABEL, self._unrouted)
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

    def _count_other(self, x: Exchange, elapsed: int) -> None:
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
        if len(self._lines) >= LINES_PER_SWEEP:
            self._left_out += 1
            return
        self._lines.append(
            {
                "decision": x.request_id.decode("ascii"),
                "outcome": outcome.value,
                "reason": reason.value,
                "status": x.status,
                "method": x.method[:32].decode("latin-1"),
                "path": x.path[:256].decode("latin-1"),
                "route": name,
                "operation": match.operation if match is not None else None,
                "token": self._prefix_of(x),
                "peer": x.client.peer if x.client is not None else None,
                "seconds": round(elapsed / 1e9, 6),
            }
        )
