"""The caller's permissions: by one role and the scopes, as of the transaction that uses them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.core.errors import Forbidden, Invalid, Unauthenticated
from proxy.core.kinds import Reach
from proxy.core.model import Actor
from proxy.core.permissions import PermissionSet
from proxy.services.accounts.members import MemberService
from proxy.services.caller import AccountEntity, AccountOperation, Caller, load_caller
from proxy.services.tokens.issuance import KeyRequest
from proxy.services.validation import Fields
from tests.contract.kit import ADMIN, Kit, opened

ANN = "ann@example.org"


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    async with opened(tmp_path) as kit:
        await kit.basics()
        await kit.roles.set(ADMIN, "chief", ["patgate.members:*", "things:read"])
        yield kit


async def of(kit: Kit, actor: Actor) -> Caller:
    async with kit.store.read() as rows:
        return await load_caller(rows, actor, kit.clock.now)


async def org_id(kit: Kit, name: str) -> str:
    return (await kit.orgs.show(ADMIN, name)).id


async def test_the_operator_may_do_everything(kit: Kit) -> None:
    caller = await of(kit, ADMIN)
    assert caller.operator and caller.user_id == "" and not caller.scoped
    assert all(caller.may(entity, operation) for entity in AccountEntity for operation in AccountOperation)
    assert caller.may_give(PermissionSet.of(["*:*"]), await org_id(kit, "team"))


async def test_a_permission_on_a_backends_entity_gives_none_on_patgates_own(kit: Kit) -> None:
    await kit.roles.set(ADMIN, "backend", ["tokens:*", "users:*", "members:*", "policy:*"])
    await kit.users.set_role(ADMIN, ANN, "backend")
    caller = await of(kit, kit.acting(await kit.mint(ANN, "t")))
    assert not any(caller.may(entity, operation) for entity in AccountEntity for operation in AccountOperation)
    await kit.users.set_role(ADMIN, ANN, "admin")
    caller = await of(kit, kit.acting(await kit.mint(ANN, "t")))
    assert all(caller.may(entity, operation) for entity in AccountEntity for operation in AccountOperation)


async def test_an_organisations_role_applies_there_only_and_the_accounts_role_everywhere(kit: Kit) -> None:
    """A3: permissions of two roles are never combined, and a team token has none of the account."""
    await kit.orgs.add(ADMIN, "other")
    await kit.users.set_role(ADMIN, ANN, "chief", org="team")
    team, other = await org_id(kit, "team"), await org_id(kit, "other")
    wide = await of(kit, kit.acting(await kit.mint(ANN, "t", reach=Reach.ACCOUNT)))
    bound = await of(kit, kit.acting(await kit.mint(ANN, "t", org="team")))
    own = await of(kit, kit.acting(await kit.mint(ANN, "t")))
    for caller, places in ((wide, (team,)), (bound, (team,)), (own, ())):
        assert [
            place for place in ("", team, other) if caller.may(AccountEntity.MEMBERS, AccountOperation.UPDATE, place)
        ] == list(places)
    # The account's role has "things:*" and the organisation's "patgate.members:*"; each applies separately.
    assert not wide.may_give(PermissionSet.of(["things:update", "patgate.members:read"]), team)
    assert wide.may_give(PermissionSet.of(["things:update"]), team)
    assert not bound.may_give(PermissionSet.of(["things:update"]), team)
    assert not wide.may_give(PermissionSet.of(["patgate.members:read"]))
    assert [set(caller.org_ids) for caller in (wide, bound, own)] == [{team}, {team}, set()]


async def test_scopes_restrict_every_role(kit: Kit) -> None:
    """D5."""
    await kit.users.set_role(ADMIN, ANN, "admin")
    caller = await of(kit, kit.acting(await kit.mint(ANN, "t", scopes=["patgate.users:read", "things:*"])))
    assert caller.scoped
    assert caller.may(AccountEntity.USERS, AccountOperation.READ)
    for entity, operation in (
        (AccountEntity.USERS, AccountOperation.LIST),
        (AccountEntity.TOKENS, AccountOperation.READ),
    ):
        assert not caller.may(entity, operation)
        assert not caller.scopes_allow(entity, operation)
        with pytest.raises(Forbidden, match="this needs the permission patgate") as raised:
            caller.require(entity, operation)
        assert str(raised.value).endswith(f"{entity.value}:{operation.value}")
    assert caller.may_give(PermissionSet.of(["things:read"]))
    assert not caller.may_give(PermissionSet.of(["channels:read"]))


async def test_keys_may_read_and_change_nothing(kit: Kit) -> None:
    """C6, D7: regardless of what their role permits."""
    team = await org_id(kit, "team")
    key = await kit.keys.create(ADMIN, KeyRequest(name="k", org="team", role="admin"))
    several = await kit.keys.create(ADMIN, KeyRequest(name="o", grants={"team": ["*:*"]}))
    for made in (key, several):
        caller = await of(kit, kit.acting(made))
        allowed = {operation for operation in AccountOperation if caller.may(AccountEntity.MEMBERS, operation, team)}
        assert allowed == {AccountOperation.READ, AccountOperation.LIST}
        assert not caller.may(AccountEntity.MEMBERS, AccountOperation.READ)
        assert caller.user_id == ""


@pytest.mark.parametrize("ended", ["revoked", "rotated", "expired", "suspended", "deleted"])
async def test_a_credential_that_ended_after_authentication_changes_nothing(kit: Kit, ended: str) -> None:
    """F1: authenticated, then ended, then committed: Unauthenticated, and nothing is changed."""
    await kit.users.set_role(ADMIN, ANN, "admin")
    made = await kit.mint(ANN, "t", expires=600.0)
    actor = kit.acting(made)
    await of(kit, actor)
    match ended:
        case "revoked":
            await kit.tokens.revoke(ADMIN, made.view.id)
        case "rotated":
            await kit.tokens.rotate(ADMIN, made.view.id)
        case "deleted":
            await kit.tokens.delete(ADMIN, made.view.id)
        case "suspended":
            await kit.users.suspend(ADMIN, ANN)
        case _:
            kit.clock.now += 600.0
    epoch = await kit.intact()
    members = MemberService(kit.store, kit.clock)
    for attempt in (
        lambda: members.set(actor, "team", "new@example.org", "viewer"),
        lambda: members.remove(actor, "team", ANN),
        lambda: kit.users.add(actor, "new@example.org", "viewer"),
        lambda: kit.orgs.add(actor, "new"),
        lambda: kit.orgs.suspend(actor, "team"),
        lambda: kit.roles.set(actor, "viewer", ["*:*"]),
        lambda: kit.policies.set(actor, "team", {"require_expiry": True}),
        lambda: kit.policies.expire(actor),
    ):
        with pytest.raises(Unauthenticated):
            await attempt()
    assert await kit.intact() == epoch


async def test_a_credential_that_was_restricted_after_authentication_has_only_its_present_permissions(kit: Kit) -> None:
    await kit.users.set_role(ADMIN, ANN, "admin")
    actor = kit.acting(await kit.mint(ANN, "t"))
    await kit.users.set_role(ADMIN, ANN, "viewer")
    with pytest.raises(Forbidden):
        await kit.users.add(actor, "new@example.org", "viewer")


def test_all_field_errors_are_reported_together() -> None:
    fields = Fields()

    def fail() -> str:
        raise Invalid("a", "one", ("b", "two"))

    assert fields.check(fail) is None
    assert fields.check(lambda: 1) == 1
    fields.fault("c", "three")
    with pytest.raises(Invalid) as raised:
        fields.done()
    assert raised.value.errors == (("a", "one"), ("b", "two"), ("c", "three"))
    Fields().done()
