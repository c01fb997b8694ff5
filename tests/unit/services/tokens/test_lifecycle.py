"""The lifecycle of a token: rotation, regeneration, scopes, revocation with descendants, and deletion."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from proxy.core.errors import Conflict, Forbidden, Invalid, NotFound, Unauthenticated
from proxy.core.kinds import Reach
from proxy.core.model import Grant, RefusedGrant, TokenStatus
from proxy.core.reasons import Reason
from proxy.services.policy.model import TokenPolicy
from proxy.services.tokens.issuance import KeyRequest, TokenRequest
from proxy.services.tokens.queries import TokenFilter
from tests.contract.kit import ADMIN, START, Kit, ScryptHasher, opened
from tests.support.process import HANGS_SECONDS

ANN = "ann@example.org"


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    async with opened(tmp_path) as kit:
        await kit.basics()
        yield kit


async def events(kit: Kit) -> list[tuple[str, dict[str, object]]]:
    """Actions and details of the events, the newest first."""
    async with kit.store.read() as rows:
        return [(event.action, dict(event.details)) for event in await rows.log.newest(limit=100)]


async def refused(kit: Kit, prefix: str) -> Reason | None:
    verdict = await kit.resolve(prefix)
    return verdict.reason if isinstance(verdict, RefusedGrant) else None


async def test_a_revoked_or_expired_token_is_regenerated_with_a_new_expiry(kit: Kit) -> None:
    made = await kit.mint(ANN, "ci", org="team", expires=60.0, scopes=["things:read"], description="d")
    with pytest.raises(Conflict, match="active"):
        await kit.tokens.regenerate(ADMIN, made.view.id, expires=90.0)
    await kit.tokens.revoke(ADMIN, made.view.id)
    kit.clock.now += 100
    again = await kit.tokens.regenerate(ADMIN, made.view.id, expires=90.0)
    kept = ("id", "prefix", "name", "description", "scopes", "reach", "org_id", "created_at")
    assert [getattr(again.view, name) for name in kept] == [getattr(made.view, name) for name in kept]
    assert (again.view.status, again.view.revoked_at) == (TokenStatus.ACTIVE, None)
    assert (again.view.expires_at, again.view.rotated_at) == (kit.clock.now + 90, kit.clock.now)
    assert again.value != made.value
    assert isinstance(await kit.resolve(made.view.prefix), Grant)
    with pytest.raises(Unauthenticated):
        await kit.tokens.show(kit.acting(made), made.view.id)
    kit.clock.now += 90
    assert await refused(kit, made.view.prefix) is Reason.TOKEN_EXPIRED
    third = await kit.tokens.regenerate(ADMIN, made.view.id)
    assert third.view.expires_at == kit.clock.now + 90, "as long as it was made for"
    assert (await events(kit))[0][0] == "account.pat.regenerate"


async def test_regeneration_follows_the_present_policy_and_needs_an_active_owner(kit: Kit) -> None:
    made = await kit.mint(ANN, "t", org="team", expires=60.0)
    await kit.tokens.revoke(ADMIN, made.view.id)
    kit.policy = TokenPolicy(max_lifetime=30.0, forbidden_scopes=("*:*",))
    with pytest.raises(Invalid) as raised:
        await kit.tokens.regenerate(ADMIN, made.view.id, expires=31.0)
    assert [field for field, _ in raised.value.errors] == ["expires", "scopes"], "all at once"
    kit.policy = TokenPolicy(tokens_per_user=1)
    other = await kit.mint(ANN, "other")
    with pytest.raises(Conflict, match=r"\(1\)"):
        await kit.tokens.regenerate(ADMIN, made.view.id)
    kit.policy = TokenPolicy()
    await kit.tokens.delete(ADMIN, other.view.id)
    await kit.orgs.suspend(ADMIN, "team")
    with pytest.raises(Conflict, match="organisation of the token is suspended"):
        await kit.tokens.regenerate(ADMIN, made.view.id)
    await kit.orgs.resume(ADMIN, "team")
    await kit.members.remove(ADMIN, "team", ANN)
    with pytest.raises(Conflict, match="not a member"):
        await kit.tokens.regenerate(ADMIN, made.view.id)
    await kit.users.remove(ADMIN, ANN)
    with pytest.raises(Conflict, match="suspended or removed"):
        await kit.tokens.regenerate(ADMIN, made.view.id)


async def test_ending_a_token_warns_of_its_descendants_and_ends_them_on_request(kit: Kit) -> None:
    first = await kit.mint(ANN, "first")
    second = await kit.tokens.create(kit.acting(first), TokenRequest(name="second"))
    third = await kit.tokens.create(kit.acting(second), TokenRequest(name="third"))
    assert (second.view.parent_id, third.view.parent_id) == (first.view.id, second.view.id)
    warned = await kit.tokens.revoke(ADMIN, first.view.id)
    assert warned.warnings == ("2 tokens that this one made still work",)
    gone = await kit.tokens.delete(ADMIN, second.view.id)
    assert gone.warnings == ("1 token that this one made still works",)
    assert (await kit.tokens.show(ADMIN, third.view.id)).parent_id == first.view.id, "lineage has no gaps"
    epoch = await kit.store.epoch()
    done = await kit.tokens.revoke(ADMIN, first.view.id, descendants=True)
    assert done.warnings == () and await kit.store.epoch() == epoch + 1
    assert await refused(kit, third.view.prefix) is Reason.TOKEN_REVOKED
    assert (await kit.tokens.revoke(ADMIN, first.view.id, descendants=True)).warnings == ()
    assert await kit.store.epoch() == epoch + 1, "twice is once"


async def test_revoking_descendants_skips_keys_that_the_caller_may_not_revoke(kit: Kit) -> None:
    await kit.roles.set(ADMIN, "keeper", ["patgate.keys:*", "things:*"])
    await kit.users.set_role(ADMIN, ANN, "keeper", "team")
    made = await kit.mint(ANN, "t", org="team")
    actor = kit.acting(made)
    key = await kit.keys.create(actor, KeyRequest(name="k", org="team", role="viewer"))
    assert key.view.parent_id == made.view.id
    await kit.users.set_role(ADMIN, ANN, "viewer", "team")
    warned = await kit.tokens.revoke(actor, made.view.id, descendants=True)
    assert warned.warnings == ("1 token that this one made still works",)
    assert await refused(kit, key.view.prefix) is None, "a key outlives who made it"
    assert (await kit.tokens.revoke(ADMIN, made.view.id, descendants=True)).warnings == ()
    assert await refused(kit, key.view.prefix) is Reason.TOKEN_REVOKED


async def test_scopes_are_added_removed_set_and_cleared_on_a_living_token(kit: Kit) -> None:
    token = (await kit.mint(ANN, "t", scopes=["things:read"])).view.id
    tokens = kit.tokens
    added = await tokens.add_scopes(ADMIN, token, ["things/7:update", "channels:read"])
    assert added.view.scopes == ("channels:read", "things/7:update", "things:read")
    assert added.warnings == ("the owner's role does not allow channels:read now",)
    assert (await tokens.remove_scopes(ADMIN, token, ["channels:read"])).view.scopes == (
        "things/7:update",
        "things:read",
    )
    epoch = await kit.store.epoch()
    await tokens.remove_scopes(ADMIN, token, ["channels:read"])
    await tokens.add_scopes(ADMIN, token, ["things:read"])
    assert await kit.store.epoch() == epoch, "what is so already changes nothing"
    with pytest.raises(Conflict, match="things:read, which covers it"):
        await tokens.remove_scopes(ADMIN, token, ["things/7:read"])
    assert (await tokens.set_scopes(ADMIN, token, ["things:*", "things:read"])).warnings == ()
    kept = await tokens.remove_scopes(ADMIN, token, ["things:read"])
    assert kept.warnings == ("things:* still covers things:read",)
    parts = await tokens.set_scopes(ADMIN, token, ["things:read"])
    assert parts.view.scopes == ("things:read",)
    parts = await tokens.remove_scopes(ADMIN, token, ["*:read"])
    assert parts.warnings == ("things:read remain, as parts of what was removed",)
    assert (await tokens.remove_scopes(ADMIN, token, ["things:read"])).view.scopes == (), "none is nothing, not all"
    grant = await kit.resolve((await tokens.show(ADMIN, token)).prefix)
    assert isinstance(grant, Grant) and grant.scopes is not None and len(grant.scopes) == 0
    await tokens.set_scopes(ADMIN, token, ["things:read"])
    assert (await tokens.clear_scopes(ADMIN, token)).view.scopes == ()
    action, details = (await events(kit))[0]
    assert (action, details["before"], details["after"]) == ("account.pat.scopes", ["things:read"], [])
    with pytest.raises(Invalid) as raised:
        await tokens.add_scopes(ADMIN, token, ["no colon", "things:read", "a b:c"])
    assert [field for field, _ in raised.value.errors] == ["scopes[0]", "scopes[2]"]


async def test_a_token_without_scopes_is_restricted_only_by_setting_scopes(kit: Kit) -> None:
    token = (await kit.mint(ANN, "t")).view.id
    for verb in (kit.tokens.add_scopes, kit.tokens.remove_scopes):
        with pytest.raises(Conflict, match="has all that its role allows already"):
            await verb(ADMIN, token, ["things:read"])
    assert (await kit.tokens.set_scopes(ADMIN, token, ["things:read"])).view.scopes == ("things:read",)
    kit.policy = TokenPolicy(forbidden_scopes=("*:*",))
    with pytest.raises(Invalid) as raised:
        await kit.tokens.add_scopes(ADMIN, token, ["things:read", "*:*"])
    assert raised.value.errors[0][0] == "scopes[1]"


async def test_all_tokens_of_a_user_are_deleted_within_the_callers_reach(kit: Kit) -> None:
    wide = await kit.mint(ANN, "w", reach=Reach.ACCOUNT)
    team = [await kit.mint(ANN, "t", org="team") for _ in range(3)]
    scoped = await kit.mint(ANN, "s", org="team", scopes=["things:read"])
    child = await kit.tokens.create(kit.acting(scoped), TokenRequest(name="c", org="team", scopes=["things:read"]))
    assert await kit.tokens.delete_all(kit.acting(scoped), keep_current=True) == 1
    with pytest.raises(NotFound):
        await kit.tokens.show(ADMIN, child.view.id)
    assert await kit.tokens.delete_all(kit.acting(team[0]), ANN, keep_current=True) == 3
    assert {view.id for view in (await kit.tokens.list(ADMIN)).items} == {wide.view.id, team[0].view.id}
    epoch = await kit.store.epoch()
    assert await kit.tokens.delete_all(kit.acting(wide)) == 2
    assert await kit.store.epoch() == epoch + 1, "in one transaction"
    assert [action for action, _ in await events(kit)][:2] == ["account.pat.delete"] * 2
    with pytest.raises(Invalid, match="name the user"):
        await kit.tokens.delete_all(ADMIN)
    assert await kit.tokens.delete_all(ADMIN, ANN) == 0


async def test_a_new_name_or_description_changes_nothing_else(kit: Kit) -> None:
    made = await kit.mint(ANN, "t", description="d", scopes=["things:read"])
    view = (await kit.tokens.update(ADMIN, made.view.id, name=" new ")).view
    assert (view.name, view.description, view.scopes) == ("new", "d", ("things:read",))
    grant = await kit.resolve(made.view.prefix)
    assert isinstance(grant, Grant) and grant.token_name == "new"
    assert (await events(kit))[0][0] == "account.pat.update"
    epoch = await kit.store.epoch()
    await kit.tokens.update(ADMIN, made.view.id, name="new", description="d")
    assert await kit.store.epoch() == epoch
    with pytest.raises(Invalid) as raised:
        await kit.tokens.update(ADMIN, made.view.id, name="", description="\x00")
    assert [field for field, _ in raised.value.errors] == ["name", "description"]


async def test_lists_are_filtered_by_organisation_kind_parent_expiry_and_use(kit: Kit) -> None:
    team = await kit.mint(ANN, "team", org="team")
    soon = await kit.mint(ANN, "soon", expires=3600.0)
    sooner = await kit.mint(ANN, "sooner", expires=60.0)
    child = await kit.tokens.create(kit.acting(soon), TokenRequest(name="child", expires=600.0))
    key = await kit.keys.create(ADMIN, KeyRequest(name="key", org="team", role="viewer"))

    async def listed(wanted: TokenFilter) -> list[str]:
        return [view.name for view in (await kit.tokens.list(ADMIN, wanted)).items]

    assert sorted(await listed(TokenFilter(org="team"))) == [key.view.name, team.view.name]
    assert [view.name for view in (await kit.keys.list(ADMIN)).items] == ["key"]
    assert await listed(TokenFilter(parent=soon.view.id)) == [child.view.name]
    assert await listed(TokenFilter(expiring_within=3600.0)) == [sooner.view.name, "child", "soon"]
    kit.clock.now += 10
    await kit.mint(ANN, "new")
    assert sorted(await listed(TokenFilter(unused_for=5.0))) == ["child", "key", "soon", "sooner", "team"]
    with pytest.raises(Invalid) as raised:
        await kit.tokens.list(ADMIN, TokenFilter(unused_for=-1.0, expiring_within=float("nan")))
    assert len(raised.value.errors) == 2


class Pausing(ScryptHasher):
    """Signals that it hashes, and continues on a signal."""

    def __init__(self) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    async def hash(self, token: str) -> str:
        self.begun.set()
        await self.go_on.wait()
        return await super().hash(token)


ENDINGS: dict[str, Callable[[Kit, str], Awaitable[object]]] = {
    "revoked": lambda kit, token: kit.tokens.revoke(ADMIN, token),
    "rotated": lambda kit, token: kit.tokens.rotate(ADMIN, token),
    "deleted": lambda kit, token: kit.tokens.delete(ADMIN, token),
    "its owner removed": lambda kit, token: kit.users.remove(ADMIN, ANN),
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_credential_that_ends_while_its_new_token_is_hashed_creates_none(kit: Kit, ending: str) -> None:
    parent = await kit.mint(ANN, "parent")
    actor = kit.acting(parent)
    plain, pausing = kit.hasher, Pausing()
    kit.hasher = pausing
    work = asyncio.create_task(kit.tokens.create(actor, TokenRequest(name="child")), name="minting")
    await asyncio.wait_for(pausing.begun.wait(), HANGS_SECONDS)
    kit.hasher = plain
    await ENDINGS[ending](kit, parent.view.id)
    epoch = await kit.store.epoch()
    pausing.go_on.set()
    with pytest.raises(Unauthenticated):
        await work
    assert await kit.store.epoch() == epoch
    assert [view.name for view in (await kit.tokens.list(ADMIN)).items if view.name == "child"] == []


async def test_a_credential_that_is_restricted_while_its_new_token_is_hashed_creates_no_wider_one(kit: Kit) -> None:
    parent = await kit.mint(ANN, "parent", scopes=["things:*"], expires=START)
    actor = kit.acting(parent)
    plain, pausing = kit.hasher, Pausing()
    kit.hasher = pausing
    new = TokenRequest(name="c", scopes=["things:*"], expires=60.0)
    work = asyncio.create_task(kit.tokens.create(actor, new), name="minting")
    await asyncio.wait_for(pausing.begun.wait(), HANGS_SECONDS)
    kit.hasher = plain
    await kit.tokens.set_scopes(ADMIN, parent.view.id, ["things:read"])
    pausing.go_on.set()
    with pytest.raises(Forbidden) as raised:
        await work
    assert raised.value.errors[0][0] == "scopes[0]"
