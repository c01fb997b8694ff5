"""Exchanges that take a while, and what happens to them when their grant changes under them.

A verdict is good for the moment in which it was made. An upload, a download, an event stream or a WebSocket outlives
it, so each is watched: when a change removes its grant from the cache it is judged again, as if it had just come, and
cut if the answer is no. It is also cut when its token expires and when the authority's lease has run out.

Rules of this module:
1. What cannot be judged again is cut.
2. Finding the exchanges of a changed grant costs as much as there are such exchanges; others are not looked at.
3. Short exchanges are never here: nothing is added to their path.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from proxy.core.reasons import Reason
from proxy.gateway.exchange import Exchange
from proxy.gateway.grants.cache import CacheEntry
from proxy.observe import defects


class LiveExchanges:
    """The watched exchanges of a worker.

    ``judge`` decides an exchange anew and returns a refusal or None; ``cut`` breaks one off for a reason.
    """

    def __init__(
        self, *, judge: Callable[[Exchange], Awaitable[Reason | None]], cut: Callable[[Exchange, Reason], None]
    ) -> None:
        self._judge = judge
        self._cut = cut
        self._watched: set[Exchange] = set()
        self.held = False
        """Judge nothing, because all will be judged when this ends."""
        self._judging: set[asyncio.Task[None]] = set()
        self._judged_all = 0

    def __len__(self) -> int:
        return len(self._watched)

    def watch(self, x: Exchange) -> None:
        """Watch ``x`` until ``forget``. Without a grant (public routes, report only) there is nothing to watch."""
        entry, match = x.entry, x.match
        if entry is None or match is None or not match.route.enforce or x in self._watched:
            return
        self._watched.add(x)
        if entry.live is None:
            entry.live = set()
        entry.live.add(x)
        if entry.changed or x.started < self._judged_all:
            # The change, of the grant or of the configuration, came between the verdict and now.
            self._judge_again(x)

    def forget(self, x: Exchange) -> None:
        """Watch ``x`` no longer."""
        self._watched.discard(x)
        entry = x.entry
        if entry is not None and entry.live is not None:
            entry.live.discard(x)
            if not entry.live:
                entry.live = None

    def changed(self, entry: CacheEntry) -> None:
        """A change removed ``entry`` from the cache: judge again what runs under it."""
        if self.held:
            return
        for x in tuple(entry.live or ()):
            self._judge_again(x)

    def judge_all(self) -> None:
        """Judge again whatever is watched: the configuration is another."""
        self._judged_all = time.monotonic_ns()
        for x in tuple(self._watched):
            self._judge_again(x)

    def sweep(self, now: float, *, lease_held: bool) -> None:
        """Cut what runs under an expired token (``now`` in unix seconds), or everything when the lease has run out."""
        for x in tuple(self._watched):
            entry = x.entry
            if not lease_held:
                self._cut(x, Reason.AUTHORITY_UNAVAILABLE)
            elif entry is not None and entry.grant.expires_at is not None and entry.grant.expires_at <= now:
                self._cut(x, Reason.TOKEN_EXPIRED)

    async def close(self) -> None:
        """Judge no more."""
        for task in self._judging:
            task.cancel()
        await asyncio.gather(*self._judging, return_exceptions=True)

    def _judge_again(self, x: Exchange) -> None:
        task = asyncio.create_task(self._rejudge(x), name="judge again")
        self._judging.add(task)
        task.add_done_callback(self._judging.discard)
        task.add_done_callback(defects.noted)

    async def _rejudge(self, x: Exchange) -> None:
        old = x.entry
        reason: Reason | None
        try:
            reason = await self._judge(x)
        except Exception as error:  # noqa: BLE001 - rule 1
            defects.report("an exchange could not be judged again", error)
            reason = Reason.AUTHORITY_UNAVAILABLE
        if x not in self._watched:
            return
        entry = x.entry
        if old is not entry:
            # The exchange goes on, or ends, under the grant that it was judged by.
            if old is not None and old.live is not None:
                old.live.discard(x)
            if entry is not None:
                if entry.live is None:
                    entry.live = set()
                entry.live.add(x)
        if reason is not None:
            self._cut(x, reason)
        elif old is not entry and entry is not None and entry.changed:
            self._judge_again(x)
