"""Nobody is in an organisation against their will, and no organisation reaches a person outside of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from proxy.core.errors import Forbidden, NotFound, PatgateError
from proxy.core.kinds import Reach
from proxy.core.model import Grant, RefusedGrant
from proxy.core.reasons import Reason
from proxy.services.tokens.issuance import TokenRequest
from proxy.services.tokens.queries import TokenFilter
from proxy.store.dialects.sqlite import SqliteDatabase
from tests.contract.kit import ADMIN, Kit, opened

ANN, BOB, DAN, NOBODY = (f"{name}@example.org" for name in ("ann", "bob", "dan", "nobody"))
CHIEF = ["patgate.members:*", "patgate.policy:*", "things:*"]


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    """Ann is a chief of ``team`` and nothing in the account; Bob is a viewer of ``team`` and of ``shop``, and an editor
    in the account; Dan is in the account only.
    """
    async with opened(tmp_path) as kit:
        await kit.basics()
        await kit.roles.set(ADMIN, "chief", CHIEF)
        await kit.roles.set(ADMIN, "nothing", [])
        await kit.orgs.add(ADMIN, "shop")
        await kit.users.set_role(ADMIN, ANN, "nothing")
        await kit.users.set_role(ADMIN, ANN, "chief", org="team")
        for email in (BOB, DAN):
            kit.clock.now += 1
            await kit.users.add(ADMIN, email, "editor")
        for org in ("team", "shop"):
            await kit.users.add(ADMIN, BOB, "viewer", org=org)
        yield kit


async def said(work: object) -> tuple[type[PatgateError], str]:
    with pytest.raises(PatgateError) as raised:
        await work  # type: ignore[misc]
    return type(raised.value), str(raised.value)


@pytest.mark.parametrize("reach", [Reach.ORG, Reach.ACCOUNT])
async def test_an_organisations_administrator_adds_nobody_and_does_not_learn_who_there_is(
    kit: Kit, reach: Reach
) -> None:
    """threats 7"""
    actor = kit.acting(await kit.mint(ANN, "t", org="team" if reach is Reach.ORG else None, reach=reach))
    epoch = await kit.intact()
    dan = (await kit.users.show(ADMIN, DAN)).id
    added = {await said(kit.users.add(actor, who, "viewer", org="team")) for who in (DAN, NOBODY, BOB)}
    assert {kind for kind, _ in added} == {Forbidden} and len(added) == 1
    given = {await said(kit.members.set(actor, "team", who, "viewer")) for who in (DAN, dan, NOBODY, "usr_" + "0" * 12)}
    assert {kind for kind, _ in given} == {NotFound} and len(given) == 1
    assert await kit.intact() == epoch


async def test_an_organisations_policy_keeps_nobody_from_an_account_wide_token_and_keeps_that_out(kit: Kit) -> None:
    chief = kit.acting(await kit.mint(ANN, "t", org="team"))
    bob = kit.acting(await kit.mint(BOB, "b", reach=Reach.ACCOUNT))
    await kit.policies.set(chief, "team", {"require_expiry": True, "max_lifetime": 3600.0, "require_scopes": True})
    made = await kit.tokens.create(bob, TokenRequest(name="master", reach=Reach.ACCOUNT))
    assert made.view.expires_at is None
    grant = await kit.resolve(made.view.prefix)
    assert isinstance(grant, Grant)
    assert {org.org_name for org in (grant.orgs or {}).values()} == {"shop"}
    assert [warning for warning in made.warnings if "team" in warning]
    kept = await kit.tokens.create(
        bob, TokenRequest(name="short", reach=Reach.ACCOUNT, expires=60.0, scopes=["things:read"])
    )
    grant = await kit.resolve(kept.view.prefix)
    assert isinstance(grant, Grant)
    assert {org.org_name for org in (grant.orgs or {}).values()} == {"shop", "team"}


async def test_the_log_of_an_organisation_does_not_say_that_a_former_member_was_suspended(kit: Kit) -> None:
    team = await kit.mint(BOB, "of team", org="team")
    await kit.users.suspend(ADMIN, BOB)
    assert reason_of(await kit.resolve(team.view.prefix)) is Reason.OWNER_SUSPENDED
    await kit.members.remove(ADMIN, "team", BOB)
    assert reason_of(await kit.resolve(team.view.prefix)) is Reason.MEMBER_REMOVED
    await kit.orgs.suspend(ADMIN, "team")
    assert reason_of(await kit.resolve(team.view.prefix)) is Reason.MEMBER_REMOVED


def reason_of(found: Grant | RefusedGrant) -> Reason:
    assert isinstance(found, RefusedGrant)
    return found.reason


@pytest.mark.parametrize("reach", [Reach.PERSONAL, Reach.ORG, Reach.ACCOUNT])
async def test_anyone_leaves_by_themselves_and_their_tokens_there_stop(kit: Kit, reach: Reach) -> None:
    team = await kit.mint(BOB, "of team", org="team")
    actor = kit.acting(await kit.mint(BOB, "b", org="team" if reach is Reach.ORG else None, reach=reach))
    left = await kit.members.remove(actor, "team", BOB)
    assert (left.email, left.role) == (BOB, "viewer")
    found = await kit.resolve(team.view.prefix)
    assert isinstance(found, RefusedGrant)
    assert found.reason is Reason.MEMBER_REMOVED
    assert [one.org_name for one in (await kit.users.show(ADMIN, BOB)).memberships] == ["shop"]
    async with kit.store.read() as rows:
        (last,) = await rows.log.newest(limit=1)
    assert (last.action, last.org_name, last.email) == ("account.member.leave", "team", BOB)
    await kit.intact()


async def test_a_policy_counts_for_account_wide_tokens_where_it_was_made_and_from_its_answer_on(kit: Kit) -> None:
    """Each rule, in the organisation that has it, for as long as the token breaks it."""

    async def reached(prefix: str) -> set[str]:
        grant = await kit.resolve(prefix)
        assert isinstance(grant, Grant)
        return {org.org_name for org in (grant.orgs or {}).values()}

    made = await kit.mint(BOB, "b", reach=Reach.ACCOUNT, expires=7200.0, scopes=["things:*", "things:read"])
    before = await kit.resolve(made.view.prefix)
    for rule in ({"max_lifetime": 7199.0}, {"forbidden_scopes": ["things:*"]}):
        await kit.policies.set(ADMIN, "team", rule)
        _, touched = kit.announced[-1]
        assert set(before.depends) & set(touched), "workers forget the grant"
        assert await reached(made.view.prefix) == {"shop"}
    for rule in ({"max_lifetime": 7200.0, "require_expiry": True, "require_scopes": True}, {"inactive_after": 60.0}):
        await kit.policies.set(ADMIN, "team", rule)
        kit.clock.now += 120
        assert await reached(made.view.prefix) == {"shop", "team"}
    await kit.policies.set(ADMIN, "team", {"forbidden_scopes": ["things:*"]})
    await kit.tokens.set_scopes(ADMIN, made.view.id, ["things:read"])
    assert await reached(made.view.prefix) == {"shop", "team"}
    # It is not ended by an organisation, however long nobody has used it.
    await kit.policies.set(ADMIN, "team", {"inactive_after": 60.0}, expire=True)
    kit.clock.now += 3600
    assert await kit.policies.end_inactive(ADMIN, None, 1000) == (0, None)
    assert await reached(made.view.prefix) == {"shop", "team"}


async def test_an_account_wide_token_is_regenerated_by_the_deployments_policy_and_told_what_it_does_not_reach(
    kit: Kit,
) -> None:
    made = await kit.mint(BOB, "b", reach=Reach.ACCOUNT)
    await kit.policies.set(ADMIN, "team", {"require_expiry": True})
    await kit.tokens.revoke(ADMIN, made.view.id)
    again = await kit.tokens.regenerate(kit.acting(await kit.mint(BOB, "c", reach=Reach.ACCOUNT)), made.view.id)
    assert again.view.expires_at is None
    assert "it does not reach team, whose policy it breaks: require_expiry" in again.warnings


async def test_nobody_leaves_for_somebody_else_or_by_a_token_of_elsewhere(kit: Kit) -> None:
    """A token of another organisation, and one whose scopes do not say so, leave nothing; no answer tells of more."""
    of_shop = kit.acting(await kit.mint(BOB, "s", org="shop"))
    assert await said(kit.members.remove(of_shop, "team", BOB)) == await said(kit.members.remove(of_shop, "none", BOB))
    scoped = kit.acting(await kit.mint(BOB, "s", scopes=["things:read"]))
    assert await said(kit.members.remove(scoped, "team", BOB)) == (
        Forbidden,
        "this needs the scope patgate.members:delete",
    )
    bob = kit.acting(await kit.mint(BOB, "p", reach=Reach.ACCOUNT))
    assert (await said(kit.members.remove(bob, "team", ANN)))[0] is Forbidden
    dan = kit.acting(await kit.mint(DAN, "p"))
    assert await said(kit.members.remove(dan, "team", DAN)) == await said(kit.members.remove(dan, "none", DAN))
    assert len((await kit.members.list(ADMIN, "team")).items) == 2
    leaves = kit.acting(await kit.mint(BOB, "p", scopes=["patgate.members:delete"]))
    assert (await kit.members.remove(leaves, "team", BOB)).email == BOB


async def test_the_last_administrator_of_an_organisation_leaves_too(kit: Kit) -> None:
    """Nobody is held: the account's administrators remain, and add another one."""
    ann = kit.acting(await kit.mint(ANN, "p"))
    assert (await kit.members.remove(ann, "team", ANN)).role == "chief"
    assert (await kit.members.set(ADMIN, "team", BOB, "chief")).role == "chief"


