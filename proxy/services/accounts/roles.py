"""Roles: named sets of permissions, read anew for every grant.

Rules:

1. The configuration defines roles; it is applied only where its own definition changed since it was last applied, so
   what an administrator set by command survives a restart.
2. A role that left the configuration is removed, unless the configuration never had it. Users keep its name and may do
   nothing until there is a role of that name again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from proxy.core.dependency_keys import role_key
from proxy.core.errors import Forbidden, NotFound
from proxy.core.model import Actor
from proxy.core.permissions import PermissionSet
from proxy.services import identifiers, lookup
from proxy.services.caller import AccountEntity, AccountOperation, standing
from proxy.services.validation import Fields
from proxy.services.views import RoleView
from proxy.store.records import RoleRow
from proxy.store.store import Store


class RoleService:
    """The verbs of roles. All raise StoreUnavailable."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    async def sync_config(self, actor: Actor, roles: Mapping[str, Iterable[str]]) -> list[str]:
        """Apply the configuration's roles where it changed. Returns the names that changed, sorted. Raises Invalid."""
        wanted = {
            identifiers.role_name(name): identifiers.permission_texts(texts, f"roles.{name}")
            for name, texts in roles.items()
        }
        async with self._store.change(actor, self._clock()) as change:
            known = {row.name: row for row in await change.roles.all()}
            added, changed, removed = [], [], []
            for name, permissions in wanted.items():
                row = known.get(name)
                if row is None:
                    await change.roles.add(
                        RoleRow(
                            name=name,
                            permissions=permissions,
                            config_permissions=permissions,
                            created_at=change.now,
                            updated_at=change.now,
                        )
                    )
                    added.append(name)
                elif row.config_permissions is None or list(row.config_permissions) != permissions:
                    await change.roles.set_from_config(name, permissions, change.now)
                    changed.append(name)
            for name, row in known.items():
                if name not in wanted and row.config_permissions is not None:
                    await change.roles.delete(name)
                    removed.append(name)
            touched = sorted([*added, *changed, *removed])
            if touched:
                change.touched(*map(role_key, touched))
                change.audit(
                    "account.roles.sync",
                    target_kind="role",
                    target_id="*",
                    details={"added": sorted(added), "changed": sorted(changed), "removed": sorted(removed)},
                )
            return touched

    async def list(self, actor: Actor, org: str | None = None) -> list[RoleView]:
        """Every role, by name; ``org`` for whoever may list them there. Raises NotFound, Forbidden, Unauthenticated."""
        async with self._store.read() as rows:
            asker = await standing(rows, actor, self._clock())
            org_id = "" if org is None else (await lookup.visible_org(rows, asker, org)).id
            asker.require(AccountEntity.ROLES, AccountOperation.LIST, org_id)
            return [RoleView.of(row) for row in await rows.roles.all()]

    async def show(self, actor: Actor, name: str) -> RoleView:
        """One role. Raises NotFound, Forbidden, Unauthenticated."""
        async with self._store.read() as rows:
            (await standing(rows, actor, self._clock())).require(AccountEntity.ROLES, AccountOperation.READ)
            row = await rows.roles.get(name)
        if row is None:
            raise NotFound("there is no role of this name")
        return RoleView.of(row)

    async def set(self, actor: Actor, name: str, permissions: Iterable[str]) -> RoleView:
        """Give a role these permissions and no others, making it where needed.

        Neither what it gets nor what it had may be more than the actor may do. Raises Invalid, Forbidden,
        Unauthenticated.
        """
        fields = Fields()
        fields.check(lambda: identifiers.role_name(name))
        texts = fields.check(lambda: identifiers.permission_texts(permissions, "permissions")) or []
        fields.done()
        async with self._store.change(actor, self._clock()) as change:
            asker = await standing(change, actor, change.now)
            before = await change.roles.get(name)
            asker.require(AccountEntity.ROLES, AccountOperation.CREATE if before is None else AccountOperation.UPDATE)
            if not asker.may_give(PermissionSet.of(texts)):
                raise Forbidden("a role cannot be given more than you may do", ("permissions", "more than you may do"))
            if before is not None and not asker.may_give(PermissionSet.of(before.permissions)):
                raise Forbidden("this role permits more than you may do")
            if before is None:
                row = RoleRow(
                    name=name,
                    permissions=texts,
                    config_permissions=None,
                    created_at=change.now,
                    updated_at=change.now,
                )
                await change.roles.add(row)
            elif list(before.permissions) != texts:
                await change.roles.set(name, texts, change.now)
            else:
                return RoleView.of(before)
            change.touched(role_key(name))
            details: dict[str, object] = {
                "permissions": texts,
                "before": None if before is None else list(before.permissions),
            }
            change.audit("account.role.set", target_kind="role", target_id=name, target_name=name, details=details)
            after = await change.roles.get(name)
            if after is None:
                raise RuntimeError("a role vanished inside a transaction")
            return RoleView.of(after)
