"""Roles of configurations: one that was superseded is applied only on request."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.core.errors import Forbidden
from proxy.services.accounts.roles import RoleService
from tests.contract.kit import ADMIN, Kit, opened

OLD = {"admin": ["*:*"], "editor": ["things:read", "things:update"]}
NEW = {"admin": ["*:*"], "editor": ["things:read"]}


async def permissions(kit: Kit, role: str) -> tuple[str, ...]:
    return (await kit.roles.show(ADMIN, role)).permissions


async def test_a_node_with_an_older_configuration_gives_no_removed_permission_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit:
        assert (await kit.roles.sync_newest(ADMIN, OLD)).changed == ("admin", "editor")
        assert (await kit.roles.sync_newest(ADMIN, NEW)).changed == ("editor",)
        epoch = await kit.store.epoch()
        late = await kit.roles.sync_newest(ADMIN, OLD)
        assert (late.changed, late.superseded) == ((), True)
        assert await permissions(kit, "editor") == ("things:read",)
        assert await kit.store.epoch() == epoch
        assert await kit.roles.superseded(OLD)
        assert not await kit.roles.superseded(NEW)
        assert not await kit.roles.superseded({"editor": ["things:list"]}), "it was never applied"
        await kit.intact()


async def test_the_newest_roles_are_not_applied_twice_in_any_order(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit:
        await kit.roles.sync_newest(ADMIN, OLD)
        epoch = await kit.store.epoch()
        again = {name: list(reversed(texts)) for name, texts in reversed(OLD.items())}
        applied = await kit.roles.sync_newest(ADMIN, again)
        assert (applied.changed, applied.superseded) == ((), False)
        assert await kit.store.epoch() == epoch
        await kit.roles.set(ADMIN, "editor", ["things:list"])
        await kit.roles.sync_newest(ADMIN, OLD)
        assert await permissions(kit, "editor") == ("things:list",), "a role that was set by command survives a restart"


async def test_roles_that_a_store_has_already_are_recorded_too(tmp_path: Path) -> None:
    """A store that was copied from one host has the roles, but no record of them."""
    async with opened(tmp_path) as kit:
        await kit.roles.sync_config(ADMIN, OLD)
        assert (await kit.roles.sync_newest(ADMIN, OLD)).changed == ()
        await kit.roles.sync_newest(ADMIN, NEW)
        assert (await kit.roles.sync_newest(ADMIN, OLD)).superseded
        await kit.intact()


async def test_an_operator_applies_superseded_roles_and_supersedes_the_newer_ones(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit:
        for roles in (OLD, NEW):
            await kit.roles.sync_newest(ADMIN, roles)
        ours = RoleService(kit.store, kit.clock, OLD)
        assert (await ours.apply(ADMIN)).as_dict() == {"changed": ["editor"]}
        assert await permissions(kit, "editor") == ("things:read", "things:update")
        # On a store of one node nothing is superseded: its configuration is the only one.
        assert await kit.roles.superseded(NEW) == kit.store.shared
        assert await kit.roles.superseded(OLD) != kit.store.shared
        if kit.store.shared:
            assert (await kit.roles.sync_newest(ADMIN, NEW)).superseded
            assert not (await kit.roles.sync_newest(ADMIN, OLD)).superseded
        epoch = await kit.store.epoch()
        assert (await ours.apply(ADMIN)).changed == ()
        assert await kit.store.epoch() == epoch, "roles that are applied already change nothing"
        await kit.intact()


async def test_nobody_applies_roles_that_permit_more_than_they_may_do(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit:
        await kit.basics()
        await kit.roles.set(ADMIN, "keeper", ["patgate.roles:*", "things:*"])
        await kit.users.add(ADMIN, "kim@example.org", "keeper")
        kim, ann = [kit.acting(await kit.mint(f"{name}@example.org", "t")) for name in ("kim", "ann")]
        with pytest.raises(Forbidden, match=r"patgate\.roles:create"):
            await RoleService(kit.store, kit.clock, {"editor": ["things:*"]}).apply(ann)
        # The configuration removes the role of administrators, which permits more.
        with pytest.raises(Forbidden, match="more than you may do"):
            await RoleService(kit.store, kit.clock, {"editor": ["things:*"]}).apply(kim)
        assert await permissions(kit, "admin") == ("*:*",)
