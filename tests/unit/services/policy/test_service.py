"""Policies: an organisation's only restricts; violations are found, counted and expired, and no other tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.core.errors import Forbidden, Invalid, NotFound, Unauthenticated
from proxy.core.kinds import Reach
from proxy.core.model import Actor, Grant, RefusedGrant
from proxy.core.reasons import Reason
from proxy.services import paging
from proxy.services.paging import PageRequest, Remaining
from proxy.services.policy import service
from proxy.services.policy.model import AdminRight, TokenPolicy
from proxy.services.tokens.expiry_notices import DAY
from proxy.services.tokens.issuance import KeyRequest
from proxy.services.views import Created
from proxy.store.audit.queries import LogEntry
from proxy.store.tokens.usage import Use
from tests.contract.kit import ADMIN, START, Kit, opened

ANN, BOB = "ann@example.org", "bob@example.org"


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    """Ann is a chief of ``team``, Bob of ``shop``; neither has permissions in the account."""
    async with opened(tmp_path) as kit:
        await kit.basics()
        await kit.roles.set(ADMIN, "chief", ["patgate.policy:*", "patgate.keys:*", "things:*"])
        await kit.orgs.add(ADMIN, "shop")
        await kit.users.set_role(ADMIN, ANN, "chief", org="team")
        await kit.users.add(ADMIN, BOB, "chief", org="shop")
        yield kit


async def broken(kit: Kit, org: str | None = None, actor: Actor = ADMIN) -> dict[str, tuple[str, ...]]:
    """The violated rules by name of token, read in pages of two."""
    found: dict[str, tuple[str, ...]] = {}
    cursor = None
    while True:
        page = await kit.policies.violations(actor, org, page=PageRequest(limit=2, cursor=cursor))
        found |= {violation.token.name: violation.rules for violation in page.items}
        cursor = page.next_cursor
        if cursor is None:
            return found


async def events(kit: Kit, action: str) -> list[LogEntry]:
    async with kit.store.read() as rows:
        return [event for event in await rows.log.newest(limit=200) if event.action == action]


async def works(kit: Kit, made: Created) -> bool:
    return isinstance(await kit.resolve(made.view.prefix), Grant)


async def org_key(kit: Kit, name: str, **grants: list[str]) -> Created:
    return await kit.keys.create(ADMIN, KeyRequest(name=name, grants=grants))


async def test_an_organisations_policy_only_restricts(kit: Kit) -> None:
    kit.policy = TokenPolicy(max_lifetime=10 * DAY, admin_rights=frozenset({AdminRight.REVOKE}))
    own = {"max_lifetime": 90 * DAY, "require_expiry": True, "admin_rights": ["delete", "revoke"]}
    view = await kit.policies.set(ADMIN, "team", own)
    assert view.effective == TokenPolicy(
        max_lifetime=10 * DAY, require_expiry=True, admin_rights=frozenset({AdminRight.REVOKE})
    )
    assert (view.as_dict()["own"], view.deployment) == (own, kit.policy)
    assert (await kit.policies.show(ADMIN)).effective == kit.policy
    assert (await kit.policies.set(ADMIN, "team", {})).effective == kit.policy
    (second, first) = await events(kit, "account.policy.set")
    assert (first.details["policy"], second.details["policy"], second.details["before"]) == (own, {}, own)
    epoch = await kit.intact()
    await kit.policies.set(ADMIN, "team", {})
    assert await kit.intact() == epoch


async def test_an_update_changes_the_fields_that_it_names_and_no_others(kit: Kit) -> None:
    await kit.policies.set(ADMIN, "team", {"max_lifetime": 9 * DAY, "require_expiry": True})
    view = await kit.policies.update(ADMIN, "team", {"max_lifetime": None, "tokens_per_user": 2})
    assert view.as_dict()["own"] == {"require_expiry": True, "tokens_per_user": 2}
    epoch = await kit.intact()
    await kit.policies.update(ADMIN, "team", {})
    assert await kit.intact() == epoch
    with pytest.raises(Invalid):
        await kit.policies.update(ADMIN, "team", {"max_lifetime": 1, "colour": None})


async def test_operators_who_change_a_policy_at_once_lose_nothing(kit: Kit) -> None:
    given: tuple[dict[str, object], ...] = (
        {"max_lifetime": 9 * DAY},
        {"require_expiry": True},
        {"tokens_per_user": 2},
        {"forbidden_scopes": ["*:*"]},
    )
    await asyncio.gather(*(kit.policies.update(ADMIN, "team", one) for one in given))
    together = {name: value for one in given for name, value in one.items()}
    assert (await kit.policies.show(ADMIN, "team")).as_dict()["own"] == together


async def test_all_errors_of_a_policy_are_reported_together(kit: Kit) -> None:
    bad = {
        "max_lifetime": 59,
        "inactive_after": True,
        "tokens_per_user": 0,
        "org_tokens_per_org": 1.5,
        "require_expiry": 1,
        "require_scopes": "yes",
        "forbidden_scopes": ["*:*", "nonsense"],
        "admin_rights": ["rotate"],
        "colour": "red",
    }
    with pytest.raises(Invalid) as raised:
        await kit.policies.set(ADMIN, "team", bad)
    fields = {field for field, _ in raised.value.errors}
    assert fields == set(bad) - {"colour", "forbidden_scopes"} | {"policy", "forbidden_scopes[1]"}
    for field, value in (("max_lifetime", float("nan")), ("max_lifetime", float("inf")), ("forbidden_scopes", "*:*")):
        with pytest.raises(Invalid):
            await kit.policies.set(ADMIN, "team", {field: value})
    assert await events(kit, "account.policy.set") == []


async def test_policy_violations_are_listed_in_pages_with_the_violated_rules(kit: Kit) -> None:
    """B1: tokens that are older than a policy keep working, and are listed."""
    for name, arguments in {
        "forever": {},
        "long": {"expires": 40 * DAY, "scopes": ["things:read"]},
        "wide": {"expires": DAY, "scopes": ["*:*"]},
        "good": {"expires": DAY, "scopes": ["things:*"]},
        "revoked": {},
    }.items():
        kit.clock.now += 1
        made = await kit.mint(ANN, name, **arguments)  # type: ignore[arg-type]
        if name == "revoked":
            await kit.tokens.revoke(ADMIN, made.view.id)
    await kit.mint(ANN, "ended", expires=0.5)
    kit.clock.now += 1
    assert await broken(kit) == {}
    kit.policy = TokenPolicy(max_lifetime=30 * DAY, require_expiry=True, forbidden_scopes=("*:*",))
    assert await broken(kit) == {
        "forever": ("require_expiry", "max_lifetime", "forbidden_scopes"),
        "long": ("max_lifetime",),
        "wide": ("forbidden_scopes",),
    }
    kit.policy = TokenPolicy(require_scopes=True)
    assert await broken(kit) == {"forever": ("require_scopes",)}
    await kit.users.remove(ADMIN, ANN)
    assert await broken(kit) == {}


async def test_the_strictest_policy_applies_to_a_token_of_several_organisations(kit: Kit) -> None:
    """C6: each of their policies applies, and each organisation is shown only its own."""
    await org_key(kit, "both", team=["things:read"], shop=["*:*"])
    await org_key(kit, "one", team=["things:read"])
    await kit.policies.set(ADMIN, "shop", {"require_expiry": True, "forbidden_scopes": ["*:*"]})
    rules = ("require_expiry", "forbidden_scopes")
    assert await broken(kit) == {"both": rules}
    assert await broken(kit, "shop") == {"both": rules}
    assert await broken(kit, "team") == {}
    await kit.policies.set(ADMIN, "team", {"inactive_after": 2 * DAY})
    kit.clock.now += 3 * DAY
    assert await broken(kit) == {"both": (rules[0], "inactive_after", rules[1]), "one": ("inactive_after",)}
    assert await broken(kit, "team") == {"both": ("inactive_after",), "one": ("inactive_after",)}


async def test_an_organisation_cannot_end_its_members_own_tokens(kit: Kit) -> None:
    wide = await kit.mint(ANN, "wide", reach=Reach.ACCOUNT)
    bound = await kit.mint(ANN, "bound", org="team")
    await kit.policies.set(ADMIN, "team", {"require_expiry": True, "inactive_after": 60})
    kit.clock.now += DAY
    assert await kit.policies.expire(ADMIN, "team") == 1
    assert await kit.policies.end_inactive(ADMIN, None, 10_000) == (0, None)
    assert (await works(kit, wide), await works(kit, bound)) == (True, False)


async def test_setting_a_policy_counts_violations_and_expires_them_on_request(kit: Kit) -> None:
    for name in ("one", "two"):
        await kit.mint(ANN, name, org="team")
    kept = await kit.mint(ANN, "kept", org="team", expires=DAY)
    elsewhere = await kit.mint(BOB, "elsewhere", org="shop")
    view = await kit.policies.set(ADMIN, "team", {"require_expiry": True})
    assert (view.breaking, view.expired) == (2, None)
    assert view.warnings == ("2 active tokens of the organisation break it and keep working until ended",)
    assert await broken(kit) == {"one": ("require_expiry",), "two": ("require_expiry",)}
    view = await kit.policies.set(ADMIN, "team", {"require_expiry": True}, expire=True)
    assert (view.breaking, view.expired, view.warnings) == (0, 2, ())
    assert await works(kit, kept) and await works(kit, elsewhere)
    assert (await kit.policies.show(ADMIN, "team")).breaking is None


async def test_expiring_ends_exactly_the_violating_tokens_each_with_an_event(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C8: in several transactions, each complete in itself."""
    monkeypatch.setattr(service, "_AT_ONCE", 3)
    bad = [await kit.mint(ANN, f"bad{number}", org="team") for number in range(7)]
    good = [await kit.mint(ANN, f"good{number}", org="team", expires=DAY) for number in range(4)]
    key = await kit.keys.create(ADMIN, KeyRequest(name="key", org="team", role="viewer"))
    both = await org_key(kit, "both", team=["things:read"], shop=["things:read"])
    kit.policy = TokenPolicy(require_expiry=True)
    kit.clock.now += 5
    assert await kit.policies.expire(ADMIN) == 9
    assert [await works(kit, made) for made in (*bad, key, both, *good)] == [False] * 9 + [True] * 4
    expired_events = await events(kit, "account.pat.expire")
    assert {event.target_id for event in expired_events} == {made.view.id for made in bad}
    team, shop = (await kit.orgs.show(ADMIN, "team")).id, (await kit.orgs.show(ADMIN, "shop")).id
    assert {(event.org_id, event.user_id, event.details["because"]) for event in expired_events} == {
        (team, (await kit.users.show(ADMIN, ANN)).id, "policy")
    }
    assert expired_events[0].details["breaks"] == ["require_expiry"]
    keys = await events(kit, "account.key.expire")
    assert {(event.target_id, event.org_id) for event in keys} == {
        (key.view.id, team),
        (both.view.id, team),
        (both.view.id, shop),
    }
    verdict = await kit.resolve(bad[0].view.prefix)
    assert isinstance(verdict, RefusedGrant) and verdict.reason is Reason.TOKEN_EXPIRED
    view = (await kit.tokens.show(ADMIN, bad[0].view.id)).as_dict()
    assert view["status"] == "expired" and view["expires_at"].startswith("2023-11-14T22:13:25")  # type: ignore[attr-defined]
    assert await kit.policies.expire(ADMIN) == 0
    assert (await kit.store.verify_audit()).problem is None


