"""The store as resolution and the link see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from proxy.core.model import Grant, RefusedGrant
from proxy.services import grants
from proxy.store.store import Store


class StoreGrants:
    """`resolver.GrantSource` and `link.ChangeFeed` over a store.  All methods raise StoreUnavailable."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    async def resolve(self, prefixes: Sequence[str]) -> tuple[int, list[Grant | RefusedGrant]]:
        return await grants.resolve(self._store, prefixes, self._clock())

    async def secret_hash(self, token_id: str) -> str | None:
        return await self._store.token_hash(token_id)

    async def remember_digest(self, token_id: str, digest: bytes, expected_hash: str) -> bool:
        return await self._store.write_digest(token_id, digest, expected_hash=expected_hash)

    async def changes_since(self, epoch: int, limit: int) -> tuple[int, tuple[str, ...], bool]:
        found = await self._store.changes_since(epoch, limit)
        return found.epoch, found.keys, found.complete
