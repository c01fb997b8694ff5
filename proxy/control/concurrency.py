"""How many requests of the API are worked on at once: the process that works on them also answers every worker.

Rules of this module:
1. Each step of a request takes the thread that all share, so what others wait is bounded by how many have begun, and
   not by how many have arrived. The rest wait for their turn, in the order in which they came.
2. Who asks is found out for ``KNOCKING`` at once. Of one user, or one key, ``EACH`` requests are worked on and
   ``WAITING`` wait; one more is refused. Of all together ``AT_ONCE`` are worked on.
3. Nobody holds a turn while a body is waited for or an answer is read.
4. The operator's socket is apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from proxy.core.errors import AuthorityOverloaded

KNOCKING: Final = 8
EACH: Final = 4
WAITING: Final = 64
AT_ONCE: Final = 16


@dataclass(slots=True)
class _Line:
    running: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(EACH))
    requests: int = 0


class Turns:
    """Those of one listener."""

    def __init__(self) -> None:
        self._knocking = asyncio.Semaphore(KNOCKING)
        self._all = asyncio.Semaphore(AT_ONCE)
        self._lines: dict[str, _Line] = {}

    def __len__(self) -> int:
        """Whose requests there are."""
        return len(self._lines)

    @asynccontextmanager
    async def knock(self) -> AsyncIterator[None]:
        """While it is found out who asks."""
        async with self._knocking:
            yield

    @asynccontextmanager
    async def turn(self, who: str) -> AsyncIterator[None]:
        """While a request of ``who`` is worked on. Raises AuthorityOverloaded."""
        line = self._lines.setdefault(who, _Line())
        if line.requests >= EACH + WAITING:
            raise AuthorityOverloaded("too many requests of one user are waiting already")
        line.requests += 1
        try:
            async with line.running, self._all:
                yield
        finally:
            line.requests -= 1
            if not line.requests:
                del self._lines[who]
