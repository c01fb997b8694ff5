"""Roles: creating, changing and listing named sets of permissions, and applying the configuration's roles.

Rules:

1. A role of the configuration is applied only if its definition there changed since it was last applied, so a change
   that an administrator made by command survives a restart.
2. A role that is no longer in the configuration is removed; one that never was there is kept. Users keep the name of a
   removed role, which permits nothing until a role of that name exists again.
3. Where several nodes use the store, each has a configuration, and one with an older one would give removed permissions
   back when it starts. So the store keeps the hash of all roles that a configuration ever applied, in order. Those that
   were applied before the last ones are *superseded*: they are applied only on request (``apply``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from proxy.core.dependency_keys import APPLIED_ROLES, role_key
from proxy.core.errors import Forbidden, NotFound
from proxy.core.model import Actor
from proxy.core.permissions import PermissionSet
from proxy.services import identifiers, lookup
from proxy.services.caller import AccountEntity, AccountOperation, load_caller
from proxy.services.validation import Fields
from proxy.services.views import RoleView
from proxy.store import feed
from proxy.store.change import Change
from proxy.store.records import RoleRow
from proxy.store.store import Store

Configured = Mapping[str, Iterable[str]]
"""The roles of a configuration: the permissions by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AppliedView:
    """Roles that changed when those of a configuration were applied, by name; ``superseded``: none were applied."""

    changed: tuple[str, ...]
    superseded: bool = False

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        return {"changed": list(self.changed)}


class RoleService:
    """Creates, changes and lists roles. All methods raise StoreUnavailable."""

    def __init__(self, store: Store, clock: Callable[[], float], configured: Configured | None = None) -> None:
        """``configured`` are the roles of this node's configuration, for ``apply``."""
        self._store = store
        self._clock = clock
        self._configured: Configured = {} if configured is None else configured

    async def sync_config(self, actor: Actor, roles: Configured) -> list[str]:
        """Apply the configuration's changed roles (rule 1). Returns the names that changed, sorted. Raises Invalid."""
        wanted = _checked(roles)
        async with self._store.change(actor, self._clock()) as change:
            touched = await _sync(change, wanted, {row.name: row for row in await change.roles.all()})
            return touched

    async def sync_newest(self, actor: Actor, roles: Configured) -> AppliedView:
        """``sync_config`` for a store of several nodes: applies nothing if ``roles`` are superseded (rule 3).

        Raises Invalid.
        """
        wanted = _checked(roles)
        async with self._store.change(actor, self._clock()) as change:
            applied, ours = await change.roles.applied(), _hash(wanted)
            if ours in applied[1:]:
                return AppliedView(changed=(), superseded=True)
            known = {row.name: row for row in await change.roles.all()}
            touched = await _sync(change, wanted, known, recorded=ours not in applied)
            if ours not in applied:
                await _record(change, ours)
            return AppliedView(changed=tuple(touched))

    async def superseded(self, roles: Configured) -> bool:
        """Whether ``roles`` were applied once, and others after them (rule 3)."""
        async with self._store.read() as rows:
            return _hash(_checked(roles)) in (await rows.roles.applied())[1:]

    async def apply(self, actor: Actor) -> AppliedView:
        """Apply the roles of this node's configuration, also superseded ones.

        The caller must have all permissions of the configured roles, and of those that change or are removed. Raises
        Invalid, Forbidden, Unauthenticated.
        """
        wanted = _checked(self._configured)
        async with self._store.change(actor, self._clock()) as change:
            caller = await load_caller(change, actor, change.now)
            known = {row.name: row for row in await change.roles.all()}
            for operation in (AccountOperation.CREATE, AccountOperation.UPDATE, AccountOperation.DELETE):
                caller.require(AccountEntity.ROLES, operation)
            configured = [row.permissions for row in known.values() if row.config_permissions is not None]
            overridden = [known[name].permissions for name in wanted if name in known]
            for permissions in (*wanted.values(), *configured, *overridden):
                if not caller.may_give(PermissionSet.of(permissions)):
                    raise Forbidden("these roles permit more than you may do")
            applied, ours = await change.roles.applied(), _hash(wanted)
            record = applied[:1] != [ours] and self._store.shared
            touched = await _sync(change, wanted, known, recorded=record)
            if record:
                await _record(change, ours)
            return AppliedView(changed=tuple(touched))

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


def _checked(roles: Configured) -> dict[str, list[str]]:
    """The canonical permissions by name. Raises Invalid."""
    return {
        identifiers.role_name(name): identifiers.permission_texts(texts, f"roles.{name}")
        for name, texts in roles.items()
    }


def _hash(roles: Mapping[str, list[str]]) -> str:
    """SHA-256 (hexadecimal) of canonical roles: the order of roles and permissions does not matter."""
    content = sorted((name, sorted(permissions)) for name, permissions in roles.items())
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


async def _record(change: Change, roles_hash: str) -> None:
    # The head is locked, so this is the number that the change will have.
    await change.roles.record_applied(roles_hash, (await feed.head(change.connection)).n + 1, change.now)


async def _sync(
    change: Change, wanted: Mapping[str, list[str]], known: Mapping[str, RoleRow], *, recorded: bool = False
) -> list[str]:
    """Apply ``wanted`` (rules 1 and 2) to the ``known`` roles; returns the names that changed, sorted.

    ``recorded``: the change has an event even if no role changes, because it records what was applied.
    """
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
    if touched or recorded:
        change.touched(*map(role_key, touched), *([APPLIED_ROLES] if recorded else []))
        change.audit(
            "account.roles.sync",
            target_kind="role",
            target_id="*",
            details={"added": sorted(added), "changed": sorted(changed), "removed": sorted(removed)},
        )
    return touched
