"""Roles: creating, changing and listing named sets of permissions, and applying the configuration's roles.

Rules:

1. A role of the configuration is applied only if its definition there changed since it was last applied, so a change
   that an administrator made by command survives a restart.
2. A role that is no longer in the configuration is removed; one that never was there is kept. Users keep the name of a
   removed role, which permits nothing until a role of that name exists again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from proxy.core.dependency_keys import role_key
from proxy.core.errors import Forbidden, NotFound
from proxy.core.model import Actor
from proxy.core.permissions import PermissionSet
from proxy.services import identifiers, lookup
from proxy.services.caller import AccountEntity, AccountOperation, load_caller
from proxy.services.validation import Fields
from proxy.services.views import RoleView
from proxy.store.records import RoleRow
from proxy.store.store import Store


class RoleService:
    """Creates, changes and lists roles. All methods raise StoreUnavailable."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    async def sync_config(self, actor: Actor, roles: Mapping[str, Iterable[str]]) -> list[str]:
        """Apply the configuration's changed roles (rule 1). Returns the names that changed, sorted. Raises Invalid."""
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
        """Every role, by name, for a caller who may list roles in the account, or in ``org``.

        Raises NotFound, Forbidden, Unauthenticated.
        """
        async with self._store.read() as rows:
            caller = await load_caller(rows, actor, self._clock())
            org_id = "" if org is None else (await lookup.visible_org(rows, caller, org)).id
            caller.require(AccountEntity.ROLES, AccountOperation.LIST, org_id)
            return [RoleView.of(row) for row in await rows.roles.all()]

    async def show(self, actor: Actor, name: str) -> RoleView:
        """One role. Raises NotFound, Forbidden, Unauthenticated."""
        async with self._store.read() as rows:
            (await load_caller(rows, actor, self._clock())).require(AccountEntity.ROLES, AccountOperation.READ)
            row = await rows.roles.get(name)
        if row is None:
            raise NotFound("there is no role of this name")
        return RoleView.of(row)

    async def set(self, actor: Actor, name: str, permissions: Iterable[str]) -> RoleView:
        """Replace the permissions of a role, and create the role if needed.

        The caller must have the new and the former permissions. Raises Invalid, Forbidden, Unauthenticated.
        """
        fields = Fields()
        fields.check(lambda: identifiers.role_name(name))
        texts = fields.check(lambda: identifiers.permission_texts(permissions, "permissions")) or []
        fields.done()
        async with self._store.change(actor, self._clock()) as change:
            caller = await load_caller(change, actor, change.now)
            before = await change.roles.get(name)
            caller.require(AccountEntity.ROLES, AccountOperation.CREATE if before is None else AccountOperation.UPDATE)
            if not caller.may_give(PermissionSet.of(texts)):
                raise Forbidden("a role cannot be given more than you may do", ("permissions", "more than you may do"))
            if before is not None and not caller.may_give(PermissionSet.of(before.permissions)):
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
