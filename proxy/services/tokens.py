"""Tokens: made, shown, rotated, revoked and deleted.

Rules:

1. The value leaves in ``Created``, once, after the change is durable; what is stored is a slow hash and a keyed digest.
2. Hashing happens before the transaction, so no writer waits for it; what was checked before is checked again inside.
3. Scopes may name more than the role allows: they only narrow it. Whoever asked is told, not refused.
4. Rotation keeps everything but the value. Only an active token rotates: a new value would revive a dead one.
5. Policy is enforced where a token is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from proxy.core.depends import token_key
from proxy.core.errors import Conflict, Invalid, NotFound
from proxy.core.model import Actor, Kind, Reach, TokenStatus, UserStatus
from proxy.core.permissions import PermissionSet
from proxy.core.token import TokenFormat, digest
from proxy.services import lookup, names
from proxy.services.grants import ORG_ACTIVE
from proxy.services.hashing import SecretHasher
from proxy.services.roles import permission_texts
from proxy.services.views import LIMIT_DEFAULT, Created, Page, TokenView, check_limit, read_cursor, write_cursor
from proxy.store.change import Change, Rows
from proxy.store.listing import TokenQuery, Within
from proxy.store.records import OrgRow, TokenEntry, TokenRow, UserRow
from proxy.store.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenPolicy:
    """What new tokens must keep to. ``max_lifetime`` is in seconds; ``None`` limits nothing."""

    max_lifetime: float | None = None
    require_expiry: bool = False
    tokens_per_user: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Owner:
    user: UserRow
    org: OrgRow | None
    role: str


class Tokens:
    """The verbs of tokens. ``token`` arguments are an id or a public prefix; all raise StoreUnavailable."""

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float],
        *,
        format: TokenFormat,
        hasher: SecretHasher,
        cache_key: bytes,
        policy: TokenPolicy,
    ) -> None:
        self._store = store
        self._clock = clock
        self._format = format
        self._hasher = hasher
        self._cache_key = cache_key
        self._policy = policy

    async def create(
        self,
        actor: Actor,
        user: str,
        name: str,
        org: str | None = None,
        expires: float | None = None,
        scopes: Iterable[str] = (),
        description: str = "",
    ) -> Created:
        """Make a token for a user (email or id), for ``org`` or personal, that ends in ``expires`` seconds.

        No scopes: all that the role allows. Under a maximum lifetime, a token without an expiry gets that lifetime.
        Raises Invalid, NotFound (user, org), Conflict (suspended, too many tokens), AuthorityOverloaded.
        """
        name = names.title(name, "name")
        description = names.description(description)
        texts = permission_texts(scopes, "scopes")
        lifetime, warnings = self._lifetime(expires)
        async with self._store.read() as rows:
            await self._check(rows, user, org)
        minted = self._format.mint(Kind.PAT)
        hashed = await self._hasher.hash(minted.token)
        async with self._store.change(actor, self._clock()) as change:
            owner = await self._check(change, user, org)
            row = TokenRow(
                id=minted.token_id,
                prefix=minted.prefix,
                kind=Kind.PAT,
                reach=Reach.PERSONAL if owner.org is None else Reach.ORG,
                name=name,
                description=description,
                user_id=owner.user.id,
                org_id=None if owner.org is None else owner.org.id,
                role=None,
                scopes=texts or None,
                status=TokenStatus.ACTIVE,
                hash=hashed,
                digest=digest(self._cache_key, minted.token.encode("ascii")),
                created_by_kind=actor.kind.value,
                created_by=actor.id,
                created_at=change.now,
                updated_at=change.now,
                expires_at=None if lifetime is None else change.now + lifetime,
            )
            await change.tokens.add(row)
            details = {"prefix": row.prefix, "user": owner.user.email, "scopes": row.scopes}
            _audit(change, "mint", row, {**details, "expires_at": row.expires_at})
            if texts:
                warnings += await _beyond_role(change, owner.role, texts)
            view = await self._view(change, row.id)
        return Created(view=view, token=minted.token, warnings=warnings)

    async def list(
        self,
        user: str | None = None,
        status: TokenStatus | None = None,
        *,
        limit: int = LIMIT_DEFAULT,
        cursor: str | None = None,
    ) -> Page[TokenView]:
        """Tokens, oldest first, of one user and with one status where given. Raises NotFound (user), Invalid."""
        after = read_cursor(cursor)
        now = self._clock()
        async with self._store.read() as rows:
            user_id = None if user is None else (await lookup.user(rows, user)).id
            query = TokenQuery(within=(Within(user_id=user_id),), status=status)
            found = await rows.tokens.page(query, after=after, limit=check_limit(limit) + 1, now=now)
        views = [TokenView.of(entry, now) for entry in found[:limit]]
        more = len(found) > limit
        return Page(items=views, next_cursor=write_cursor(views[-1].created_at, views[-1].id) if more else None)

    async def show(self, token: str) -> TokenView:
        """One token. Raises NotFound."""
        async with self._store.read() as rows:
            return TokenView.of(await self._find(rows, token), self._clock())

    async def rotate(self, actor: Actor, token: str) -> Created:
        """A new value for an active token, in place; the old one is refused at once.

        Raises NotFound, Conflict (revoked or expired), AuthorityOverloaded.
        """
        async with self._store.read() as rows:
            row = self._rotatable(await self._find(rows, token))
        minted = self._format.mint(row.kind, row.id)
        hashed = await self._hasher.hash(minted.token)
        async with self._store.change(actor, self._clock()) as change:
            row = self._rotatable(await self._find(change, token))
            value_digest = digest(self._cache_key, minted.token.encode("ascii"))
            await change.tokens.replace_secret(row.id, hash=hashed, digest=value_digest, now=change.now)
            _audit(change, "rotate", row, {"prefix": row.prefix})
            view = await self._view(change, row.id)
        return Created(view=view, token=minted.token)

    async def revoke(self, actor: Actor, token: str) -> TokenView:
        """Refuse a token from now on. Revoking twice is revoking once. Raises NotFound."""
        async with self._store.change(actor, self._clock()) as change:
            row = (await self._find(change, token)).token
            if row.status is not TokenStatus.REVOKED:
                await change.tokens.revoke(row.id, change.now)
                _audit(change, "revoke", row, {"prefix": row.prefix})
            return await self._view(change, row.id)

    async def delete(self, actor: Actor, token: str) -> TokenView:
        """Remove a token's row; returns it as it last was. The audit log keeps what happened. Raises NotFound."""
        async with self._store.change(actor, self._clock()) as change:
            entry = await self._find(change, token)
            await change.tokens.delete(entry.token.id)
            _audit(change, "delete", entry.token, {"prefix": entry.token.prefix})
            return TokenView.of(entry, change.now)

    def _lifetime(self, expires: float | None) -> tuple[float | None, tuple[str, ...]]:
        """The lifetime in seconds that the policy gives a token, and what to tell about it. Raises Invalid."""
        longest = self._policy.max_lifetime
        if expires is None:
            if self._policy.require_expiry:
                raise Invalid("expires", "the policy requires an expiry")
            if longest is None:
                return None, ("this token never expires",)
            return longest, (f"the policy's maximum lifetime of {longest:g} seconds applies",)
        if not math.isfinite(expires) or not 0 < expires <= 1e10:
            raise Invalid("expires", "a lifetime is a positive number of seconds")
        if longest is not None and expires > longest:
            raise Invalid("expires", f"the policy's maximum lifetime is {longest:g} seconds")
        return expires, ()

    async def _check(self, rows: Rows, user: str, org: str | None) -> _Owner:
        """Who would own a new token; raises where there can be none."""
        found = await lookup.user(rows, user)
        if found.status is UserStatus.SUSPENDED:
            raise Conflict("the user is suspended and cannot be given a token")
        limit = self._policy.tokens_per_user
        if limit is not None and await rows.tokens.count_active(found.id, self._clock()) >= limit:
            raise Conflict(f"the user has as many active tokens as the policy allows ({limit}): revoke one first")
        if org is None:
            return _Owner(user=found, org=None, role=found.role)
        organisation = await lookup.org(rows, org)
        if organisation.status != ORG_ACTIVE:
            raise Conflict("the organisation is suspended and cannot be given a token")
        member = await rows.members.get(organisation.id, found.id)
        if member is None:
            raise Invalid("org", "the user is not a member of this organisation")
        return _Owner(user=found, org=organisation, role=member.role)

    async def _find(self, rows: Rows, reference: str) -> TokenEntry:
        entry = await rows.tokens.get(reference.rpartition("_")[2])
        if entry is None or reference not in (entry.token.id, entry.token.prefix):
            raise NotFound("there is no token with this id or prefix")
        return entry

    def _rotatable(self, entry: TokenEntry) -> TokenRow:
        status = TokenView.of(entry, self._clock()).status
        if status is not TokenStatus.ACTIVE:
            raise Conflict(f"the token is {status.value}: only an active token can be rotated")
        return entry.token

    async def _view(self, rows: Rows, token_id: str) -> TokenView:
        return TokenView.of(await self._find(rows, token_id), self._clock())


def _audit(change: Change, verb: str, row: TokenRow, details: dict[str, object]) -> None:
    """The one event and the one key of a change to a token."""
    change.touched(token_key(row.id))
    change.audit(
        f"account.{row.kind.value}.{verb}",
        target_kind="token",
        target_id=row.id,
        target_name=row.name,
        org_id=row.org_id or "",
        details=details,
    )


async def _beyond_role(rows: Rows, role: str, scopes: list[str]) -> tuple[str, ...]:
    """One sentence about scopes that the owner's role does not reach now."""
    row = await rows.roles.get(role)
    allowed = PermissionSet.of(() if row is None else row.permissions)
    beyond = [text for text in scopes if not allowed.covers(PermissionSet.of((text,)))]
    return (f"the owner's role does not allow {', '.join(beyond)} now",) if beyond else ()
