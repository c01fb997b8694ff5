"""What requests leave behind, from the record phase to the link: uses of tokens, events, what would have been refused.

Rules of this module:
1. A use costs a request a few stores in the entry of its token (``cache.Entry``); the first since the last time that it
   was told of puts the entry on a list here. An entry that leaves the cache stays on the list until it is told of.
2. Everything is told by the sweep. While the link is down or does not take more, it stays and is added up.
3. A message has at most ``USES``, ``EVENTS`` or ``REPORTS`` of a kind, so that neither end is held up by it for long.
4. Reports have at most ``REPORTS`` keys at a time, half of them for requests without a proven token, which anybody can
   send with any prefix; what is beyond them is added up by route and reason alone.
5. At the end everything is told, as fast as the link takes it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Final, Protocol

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
"""Uses and reports are told of once in so many sweeps, so that many become one; sooner where a message is full."""
_SECOND_NS: Final = 1_000_000_000


class Link(Protocol):
    """Where it goes."""

    async def flush(self, seconds: float) -> None:
        """Wait until everything is on its way, for so long at most."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether messages are taken now."""
        ...

    def tell(self, message: bytes) -> None:
        """Send a framed message that nobody answers."""
        ...


class _Reported:
    __slots__ = ("count", "decision", "first_ns", "last_ns", "method")

    def __init__(self, now_ns: int) -> None:
        self.count = 0
        self.first_ns = self.last_ns = now_ns
        self.method = b""
        self.decision = b""


class Trail:
    """What has been left behind since it was last told of."""

    def __init__(self, events: RequestEvents) -> None:
        self.events = events
        self.touched: list[CacheEntry] = []
        """Entries with uses to tell of. It is always this list, which the record phase adds to."""
        self._reports: dict[tuple[str, str, str, str], _Reported] = {}
        self._sweeps = 0

    def reported(self, x: Exchange, now_ns: int, reason: Reason, prefix: str | None) -> None:
        """Add up what a report-only route would have refused; ``prefix`` is of the token, if there is one."""
        match = x.match
        if match is None:
            return
        permission = ""
        if match.operation is not None and match.entity is not None:
            # Without the id, which clients may choose as they like.
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
        """Tell of what there is, as far as the link takes it; all of it if this is the ``last`` time."""
        self._sweeps += 1
        for message in self._messages(link, due=last or self._sweeps % SWEEPS == 0, last=last):
            link.tell(message)
        self.events.renew()

    async def send_all(self, link: Link, seconds: float) -> None:
        """Tell of all that there is, for so long at most, and wait until it is on its way."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        more = True
        while more and loop.time() < deadline:
            self.send(link, last=True)
            more = bool(self.touched or self._reports or self.events.waiting)
            await link.flush(deadline - loop.time())
            more = more and link.has_room

    def _messages(self, link: Link, *, due: bool, last: bool) -> Iterator[bytes]:
        """One after the other, as long as there is room for the next."""
        while link.has_room:
            events, omitted = self.events.take(EVENTS)
            if not events and not omitted:
                break
            yield frame_body(b'{"op":"requests","omitted":%d,"events":[%b]}' % (omitted, b",".join(events)))
        clock = time.time_ns() - time.monotonic_ns()
        while link.has_room and self.touched and (due or len(self.touched) >= USES):
            yield frame({"op": "uses", "uses": self._uses(clock)})
            if not last:
                break
        if link.has_room and due and self._reports:
            yield frame({"op": "reports", "reports": self._take_reports(clock)})

    def _uses(self, clock: int) -> list[tuple[str, int, float, str]]:
        """Token, count, the last time (unix seconds) and address of those that have waited longest."""
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
