"""A queue of grant lookups: batches prefixes into one request to the authority at a time.

Rules of this module:
1. Callers that look up the same prefix share one lookup, queued or in progress. They share the grant, never a verdict
   on a credential.
2. Every caller has its own future: one that is cancelled affects no other caller and leaves nothing behind.
3. An answer may cover only the first of the requested prefixes; the others stay at the front and are requested again.
4. A request that fails fails its own prefixes and no others. However the queue ends, no caller waits for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Final

from proxy.core.errors import AuthorityOverloaded, AuthorityUnavailable
from proxy.core.ipc.wire import PREFIXES_AT_ONCE
from proxy.core.model import Grant, RefusedGrant
from proxy.observe import defects


class LookupAnswer:
    """The authority's answer for one prefix, and the number of the last change that the answer takes into account."""

    __slots__ = ("as_of", "found")

    def __init__(self, as_of: int, found: Grant | RefusedGrant) -> None:
        self.as_of = as_of
        self.found = found


Outcome = LookupAnswer | AuthorityUnavailable | AuthorityOverloaded
Resolve = Callable[[list[str]], Awaitable[Sequence[Outcome]]]


class LookupQueue:
    """Looks prefixes up with ``resolve``, which answers at least the first of them, in order, and never raises."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve: Final = resolve
        self._waiting: dict[str, dict[asyncio.Future[LookupAnswer], None]] = {}
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, prefix: str) -> bool:
        return prefix in self._waiting

    async def answer(self, prefix: str) -> LookupAnswer:
        """The authority's answer for ``prefix``. Raises AuthorityUnavailable, AuthorityOverloaded."""
        future: asyncio.Future[LookupAnswer] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(prefix, {})[future] = None
        if self._task is None:
            # The task starts in the next turn of the event loop, so its batch has all prefixes of this turn.
            self._task = asyncio.create_task(self._run(), name="grant lookups")
            self._task.add_done_callback(defects.noted)
        try:
            return await future
        finally:
            if (others := self._waiting.get(prefix)) is not None and future in others:
                del others[future]
                if not others:
                    del self._waiting[prefix]

    async def close(self) -> None:
        """Stop; callers that wait get AuthorityUnavailable."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            # A task that was cancelled before it started has not run its ``finally``.
            self._end()

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch = list(islice(self._waiting, PREFIXES_AT_ONCE))
                for prefix, outcome in zip(batch, await self._resolve(batch), strict=False):
                    self._settle(prefix, outcome)
        finally:
            self._end()

    def _end(self) -> None:
        self._task = None
        for prefix in tuple(self._waiting):
            self._settle(prefix, AuthorityUnavailable("the link to the authority is closed"))

    def _settle(self, prefix: str, outcome: Outcome) -> None:
        for future in self._waiting.pop(prefix, ()):
            if future.done():
                continue
            if isinstance(outcome, LookupAnswer):
                future.set_result(outcome)
            else:
                # One exception each: raising one adds to its traceback.
                future.set_exception(type(outcome)(*outcome.args))
