"""Concurrency limits of the API on TCP, because the process that serves it also answers the gateway workers.

Rules of this module:
1. The steps of all requests share one thread, so the delay of other work is bounded by the number of requests that run,
   not by the number that arrived. The others wait for their turn, in order of arrival.
2. ``IDENTIFYING`` requests are authenticated at once. Of one user or one key, ``EACH`` requests run and ``WAITING``
   wait; further ones are refused. Of all callers together, ``AT_ONCE`` requests run.
3. No request holds a turn while its body is received or its response is sent.
4. The control socket has no such limits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from proxy.core.errors import AuthorityOverloaded

IDENTIFYING: Final = 8
EACH: Final = 4
WAITING: Final = 64
AT_ONCE: Final = 16


@dataclass(slots=True)
class _Caller:
    running: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(EACH))
    requests: int = 0


class Turns:
    """The limits of one listener."""

    def __init__(self) -> None:
        self._identifying = asyncio.Semaphore(IDENTIFYING)
        self._all = asyncio.Semaphore(AT_ONCE)
        self._callers: dict[str, _Caller] = {}

    def __len__(self) -> int:
        """Number of callers with requests that run or wait."""
        return len(self._callers)

    @asynccontextmanager
    async def identifying(self) -> AsyncIterator[None]:
        """Hold a place while a request is authenticated."""
        async with self._identifying:
            yield

    @asynccontextmanager
    async def turn(self, caller_id: str) -> AsyncIterator[None]:
        """Hold a place while a request of this caller runs. Raises AuthorityOverloaded."""
        caller = self._callers.setdefault(caller_id, _Caller())
        if caller.requests >= EACH + WAITING:
            raise AuthorityOverloaded("too many requests of one user are already waiting")
        caller.requests += 1
        try:
            async with caller.running, self._all:
                yield
        finally:
            caller.requests -= 1
            if not caller.requests:
                del self._callers[caller_id]
