"""Creates, lists, changes, rotates, regenerates, revokes and deletes tokens: personal access tokens and keys.

Rules:

1. Every operation, reads included, first loads the caller (``caller``). ``authorization`` decides inside the
   transaction that does the operation, on the credential as it is then.
2. A value is returned once, in ``Created``, after the change is durable (``issuance``). No transaction waits for
   hashing.
3. Rotation replaces only the value, and needs an active token, since a new value must not revive an ended one. A
   revoked or expired token is regenerated: it gets a new value and a new expiry under the present policy.
4. No caller can give a value, a scope or an expiry to a token that would then have more permissions, or expire later,
   than the one presented.
5. Ending a token does not end the tokens that it created, unless requested. The caller gets a warning about them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from proxy.core.errors import Conflict, Invalid
from proxy.core.kinds import Kind
from proxy.core.model import Actor, TokenStatus
from proxy.services import idempotency, identifiers, lookalikes
from proxy.services.caller import Caller, load_caller
from proxy.services.idempotency import IdempotencyKey
from proxy.services.paging import FIRST_PAGE, Page, PageRequest, read_page
from proxy.services.policy.service import PolicyService
from proxy.services.tokens import authorization, loading, ownership, queries, revocation, scope_changes
from proxy.services.tokens.authorization import Verb
from proxy.services.tokens.issuance import (
    Draft,
    Minter,
    TokenRequest,
    ineffective_scopes,
    ip_ranges,
    new_row,
    permissions,
    seconds,
)
from proxy.services.tokens.loading import Found
from proxy.services.tokens.queries import TokenFilter
from proxy.services.tokens.regeneration import renewal
from proxy.services.tokens.scope_changes import Edit
from proxy.services.validation import Fields
from proxy.services.views import Changed, Created, TokenView
from proxy.store.change import Rows
from proxy.store.store import Store


class TokenService:
    """Creates, lists, changes and ends tokens. ``token`` arguments are an id or a public prefix.

    All methods raise StoreUnavailable and Unauthenticated.
    """

    def __init__(self, store: Store, clock: Callable[[], float], *, minter: Minter, policies: PolicyService) -> None:
        self._store = store
        self._clock = clock
        self._minter = minter
        self._policies = policies

    async def create(
        self, actor: Actor, new: TokenRequest, *, idempotency_key: IdempotencyKey | None = None
    ) -> Created:
        """Create a personal access token.

        Raises Invalid, NotFound (user, org), Forbidden (not contained in the token presented), Conflict (suspended,
        too many tokens), AuthorityOverloaded.
        """
        fields = Fields()
        draft = Draft.of(new, fields)
        reach = ownership.reach_of(new, fields)
        fields.done()
        async with self._store.read() as rows:
            now = self._clock()
            caller = await load_caller(rows, actor, now)
            made = await idempotency.created_before(rows, actor, idempotency_key, now)
            if made is not None:
                return await loading.replayed(rows, caller, made, now)
            await ownership.plan(rows, caller, self._policies, new, draft, reach, now)
        value = await self._minter.value(actor, Kind.PAT)
        async with self._store.change(actor, self._clock()) as change:
            caller = await load_caller(change, actor, change.now)
            made = await idempotency.created_before(change, actor, idempotency_key, change.now)
            if made is not None:
                return await loading.replayed(change, caller, made, change.now)
            plan = await ownership.plan(change, caller, self._policies, new, draft, reach, change.now)
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
            await idempotency.remember(change, idempotency_key, row.id)
            details: dict[str, object] = {"user": plan.user.email, "reach": row.reach.value, "scopes": row.scopes}
            details.update({"expires_at": row.expires_at, "ip_ranges": row.ip_ranges})
            details.update(loading.lookalike_details(draft.texts))
            loading.record(change, "mint", row, details)
            view = await loading.show(change, caller, row.id, change.now)
        return Created(view=view, token=value.token, warnings=plan.warnings + lookalikes.warnings(draft.texts))

    async def list(
        self, actor: Actor, wanted: TokenFilter | None = None, page: PageRequest = FIRST_PAGE
    ) -> Page[TokenView]:
        """Tokens that the caller may see, oldest first.

        Raises NotFound (user, org, parent), Invalid.
        """
        page.check()
        wanted = wanted or TokenFilter()
        wanted.check()
        now = self._clock()
        async with self._store.read() as rows:
            caller = await load_caller(rows, actor, now)
            query = await queries.query(rows, caller, self._policies, wanted, now)
            entries = partial(rows.tokens.page, query, now=now)
            behind = partial(rows.tokens.count_behind, query, now=now)
            found = await read_page(page, caller, entries, behind, query.position)
            return found.with_items(await loading.views(rows, caller, found.items, now))

    async def show(self, actor: Actor, token: str) -> TokenView:
        """One token. Raises NotFound."""
        async with self._store.read() as rows:
            now = self._clock()
            caller = await load_caller(rows, actor, now)
            found = await loading.find(rows, caller, self._policies, token, Verb.SHOW)
            return (await loading.views(rows, caller, (found.entry,), now))[0]

    async def update(
        self, actor: Actor, token: str, *, name: str | None = None, description: str | None = None
    ) -> Changed:
        """Change the name or description. Raises NotFound, Forbidden, Invalid."""
        fields = Fields()
        title = None if name is None else fields.check(lambda: identifiers.title(name, "name"))
        text = None if description is None else fields.check(lambda: identifiers.description(description))
        fields.done()
        async with self._store.change(actor, self._clock()) as change:
            caller = await load_caller(change, actor, change.now)
            found = await loading.find(change, caller, self._policies, token, Verb.UPDATE)
            before = {"name": found.row.name, "description": found.row.description}
            after = {**before, **({} if title is None else {"name": title})}
            after.update({} if text is None else {"description": text})
            if after != before:
                await change.tokens.describe(found.row.id, now=change.now, **after)
                details = {"before": before, "after": after, **loading.lookalike_details({"name": after["name"]})}
                loading.record_found(change, "update", found, details)
            view = await loading.show(change, caller, found.row.id, change.now)
            return Changed(view=view, warnings=lookalikes.warnings({"name": view.name}))

    async def rotate(self, actor: Actor, token: str) -> Created:
        """Give an active token a new value; the old one is refused at once.

        Raises NotFound, Forbidden, Conflict (revoked or expired), AuthorityOverloaded.
        """
        async with self._store.read() as rows:
            now = self._clock()
            found = await self._rotatable(rows, await load_caller(rows, actor, now), token, now)
        value = await self._minter.value(actor, found.row.kind, found.row.id)
        async with self._store.change(actor, self._clock()) as change:
            caller = await load_caller(change, actor, change.now)
            found = await self._rotatable(change, caller, token, change.now)
            await change.tokens.replace_secret(found.row.id, hash=value.hash, digest=value.digest, now=change.now)
            loading.record_found(change, "rotate", found)
            view = await loading.show(change, caller, found.row.id, change.now)
        return Created(view=view, token=value.token)

    async def regenerate(self, actor: Actor, token: str, *, expires: float | None = None) -> Created:
        """Give a revoked or expired token a new value, which expires in ``expires`` seconds.

        Id, name, description, scopes and reach stay. Without ``expires`` it gets the lifetime that it was created with.
        Raises NotFound, Forbidden, Invalid, Conflict (active, suspended, too many), AuthorityOverloaded.
        """
        seconds(expires)
        async with self._store.read() as rows:
            now = self._clock()
            caller = await load_caller(rows, actor, now)
            found = await loading.find(rows, caller, self._policies, token, Verb.REGENERATE)
            await renewal(rows, caller, self._policies, found, expires, now)
        value = await self._minter.value(actor, found.row.kind, found.row.id)
        async with self._store.change(actor, self._clock()) as change:
            caller = await load_caller(change, actor, change.now)
            found = await loading.find(change, caller, self._policies, token, Verb.REGENERATE)
            renewed = await renewal(change, caller, self._policies, found, expires, change.now)
            await change.tokens.regenerate(
                found.row.id,
                hash=value.hash,
                digest=value.digest,
                expires_at=renewed.expires_at,
                now=change.now,
            )
            details = {"expires_at": renewed.expires_at, "before": {"expires_at": found.row.expires_at}}
            loading.record_found(change, "regenerate", found, details)
            view = await loading.show(change, caller, found.row.id, change.now)
        return Created(view=view, token=value.token, warnings=renewed.warnings)

    async def revoke(self, actor: Actor, token: str, *, descendants: bool = False) -> Changed:
        """Revoke a token; with ``descendants`` also all that it created, in several transactions. Idempotent.

        Raises NotFound, Forbidden.
        """
        bulk = revocation.BulkRevocation()
        while True:
            async with self._store.change(actor, self._clock()) as change:
                caller = await load_caller(change, actor, change.now)
                found = await loading.find(change, caller, self._policies, token, Verb.REVOKE)
                if descendants:
                    await bulk.step(change, caller, self._policies, found)
                elif found.row.status is not TokenStatus.REVOKED:
                    await change.tokens.revoke(found.row.id, change.now)
                    loading.record_found(change, "revoke", found)
                if bulk.done or not descendants:
                    left = await revocation.descendants_warning(change, found)
                    return Changed(view=await loading.show(change, caller, found.row.id, change.now), warnings=left)

    async def delete(self, actor: Actor, token: str) -> Changed:
        """Delete a token's row, and return its last state. The audit log keeps its history.

        Raises NotFound, Forbidden.
        """
        async with self._store.change(actor, self._clock()) as change:
            caller = await load_caller(change, actor, change.now)
            found = await loading.find(change, caller, self._policies, token, Verb.DELETE)
            (view,) = await loading.views(change, caller, (found.entry,), change.now)
            left = await revocation.descendants_warning(change, found)
            await change.tokens.delete(found.row.id)
            loading.record_found(change, "delete", found)
            return Changed(view=view, warnings=left)

    async def delete_all(self, actor: Actor, user: str | None = None, *, keep_current: bool = False) -> int:
        """Delete the tokens of a user that the caller may delete, in several transactions; returns their number.

        ``user`` is by default the caller's own; ``keep_current`` keeps the token presented. Raises NotFound (user),
        Forbidden, Invalid.
        """
        keep = actor.credential.token_id if keep_current and actor.credential is not None else None
        deletion: revocation.BulkDeletion | None = None
        while deletion is None or not deletion.done:
            async with self._store.change(actor, self._clock()) as change:
                caller = await load_caller(change, actor, change.now)
                if deletion is None:
                    if user is None and not caller.user_id:
                        raise Invalid("user", "name the user")
                    user_id = caller.user_id if user is None else (await queries.visible_owner(change, caller, user)).id
                    deletion = revocation.BulkDeletion(user_id=user_id, keep=keep)
                await deletion.step(change, caller, self._policies)
        return deletion.deleted

    async def add_scopes(self, actor: Actor, token: str, scopes: Iterable[str]) -> Changed:
        """Add scopes to a token that has scopes. Raises NotFound, Forbidden, Invalid, Conflict (without scopes)."""
        wanted = _scopes(scopes)
        return await self._edit(actor, token, "add", wanted, scope_changes.adding(wanted))

    async def remove_scopes(self, actor: Actor, token: str, scopes: Iterable[str]) -> Changed:
        """Remove scopes from a token. Raises NotFound, Forbidden, Invalid, Conflict (without scopes, still covered)."""
        return await self._edit(actor, token, "remove", (), scope_changes.removing(_scopes(scopes)))

    async def clear_scopes(self, actor: Actor, token: str) -> Changed:
        """Remove all scopes of a token, which then may do nothing. Raises NotFound, Forbidden."""
        return await self._edit(actor, token, "clear", (), scope_changes.setting(()))

    async def set_scopes(self, actor: Actor, token: str, scopes: Iterable[str]) -> Changed:
        """Replace the scopes of a token. Raises NotFound, Forbidden, Invalid."""
        wanted = _scopes(scopes)
        return await self._edit(actor, token, "set", wanted, scope_changes.setting(wanted))

    async def set_ip_ranges(self, actor: Actor, token: str, ranges: Iterable[str] | None) -> Changed:
        """Replace the IP ranges of a token; None: it may be used from any address.

        Raises NotFound, Forbidden (wider than those of the token presented), Invalid.
        """
        fields = Fields()
        after = None if ranges is None else list(ip_ranges(fields, ranges))
        fields.done()
        async with self._store.change(actor, self._clock()) as change:
            caller = await load_caller(change, actor, change.now)
            found = await loading.find(change, caller, self._policies, token, Verb.SCOPES)
            row = found.row
            before = None if row.ip_ranges is None else list(row.ip_ranges)
            if authorization.widens(before, after):
                await loading.require_within(
                    change, caller, found, expires_at=row.expires_at, scopes=row.scopes, ranges=after
                )
            if after != before:
                await change.tokens.set_ip_ranges(row.id, after, change.now)
                loading.record_found(change, "ip_ranges", found, {"before": before, "after": after})
            return Changed(view=await loading.show(change, caller, row.id, change.now))

    async def _edit(self, actor: Actor, token: str, how: str, wanted: tuple[str, ...], edit: Edit) -> Changed:
        async with self._store.change(actor, self._clock()) as change:
            caller = await load_caller(change, actor, change.now)
            found = await loading.find(change, caller, self._policies, token, Verb.SCOPES)
            edited = edit(found.row.scopes)
            await scope_changes.require(change, caller, self._policies, found, wanted, edited)
            before = None if found.row.scopes is None else list(found.row.scopes)
            if edited.after != before:
                await change.tokens.set_scopes(found.row.id, edited.after, change.now)
                loading.record_found(change, "scopes", found, {"how": how, "before": before, "after": edited.after})
            roles = await loading.roles(change, found)
            warnings = edited.warnings + ineffective_scopes(roles, wanted)
            return Changed(view=await loading.show(change, caller, found.row.id, change.now), warnings=warnings)

    async def _rotatable(self, rows: Rows, caller: Caller, token: str, now: float) -> Found:
        found = await loading.find(rows, caller, self._policies, token, Verb.ROTATE)
        status = found.status(now)
        if status is not TokenStatus.ACTIVE:
            raise Conflict(f"the token is {status.value}: only an active token can be rotated")
        row = found.row
        await loading.require_within(
            rows, caller, found, expires_at=row.expires_at, scopes=row.scopes, ranges=row.ip_ranges
        )
        return found


def _scopes(texts: Iterable[str]) -> tuple[str, ...]:
    fields = Fields()
    found = permissions(fields, texts, "scopes")
    fields.done()
    return found
