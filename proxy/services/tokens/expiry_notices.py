"""Notices of tokens that are about to end: which are due, and which have been given.

Rules:

1. A notice is due once at each of so many days before the end: at the smallest of them that the time left is within.
2. A token that never lived longer than so many days has no notice of them: it was made to be short.
3. A notice is marked as given after it was taken. Its id is made of the token, its end and the days, so that one which
   was taken and could not be marked is the same notice when it comes again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from proxy.services.views import rfc3339
from proxy.store.store import Store
from proxy.store.tokens.expiring import ExpiringToken

DAY: Final = 86400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """A token that ends within ``days`` days."""

    token: ExpiringToken
    days: int

    @property
    def id(self) -> str:
        return f"{self.token.id}.{self.token.expires_at:.0f}.{self.days}"

    def as_dict(self) -> dict[str, object]:
        token = self.token
        return {
            "id": token.id,
            "prefix": token.prefix,
            "kind": token.kind.value,
            "name": token.name,
            "user_id": token.user_id,
            "user": token.email or None,
            "org_id": token.org_id,
            "org": token.org_name or None,
            "expires_at": rfc3339(token.expires_at),
            "within_days": self.days,
        }


class ExpiryNotices:
    """The verbs of notices, for the authority's own housekeeping. All raise StoreUnavailable."""

    def __init__(self, store: Store, clock: Callable[[], float], days: Sequence[int]) -> None:
        self._store = store
        self._clock = clock
        self.days: Final = tuple(sorted(set(days), reverse=True))

    async def due(self, limit: int) -> list[Notice]:
        """At most ``limit`` notices for each of the days, those of tokens that end first."""
        now = self._clock()
        found: list[Notice] = []
        async with self._store.read() as rows:
            for days, fewer in pairwise((*self.days, 0)):
                tokens = await rows.expiring_tokens.due(
                    days, begin=now + fewer * DAY, end=now + days * DAY, limit=limit
                )
                found += (Notice(token=token, days=days) for token in tokens)
        return found

    async def given(self, notices: Sequence[Notice]) -> None:
        """Remember that these were taken."""
        await self._store.mark_notified([(notice.token.id, notice.token.expires_at, notice.days) for notice in notices])

    async def counts(self) -> dict[int, int]:
        """How many living tokens end within each of the days."""
        now = self._clock()
        async with self._store.read() as rows:
            return {days: await rows.expiring_tokens.count(begin=now, end=now + days * DAY) for days in self.days}
