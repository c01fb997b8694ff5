"""Organisations: what team tokens and keys belong to."""

from __future__ import annotations

from collections.abc import Callable

from proxy.core.depends import org_key
from proxy.core.errors import Conflict
from proxy.core.model import Actor
from proxy.services import lookup, names
from proxy.services.grants import ORG_ACTIVE
from proxy.services.views import LIMIT_DEFAULT, OrgView, Page, check_limit, read_cursor, write_cursor
from proxy.store.records import OrgRow
from proxy.store.store import Store

ORG_SUSPENDED = "suspended"


class Orgs:
    """The verbs of organisations. ``org`` arguments are a name or an id; all raise StoreUnavailable."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    async def add(self, actor: Actor, name: str, display_name: str = "") -> OrgView:
        """Add an organisation. Raises Invalid and Conflict (name)."""
        name = names.org_name(name)
        display_name = names.title(display_name or name, "display_name")
        async with self._store.change(actor, self._clock()) as change:
            if await change.orgs.by_name(name) is not None:
                raise Conflict("there is an organisation with this name already")
            row = OrgRow(
                id=names.new_org_id(),
                name=name,
                display_name=display_name,
                status=ORG_ACTIVE,
                created_at=change.now,
                updated_at=change.now,
            )
            await change.orgs.add(row)
            change.touched(org_key(row.id))
            change.audit("account.org.add", target_kind="org", target_id=row.id, target_name=name)
            return OrgView.of(row, 0)

    async def list(self, *, limit: int = LIMIT_DEFAULT, cursor: str | None = None) -> Page[OrgView]:
        """Organisations, oldest first. Raises Invalid (limit, cursor)."""
        after = read_cursor(cursor)
        async with self._store.read() as rows:
            found = await rows.orgs.page(after=after, limit=check_limit(limit) + 1)
        views = [OrgView.of(row) for row in found[:limit]]
        more = len(found) > limit
        return Page(items=views, next_cursor=write_cursor(views[-1].created_at, views[-1].id) if more else None)

    async def show(self, org: str) -> OrgView:
        """One organisation, with the number of its members. Raises NotFound."""
        async with self._store.read() as rows:
            row = await lookup.org(rows, org)
            return OrgView.of(row, await rows.members.count(row.id))

    async def suspend(self, actor: Actor, org: str) -> OrgView:
        """Refuse every token of an organisation until ``resume``. Raises NotFound."""
        return await self._set_status(actor, org, ORG_SUSPENDED, "account.org.suspend")

    async def resume(self, actor: Actor, org: str) -> OrgView:
        """Undo ``suspend``. Raises NotFound."""
        return await self._set_status(actor, org, ORG_ACTIVE, "account.org.resume")

    async def _set_status(self, actor: Actor, org: str, status: str, action: str) -> OrgView:
        async with self._store.change(actor, self._clock()) as change:
            row = await lookup.org(change, org)
            if row.status != status:
                await change.orgs.set_status(row.id, status, change.now)
                change.touched(org_key(row.id))
                change.audit(action, target_kind="org", target_id=row.id, target_name=row.name, org_id=row.id)
            return OrgView.of(await lookup.org(change, row.id), await change.members.count(row.id))
