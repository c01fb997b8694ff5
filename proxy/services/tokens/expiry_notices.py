"""Expiry notices: finds the tokens that expire soon, and records which notices were delivered.

Rules:

1. A notice is due once for each configured number of days before expiry: for the smallest number that covers the
   remaining time.
2. A token whose whole lifetime is not longer than a number of days gets no notice for it: it is short-lived on purpose.
3. A notice is claimed before its delivery and marked after it, so that of several nodes one delivers it. A node that
   dies between the two may have delivered it: another one delivers it when the claim has ended. Its id consists of the
   token, the expiry and the days, so the receiver sees that it is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from proxy.services.views import rfc3339, token_summary
from proxy.store.store import Store
from proxy.store.tokens.expiring import ExpiringToken, NoticeKey

DAY: Final = 86400.0
CLAIM_SECONDS: Final = 120.0
"""How long a notice is left to the node that delivers it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """A token that expires within ``days`` days."""

    token: ExpiringToken
    days: int

    @property
    def id(self) -> str:
        """The same for every delivery of this notice (rule 3)."""
        return f"{self.token.id}.{self.token.expires_at:.0f}.{self.days}"

    @property
    def key(self) -> NoticeKey:
        """The notice as the store knows it."""
        return NoticeKey(token_id=self.token.id, expires_at=self.token.expires_at, days=self.days)

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        return {
            **token_summary(self.token),
            "org": self.token.org_name or None,
            "expires_at": rfc3339(self.token.expires_at),
            "within_days": self.days,
        }


class ExpiryNotices:
    """Finds and marks notices, for the authority's own maintenance. All methods raise StoreUnavailable."""

    def __init__(self, store: Store, clock: Callable[[], float], days: Sequence[int]) -> None:
        self._store = store
        self._clock = clock
        self.days: Final = tuple(sorted(set(days), reverse=True))

    async def due(self, limit: int) -> list[Notice]:
        """At most ``limit`` notices for each number of days, the tokens that expire first."""
        now = self._clock()
        found: list[Notice] = []
        async with self._store.read() as rows:
            for days, fewer in pairwise((*self.days, 0)):
                tokens = await rows.expiring_tokens.due(
                    days, begin=now + fewer * DAY, end=now + days * DAY, limit=limit
                )
                found += (Notice(token=token, days=days) for token in tokens)
        return found

    async def claim(self, notices: Sequence[Notice], node: str) -> list[Notice]:
        """Those of these notices that ``node`` is to deliver now: no other node has claimed or delivered them."""
        keys = set(await self._store.claim_notices([notice.key for notice in notices], node, CLAIM_SECONDS))
        return [notice for notice in notices if notice.key in keys]

    async def given(self, notices: Sequence[Notice], node: str) -> None:
        """Mark these notices as delivered by ``node``."""
        await self._store.mark_notified([notice.key for notice in notices], node)

    async def counts(self) -> dict[int, int]:
        """The number of active tokens that expire within each number of days."""
        now = self._clock()
        async with self._store.read() as rows:
            return {days: await rows.expiring_tokens.count(begin=now, end=now + days * DAY) for days in self.days}
