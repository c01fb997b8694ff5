"""Invitations: people join only when they accept, and only while the inviter could still invite them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from proxy.core.errors import Conflict, Forbidden, Invalid, NotFound, PatgateError
from proxy.core.kinds import Reach
from proxy.core.model import Actor, Grant
from proxy.services.accounts.invitations import LONGEST, PER_ORG, InvitationService
from proxy.services.idempotency import IdempotencyKey
from proxy.services.paging import PageRequest
from proxy.services.tokens.expiry_notices import DAY
from proxy.services.tokens.issuance import KeyRequest
from proxy.services.views import Created, InvitationView
from proxy.store.audit.queries import LogEntry
from tests.contract.kit import ADMIN, Kit, opened

ANN, BOB, CAT, DAN, NOBODY = (f"{name}@example.org" for name in ("ann", "bob", "cat", "dan", "nobody"))
CHIEF = ["patgate.members:*", "things:*"]
HELPDESK = ["patgate.users:*", "patgate.members:*", "things:list", "things:read"]


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    """Ann is a chief of ``team``, Bob of ``shop``; Cat is a viewer of ``team``; Dan is in the account only, where
    nobody but him has a role that counts.
    """
    async with opened(tmp_path) as kit:
        await kit.basics()
        for role, permissions in (("chief", CHIEF), ("helpdesk", HELPDESK), ("nothing", [])):
            await kit.roles.set(ADMIN, role, permissions)
        await kit.orgs.add(ADMIN, "shop")
        await kit.users.set_role(ADMIN, ANN, "nothing")
        await kit.users.set_role(ADMIN, ANN, "chief", org="team")
        await kit.users.add(ADMIN, BOB, "chief", org="shop")
        await kit.users.add(ADMIN, CAT, "viewer", org="team")
        await kit.users.add(ADMIN, DAN, "editor")
        kit.clock.now += 1
        yield kit


async def acting(kit: Kit, user: str, *, org: str | None = None, reach: Reach | None = None, **more: object) -> Actor:
    return kit.acting(await kit.mint(user, "t", org=org, reach=reach, **more))  # type: ignore[arg-type]


async def said(work: Awaitable[object]) -> tuple[type[PatgateError], str]:
    with pytest.raises(PatgateError) as raised:
        await work
    return type(raised.value), str(raised.value)


async def last_event(kit: Kit) -> LogEntry:
    async with kit.store.read() as rows:
        (entry,) = await rows.log.newest(limit=1)
    return entry


async def members_of(kit: Kit, org: str) -> dict[str, str]:
    return {view.email: view.role for view in (await kit.members.list(ADMIN, org)).items}


async def test_who_is_invited_joins_by_accepting_with_the_role_of_the_invitation(kit: Kit) -> None:
    chief = await acting(kit, ANN, org="team")
    invited = await kit.invitations.invite(chief, "team", " Dan@Example.ORG ", "viewer")
    assert (invited.org_name, invited.role, invited.email) == ("team", "viewer", "Dan@example.org")
    assert invited.expires_at - invited.created_at == 14 * DAY
    event = await last_event(kit)
    assert (event.action, event.org_name, event.target_id) == ("account.invitation.create", "team", invited.id)
    assert DAN not in await members_of(kit, "team")
    dan = await acting(kit, DAN)
    assert [one.id for one in (await kit.invitations.list(dan)).items] == [invited.id]
    assert (await kit.invitations.show(dan, invited.id)) == invited
    member = await kit.invitations.accept(dan, invited.id)
    assert (member.email, member.role) == (DAN, "viewer")
    assert (await members_of(kit, "team"))[DAN] == "viewer"
    event = await last_event(kit)
    assert (event.action, event.org_name, event.email) == ("account.invitation.accept", "team", DAN)
    assert (await said(kit.invitations.accept(dan, invited.id)))[0] is NotFound
    assert (await kit.invitations.list(ADMIN)).items == []
    await kit.intact()


async def test_a_token_reaches_the_organisation_from_the_answer_to_its_acceptance_on(kit: Kit) -> None:
    invited = await kit.invitations.invite(ADMIN, "team", DAN, "viewer")
    wide = await kit.mint(DAN, "wide", reach=Reach.ACCOUNT)
    before = await kit.resolve(wide.view.prefix)
    assert isinstance(before, Grant) and before.orgs == {}
    await kit.invitations.accept(kit.acting(wide), invited.id)
    _, touched = kit.announced[-1]
    assert set(before.depends) & set(touched)
    after = await kit.resolve(wide.view.prefix)
    assert isinstance(after, Grant) and set(after.orgs or {}) == {invited.org_id, "team"}


async def test_inviting_tells_nothing_of_whether_there_is_such_a_user(kit: Kit) -> None:
    """threats 7: the same answer, of the same shape, and nothing of the person in it or on the organisation's log."""
    await kit.users.add(ADMIN, "suspended@example.org", "viewer")
    await kit.users.suspend(ADMIN, "suspended@example.org")
    await kit.roles.set(ADMIN, "auditor", [*CHIEF, "patgate.audit:list"])
    await kit.users.set_role(ADMIN, ANN, "auditor", org="team")
    chief = await acting(kit, ANN, org="team")
    shapes = set()
    for email in (DAN, NOBODY, BOB, "suspended@example.org"):
        answer = await kit.invitations.invite(chief, "team", email, "viewer")
        shapes.add(str(answer.as_dict()).replace(email, "-").replace(answer.id, "-"))
        event = await last_event(kit)
        assert (event.email, event.target_name, event.org_name) == (ANN, email, "team")
        shapes.add(str(event.details))
        again = await said(kit.invitations.invite(chief, "team", email, "viewer"))
        shapes.add(str(again))
        shapes.add(str(await said(kit.members.remove(chief, "team", email))))
    assert len(shapes) == 4


