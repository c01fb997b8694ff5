"""Organisations: what team tokens and keys belong to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from proxy.core.dependency_keys import org_key
from proxy.core.errors import Conflict
from proxy.core.model import Actor
from proxy.services import counting, idempotency, identifiers, lookalikes, lookup
from proxy.services.caller import AccountEntity, AccountOperation, standing
from proxy.services.grants import ORG_ACTIVE
from proxy.services.idempotency import Retry
from proxy.services.validation import Fields
from proxy.services.views import LIMIT_DEFAULT, OrgView, Page, check_limit, cursor_behind, read_cursor
from proxy.store.records import Cursor, OrgRow
from proxy.store.store import Store

ORG_SUSPENDED = "suspended"


class OrgService:
    """The verbs of organisations. ``org`` arguments are a name or an id; all raise StoreUnavailable."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    async def add(self, actor: Actor, name: str, display_name: str = "", *, retry: Retry | None = None) -> OrgView:
        """Add an organisation. Raises Invalid and Conflict (name, or made by an earlier request with the same key),
        Forbidden, Unauthenticated.
        """
        fields = Fields()
        fields.check(lambda: identifiers.org_name(name))
        title = fields.check(lambda: identifiers.title(display_name or name, "display_name"))
        fields.done()
        async with self._store.change(actor, self._clock()) as change:
            (await standing(change, actor, change.now)).require(AccountEntity.ORGS, AccountOperation.CREATE)
            await idempotency.require_new(change, retry)
            if await change.orgs.by_name(name) is not None:
                raise Conflict("there is an organisation with this name already")
            row = OrgRow(
                id=identifiers.new_org_id(),
                name=name,
                display_name=title or name,
                status=ORG_ACTIVE,
                created_at=change.now,
                updated_at=change.now,
            )
            await change.orgs.add(row)
            await idempotency.remember(change, retry, row.id)
            change.touched(org_key(row.id))
            mixed = lookalikes.mixed_fields({"display_name": row.display_name})
            details = {"mixed_scripts": mixed} if mixed else {}
            change.audit("account.org.add", target_kind="org", target_id=row.id, target_name=name, details=details)
            return OrgView.of(row, 0)

    async def made_before(self, actor: Actor, retry: Retry) -> OrgView | None:
        """The organisation that an earlier request with this key added. Raises Invalid where that was another one."""
        async with self._store.read() as rows:
            made = await idempotency.made_before(rows, actor, retry, self._clock())
        return None if made is None else await self.show(actor, made)

    async def list(
        self, actor: Actor, *, limit: int = LIMIT_DEFAULT, cursor: str | None = None, count: bool = False
    ) -> Page[OrgView]:
        """Organisations that the actor may know of, oldest first; with ``count``, how many more there are.

        Raises Invalid (limit, cursor), Unauthenticated.
        """
        after = read_cursor(cursor)
        async with self._store.read() as rows:
            asker = await standing(rows, actor, self._clock())
            ids = None if asker.may(AccountEntity.ORGS, AccountOperation.LIST) else asker.org_ids
            found = await rows.orgs.page(after=after, limit=check_limit(limit) + 1, ids=ids)
            more = len(found) > limit
            last = Cursor(created_at=found[limit - 1].created_at, id=found[limit - 1].id) if more else None
            behind = partial(rows.orgs.count_behind, ids=ids)
            left = await counting.remaining(asker, last, behind) if count else None
        views = [OrgView.of(row) for row in found[:limit]]
        return Page(items=views, next_cursor=cursor_behind(last), remaining=left)

    async def show(self, actor: Actor, org: str) -> OrgView:
        """One organisation, with the number of its members. Raises NotFound, Unauthenticated."""
        async with self._store.read() as rows:
            row = await lookup.visible_org(rows, await standing(rows, actor, self._clock()), org)
            return OrgView.of(row, await rows.members.count(row.id))

    async def suspend(self, actor: Actor, org: str) -> OrgView:
        """Refuse every token of an organisation until ``resume``. Raises NotFound, Forbidden, Unauthenticated."""
        return await self._set_status(actor, org, ORG_SUSPENDED, "account.org.suspend")

    async def resume(self, actor: Actor, org: str) -> OrgView:
        """Undo ``suspend``. Raises NotFound, Forbidden, Unauthenticated."""
        return await self._set_status(actor, org, ORG_ACTIVE, "account.org.resume")

    async def _set_status(self, actor: Actor, org: str, status: str, action: str) -> OrgView:
        async with self._store.change(actor, self._clock()) as change:
            asker = await standing(change, actor, change.now)
            row = await lookup.visible_org(change, asker, org)
            # In the account, not in the organisation: an administrator of it could not undo this.
            asker.require(AccountEntity.ORGS, AccountOperation.UPDATE)
            if row.status != status:
                await change.orgs.set_status(row.id, status, change.now)
                change.touched(org_key(row.id))
                change.audit(action, target_kind="org", target_id=row.id, target_name=row.name, org_id=row.id)
            return OrgView.of(await lookup.org(change, row.id), await change.members.count(row.id))
