"""Revalidation: judges long-running exchanges again when their grant changes, and cuts those that may not continue.

A verdict holds only for the moment of the decision. An upload, a download, an event stream or a WebSocket outlives it,
so each is watched: when a change removes its grant from the cache, it is judged again, as if it had just arrived, and
cut if it is refused. It is also cut when its token expires and when the authority's lease has run out.

Rules of this module:
1. An exchange that cannot be judged again is cut.
2. Finding the exchanges of a changed grant costs in proportion to their number; other exchanges are not visited.
3. Short exchanges are never watched: nothing is added to their path.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from proxy.core.ipc.clock import boottime_ns
from proxy.core.reasons import Reason
from proxy.gateway.exchange import Exchange
from proxy.gateway.grants.cache import CacheEntry
from proxy.observe import defects


class LiveExchanges:
    """The watched exchanges of a worker.

    ``judge`` decides an exchange again and returns a refusal or None; ``cut`` aborts one for a reason.
    """

    def __init__(
        self, *, judge: Callable[[Exchange], Awaitable[Reason | None]], cut: Callable[[Exchange, Reason], None]
    ) -> None:
        self._judge = judge
        self._cut = cut
        self._watched: set[Exchange] = set()
        self.held = False
        """While true, nothing is judged; ``judge_all`` follows when it ends."""
        self._judging: set[asyncio.Task[None]] = set()
        self._judged_all = 0

    def __len__(self) -> int:
        return len(self._watched)

    def watch(self, x: Exchange) -> None:
        """Watch ``x`` until ``forget``. Exchanges without a grant (public routes) and report-only ones are ignored."""
        entry, match = x.entry, x.match
        if entry is None or match is None or not match.route.enforce or x in self._watched:
            return
        self._watched.add(x)
        if entry.live is None:
            entry.live = set()
        entry.live.add(x)
        if entry.changed or x.started < self._judged_all:
            # The grant or the configuration has changed since the verdict.
            self._judge_again(x)

    def forget(self, x: Exchange) -> None:
        """Stop watching ``x``."""
        self._watched.discard(x)
        entry = x.entry
        if entry is not None and entry.live is not None:
            entry.live.discard(x)
            if not entry.live:
                entry.live = None

    def changed(self, entry: CacheEntry) -> None:
        """Judge again every exchange that runs under ``entry``, which a change removed from the cache."""
        if self.held:
            return
        for x in tuple(entry.live or ()):
            self._judge_again(x)

    def judge_all(self) -> None:
        """Judge every watched exchange again, because the configuration has changed."""
        self._judged_all = boottime_ns()
        for x in tuple(self._watched):
            self._judge_again(x)

    def sweep(self, now: float, *, lease_held: bool) -> None:
        """Cut exchanges whose token has expired (``now`` in unix seconds), or all of them without a valid lease."""
        for x in tuple(self._watched):
            entry = x.entry
            if not lease_held:
                self._cut(x, Reason.AUTHORITY_UNAVAILABLE)
            elif entry is not None and entry.grant.expires_at is not None and entry.grant.expires_at <= now:
                self._cut(x, Reason.TOKEN_EXPIRED)

    async def close(self) -> None:
        """Cancel all judgements that are under way."""
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
            # From here on the exchange belongs to the grant by which it was judged.
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