async def test_who_is_nobodys_business_finds_no_invitation(kit: Kit) -> None:
    """threats 7: an invitation of another organisation and of another person is one that there is not."""
    invited = await kit.invitations.invite(ADMIN, "team", DAN, "viewer")
    await kit.users.add(ADMIN, DAN, "viewer", org="shop")
    callers = [
        await acting(kit, BOB, org="shop"),
        await acting(kit, BOB),
        await acting(kit, BOB, reach=Reach.ACCOUNT),
        # A token of another organisation does not answer for its owner.
        await acting(kit, DAN, org="shop"),
        await acting(kit, CAT, org="team"),
        await acting(kit, DAN, scopes=["things:read"]),
        kit.acting(await kit.keys.create(ADMIN, KeyRequest(name="k", org="shop", role="admin"))),
    ]
    epoch = await kit.intact()
    for caller in callers:
        for verb in (kit.invitations.show, kit.invitations.accept, kit.invitations.decline, kit.invitations.withdraw):
            found = await said(verb(caller, invited.id))
            assert found == await said(verb(caller, "inv_000000000000"))
            assert found[0] is NotFound
    for caller in callers[:3]:
        hidden = await said(kit.invitations.list(caller, "team"))
        assert hidden == await said(kit.invitations.list(caller, "nowhere"))
    assert [list((await kit.invitations.list(caller)).items) for caller in (callers[1], callers[2])] == [[], []]
    assert list((await kit.invitations.list(callers[1], email=DAN)).items) == []
    for caller in (callers[0], callers[3], callers[5], callers[6]):
        assert (await said(kit.invitations.list(caller)))[0] is Forbidden
    assert await kit.intact() == epoch


async def test_the_person_answers_and_nobody_else_who_sees_the_invitation(kit: Kit) -> None:
    chief = await acting(kit, ANN, org="team")
    invited = await kit.invitations.invite(chief, "team", DAN, "viewer")
    for verb in (kit.invitations.accept, kit.invitations.decline):
        assert (await said(verb(chief, invited.id)))[0] is Forbidden
    dan = await acting(kit, DAN, scopes=["patgate.members:list"])
    assert [one.id for one in (await kit.invitations.list(dan)).items] == [invited.id]
    for verb in (kit.invitations.accept, kit.invitations.decline, kit.invitations.withdraw):
        kind, words = await said(verb(dan, invited.id))
        assert kind is Forbidden and "patgate.members:" in words
    assert (await kit.invitations.accept(await acting(kit, DAN, scopes=["patgate.members:create"]), invited.id)).role


