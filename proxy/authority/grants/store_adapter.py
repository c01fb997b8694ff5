"""The store as resolution and the link see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from proxy.core.model import Grant, RefusedGrant
from proxy.core.reasons import Reason
from proxy.services import grants
from proxy.store.store import Store


class StoreGrants:
    """``resolver.GrantSource`` and ``link.ChangeFeed`` over a store. All methods raise StoreUnavailable."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    async def resolve(self, prefixes: Sequence[str]) -> tuple[int, list[Grant | RefusedGrant]]:
        as_of, found = await grants.resolve(self._store, prefixes, self._clock())
        return as_of, [self._unless_in_doubt(outcome) for outcome in found]

    def _unless_in_doubt(self, outcome: Grant | RefusedGrant) -> Grant | RefusedGrant:
        """No grant depends on what a change has touched of which nobody can say now whether it counts."""
        if isinstance(outcome, RefusedGrant) or self._store.in_doubt.isdisjoint(outcome.depends):
            return outcome
        return RefusedGrant(prefix=outcome.prefix, reason=Reason.AUTHORITY_UNAVAILABLE, depends=outcome.depends)

    async def secret_hash(self, token_id: str) -> str | None:
        return await self._store.token_hash(token_id)

    async def remember_digest(self, token_id: str, digest: bytes, expected_hash: str) -> bool:
        return await self._store.write_digest(token_id, digest, expected_hash=expected_hash)

    async def changes_since(self, epoch: int, limit: int) -> tuple[int, tuple[str, ...], bool]:
        found = await self._store.changes_since(epoch, limit)
        return found.epoch, found.keys, found.complete