async def test_a_token_that_no_longer_violates_the_policy_is_not_expired(kit: Kit) -> None:
    """Between query and change one token got an expiry, one was deleted, and the policy of a third was removed."""
    made = await kit.mint(ANN, "changed", org="team")
    gone = await kit.mint(ANN, "gone", org="team")
    bad = await kit.mint(ANN, "bad", org="team")
    other = await kit.mint(BOB, "other", org="shop")
    for org in ("team", "shop"):
        await kit.policies.set(ADMIN, org, {"require_expiry": True})
    service = kit.policies
    found, _ = await service._look(None, None)
    assert len(found) == 4
    await kit.tokens.revoke(ADMIN, made.view.id)
    await kit.tokens.regenerate(ADMIN, made.view.id, expires=DAY)
    await kit.tokens.delete(ADMIN, gone.view.id)
    await kit.policies.set(ADMIN, "shop", {})
    assert await service._end_some(ADMIN, found, None) == 1
    assert (await works(kit, made), await works(kit, bad), await works(kit, other)) == (True, False, True)
    assert [event.target_name for event in await events(kit, "account.pat.expire")] == ["bad"]
    epoch = await kit.intact()
    assert await service._end_some(ADMIN, found, None) == 0
    assert await kit.intact() == epoch


async def test_a_caller_whose_token_violates_the_policy_too_expires_all_of_them(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_AT_ONCE", 2)
    mine = await kit.mint(ANN, "mine", org="team")
    others = [await kit.mint(ANN, f"other{number}", org="team") for number in range(5)]
    actor = kit.acting(mine)
    view = await kit.policies.set(actor, "team", {"require_expiry": True}, expire=True)
    assert (view.expired, view.breaking) == (6, 0)
    assert not any([await works(kit, made) for made in (mine, *others)])
    with pytest.raises(Unauthenticated):
        await kit.policies.show(actor, "team")


async def test_administrators_of_an_organisation_end_only_its_own_tokens(kit: Kit) -> None:
    """A4, C6: a token of several organisations is listed; ending it needs the permission in all of them."""
    actor = kit.acting(await kit.mint(ANN, "admins", org="team", expires=DAY))
    bound = await kit.mint(ANN, "bound", org="team")
    own = await kit.mint(ANN, "own")
    elsewhere = await kit.mint(BOB, "elsewhere", org="shop")
    only = await org_key(kit, "only", team=["things:read"])
    both = await org_key(kit, "both", team=["things:read"], shop=["*:*"])
    kit.policy = TokenPolicy(require_expiry=True)
    await kit.policies.set(ADMIN, "shop", {"forbidden_scopes": ["*:*"]})
    assert await broken(kit, "team", actor) == dict.fromkeys(("bound", "only", "both"), ("require_expiry",))
    for attempt in (kit.policies.violations, kit.policies.expire, kit.policies.crowded):
        with pytest.raises(Forbidden, match="patgate"):
            await attempt(actor)
    with pytest.raises(NotFound):
        await kit.policies.expire(actor, "shop")
    assert await kit.policies.expire(actor, "team") == 2
    states = [await works(kit, made) for made in (bound, only, both, own, elsewhere)]
    assert states == [False, False, True, True, True]
    assert await kit.policies.expire(ADMIN, "team") == 1
    assert not await works(kit, both)


async def test_a_count_for_a_token_has_a_lower_bound_than_one_for_the_operator(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_AT_ONCE", 2)
    monkeypatch.setattr(paging, "COUNT_MOST", 4)
    actor = kit.acting(await kit.mint(ANN, "admins", org="team"))
    for number in range(7):
        await kit.mint(ANN, f"t{number}", org="team")
    kit.policy = TokenPolicy(require_expiry=True)
    for caller, remaining in ((ADMIN, Remaining(count=7, exact=True)), (actor, Remaining(count=4, exact=False))):
        page = await kit.policies.violations(caller, "team", page=PageRequest(limit=1, count=True))
        assert page.remaining == remaining


async def test_members_without_the_permission_set_and_list_nothing(kit: Kit) -> None:
    await kit.users.add(ADMIN, "cat@example.org", "viewer", org="team")
    actor = kit.acting(await kit.mint("cat@example.org", "t", org="team"))
    assert (await kit.policies.show(actor, "team")).org_name == "team"
    with pytest.raises(Forbidden):
        await kit.policies.set(actor, "team", {"require_expiry": True})
    with pytest.raises(Forbidden):
        await kit.policies.violations(actor, "team")
    key = kit.acting(await kit.keys.create(ADMIN, KeyRequest(name="k", org="team", role="admin")))
    assert await broken(kit, "team", key) == {}
    with pytest.raises(Forbidden):
        await kit.policies.set(key, "team", {})


async def test_users_with_more_tokens_than_allowed_are_named(kit: Kit) -> None:
    """C1."""
    for number in range(3):
        await kit.mint(ANN, f"t{number}")
    await kit.mint(BOB, "one")
    ended = await kit.mint(BOB, "two", expires=5.0)
    revoked = await kit.mint(BOB, "three")
    await kit.tokens.revoke(ADMIN, revoked.view.id)
    assert await kit.policies.crowded(ADMIN) == []
    kit.policy = TokenPolicy(tokens_per_user=1)
    assert {one.email: one.tokens for one in await kit.policies.crowded(ADMIN)} == {ANN: 3, BOB: 2}
    kit.clock.now += 5
    (crowded,) = await kit.policies.crowded(ADMIN)
    assert crowded.as_dict() == {"user_id": (await kit.users.show(ADMIN, ANN)).id, "user": ANN, "tokens": 3}
    assert ended.view.name == "two"


async def test_unused_tokens_expire_and_a_regenerated_one_does_not_expire_again_at_once(kit: Kit) -> None:
    """E4: a token expires when it has been unused for the policy's time since its creation, rotation or last use."""
    used, idle, other = [await kit.mint(ANN, name) for name in ("used", "idle", "other")]
    rotated = await kit.mint(ANN, "rotated")
    kit.policy = TokenPolicy(inactive_after=30 * DAY, require_expiry=True)
    kit.clock.now = START + 20 * DAY
    await kit.store.add_uses([Use(token_id=used.view.id, count=3, at=kit.clock.now, ip="192.0.2.1")])
    await kit.tokens.rotate(ADMIN, rotated.view.id)
    kit.clock.now = START + 30 * DAY - 1
    assert await kit.policies.end_inactive(ADMIN, None, 10_000) == (0, None)
    kit.clock.now += 1
    assert await kit.policies.end_inactive(ADMIN, None, 10_000) == (2, None)
    assert [await works(kit, made) for made in (used, rotated, idle, other)] == [True, True, False, False]
    expired_events = await events(kit, "account.pat.expire")
    assert {event.target_name for event in expired_events} == {"idle", "other"}
    assert all(event.details["because"] == "inactive" for event in expired_events)
    assert all(event.details["breaks"] == ["inactive_after"] for event in expired_events)
    again = await kit.tokens.regenerate(ADMIN, idle.view.id, expires=90 * DAY)
    assert (again.view.id, again.view.name) == (idle.view.id, "idle")
    assert await kit.policies.end_inactive(ADMIN, None, 10_000) == (0, None)
    kit.clock.now += 30 * DAY
    assert (await kit.policies.end_inactive(ADMIN, None, 10_000))[0] == 3
    assert not await works(kit, again)


async def test_the_search_for_unused_tokens_continues_where_it_stopped(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_AT_ONCE", 2)
    for number in range(7):
        kit.clock.now += 1
        await kit.mint(ANN, f"t{number}")
    kit.policy = TokenPolicy(inactive_after=60.0, require_expiry=True)
    kit.clock.now += 60
    assert (await kit.policies.count_breaking(None, 100)) == (7, None)
    ended, cursor, turns = 0, None, 0
    while cursor is not None or not turns:
        count, cursor = await kit.policies.end_inactive(ADMIN, cursor, 4)
        assert count <= 4
        ended, turns = ended + count, turns + 1
    assert (ended, turns) == (7, 2)


async def test_the_count_of_violations_omits_tokens_that_only_inactivity_ends(kit: Kit) -> None:
    await kit.mint(ANN, "idle", expires=10 * DAY)
    await kit.mint(ANN, "forever")
    kit.policy = TokenPolicy(inactive_after=60.0, max_lifetime=30 * DAY)
    kit.clock.now += DAY
    assert await kit.policies.count_breaking(None, 1000) == (1, None)
    assert len(await broken(kit)) == 2