async def test_an_administrator_of_the_account_answers_for_somebody_within_what_they_may_do(kit: Kit) -> None:
    await kit.users.add(ADMIN, "help@example.org", "helpdesk")
    helpdesk = await acting(kit, "help@example.org")
    low = await kit.invitations.invite(ADMIN, "team", DAN, "viewer")
    high = await kit.invitations.invite(ADMIN, "shop", DAN, "editor")
    assert {one.id for one in (await kit.invitations.list(helpdesk)).items} == {low.id, high.id}
    assert (await kit.invitations.accept(helpdesk, low.id)).email == DAN
    assert (await said(kit.invitations.accept(helpdesk, high.id)))[0] is Forbidden
    assert (await kit.invitations.decline(helpdesk, high.id)) == high
    unknown = await kit.invitations.invite(ADMIN, "team", NOBODY, "viewer")
    assert (await said(kit.invitations.accept(ADMIN, unknown.id))) == (
        Conflict,
        "no user has this email yet: add one to the account first",
    )
    await kit.users.add(ADMIN, NOBODY, "nothing")
    assert (await kit.invitations.accept(await acting(kit, NOBODY), unknown.id)).role == "viewer"


async def lowered(kit: Kit, inviter: Created) -> None:
    await kit.users.set_role(ADMIN, ANN, "viewer", org="team")


async def widened(kit: Kit, inviter: Created) -> None:
    await kit.roles.set(ADMIN, "viewer", ["*:*"])


async def gone(kit: Kit, inviter: Created) -> None:
    await kit.members.remove(ADMIN, "team", ANN)


async def suspended(kit: Kit, inviter: Created) -> None:
    await kit.users.suspend(ADMIN, ANN)


async def removed(kit: Kit, inviter: Created) -> None:
    await kit.users.remove(ADMIN, ANN)


async def revoked(kit: Kit, inviter: Created) -> None:
    await kit.tokens.revoke(ADMIN, inviter.view.id)


async def deleted(kit: Kit, inviter: Created) -> None:
    await kit.tokens.delete(ADMIN, inviter.view.id)


async def rotated(kit: Kit, inviter: Created) -> None:
    kit.clock.now += 1
    await kit.tokens.rotate(ADMIN, inviter.view.id)


async def regenerated(kit: Kit, inviter: Created) -> None:
    await kit.tokens.revoke(ADMIN, inviter.view.id)
    kit.clock.now += 1
    await kit.tokens.regenerate(ADMIN, inviter.view.id)


async def narrowed(kit: Kit, inviter: Created) -> None:
    await kit.tokens.set_scopes(ADMIN, inviter.view.id, ["things:read"])


async def dissolved(kit: Kit, inviter: Created) -> None:
    async with kit.store.change(ADMIN, kit.clock.now) as change:
        await change.roles.delete("viewer")
        change.touched("role:viewer")
        change.audit("account.role.remove", target_kind="role", target_id="viewer")


@pytest.mark.parametrize(
    "became",
    [
        lowered,
        widened,
        gone,
        suspended,
        removed,
        revoked,
        deleted,
        rotated,
        regenerated,
        narrowed,
        dissolved,
    ],
)
async def test_an_invitation_does_not_hold_that_could_not_be_made_any_more(
    kit: Kit, became: Callable[[Kit, Created], Awaitable[None]]
) -> None:
    """threats 7: what the inviter lost meanwhile is not given through an invitation from before."""
    inviter = await kit.mint(ANN, "t", org="team")
    invited = await kit.invitations.invite(kit.acting(inviter), "team", DAN, "viewer")
    dan = await acting(kit, DAN)
    await became(kit, inviter)
    for caller in (dan, ADMIN):
        assert await said(kit.invitations.accept(caller, invited.id)) == (
            Conflict,
            "the inviter may no longer give this role: ask for another invitation",
        )
    assert DAN not in await members_of(kit, "team")
    # Declining is always possible.
    assert (await kit.invitations.decline(dan, invited.id)).id == invited.id


