"""Prefixes that wait for what the authority knows of them: one question at a time, and it is about many.

Rules of this module:
1. Who asks for a prefix that waits already, in the queue or under way, waits with it. What is shared is the grant,
   never a verdict on a credential.
2. Every waiter has a future of its own: one that goes away disturbs nobody and leaves nothing behind.
3. An answer may cover the first of its prefixes only; the others stay in front and are asked about again.
4. A question that fails fails its own prefixes and no others; whatever ends the asking, nobody waits for ever.
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
    """What the authority says of one prefix, and the number of the last change that the answer takes into account."""

    __slots__ = ("as_of", "found")

    def __init__(self, as_of: int, found: Grant | RefusedGrant) -> None:
        self.as_of = as_of
        self.found = found


Outcome = LookupAnswer | AuthorityUnavailable | AuthorityOverloaded
Asking = Callable[[list[str]], Awaitable[Sequence[Outcome]]]


class LookupQueue:
    """Asks by ``ask``, which answers the first of its prefixes in their order, one at least, and raises nothing."""

    def __init__(self, ask: Asking) -> None:
        self._ask: Final = ask
        self._waiting: dict[str, dict[asyncio.Future[LookupAnswer], None]] = {}
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, prefix: str) -> bool:
        return prefix in self._waiting

    async def answer(self, prefix: str) -> LookupAnswer:
        """What is known of ``prefix``. Raises AuthorityUnavailable, AuthorityOverloaded."""
        future: asyncio.Future[LookupAnswer] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(prefix, {})[future] = None
        if self._task is None:
            # It begins a turn of the loop from now, and so finds all the prefixes of this turn.
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
        """Ask nothing more; who waits gets AuthorityUnavailable."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            # A task that had not begun has not ended anything either.
            self._end()

    async def _run(self) -> None:
        try:
            while self._waiting:
                asked = list(islice(self._waiting, PREFIXES_AT_ONCE))
                for prefix, outcome in zip(asked, await self._ask(asked), strict=False):
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
                # One each: what is raised gathers the places that it came through.
                future.set_exception(type(outcome)(*outcome.args))
