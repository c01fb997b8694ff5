"""The claim of one node to do the periodic work of all nodes that share a store.

Rules of this module:
1. The claim is renewed every few seconds, and ends by itself when its node has died or was frozen for too long. Its end
   is reckoned here from before the renewal was sent, so this node stops before another may begin.
2. A store that cannot be reached ends the claim in time as well: nobody's work can be done then.
3. A clean stop gives the claim up, so that another node takes over at its next turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from proxy.core.errors import PatgateError
from proxy.core.ipc.clock import boottime_ns
from proxy.observe.logs import get_logger

CLAIM_SECONDS: Final = 20.0
"""How long a node has the claim after a renewal."""
_MARGIN_SECONDS: Final = 1.0
"""The clocks of the node and of the store may run at different rates."""
_GIVE_UP_SECONDS: Final = 1.0

_log = get_logger("authority.claim")


class Claims(Protocol):
    """The part of the store that this module uses; methods raise StoreUnavailable."""

    async def claim(self, names: Sequence[str], node: str, seconds: float) -> frozenset[str]:
        """Claim these tasks for ``node``; returns those that it has now."""
        ...

    async def give_up(self, names: Sequence[str], node: str) -> None:
        """End the claims of ``node`` on these tasks."""
        ...


def _boottime() -> float:
    return boottime_ns() / 1e9


class Claim:
    """One task of this node or another. ``clock`` in seconds."""

    def __init__(self, claims: Claims, name: str, node: str, *, clock: Callable[[], float] = _boottime) -> None:
        self._claims = claims
        self._name = name
        self._node = node
        self._clock = clock
        self._until = 0.0

    @property
    def held(self) -> bool:
        """Whether the task is this node's."""
        return self._clock() < self._until

    async def renew(self) -> None:
        """Take the task if it is free, or keep it; a failure is logged when it costs the claim."""
        before = self._clock()
        try:
            mine = self._name in await self._claims.claim((self._name,), self._node, CLAIM_SECONDS)
        except PatgateError as error:
            if self._until and not self.held:
                self._until = 0.0
                _log.warning("periodic tasks are not done now: the store cannot be used", error=error)
            return
        if mine and not self._until:
            _log.info("this node does the periodic tasks now", task=self._name)
        self._until = before + CLAIM_SECONDS - _MARGIN_SECONDS if mine else 0.0

    async def give_up(self) -> None:
        """End the claim if there is one; if that fails it ends by itself."""
        held, self._until = self.held, 0.0
        if held:
            try:
                async with asyncio.timeout(_GIVE_UP_SECONDS):
                    await self._claims.give_up((self._name,), self._node)
            except (PatgateError, TimeoutError) as error:
                _log.info("the periodic tasks were not given up", error=error)