async def test_an_invitation_outlives_the_time_of_the_token_that_made_it(kit: Kit) -> None:
    inviter = await kit.mint(ANN, "t", org="team", expires=60.0)
    invited = await kit.invitations.invite(kit.acting(inviter), "team", DAN, "viewer")
    dan = await acting(kit, DAN)
    kit.clock.now += 3600
    assert (await kit.invitations.accept(dan, invited.id)).role == "viewer"


async def test_an_invitation_ends_by_itself_and_another_one_takes_its_place(kit: Kit) -> None:
    chief, dan = await acting(kit, ANN, org="team"), await acting(kit, DAN)
    first = await kit.invitations.invite(chief, "team", DAN, "viewer", expires=DAY)
    kit.clock.now += DAY
    for verb in (kit.invitations.show, kit.invitations.accept, kit.invitations.decline):
        assert (await said(verb(dan, first.id)))[0] is NotFound
    assert (await kit.invitations.list(chief, "team")).items == []
    second = await kit.invitations.invite(chief, "team", DAN, "viewer")
    assert (await kit.invitations.accept(dan, second.id)).email == DAN
    for expires in (0.0, 59.0, LONGEST + 1, float("nan")):
        with pytest.raises(Invalid):
            await kit.invitations.invite(chief, "team", NOBODY, "viewer", expires=expires)


async def test_declining_is_on_the_log_of_the_persons_own_account_and_not_of_the_organisation(kit: Kit) -> None:
    """Nothing of an outsider is shown: neither their token nor their address."""
    chief, dan = await acting(kit, ANN, org="team"), await acting(kit, DAN)
    invited = await kit.invitations.invite(chief, "team", DAN, "viewer")
    assert await kit.invitations.decline(dan, invited.id) == invited
    event = await last_event(kit)
    assert (event.action, event.org_id, event.email) == ("account.invitation.decline", "", DAN)
    assert (await said(kit.invitations.show(chief, invited.id)))[0] is NotFound
    again = await kit.invitations.invite(chief, "team", DAN, "viewer")
    assert await kit.invitations.withdraw(chief, again.id) == again
    event = await last_event(kit)
    assert (event.action, event.org_name) == ("account.invitation.withdraw", "team")
    assert (await said(kit.invitations.accept(dan, again.id)))[0] is NotFound
    await kit.intact()


async def test_invitations_of_an_organisation_are_bounded_and_of_an_email_one(kit: Kit) -> None:
    few = InvitationService(kit.store, kit.clock, per_org=3, lifetime=DAY)
    for number in range(3):
        assert (await few.invite(ADMIN, "team", f"i{number}@example.org", "viewer")).expires_at == kit.clock.now + DAY
    kind, words = await said(few.invite(ADMIN, "team", DAN, "viewer"))
    assert kind is Conflict and "3 open invitations" in words
    assert (await said(few.invite(ADMIN, "team", "I1@example.ORG", "editor")))[0] is Conflict
    assert (await few.invite(ADMIN, "shop", "i1@example.org", "editor")).org_name == "shop"
    kit.clock.now += DAY
    assert (await few.invite(ADMIN, "team", DAN, "viewer")).email == DAN
    async with kit.store.read() as rows:
        assert await rows.invitations.count((await kit.orgs.show(ADMIN, "team")).id) == 1
    assert PER_ORG == 100


async def test_a_member_is_not_invited_and_who_is_added_meanwhile_has_no_invitation_left(kit: Kit) -> None:
    chief, dan = await acting(kit, ANN, org="team"), await acting(kit, DAN)
    assert (await said(kit.invitations.invite(chief, "team", CAT, "viewer")))[0] is Conflict
    invited = await kit.invitations.invite(chief, "team", DAN, "viewer")
    await kit.users.add(ADMIN, DAN, "editor", org="team")
    assert (await said(kit.invitations.accept(dan, invited.id)))[0] is NotFound
    assert (await members_of(kit, "team"))[DAN] == "editor"


