"""Organisations: adding, listing, suspending and resuming them. Team tokens and keys belong to organisations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from proxy.core.dependency_keys import org_key
from proxy.core.errors import Conflict
from proxy.core.model import Actor
from proxy.services import idempotency, identifiers, lookalikes, lookup
from proxy.services.caller import AccountEntity, AccountOperation, Caller, load_caller
from proxy.services.grants import ORG_ACTIVE
from proxy.services.idempotency import IdempotencyKey
from proxy.services.paging import FIRST_PAGE, Page, PageRequest, read_page
from proxy.services.validation import Fields
from proxy.services.views import OrgView
from proxy.store.change import Rows
from proxy.store.records import OrgRow
from proxy.store.store import Store

ORG_SUSPENDED = "suspended"


class OrgService:
    """Adds, lists, suspends and resumes organisations. ``org`` arguments are a name or an id.

    All methods raise StoreUnavailable.
    """

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    async def add(
        self, actor: Actor, name: str, display_name: str = "", *, idempotency_key: IdempotencyKey | None = None
    ) -> OrgView:
        """Add an organisation. Raises Invalid, Conflict (name), Forbidden, Unauthenticated."""
        fields = Fields()
        fields.check(lambda: identifiers.org_name(name))
        title = fields.check(lambda: identifiers.title(display_name or name, "display_name"))
        fields.done()
        async with self._store.change(actor, self._clock()) as change:
            caller = await load_caller(change, actor, change.now)
            earlier = await idempotency.created_before(change, actor, idempotency_key, change.now)
            if earlier is not None:
                return (await _visible_view(change, caller, earlier)).as_replay()
            caller.require(AccountEntity.ORGS, AccountOperation.CREATE)
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
            await idempotency.remember(change, idempotency_key, row.id)
            change.touched(org_key(row.id))
            mixed = lookalikes.mixed_fields({"display_name": row.display_name})
            details = {"mixed_scripts": mixed} if mixed else {}
            change.audit("account.org.add", target_kind="org", target_id=row.id, target_name=name, details=details)
            return OrgView.of(row, 0)

    async def list(self, actor: Actor, page: PageRequest = FIRST_PAGE) -> Page[OrgView]:
        """Organisations that the caller may see, oldest first.

        Raises Invalid (limit, cursor), Unauthenticated.
        """
        page.check()
        async with self._store.read() as rows:
            caller = await load_caller(rows, actor, self._clock())
            ids = None if caller.may(AccountEntity.ORGS, AccountOperation.LIST) else caller.org_ids
            query, behind = partial(rows.orgs.page, ids=ids), partial(rows.orgs.count_behind, ids=ids)
            found = await read_page(page, caller, query, behind)
        return found.with_items([OrgView.of(row) for row in found.items])

    async def show(self, actor: Actor, org: str) -> OrgView:
        """One organisation, with the number of its members. Raises NotFound, Unauthenticated."""
        async with self._store.read() as rows:
            return await _visible_view(rows, await load_caller(rows, actor, self._clock()), org)

    async def suspend(self, actor: Actor, org: str) -> OrgView:
        """Refuse every token of an organisation until ``resume``. Raises NotFound, Forbidden, Unauthenticated."""
        return await self._set_status(actor, org, ORG_SUSPENDED, "account.org.suspend")

    async def resume(self, actor: Actor, org: str) -> OrgView:
        """Undo ``suspend``. Raises NotFound, Forbidden, Unauthenticated."""
        return await self._set_status(actor, org, ORG_ACTIVE, "account.org.resume")

    async def _set_status(self, actor: Actor, org: str, status: str, action: str) -> OrgView:
        async with self._store.change(actor, self._clock()) as change:
            caller = await load_caller(change, actor, change.now)
            row = await lookup.visible_org(change, caller, org)
            # In the account, not in the organisation, whose administrator could not undo a suspension.
            caller.require(AccountEntity.ORGS, AccountOperation.UPDATE)
            if row.status != status:
                await change.orgs.set_status(row.id, status, change.now)
                change.touched(org_key(row.id))
                change.audit(action, target_kind="org", target_id=row.id, target_name=row.name, org_id=row.id)
            return OrgView.of(await lookup.org(change, row.id), await change.members.count(row.id))


async def _visible_view(rows: Rows, caller: Caller, org: str) -> OrgView:
    """The organisation with this name or id, with the number of its members. Raises NotFound."""
    row = await lookup.visible_org(rows, caller, org)
    return OrgView.of(row, await rows.members.count(row.id))
