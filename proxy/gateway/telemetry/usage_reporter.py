"""Reporting requests to the authority: token uses, audit events, and refusals that report-only routes did not enforce.

Rules of this module:
1. A use costs a request a few stores in the cache entry of its token (``CacheEntry``); the first use since the last
   report puts the entry on a list here. An entry that leaves the cache stays on the list until it is reported.
2. The sweep sends everything. While the link is down or has no room, reports stay here and are added up.
3. A message has at most ``USES``, ``EVENTS`` or ``REPORTS`` items of a kind, so that it delays neither end for long.
4. Reports of refusals have at most ``REPORTS`` keys at a time, half of them for requests without a proven token, which
   any client can send with any prefix; further ones are added up by route and reason alone.
5. When the worker ends everything is sent, as fast as the link allows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Final, Protocol

from proxy.core.ipc.clock import boottime_ns
from proxy.core.ipc.wire import frame, frame_body
from proxy.core.reasons import Reason
from proxy.gateway.exchange import Exchange
from proxy.gateway.grants.cache import CacheEntry
from proxy.gateway.telemetry.access_log import method_shown
from proxy.gateway.telemetry.audit_events import ROUTE_LIMIT, RequestEvents, entity_shown

USES: Final = 2500
EVENTS: Final = 256
REPORTS: Final = 1000
SWEEPS: Final = 4
"""Uses and reports are sent once in so many sweeps, so that many become one; sooner when a message is full."""
_SECOND_NS: Final = 1_000_000_000


class Link(Protocol):
    """The link to the authority, as far as reports need it."""

    async def flush(self, seconds: float) -> None:
        """Wait until everything is sent, for ``seconds`` at most."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether the link is up and has room for messages."""
        ...

    def report(self, message: bytes) -> None:
        """Send a framed message that has no answer."""
        ...


class _Reported:
    __slots__ = ("count", "decision", "first_ns", "last_ns", "method")

    def __init__(self, now_ns: int) -> None:
        self.count = 0
        self.first_ns = self.last_ns = now_ns
        self.method = b""
        self.decision = b""


class UsageReporter:
    """Collects uses, events and reports between two sweeps, and sends them."""

    def __init__(self, events: RequestEvents) -> None:
        self.events = events
        self.touched: list[CacheEntry] = []
        """Entries with unreported uses. Always this same list object, because the record phase appends to it."""
        self._reports: dict[tuple[str, str, str, str], _Reported] = {}
        self._sweeps = 0

    def reported(self, x: Exchange, now_ns: int, reason: Reason, prefix: str | None) -> None:
        """Count a request that a report-only route would have refused; ``prefix`` is the token's, if it has one."""
        match = x.match
        if match is None:
            return
        permission = ""
        if match.operation is not None and match.entity is not None:
            # Without the id, which clients choose.
            permission = f"{entity_shown(match.entity, None)}:{match.operation}"
        route, token_id = match.route.name[:ROUTE_LIMIT], "" if prefix is None else prefix.rpartition("_")[2]
        key = (route, reason.value, permission, token_id)
        held = self._reports.get(key)
        if held is None:
            if len(self._reports) >= (REPORTS // 2 if x.entry is None else REPORTS):
                key = (route, reason.value, "", "")
            held = self._reports.setdefault(key, _Reported(now_ns))
        held.count += 1
        held.last_ns, held.method, held.decision = now_ns, x.method, x.request_id

    def send(self, link: Link, *, last: bool = False) -> None:
        """Send what is due, as far as the link has room; everything if this is the ``last`` time."""
        self._sweeps += 1
        for message in self._messages(link, due=last or self._sweeps % SWEEPS == 0, last=last):
            link.report(message)
        self.events.renew()

    async def send_all(self, link: Link, seconds: float) -> None:
        """Send everything, for ``seconds`` at most, and wait until it is sent."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        more = True
        while more and loop.time() < deadline:
            self.send(link, last=True)
            more = bool(self.touched or self._reports or self.events.waiting)
            await link.flush(deadline - loop.time())
            more = more and link.has_room

    def _messages(self, link: Link, *, due: bool, last: bool) -> Iterator[bytes]:
        """The messages to send, as long as the link has room for the next."""
        while link.has_room:
            events, omitted = self.events.take(EVENTS)
            if not events and not omitted:
                break
            yield frame_body(b'{"op":"requests","omitted":%d,"events":[%b]}' % (omitted, b",".join(events)))
        clock = time.time_ns() - boottime_ns()
        while link.has_room and self.touched and (due or len(self.touched) >= USES):
            yield frame({"op": "uses", "uses": self._uses(clock)})
            if not last:
                break
        if link.has_room and due and self._reports:
            yield frame({"op": "reports", "reports": self._take_reports(clock)})

    def _uses(self, clock: int) -> list[tuple[str, int, float, str]]:
        """Token, count, time of the last use (unix seconds) and address, of the entries that have waited longest."""
        entries = self.touched[:USES]
        del self.touched[:USES]
        uses = []
        for entry in entries:
            token_id = entry.grant.prefix.rpartition("_")[2]
            uses.append((token_id, entry.uses, (entry.used_ns + clock) / _SECOND_NS, entry.peer))
            entry.uses = 0
        return uses

    def _take_reports(self, clock: int) -> list[tuple[str, str, str, str, int, float, float, str, str]]:
        reports, self._reports = self._reports, {}
        return [
            (
                *key,
                held.count,
                (held.first_ns + clock) / _SECOND_NS,
                (held.last_ns + clock) / _SECOND_NS,
                method_shown(held.method),
                held.decision.decode("ascii"),
            )
            for key, held in reports.items()
        ]
