"""Members: nobody raises or puts down somebody above themselves, and nobody learns what is none of their business."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from proxy.core.errors import Forbidden, Invalid, NotFound, PatgateError
from proxy.core.kinds import Reach
from proxy.core.model import Actor, Grant
from proxy.services.accounts.members import MemberService
from proxy.services.paging import PageRequest
from proxy.services.tokens.issuance import KeyRequest
from tests.contract.kit import ADMIN, Kit, opened

ANN, BOB, CAT, DAN = (f"{name}@example.org" for name in ("ann", "bob", "cat", "dan"))
CHIEF = ["patgate.members:*", "patgate.orgs:*", "patgate.policy:*", "things:*"]
HELPDESK = ["patgate.users:*", "things:list", "things:read"]


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    """Ann is a chief of ``team`` and a viewer in the account; Bob an admin of ``team``, Cat a viewer there; Dan is in
    ``other`` only.
    """
    async with opened(tmp_path) as kit:
        await kit.basics()
        await kit.roles.set(ADMIN, "chief", CHIEF)
        await kit.roles.set(ADMIN, "helpdesk", HELPDESK)
        await kit.orgs.add(ADMIN, "other")
        await kit.users.set_role(ADMIN, ANN, "viewer")
        await kit.users.set_role(ADMIN, ANN, "chief", org="team")
        for email, role, org in ((BOB, "admin", "team"), (CAT, "viewer", "team"), (DAN, "editor", "other")):
            kit.clock.now += 1
            await kit.users.add(ADMIN, email, role, org=org)
        yield kit


async def acting(kit: Kit, user: str, *, org: str | None = None, reach: Reach | None = None) -> Actor:
    return kit.acting(await kit.mint(user, "t", org=org, reach=reach))


async def refusal(work: Awaitable[object]) -> tuple[type[PatgateError], str]:
    """What a refused verb raised, and its words."""
    with pytest.raises(PatgateError) as raised:
        await work
    return type(raised.value), str(raised.value)


async def _roles(kit: Kit, org: str) -> dict[str, str]:
    page = await MemberService(kit.store, kit.clock).list(ADMIN, org, page=PageRequest(limit=200))
    return {view.email: view.role for view in page.items}


@pytest.mark.parametrize("reach", [Reach.ORG, Reach.ACCOUNT])
async def test_nobody_gives_a_role_that_permits_more_than_theirs(kit: Kit, reach: Reach) -> None:
    """A3, D7: in the organisation, whichever token of theirs asks."""
    actor = await acting(kit, ANN, org="team" if reach is Reach.ORG else None, reach=reach)
    members, before = MemberService(kit.store, kit.clock), await _roles(kit, "team")
    for user, role in ((CAT, "admin"), (ANN, "admin"), (BOB, "viewer")):
        kind, words = await refusal(members.set(actor, "team", user, role))
        assert (kind, words) == (Forbidden, "this role permits more in the organisation than you may do there")
    assert (await refusal(members.remove(actor, "team", BOB)))[0] is Forbidden
    assert await _roles(kit, "team") == before
    assert (await members.set(actor, "team", CAT, "chief")).role == "chief"
    assert (await members.remove(actor, "team", CAT)).email == CAT
    kind, words = await refusal(kit.invitations.invite(actor, "team", "new@example.org", "admin"))
    assert (kind, words) == (Forbidden, "this role permits more in the organisation than you may do there")
    await kit.intact()


async def test_in_the_account_nobody_raises_or_puts_down_somebody_above_themselves(kit: Kit) -> None:
    """D1, D2: a helpdesk that manages users may not make, lower, suspend or remove whoever may more than it."""
    await kit.users.set_role(ADMIN, ANN, "helpdesk")
    await kit.users.add(ADMIN, "root@example.org", "admin")
    actor = await acting(kit, ANN)
    epoch = await kit.intact()
    attempts: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: kit.users.add(actor, "new@example.org", "editor"),
        lambda: kit.users.set_role(actor, DAN, "admin"),
        lambda: kit.users.set_role(actor, ANN, "editor"),
        lambda: kit.users.set_role(actor, "root@example.org", "viewer"),
        lambda: kit.users.suspend(actor, "root@example.org"),
        lambda: kit.users.remove(actor, "root@example.org"),
    )
    for attempt in attempts:
        assert (await refusal(attempt()))[0] is Forbidden
    # No role in the account, and one in an organisation that permits more than the helpdesk may.
    for stop in (kit.users.suspend, kit.users.remove, kit.users.resume):
        assert (await refusal(stop(actor, BOB)))[1] == "this user may do more in an organisation than you may"
    assert await kit.intact() == epoch
    assert (await kit.users.suspend(actor, CAT)).status.value == "suspended"
    assert (await kit.users.resume(actor, CAT)).status.value == "active"
    assert (await kit.users.add(actor, "new@example.org", "viewer")).role == "viewer"
    assert (await kit.users.remove(actor, CAT)).status.value == "removed"
    await kit.intact()


async def test_scopes_bound_what_is_given_too(kit: Kit) -> None:
    await kit.users.set_role(ADMIN, ANN, "admin", org="team")
    made = await kit.mint(ANN, "t", org="team", scopes=["patgate.members:*", "things:read"])
    members = MemberService(kit.store, kit.clock)
    assert (await refusal(members.set(kit.acting(made), "team", CAT, "editor")))[0] is Forbidden
    assert (await refusal(kit.invitations.invite(kit.acting(made), "team", DAN, "viewer")))[0] is Forbidden
    await kit.roles.set(ADMIN, "reader", ["things:read"])
    assert (await kit.invitations.invite(kit.acting(made), "team", DAN, "reader")).role == "reader"


async def test_administrators_see_the_members_and_nothing_else_of_them(kit: Kit) -> None:
    """A4: not their role in the account, not their other organisations, not other people."""
    await kit.users.add(ADMIN, CAT, "viewer", org="other")
    kit.clock.now += 1
    await kit.users.add(ADMIN, "eve@example.org", "editor")
    kit.clock.now += 1
    await kit.users.add(ADMIN, "eve@example.org", "viewer", org="team")
    actor, members = await acting(kit, ANN, org="team"), MemberService(kit.store, kit.clock)
    page = await members.list(actor, "team")
    assert [view.email for view in page.items] == [ANN, BOB, CAT, "eve@example.org"]
    eve = await kit.users.set_role(actor, "eve@example.org", "editor", org="team")
    assert eve.created_at == page.items[-1].created_at > (await kit.users.show(ADMIN, "eve@example.org")).created_at
    for view in page.items:
        shown = {"user_id", "email", "name", "role", "status", "created_at", "updated_at", "warnings"}
        assert set(view.as_dict()) == shown
    joined = {view.email: view.created_at for view in page.items}
    kit.clock.now += 1
    cat = await kit.users.set_role(actor, CAT, "editor", org="team")
    assert [one.org_name for one in cat.memberships] == ["team"]
    # When they were added to the account is none of it either.
    assert (cat.role, cat.created_at, cat.updated_at) == ("", joined[CAT], kit.clock.now)
    assert (await refusal(kit.users.list(actor)))[0] is Forbidden


async def test_unknown_and_invisible_are_answered_in_the_same_words(kit: Kit) -> None:
    """threats 7: of another organisation, of other people, of who is a member, nothing is learnt."""
    actor, members = await acting(kit, ANN, org="team"), MemberService(kit.store, kit.clock)
    dan, nobody = (await kit.users.show(ADMIN, DAN)).id, "usr_000000000000"
    other = (await kit.orgs.show(ADMIN, "other")).id
    for org, missing in (("other", "nowhere"), (other, "org_000000000000")):
        for verb in (
            lambda org: members.list(actor, org),
            lambda org: members.set(actor, org, CAT, "viewer"),
            lambda org: members.remove(actor, org, CAT),
            lambda org: kit.orgs.show(actor, org),
            lambda org: kit.orgs.suspend(actor, org),
            lambda org: kit.policies.show(actor, org),
            lambda org: kit.policies.set(actor, org, {}),
            lambda org: kit.policies.violations(actor, org),
            lambda org: kit.policies.expire(actor, org),
            lambda org: kit.roles.list(actor, org),
            lambda org: kit.users.add(actor, "x@example.org", "viewer", org=org),
        ):
            found = await refusal(verb(org))
            assert found == await refusal(verb(missing))
            assert found[0] is NotFound
    for verb in (
        lambda user: members.set(actor, "team", user, "viewer"),
        lambda user: members.remove(actor, "team", user),
        lambda user: kit.users.show(actor, user),
        lambda user: kit.users.suspend(actor, user),
        lambda user: kit.users.set_role(actor, user, "viewer"),
        lambda user: kit.users.set_role(actor, user, "viewer", org="team"),
    ):
        found = await refusal(verb(dan))
        assert found == await refusal(verb(nobody))
        assert found[0] is NotFound
    assert (await refusal(members.remove(actor, "team", DAN))) == (
        await refusal(members.remove(actor, "team", "nobody@example.org"))
    )


async def test_whoever_may_not_manage_members_does_not_learn_who_is_one(kit: Kit) -> None:
    actor, members = await acting(kit, CAT, org="team"), MemberService(kit.store, kit.clock)
    bob, dan = (await kit.users.show(ADMIN, BOB)).id, (await kit.users.show(ADMIN, DAN)).id
    users = (BOB, DAN, "nobody@example.org", bob, dan, "usr_000000000000")
    for verb in (
        lambda user: members.set(actor, "team", user, "viewer"),
        lambda user: members.remove(actor, "team", user),
        lambda user: kit.users.set_role(actor, user, "viewer", org="team"),
    ):
        ((kind, _),) = {await refusal(verb(user)) for user in users}
        assert kind is Forbidden
    added = {await refusal(kit.users.add(actor, user, "viewer", org="team")) for user in users if "@" in user}
    assert {kind for kind, _ in added} == {Forbidden} and len(added) == 1
    assert (await refusal(members.list(actor, "team")))[0] is Forbidden


async def test_a_member_is_named_by_id_or_email_and_somebody_else_is_not_found(kit: Kit) -> None:
    actor, members = await acting(kit, ANN, org="team"), MemberService(kit.store, kit.clock)
    cat = (await kit.users.show(ADMIN, CAT)).id
    assert (await members.set(actor, "team", cat, "editor")).email == CAT
    assert (await members.remove(actor, "team", cat)).email == CAT
    assert (await refusal(members.set(actor, "team", cat, "viewer")))[0] is NotFound
    # The operator may see everybody, and so name everybody by id.
    assert (await members.set(ADMIN, "team", cat, "viewer")).email == CAT


async def test_roles_that_are_not_there_are_refused_with_those_that_are(kit: Kit) -> None:
    members = MemberService(kit.store, kit.clock)
    for user in (CAT, "new@example.org"):
        for work in (
            members.set(ADMIN, "team", user, "captain"),
            kit.invitations.invite(ADMIN, "team", "new@example.org", "captain"),
        ):
            with pytest.raises(Invalid, match="the roles are admin, chief") as raised:
                await work
            assert [field for field, _ in raised.value.errors] == ["role"]
    with pytest.raises(Invalid):
        await members.set(ADMIN, "team", "no email", "viewer")


async def test_the_same_role_again_takes_no_number(kit: Kit) -> None:
    members = MemberService(kit.store, kit.clock)
    epoch = await kit.intact()
    await members.set(ADMIN, "team", CAT, "viewer")
    assert await kit.intact() == epoch


async def test_members_are_listed_in_pages(kit: Kit) -> None:
    members = MemberService(kit.store, kit.clock)
    for number in range(5):
        kit.clock.now += 1
        await members.set(ADMIN, "team", f"m{number}@example.org", "viewer")
    seen: list[str] = []
    cursor = None
    while True:
        page = await members.list(ADMIN, "team", page=PageRequest(limit=3, cursor=cursor))
        seen += [view.email for view in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == [ANN, BOB, CAT, *(f"m{number}@example.org" for number in range(5))]


async def test_keys_of_an_organisation_look_at_members_and_change_none(kit: Kit) -> None:
    """D7"""
    members = MemberService(kit.store, kit.clock)
    actor = kit.acting(await kit.keys.create(ADMIN, KeyRequest(name="k", org="team", role="admin")))
    assert [view.email for view in (await members.list(actor, "team")).items] == [ANN, BOB, CAT]
    assert (await refusal(members.set(actor, "team", CAT, "viewer")))[0] is Forbidden
    assert (await refusal(members.remove(actor, "team", CAT)))[0] is Forbidden
    assert (await refusal(members.list(actor, "other")))[0] is NotFound


async def test_a_key_outlives_whoever_made_it_and_a_token_stays_bound(kit: Kit) -> None:
    """D4, D7: the maker leaves; the key works on, and the maker's own token of the organisation does not move along."""
    await kit.users.set_role(ADMIN, ANN, "admin", org="team")
    await kit.users.add(ADMIN, ANN, "editor", org="other")
    team_token = await kit.mint(ANN, "t", org="team")
    key = await kit.keys.create(kit.acting(team_token), KeyRequest(name="k", org="team", role="viewer"))
    await MemberService(kit.store, kit.clock).remove(ADMIN, "team", ANN)
    assert not isinstance(await kit.resolve(team_token.view.prefix), Grant)
    await MemberService(kit.store, kit.clock).set(ADMIN, "team", ANN, "viewer")
    bound = await kit.resolve(team_token.view.prefix)
    assert isinstance(bound, Grant)
    assert (bound.org_name, bound.role) == ("team", "viewer")
    await kit.users.remove(ADMIN, ANN)
    grant = await kit.resolve(key.view.prefix)
    assert isinstance(grant, Grant)
    assert (grant.role, grant.user_id, grant.org_name) == ("viewer", "", "team")
