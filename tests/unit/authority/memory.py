"""A store of grants in memory, for resolution without a database; it can be set to fail."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from proxy.core.dependency_keys import token_key
from proxy.core.errors import StoreUnavailable
from proxy.core.kinds import Kind, Reach
from proxy.core.model import Grant, RefusedGrant
from proxy.core.permissions import PermissionSet
from proxy.core.reasons import Reason
from proxy.core.token import TokenFormat
from proxy.store.audit.reports import Report
from proxy.store.audit.request_events import RequestEvent
from proxy.store.tokens.usage import Use
from proxy.store.upkeep.batches import Batch

TOKENS = TokenFormat("acme")
CACHE_KEY = b"k" * 32


@dataclass(kw_only=True)
class MemoryGrants:
    """Grants and hashes by prefix; every mutation is a numbered change."""

    epoch: int = 1
    grants: dict[str, Grant] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    log: list[tuple[int, str]] = field(default_factory=list)
    read_only: bool = False
    broken: bool = False

    def add(self, token: str, stored: str) -> Grant:
        parsed = TOKENS.parse(token)
        assert parsed is not None
        grant = Grant(
            prefix=parsed.prefix,
            token_id=parsed.token_id,
            kind=Kind.PAT,
            token_name="ci",
            digest=None,
            user_id="u1",
            email="ada@example.org",
            org_id="",
            org_name="",
            reach=Reach.PERSONAL,
            role="editor",
            permissions=PermissionSet.of(["things:*"]),
            scopes=None,
            expires_at=None,
            depends=(token_key(parsed.token_id), "user:u1", "role:editor"),
        )
        self.grants[parsed.prefix] = grant
        self.hashes[parsed.token_id] = stored
        return grant

    def rotate(self, prefix: str, stored: str) -> None:
        grant = self.grants[prefix]
        self.grants[prefix] = replace(grant, digest=None)
        self.hashes[grant.token_id] = stored
        self.epoch += 1
        self.log.append((self.epoch, token_key(grant.token_id)))

    async def resolve(self, prefixes: Sequence[str]) -> tuple[int, list[Grant | RefusedGrant]]:
        await asyncio.sleep(0)
        if self.broken:
            raise StoreUnavailable("the store cannot be used now")
        return self.epoch, [self._verdict(prefix) for prefix in prefixes]

    def _verdict(self, prefix: str) -> Grant | RefusedGrant:
        found = self.grants.get(prefix)
        return RefusedGrant(prefix=prefix, reason=Reason.TOKEN_UNKNOWN, depends=()) if found is None else found

    async def secret_hash(self, token_id: str) -> str | None:
        await asyncio.sleep(0)
        return self.hashes.get(token_id)

    async def remember_digest(self, token_id: str, digest: bytes, expected_hash: str) -> bool:
        await asyncio.sleep(0)
        if self.read_only:
            raise StoreUnavailable("the store cannot be used now because its disk is full")
        if self.hashes.get(token_id) != expected_hash:
            return False
        prefix = next(p for p, g in self.grants.items() if g.token_id == token_id)
        self.grants[prefix] = replace(self.grants[prefix], digest=digest)
        return True

    async def changes_since(self, epoch: int, limit: int) -> tuple[int, tuple[str, ...], bool]:
        keys = tuple(key for number, key in self.log if number > epoch)
        return self.epoch, keys, len(keys) <= limit


@dataclass(kw_only=True)
class MemoryRequests:
    """The batches of events, uses and reports that were written. If ``failure`` is set, it is raised instead."""

    events: list[list[RequestEvent]] = field(default_factory=list)
    uses: list[list[Use]] = field(default_factory=list)
    reports: list[list[Report]] = field(default_factory=list)
    failure: Exception | None = None
    tried: int = 0
    batches: list[Batch] = field(default_factory=list)
    """Of events, each attempt."""

    async def add_uses(self, uses: Sequence[Use], batch: Batch) -> None:
        await self._try()
        self.uses.append(list(uses))

    async def add_reports(self, reports: Sequence[Report], batch: Batch) -> None:
        await self._try()
        self.reports.append(list(reports))

    async def append_requests(self, events: Sequence[RequestEvent], batch: Batch) -> None:
        self.batches.append(batch)
        await self._try()
        self.events.append(list(events))

    async def _try(self) -> None:
        self.tried += 1
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
