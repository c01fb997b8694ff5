"""Adapter from the store to what the resolver and the link use."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from proxy.core.model import Grant, RefusedGrant
from proxy.core.reasons import Reason
from proxy.services import grants
from proxy.store.store import Store


class StoreGrants:
    """``resolver.GrantSource`` and ``server.ChangeFeed`` over a store. All methods raise StoreUnavailable."""

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float],
        saw: Callable[[int], None] = lambda _number: None,
    ) -> None:
        """``saw`` is called with the number of each answer before it is given."""
        self._store = store
        self._clock = clock
        self._saw = saw

    async def resolve(self, prefixes: Sequence[str]) -> tuple[int, list[Grant | RefusedGrant]]:
        """The epoch of one snapshot, and the grant or refusal of each prefix in it."""
        as_of, outcomes = await grants.resolve(self._store, prefixes, self._clock())
        # Before any worker of this host decides by it, no other one may decide by an older state.
        self._saw(as_of)
        return as_of, [self._unless_in_doubt(outcome) for outcome in outcomes]

    def _unless_in_doubt(self, outcome: Grant | RefusedGrant) -> Grant | RefusedGrant:
        """Refuse a grant that depends on a change whose outcome is unknown."""
        if isinstance(outcome, RefusedGrant) or self._store.in_doubt.isdisjoint(outcome.depends):
            return outcome
        return RefusedGrant(prefix=outcome.prefix, reason=Reason.AUTHORITY_UNAVAILABLE, depends=outcome.depends)

    async def secret_hash(self, token_id: str) -> str | None:
        """The token's slow hash, or None when the token does not exist."""
        return await self._store.token_hash(token_id)

    async def remember_digest(self, token_id: str, digest: bytes, expected_hash: str) -> bool:
        """Store the digest of a proven token; false if its hash is no longer the expected one."""
        return await self._store.write_digest(token_id, digest, expected_hash=expected_hash)

    async def changes_since(self, epoch: int, limit: int) -> tuple[int, tuple[str, ...], bool]:
        """The store's epoch, the keys changed after ``epoch``, and whether those are all."""
        changes = await self._store.changes_since(epoch, limit)
        self._saw(changes.epoch)
        return changes.epoch, changes.keys, changes.complete
