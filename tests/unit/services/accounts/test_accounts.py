"""Users, organisations and roles: the verbs, their events and what they refuse."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from proxy.core.dependency_keys import member_key, memberships_key, org_key, role_key, user_key
from proxy.core.errors import Conflict, Invalid, NotFound, PatgateError
from proxy.core.model import Grant, RefusedGrant, UserStatus
from proxy.core.reasons import Reason
from proxy.services import derived_secrets, identifiers
from proxy.services.paging import PageRequest
from tests.contract.kit import ADMIN, START, Kit, opened

ANN = "ann@example.org"


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    async with opened(tmp_path) as kit:
        await kit.basics()
        kit.announced.clear()
        yield kit


async def _last_action(kit: Kit) -> tuple[str, str]:
    async with kit.store.read() as rows:
        (event,) = await rows.log.newest(limit=1)
    return event.action, event.level


async def test_each_verb_of_users_names_its_key_and_its_event(kit: Kit) -> None:
    ann = await kit.users.show(ADMIN, ANN)
    team = await kit.orgs.show(ADMIN, "team")
    user, *member = user_key(ann.id), member_key(team.id, ann.id), memberships_key(ann.id)
    await kit.users.set_role(ADMIN, ANN, "viewer")
    assert (kit.announced.pop()[1], await _last_action(kit)) == ((user,), ("account.user.set_role", "account"))
    await kit.users.set_role(ADMIN, ANN, "editor", org="team")
    assert kit.announced.pop()[1] == tuple(member)
    assert await _last_action(kit) == ("account.user.set_role", "organisation")
    await kit.users.suspend(ADMIN, ANN)
    assert (kit.announced.pop()[1], await _last_action(kit)) == ((user,), ("account.user.suspend", "account"))
    await kit.users.resume(ADMIN, ANN)
    assert (kit.announced.pop()[1], await _last_action(kit)) == ((user,), ("account.user.resume", "account"))
    await kit.users.remove_member(ADMIN, ANN, "team")
    assert kit.announced.pop()[1] == tuple(member)
    assert await _last_action(kit) == ("account.member.remove", "organisation")
    await kit.users.add(ADMIN, ANN, "viewer", org="team")
    assert set(kit.announced.pop()[1]) == {user, *member}
    await kit.users.remove(ADMIN, ANN)
    assert (set(kit.announced.pop()[1]), await _last_action(kit)) == (
        {user, *member},
        ("account.user.remove", "account"),
    )
    await kit.intact()


async def test_what_is_so_already_takes_no_number(kit: Kit) -> None:
    await kit.users.set_role(ADMIN, ANN, "editor")
    await kit.users.set_role(ADMIN, ANN, "viewer", org="team")
    await kit.users.resume(ADMIN, ANN)
    await kit.orgs.resume(ADMIN, "team")
    await kit.roles.set(ADMIN, "viewer", ["things:read", "things:list", "things:read"])
    await kit.users.suspend(ADMIN, ANN)
    await kit.users.suspend(ADMIN, ANN)
    assert len(kit.announced) == 1


async def test_emails_are_one_whatever_their_case(kit: Kit) -> None:
    made = await kit.users.add(ADMIN, "  Bob.Smith@EXAMPLE.org ", "viewer", name=" Bob ")
    assert (made.email, made.name) == ("Bob.Smith@example.org", "Bob")
    assert (
        (await kit.users.show(ADMIN, "BOB.smith@example.ORG")).id
        == made.id
        == (await kit.users.show(ADMIN, made.id)).id
    )
    with pytest.raises(Conflict):
        await kit.users.add(ADMIN, "bob.smith@example.org", "viewer")


@pytest.mark.parametrize(
    "email", ["", "x", "@x", "x@", "a b@x", "a@b@c", "a@.x", "a@x..y", "a@-x", "a@x\x00", "<a@x>", "a" * 65 + "@x"]
)
async def test_what_is_no_email_is_refused_without_repeating_it(kit: Kit, email: str) -> None:
    with pytest.raises(Invalid) as raised:
        await kit.users.add(ADMIN, email, "viewer")
    assert raised.value.errors[0][0] == "email"
    assert len(email) < 3 or email not in str(raised.value)


async def test_of_two_users_from_before_whose_emails_are_one_now_neither_acts_for_the_other(
    kit: Kit, tmp_path: Path
) -> None:
    """threats 7: migration 0004 leaves such a pair, and the newer one keeps the key that it had."""
    wide = "ａnn@example.org"  # noqa: RUF001 - a full-width letter
    await kit.orgs.add(ADMIN, "shop")
    await kit.users.add(ADMIN, "other@example.org", "viewer", org="team")
    with closing(sqlite3.connect(tmp_path / "patgate.db", isolation_level=None)) as file:
        file.execute("UPDATE users SET email = ?, email_key = ? WHERE email = ?", (wide, wide, "other@example.org"))
    twin_id = next(one.user_id for one in (await kit.members.list(ADMIN, "team")).items if one.email == wide)
    twin = kit.acting(await kit.mint(twin_id, "t"))
    invited = await kit.invitations.invite(ADMIN, "shop", ANN, "viewer")
    assert (await kit.invitations.list(twin)).items == []
    for verb in (kit.invitations.show, kit.invitations.accept, kit.invitations.decline):
        with pytest.raises(NotFound):
            await verb(twin, invited.id)
    for reference in (wide, ANN):
        with pytest.raises(PatgateError):
            await kit.members.remove(twin, "team", reference)
    assert {one.email for one in (await kit.members.list(ADMIN, "team")).items} == {ANN, wide}
    assert (await kit.members.remove(twin, "team", twin_id)).email == wide, "by id they leave as anyone does"
    assert (await kit.invitations.accept(kit.acting(await kit.mint(ANN, "a")), invited.id)).email == ANN


async def test_a_removed_user_is_gone_and_the_email_makes_another_one(kit: Kit) -> None:
    personal = await kit.mint(ANN, "p")
    team = await kit.mint(ANN, "t", org="team")
    removed = await kit.users.remove(ADMIN, ANN)
    assert (removed.status, removed.memberships) == (UserStatus.REMOVED, ())
    for reference in (ANN, removed.id):
        with pytest.raises(NotFound):
            await kit.users.show(ADMIN, reference)
        with pytest.raises(NotFound):
            await kit.users.resume(ADMIN, reference)
    again = await kit.users.add(ADMIN, ANN, "admin")
    await kit.users.add(ADMIN, ANN, "admin", org="team")
    assert again.id != removed.id
    for made in (personal, team):
        verdict = await kit.resolve(made.view.prefix)
        assert isinstance(verdict, RefusedGrant)
        assert verdict.reason is Reason.OWNER_REMOVED
    assert [view.id for view in (await kit.users.list(ADMIN)).items] == [again.id]


async def test_a_user_made_through_an_organisation_has_no_role_in_the_account(kit: Kit) -> None:
    made = await kit.users.add(ADMIN, "bob@example.org", "editor", org="team")
    assert made.as_dict()["role"] is None
    assert [membership.as_dict()["role"] for membership in made.memberships] == ["editor"]
    token = await kit.mint(made.id, "t")
    grant = await kit.resolve(token.view.prefix)
    assert isinstance(grant, Grant)
    assert grant.permissions.texts == ()


async def test_users_are_refused_roles_and_organisations_that_are_not_there(kit: Kit) -> None:
    with pytest.raises(Invalid, match="the roles are admin, editor, viewer"):
        await kit.users.add(ADMIN, "bob@example.org", "king")
    with pytest.raises(NotFound, match="no organisation"):
        await kit.users.add(ADMIN, "bob@example.org", "viewer", org="nowhere")
    with pytest.raises(Conflict, match="member"):
        await kit.users.add(ADMIN, ANN, "viewer", org="team")
    with pytest.raises(NotFound):
        await kit.users.show(ADMIN, "bob@example.org")
    await kit.users.add(ADMIN, "bob@example.org", "viewer")
    with pytest.raises(NotFound, match="no member"):
        await kit.users.set_role(ADMIN, "bob@example.org", "viewer", org="team")


async def test_users_and_organisations_are_listed_in_pages(kit: Kit) -> None:
    for number in range(4):
        await kit.users.add(ADMIN, f"u{number}@example.org", "viewer")
        await kit.orgs.add(ADMIN, f"o{number}")
    page = await kit.users.list(ADMIN, page=PageRequest(limit=3))
    rest = await kit.users.list(ADMIN, page=PageRequest(limit=3, cursor=page.next_cursor))
    assert rest.next_cursor is None
    assert {view.email for view in [*page.items, *rest.items]} == {
        ANN,
        *(f"u{number}@example.org" for number in range(4)),
    }
    assert [len(view.memberships) for view in [*page.items, *rest.items] if view.email == ANN] == [1]
    orgs = await kit.orgs.list(ADMIN, page=PageRequest(limit=4))
    assert len((await kit.orgs.list(ADMIN, page=PageRequest(limit=4, cursor=orgs.next_cursor))).items) == 1


async def test_organisations_have_slugs_that_are_never_ids(kit: Kit) -> None:
    for name in ("", "-a", "A", "a_b", "org_000000000000", "a" * 64, "a b", "ä"):
        with pytest.raises(Invalid):
            await kit.orgs.add(ADMIN, name)
    with pytest.raises(Conflict):
        await kit.orgs.add(ADMIN, "team")
    made = await kit.orgs.add(ADMIN, "a" * 63)
    assert identifiers.is_org_id(made.id) and (await kit.orgs.show(ADMIN, made.id)).name == "a" * 63
    assert (await kit.orgs.show(ADMIN, "team")).as_dict()["members"] == 1


async def test_suspending_an_organisation_refuses_its_tokens_only(kit: Kit) -> None:
    personal = await kit.mint(ANN, "p")
    team = await kit.mint(ANN, "t", org="team")
    kit.announced.clear()
    org = await kit.orgs.suspend(ADMIN, "team")
    assert kit.announced[0][1] == (org_key(org.id),)
    verdict = await kit.resolve(team.view.prefix)
    assert isinstance(verdict, RefusedGrant) and verdict.reason is Reason.ORG_SUSPENDED
    assert isinstance(await kit.resolve(personal.view.prefix), Grant)
    await kit.orgs.resume(ADMIN, "team")
    assert isinstance(await kit.resolve(team.view.prefix), Grant)


async def test_a_role_set_by_command_survives_until_the_configuration_changes(kit: Kit) -> None:
    config = {"admin": ["*:*"], "editor": ["things:*"], "viewer": ["things:list", "things:read"]}
    await kit.roles.set(ADMIN, "viewer", ["things:read"])
    assert (await kit.roles.show(ADMIN, "viewer")).source == "store"
    assert await kit.roles.sync_config(ADMIN, config) == []
    assert (await kit.roles.show(ADMIN, "viewer")).permissions == ("things:read",)
    config["viewer"] = ["things:list"]
    assert await kit.roles.sync_config(ADMIN, config) == ["viewer"]
    assert kit.announced[-1][1] == (role_key("viewer"),)
    assert await _last_action(kit) == ("account.roles.sync", "account")
    assert (await kit.roles.show(ADMIN, "viewer")).permissions == ("things:list",)
    assert (await kit.roles.show(ADMIN, "viewer")).source == "config"


async def test_a_role_that_left_the_configuration_allows_nothing(kit: Kit) -> None:
    made = await kit.mint(ANN, "t")
    await kit.roles.set(ADMIN, "own", ["things:read"])
    assert await kit.roles.sync_config(ADMIN, {"admin": ["*:*"]}) == ["editor", "viewer"]
    grant = await kit.resolve(made.view.prefix)
    assert isinstance(grant, Grant)
    assert (grant.role, grant.permissions.texts) == ("editor", ())
    assert role_key("editor") in grant.depends
    assert [view.name for view in await kit.roles.list(ADMIN)] == ["admin", "own"]
    with pytest.raises(NotFound):
        await kit.roles.show(ADMIN, "editor")


@pytest.mark.parametrize(
    ("name", "permissions", "field"),
    [("a b", [], "name"), ("", [], "name"), ("x", ["things:read", "bad"], "permissions[1]")],
)
async def test_roles_that_cannot_be_are_refused(kit: Kit, name: str, permissions: list[str], field: str) -> None:
    with pytest.raises(Invalid) as raised:
        await kit.roles.set(ADMIN, name, permissions)
    assert raised.value.errors[0][0] == field


async def test_documents_have_times_in_utc_and_lists_as_lists(kit: Kit) -> None:
    document = (await kit.users.show(ADMIN, ANN)).as_dict()
    assert document["created_at"] == "2023-11-14T22:13:20.000Z"
    assert (await kit.roles.show(ADMIN, "viewer")).as_dict()["permissions"] == ["things:list", "things:read"]
    token = (await kit.mint(ANN, "t", expires=0.5)).as_dict()
    assert token["expires_at"] == "2023-11-14T22:13:20.500Z"
    assert (token["scopes"], token["status"], token["use_count"]) == (None, "active", 0)
    assert START == 1_700_000_000


def test_derived_keys_differ_from_each_other_and_from_their_source() -> None:
    secret = b"s" * 32
    assert len({secret, derived_secrets.cache_key(secret), bytes.fromhex(derived_secrets.fingerprint(secret))}) == 3
    assert derived_secrets.fingerprint(b"t" * 32) != derived_secrets.fingerprint(secret)
