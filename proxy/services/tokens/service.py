"""The verbs of tokens, personal access tokens and keys alike: made, looked at, replaced, narrowed and ended.

Rules:

1. Who asks comes first in every verb, reads included. What they may do is decided inside the transaction that does it,
   on their credential as it is then (``access``), by ``custody``.
2. A value leaves in ``Created``, once, after the change is durable (``minting``). No transaction waits for hashing.
3. Rotation keeps everything but the value, and needs a token that works: a new value would revive a dead one. What has
   ended is regenerated: a new value and a new end, under the policy of now.
4. Nobody gives a value, a scope or an end to a token that would then do more, or live longer, than the one presented.
5. Ending a token leaves those that it made alone unless asked; whoever ends it is told of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from proxy.core.errors import Conflict, Invalid
from proxy.core.kinds import Kind
from proxy.core.model import Actor, TokenStatus
from proxy.services import counting, idempotency, identifiers, lookalikes
from proxy.services.caller import Caller, standing
from proxy.services.idempotency import Retry
from proxy.services.policy.service import PolicyService
from proxy.services.tokens import loading, ownership, queries, revocation, scope_changes
from proxy.services.tokens.authorization import Verb
from proxy.services.tokens.issuance import Draft, Minter, TokenRequest, beyond, new_row, permissions, seconds
from proxy.services.tokens.loading import Found
from proxy.services.tokens.queries import TokenFilter
from proxy.services.tokens.regeneration import renewal
from proxy.services.tokens.scope_changes import Edit
from proxy.services.validation import Fields
from proxy.services.views import (
    LIMIT_DEFAULT,
    Changed,
    Created,
    Page,
    TokenView,
    check_limit,
    cursor_behind,
    read_cursor,
)
from proxy.store.change import Rows
from proxy.store.store import Store


class TokenService:
    """``token`` arguments are an id or a public prefix. All raise StoreUnavailable and Unauthenticated."""

    def __init__(self, store: Store, clock: Callable[[], float], *, minter: Minter, policies: PolicyService) -> None:
        self._store = store
        self._clock = clock
        self._minter = minter
        self._policies = policies

    async def create(self, actor: Actor, new: TokenRequest, *, retry: Retry | None = None) -> Created:
        """Make a personal access token.

        Raises Invalid, NotFound (user, org), Forbidden (not contained in the token presented), Conflict (suspended,
        too many tokens), AuthorityOverloaded.
        """
        fields = Fields()
        draft = Draft.of(new, fields)
        reach = ownership.reach_of(new, fields)
        fields.done()
        async with self._store.read() as rows:
            now = self._clock()
            asker = await standing(rows, actor, now)
            made = await idempotency.made_before(rows, actor, retry, now)
            if made is not None:
                return await loading.replayed(rows, asker, made, now)
            await ownership.plan(rows, asker, self._policies, new, draft, reach, now)
        value = await self._minter.value(actor, Kind.PAT)
        async with self._store.change(actor, self._clock()) as change:
            asker = await standing(change, actor, change.now)
            made = await idempotency.made_before(change, actor, retry, change.now)
            if made is not None:
                return await loading.replayed(change, asker, made, change.now)
            plan = await ownership.plan(change, asker, self._policies, new, draft, reach, change.now)
            row = new_row(
                value,
                draft,
                actor,
                change.now,
                kind=Kind.PAT,
                reach=plan.reach,
                expires_at=plan.expires_at,
                user_id=plan.user.id,
                org_id=None if plan.org is None else plan.org.id,
            )
            await change.tokens.add(row)
            await idempotency.remember(change, retry, row.id)
            details: dict[str, object] = {"user": plan.user.email, "reach": row.reach.value, "scopes": row.scopes}
            details.update({"expires_at": row.expires_at, **loading.mixed(draft.texts)})
            loading.record(change, "mint", row, details)
            view = await loading.show(change, asker, row.id, change.now)
        return Created(view=view, token=value.token, warnings=plan.warnings + lookalikes.warnings(draft.texts))

    async def list(
        self,
        actor: Actor,
        wanted: TokenFilter | None = None,
        *,
        limit: int = LIMIT_DEFAULT,
        cursor: str | None = None,
        count: bool = False,
    ) -> Page[TokenView]:
        """Tokens that ``actor`` may know of, oldest first; with ``count``, how many more there are.

        Raises NotFound (user, org, parent), Invalid.
        """
        after = read_cursor(cursor)
        check_limit(limit)
        wanted = wanted or TokenFilter()
        wanted.check()
        now = self._clock()
        async with self._store.read() as rows:
            asker = await standing(rows, actor, now)
            query = await queries.query(rows, asker, self._policies, wanted, now)
            found = await rows.tokens.page(query, after=after, limit=limit + 1, now=now)
            views = await loading.views(rows, asker, found[:limit], now)
            last = query.position(found[limit - 1]) if len(found) > limit else None
            behind = partial(rows.tokens.count_behind, query, now=now)
            left = await counting.remaining(asker, last, behind) if count else None
        return Page(items=views, next_cursor=cursor_behind(last), remaining=left)

    async def show(self, actor: Actor, token: str) -> TokenView:
        """One token. Raises NotFound."""
        async with self._store.read() as rows:
            now = self._clock()
            asker = await standing(rows, actor, now)
            found = await loading.find(rows, asker, self._policies, token, Verb.SHOW)
            return (await loading.views(rows, asker, (found.entry,), now))[0]

    async def update(
        self, actor: Actor, token: str, *, name: str | None = None, description: str | None = None
    ) -> Changed:
        """Another name or description. Raises NotFound, Forbidden, Invalid."""
        fields = Fields()
        title = None if name is None else fields.check(lambda: identifiers.title(name, "name"))
        text = None if description is None else fields.check(lambda: identifiers.description(description))
        fields.done()
        async with self._store.change(actor, self._clock()) as change:
            asker = await standing(change, actor, change.now)
            found = await loading.find(change, asker, self._policies, token, Verb.UPDATE)
            before = {"name": found.row.name, "description": found.row.description}
            after = {**before, **({} if title is None else {"name": title})}
            after.update({} if text is None else {"description": text})
            if after != before:
                await change.tokens.describe(found.row.id, now=change.now, **after)
                details = {"before": before, "after": after, **loading.mixed({"name": after["name"]})}
                loading.record_found(change, "update", found, details)
            view = await loading.show(change, asker, found.row.id, change.now)
            return Changed(view=view, warnings=lookalikes.warnings({"name": view.name}))

    async def rotate(self, actor: Actor, token: str) -> Created:
        """A new value for a token that works, in place; the old one is refused at once.

        Raises NotFound, Forbidden, Conflict (revoked or expired), AuthorityOverloaded.
        """
        async with self._store.read() as rows:
            now = self._clock()
            found = await self._rotatable(rows, await standing(rows, actor, now), token, now)
        value = await self._minter.value(actor, found.row.kind, found.row.id)
        async with self._store.change(actor, self._clock()) as change:
            asker = await standing(change, actor, change.now)
            found = await self._rotatable(change, asker, token, change.now)
            await change.tokens.replace_secret(found.row.id, hash=value.hash, digest=value.digest, now=change.now)
            loading.record_found(change, "rotate", found)
            view = await loading.show(change, asker, found.row.id, change.now)
        return Created(view=view, token=value.token)

    async def regenerate(self, actor: Actor, token: str, *, expires: float | None = None) -> Created:
        """A new value and a new end, in ``expires`` seconds, for a token that is revoked or has expired.

        Id, name, description, scopes and reach stay. Without ``expires`` it lives as long as it was made for.
        Raises NotFound, Forbidden, Invalid, Conflict (active, suspended, too many), AuthorityOverloaded.
        """
        seconds(expires)
        async with self._store.read() as rows:
            now = self._clock()
            asker = await standing(rows, actor, now)
            found = await loading.find(rows, asker, self._policies, token, Verb.REGENERATE)
            await renewal(rows, asker, self._policies, found, expires, now)
        value = await self._minter.value(actor, found.row.kind, found.row.id)
        async with self._store.change(actor, self._clock()) as change:
            asker = await standing(change, actor, change.now)
            found = await loading.find(change, asker, self._policies, token, Verb.REGENERATE)
            renewed = await renewal(change, asker, self._policies, found, expires, change.now)
            await change.tokens.regenerate(
                found.row.id,
                hash=value.hash,
                digest=value.digest,
                expires_at=renewed.expires_at,
                now=change.now,
            )
            details = {"expires_at": renewed.expires_at, "before": {"expires_at": found.row.expires_at}}
            loading.record_found(change, "regenerate", found, details)
            view = await loading.show(change, asker, found.row.id, change.now)
        return Created(view=view, token=value.token, warnings=renewed.warnings)

    async def revoke(self, actor: Actor, token: str, *, descendants: bool = False) -> Changed:
        """Refuse a token from now on, with ``descendants`` also all that it made, some at a time. Twice is once.

        Raises NotFound, Forbidden.
        """
        bulk = revocation.BulkRevocation()
        while True:
            async with self._store.change(actor, self._clock()) as change:
                asker = await standing(change, actor, change.now)
                found = await loading.find(change, asker, self._policies, token, Verb.REVOKE)
                if descendants:
                    await bulk.step(change, asker, self._policies, found)
                elif found.row.status is not TokenStatus.REVOKED:
                    await change.tokens.revoke(found.row.id, change.now)
                    loading.record_found(change, "revoke", found)
                if bulk.done or not descendants:
                    left = await revocation.still_working(change, found)
                    return Changed(view=await loading.show(change, asker, found.row.id, change.now), warnings=left)

    async def delete(self, actor: Actor, token: str) -> Changed:
        """Remove a token's row; returns it as it last was. The audit log keeps what happened.

        Raises NotFound, Forbidden.
        """
        async with self._store.change(actor, self._clock()) as change:
            asker = await standing(change, actor, change.now)
            found = await loading.find(change, asker, self._policies, token, Verb.DELETE)
            (view,) = await loading.views(change, asker, (found.entry,), change.now)
            left = await revocation.still_working(change, found)
            await change.tokens.delete(found.row.id)
            loading.record_found(change, "delete", found)
            return Changed(view=view, warnings=left)

    async def delete_all(self, actor: Actor, user: str | None = None, *, keep_current: bool = False) -> int:
        """Delete the tokens of a user (by default the actor's own) that ``actor`` may delete, some at a time; how many
        there were.

        ``keep_current`` leaves out the token presented. Raises NotFound (user), Forbidden, Invalid.
        """
        keep = actor.credential.token_id if keep_current and actor.credential is not None else None
        deletion: revocation.BulkDeletion | None = None
        while deletion is None or not deletion.done:
            async with self._store.change(actor, self._clock()) as change:
                asker = await standing(change, actor, change.now)
                if deletion is None:
                    if user is None and not asker.user_id:
                        raise Invalid("user", "say whose tokens")
                    user_id = asker.user_id if user is None else (await queries.user_in_sight(change, asker, user)).id
                    deletion = revocation.BulkDeletion(user_id=user_id, keep=keep)
                await deletion.step(change, asker, self._policies)
        return deletion.deleted

    async def add_scopes(self, actor: Actor, token: str, scopes: Iterable[str]) -> Changed:
        """Let a token with scopes do these as well. Raises NotFound, Forbidden, Invalid, Conflict (without scopes)."""
        wanted = _scopes(scopes)
        return await self._edit(actor, token, "add", wanted, scope_changes.adding(wanted))

    async def remove_scopes(self, actor: Actor, token: str, scopes: Iterable[str]) -> Changed:
        """Take these from a token. Raises NotFound, Forbidden, Invalid, Conflict (without scopes, still covered)."""
        return await self._edit(actor, token, "remove", (), scope_changes.removing(_scopes(scopes)))

    async def clear_scopes(self, actor: Actor, token: str) -> Changed:
        """Leave a token no scopes: it may do nothing. Raises NotFound, Forbidden."""
        return await self._edit(actor, token, "clear", (), scope_changes.setting(()))

    async def set_scopes(self, actor: Actor, token: str, scopes: Iterable[str]) -> Changed:
        """These scopes and no others. Raises NotFound, Forbidden, Invalid."""
        wanted = _scopes(scopes)
        return await self._edit(actor, token, "set", wanted, scope_changes.setting(wanted))

    async def _edit(self, actor: Actor, token: str, how: str, wanted: tuple[str, ...], edit: Edit) -> Changed:
        async with self._store.change(actor, self._clock()) as change:
            asker = await standing(change, actor, change.now)
            found = await loading.find(change, asker, self._policies, token, Verb.SCOPES)
            edited = edit(found.row.scopes)
            await scope_changes.require(change, asker, self._policies, found, wanted, edited)
            before = None if found.row.scopes is None else list(found.row.scopes)
            if edited.after != before:
                await change.tokens.set_scopes(found.row.id, edited.after, change.now)
                loading.record_found(change, "scopes", found, {"how": how, "before": before, "after": edited.after})
            roles = await loading.roles(change, found)
            warnings = edited.warnings + beyond(roles, wanted)
            return Changed(view=await loading.show(change, asker, found.row.id, change.now), warnings=warnings)

    async def _rotatable(self, rows: Rows, asker: Caller, token: str, now: float) -> Found:
        found = await loading.find(rows, asker, self._policies, token, Verb.ROTATE)
        status = found.status(now)
        if status is not TokenStatus.ACTIVE:
            raise Conflict(f"the token is {status.value}: only an active token can be rotated")
        row = found.row
        await loading.require_within(rows, asker, found, expires_at=row.expires_at, scopes=row.scopes)
        return found


def _scopes(texts: Iterable[str]) -> tuple[str, ...]:
    fields = Fields()
    found = permissions(fields, texts, "scopes")
    fields.done()
    return found