async def test_who_may_create_users_and_members_by_a_role_in_the_account_adds_people_directly(kit: Kit) -> None:
    await kit.roles.set(ADMIN, "office", ["patgate.users:*", "patgate.members:*", "patgate.orgs:read", "things:*"])
    await kit.roles.set(ADMIN, "half", ["patgate.members:*", "patgate.orgs:read", "things:*"])
    for email, role in (("office@example.org", "office"), ("half@example.org", "half")):
        await kit.users.add(ADMIN, email, role)
    half = kit.acting(await kit.mint("half@example.org", "h"))
    assert {await said(kit.users.add(half, who, "viewer", org="team")) for who in (DAN, NOBODY)} == {
        (Forbidden, "only an administrator of the account adds people: invite them")
    }
    assert (await kit.invitations.invite(half, "team", DAN, "viewer")).email == DAN
    office = kit.acting(await kit.mint("office@example.org", "o"))
    assert (await kit.users.add(office, DAN, "viewer", org="shop")).email == DAN
    assert (await kit.members.set(office, "shop", NOBODY, "viewer")).email == NOBODY
    assert (await said(kit.users.add(office, "x@example.org", "admin", org="team")))[0] is Forbidden


async def test_a_stranger_and_nobody_are_told_apart_by_no_statement_that_is_run(kit: Kit) -> None:
    """threats 7: neither by words nor by how long an answer takes."""
    actor = kit.acting(await kit.mint(ANN, "t", org="team"))
    database = kit.store._database
    ran: list[str] = []

    def executed(_c: object, _cursor: object, statement: str, *_: object) -> None:
        ran.append(statement)

    verbs: tuple[Callable[[str], Awaitable[object]], ...] = (
        lambda email: kit.invitations.invite(actor, "team", email, "viewer"),
        lambda email: kit.invitations.invite(actor, "team", email, "viewer"),
        lambda email: kit.members.set(actor, "team", email, "viewer"),
        lambda email: kit.members.remove(actor, "team", email),
        lambda email: kit.users.add(actor, email, "viewer", org="team"),
        lambda email: kit.users.set_role(actor, email, "viewer", org="team"),
        lambda email: kit.users.show(actor, email),
        lambda email: kit.tokens.list(actor, TokenFilter(user=email)),
        lambda email: kit.tokens.delete_all(actor, email),
    )
    assert isinstance(database, SqliteDatabase)
    for engine in (database._writer, database._readers):
        sa.event.listen(engine.sync_engine, "before_cursor_execute", executed)
    try:
        for number, verb in enumerate(verbs):
            seen = []
            for email in (DAN, NOBODY):
                ran.clear()
                with suppress(PatgateError):
                    await verb(email)
                seen.append(list(ran))
            assert seen[0] == seen[1], number
            assert seen[0]
    finally:
        for engine in (database._writer, database._readers):
            sa.event.remove(engine.sync_engine, "before_cursor_execute", executed)