async def test_an_invitation_does_not_pass_to_another_person_with_the_same_email(kit: Kit) -> None:
    invited = await kit.invitations.invite(await acting(kit, ANN, org="team"), "team", DAN, "viewer")
    await kit.users.remove(ADMIN, DAN)
    async with kit.store.read() as rows:
        events = await rows.log.newest(limit=2)
    # On no organisation's log: one that invited an email does not learn there that somebody had it.
    assert [(one.action, one.org_id, one.target_name) for one in events] == [
        ("account.user.remove", "", DAN),
        ("account.invitation.withdraw", "", DAN),
    ]
    assert events[1].details["org"] == "team"
    await kit.users.add(ADMIN, DAN, "editor")
    dan = await acting(kit, DAN)
    assert (await kit.invitations.list(dan)).items == []
    assert (await said(kit.invitations.accept(dan, invited.id)))[0] is NotFound


async def test_nobody_joins_a_suspended_organisation(kit: Kit) -> None:
    invited = await kit.invitations.invite(ADMIN, "team", DAN, "viewer")
    await kit.orgs.suspend(ADMIN, "team")
    assert await said(kit.invitations.accept(await acting(kit, DAN), invited.id)) == (
        Conflict,
        "the organisation is suspended",
    )


async def test_keys_and_members_without_the_permission_invite_nobody(kit: Kit) -> None:
    key = kit.acting(await kit.keys.create(ADMIN, KeyRequest(name="k", org="team", role="admin")))
    for caller in (key, await acting(kit, CAT, org="team")):
        assert (await said(kit.invitations.invite(caller, "team", DAN, "viewer")))[0] is Forbidden
    cat = await acting(kit, CAT, org="team")
    assert (await said(kit.invitations.list(cat, "team")))[0] is Forbidden
    assert (await said(kit.invitations.invite(await acting(kit, ANN, org="team"), "shop", DAN, "viewer"))) == (
        await said(kit.invitations.invite(await acting(kit, ANN, org="team"), "nowhere", DAN, "viewer"))
    )


async def test_invitations_are_listed_in_pages(kit: Kit) -> None:
    made: list[InvitationView] = []
    for number in range(5):
        kit.clock.now += 1
        made.append(await kit.invitations.invite(ADMIN, "team", f"i{number}@example.org", "viewer"))
    kit.clock.now += 1
    await kit.invitations.invite(ADMIN, "shop", DAN, "viewer")
    for org, expected in (("team", made), (None, [*made, *(await kit.invitations.list(ADMIN, "shop")).items])):
        seen: list[InvitationView] = []
        cursor = None
        while True:
            page = await kit.invitations.list(ADMIN, org, page=PageRequest(limit=2, cursor=cursor))
            seen += page.items
            cursor = page.next_cursor
            if cursor is None:
                break
        assert seen == expected
    assert [one.email for one in (await kit.invitations.list(ADMIN, email="I3@example.org")).items] == [made[3].email]


async def test_a_retry_of_inviting_and_accepting_does_it_once(kit: Kit) -> None:
    key = IdempotencyKey(value="k", request_hash="a" * 64)

    async def invite() -> InvitationView:
        return await kit.invitations.invite(ADMIN, "team", DAN, "viewer", idempotency_key=key)

    invited, again = await invite(), await invite()
    assert (again, again.replayed, invited.replayed) == (invited, True, False)
    dan = await acting(kit, DAN)
    joined = await kit.invitations.accept(dan, invited.id, idempotency_key=key)
    again_joined = await kit.invitations.accept(dan, invited.id, idempotency_key=key)
    assert (again_joined, again_joined.replayed, joined.replayed) == (joined, True, False)
    assert (await said(invite()))[0] is Conflict
    bob = await acting(kit, BOB)
    assert (await said(kit.invitations.accept(bob, invited.id, idempotency_key=key)))[0] is NotFound
    await kit.members.remove(dan, "team", DAN)
    assert (await said(kit.invitations.accept(dan, invited.id, idempotency_key=key)))[0] is Conflict
