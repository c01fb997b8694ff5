"""A store of a test with its services, a clock that tests set, and a real but cheap hasher."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.core.dependency_keys import token_key
from proxy.core.kinds import Kind, Reach
from proxy.core.model import Actor, ActorKind, Credential, Grant, RefusedGrant, TokenStatus
from proxy.core.token import TokenFormat, digest
from proxy.services import derived_secrets, grants
from proxy.services.accounts.invitations import InvitationService
from proxy.services.accounts.members import MemberService
from proxy.services.accounts.orgs import OrgService
from proxy.services.accounts.roles import RoleService
from proxy.services.accounts.users import UserService
from proxy.services.keys.service import KeyService
from proxy.services.policy.model import TokenPolicy
from proxy.services.policy.service import PolicyService
from proxy.services.tokens.issuance import Minter, TokenRequest
from proxy.services.tokens.service import TokenService
from proxy.services.views import Created
from proxy.store import dialects
from proxy.store.records import TokenRow
from proxy.store.store import Store
from tests.support import stores

SECRET_KEY = b"k" * 32
CACHE_KEY = derived_secrets.cache_key(SECRET_KEY)
FINGERPRINT = derived_secrets.fingerprint(SECRET_KEY)
FORMAT = TokenFormat("acme")
ADMIN = Actor(kind=ActorKind.PERSON, id="usr_000000000000", name="root@example.org")
START = 1_700_000_000.0


class ScryptHasher:
    """Implements ``services.secret_hasher`` with scrypt at its lowest cost."""

    async def hash(self, token: str) -> str:
        salt = os.urandom(8)
        return f"{salt.hex()}${self._derive(salt, token).hex()}"

    async def verify(self, hash: str, token: str) -> bool:
        salt, _, derived = hash.partition("$")
        return hmac.compare_digest(self._derive(bytes.fromhex(salt), token).hex(), derived)

    def _derive(self, salt: bytes, token: str) -> bytes:
        return hashlib.scrypt(token.encode(), salt=salt, n=2, r=1, p=1)


@dataclass
class Clock:
    now: float = START

    def __call__(self) -> float:
        return self.now


@dataclass
class Kit:
    """One open store; ``announced`` holds every call of ``on_commit``."""

    store: Store
    clock: Clock
    policy: TokenPolicy = field(default_factory=TokenPolicy)
    announced: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    hasher: ScryptHasher = field(default_factory=ScryptHasher)

    @property
    def users(self) -> UserService:
        return UserService(self.store, self.clock)

    @property
    def orgs(self) -> OrgService:
        return OrgService(self.store, self.clock)

    @property
    def members(self) -> MemberService:
        return MemberService(self.store, self.clock)

    @property
    def invitations(self) -> InvitationService:
        return InvitationService(self.store, self.clock)

    @property
    def roles(self) -> RoleService:
        return RoleService(self.store, self.clock)

    @property
    def tokens(self) -> TokenService:
        return TokenService(self.store, self.clock, minter=self.minter, policies=self.policies)

    @property
    def keys(self) -> KeyService:
        return KeyService(self.store, self.clock, minter=self.minter, policies=self.policies, tokens=self.tokens)

    @property
    def policies(self) -> PolicyService:
        return PolicyService(self.store, self.clock, self.policy)

    @property
    def minter(self) -> Minter:
        return Minter(format=FORMAT, hasher=self.hasher, cache_key=CACHE_KEY)

    async def mint(
        self,
        user: str,
        name: str,
        *,
        org: str | None = None,
        reach: Reach | None = None,
        expires: float | None = None,
        scopes: Iterable[str] | None = None,
        description: str = "",
        ip_ranges: Iterable[str] | None = None,
    ) -> Created:
        """A token that the operator creates."""
        new = TokenRequest(
            user=user,
            name=name,
            org=org,
            reach=reach,
            expires=expires,
            scopes=scopes,
            ip_ranges=ip_ranges,
            description=description,
        )
        return await self.tokens.create(ADMIN, new)

    async def insert(self, kind: Kind, reach: Reach, user_id: str | None = None, org_id: str | None = None) -> TokenRow:
        """A token of this kind and reach, written directly to the store."""
        minted = FORMAT.mint(kind)
        row = TokenRow(
            id=minted.token_id,
            prefix=minted.prefix,
            kind=kind,
            reach=reach,
            name="t",
            description="",
            user_id=user_id,
            org_id=org_id,
            role=None,
            scopes=None,
            status=TokenStatus.ACTIVE,
            hash="-",
            digest=b"d" * 32,
            created_by_kind=ADMIN.kind.value,
            created_by=ADMIN.id,
            created_at=0.0,
            updated_at=0.0,
        )
        async with self.store.change(ADMIN) as change:
            await change.tokens.add(row)
            change.touched(token_key(row.id))
            change.audit("account.pat.mint", target_kind="token", target_id=row.id)
        return row

    def acting(self, made: Created) -> Actor:
        """The actor that presents a token that was just created."""
        view = made.view
        return Actor(
            kind=Kind(view.kind),
            id=view.id,
            name=view.name,
            user_id=view.user_id or "",
            credential=Credential(
                token_id=view.id, prefix=view.prefix, digest=digest(CACHE_KEY, made.value.encode("ascii"))
            ),
        )

    async def resolve(self, prefix: str) -> Grant | RefusedGrant:
        _, (verdict,) = await grants.resolve(self.store, (prefix,), self.clock())
        return verdict

    async def basics(self) -> None:
        """Three roles, an organisation and a user who is an editor in the account and a viewer in the organisation."""
        await self.roles.sync_config(
            ADMIN, {"admin": ["*:*"], "editor": ["things:*"], "viewer": ["things:list", "things:read"]}
        )
        await self.orgs.add(ADMIN, "team")
        await self.users.add(ADMIN, "ann@example.org", "editor")
        await self.users.add(ADMIN, "ann@example.org", "viewer", org="team")

    async def intact(self) -> int:
        """Check the invariants that hold after every operation; returns the epoch."""
        epoch = await self.store.epoch()
        checked = await self.store.verify_audit()
        assert checked.problem is None
        assert checked.events == epoch, "one audit event for each change"
        return epoch


@asynccontextmanager
async def opened(directory: Path, *, fingerprint: str = FINGERPRINT) -> AsyncIterator[Kit]:
    """The store that belongs to ``directory`` in the database that the test runs over (``support.dialects``)."""
    store = await Store.open(stores.address_of(directory), key_fingerprint=fingerprint)
    kit = Kit(store=store, clock=Clock())

    async def remember(epoch: int, touched: Sequence[str]) -> None:
        kit.announced.append((epoch, tuple(touched)))

    following, last = asyncio.Lock(), await store.epoch()

    async def follow(number: int, _since: int) -> None:
        # As the authority of a node does, which announces what it and others have changed.
        nonlocal last
        async with following:
            if number > last:
                changes = await store.changes_since(last)
                last = changes.epoch
                await store.on_commit(changes.epoch, changes.keys)

    store.on_commit, store.known = remember, follow
    try:
        yield kit
    finally:
        await store.close()


@asynccontextmanager
async def by_itself(directory: Path) -> AsyncIterator[AsyncConnection]:
    """A connection of its own to the database of ``directory``, past the store; leaving the block commits."""
    address = stores.address_of(directory)
    database = dialects.of_url(address).database(address, readers=1)
    await database.open()
    try:
        async with database.write() as connection:
            yield connection
            await database.commit(connection)
    finally:
        await database.close()
