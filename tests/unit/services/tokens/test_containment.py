"""What one token may make of another: field by field, verb by verb, and in whose name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.core.errors import Conflict, Forbidden, Invalid, NotFound
from proxy.core.kinds import Kind, Reach
from proxy.core.model import Actor
from proxy.core.permissions import PermissionSet
from proxy.services.policy.model import TokenPolicy
from proxy.services.tokens import authorization
from proxy.services.tokens.issuance import NEVER_ENDS, TokenRequest
from tests.contract.kit import ADMIN, START, Kit, opened
from tests.unit.core.grants import grant

ANN, BOB = "ann@example.org", "bob@example.org"
READ = ("things:read",)


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    async with opened(tmp_path) as kit:
        await kit.basics()
        await kit.orgs.add(ADMIN, "other")
        await kit.users.add(ADMIN, BOB, "editor")
        yield kit


async def acting(kit: Kit, **what: object) -> Actor:
    return kit.acting(await kit.mint(ANN, "parent", **what))  # type: ignore[arg-type]


WITHIN: dict[tuple[Reach, Reach], str] = {
    # (the maker's reach, what it makes): y, n, or s for the same organisation only
    (Reach.PERSONAL, Reach.PERSONAL): "y",
    (Reach.PERSONAL, Reach.ORG): "n",
    (Reach.PERSONAL, Reach.ACCOUNT): "n",
    (Reach.PERSONAL, Reach.ORGS): "n",
    (Reach.ORG, Reach.PERSONAL): "n",
    (Reach.ORG, Reach.ORG): "s",
    (Reach.ORG, Reach.ACCOUNT): "n",
    (Reach.ORG, Reach.ORGS): "n",
    (Reach.ACCOUNT, Reach.PERSONAL): "y",
    (Reach.ACCOUNT, Reach.ORG): "y",
    (Reach.ACCOUNT, Reach.ACCOUNT): "y",
    (Reach.ACCOUNT, Reach.ORGS): "n",
    (Reach.ORGS, Reach.PERSONAL): "n",
    (Reach.ORGS, Reach.ORG): "n",
    (Reach.ORGS, Reach.ACCOUNT): "n",
    (Reach.ORGS, Reach.ORGS): "n",
}


def test_every_reach_is_held_against_every_other() -> None:
    assert set(WITHIN) == {(one, other) for one in Reach for other in Reach}
    for (maker, made), expected in WITHIN.items():
        held = grant(kind=Kind.PAT, reach=maker, org_id="org_1" if maker is Reach.ORG else "")
        for org_id in ("org_1", "org_2") if made is Reach.ORG else (None,):
            reached = authorization.reaches(held, made, org_id)
            assert reached is (expected == "y" or (expected == "s" and org_id == "org_1")), (maker, made, org_id)


@pytest.mark.parametrize(
    ("scopes", "asked", "faults"),
    [
        (None, None, []),
        (None, ("*:*",), []),
        (READ, None, ["scopes"]),
        (READ, (), []),
        (READ, ("things:read", "things/7:read"), []),
        (READ, ("things:read", "things:*", "*:read"), ["scopes[1]", "scopes[2]"]),
        ((), ("things:read",), ["scopes[0]"]),
        (("things/7:*",), ("things:read",), ["scopes[0]"]),
    ],
)
def test_scopes_are_covered_one_by_one_and_none_asks_for_all(
    scopes: tuple[str, ...] | None, asked: tuple[str, ...] | None, faults: list[str]
) -> None:
    held = grant(scopes=None if scopes is None else PermissionSet.of(scopes))
    assert [field for field, _ in authorization.scope_errors(held, asked)] == faults


@pytest.mark.parametrize(
    ("end", "asked", "contained"),
    [(None, None, True), (None, 9.0, True), (9.0, 9.0, True), (9.0, 8.9, True), (9.0, 9.1, False), (9.0, None, False)],
)
def test_no_end_is_later_than_the_makers(end: float | None, asked: float | None, contained: bool) -> None:
    assert (authorization.expiry_errors(grant(expires_at=end), asked) == []) is contained


async def test_everything_that_is_too_much_is_named_at_once(kit: Kit) -> None:
    actor = await acting(kit, org="team", scopes=READ, expires=100.0)
    with pytest.raises(Forbidden) as raised:
        await kit.tokens.create(actor, TokenRequest(name="t", scopes=("things:read", "*:*"), expires=101.0))
    assert [field for field, _ in raised.value.errors] == ["org", "expires", "scopes[1]"]
    assert await kit.store.epoch() == await kit.intact(), "nothing was made"
    made = await kit.tokens.create(actor, TokenRequest(name="t", org="team", scopes=READ, expires=100.0))
    assert (made.view.parent_id, made.view.created_by, made.view.created_by_kind) == (actor.id, actor.id, "pat")
    assert (made.view.email, made.view.expires_at) == (ANN, START + 100)


async def test_a_token_makes_tokens_for_its_owner_only_and_learns_of_nobody_else(kit: Kit) -> None:
    actor = await acting(kit)
    for user in (BOB, "nobody@example.org", (await kit.users.show(ADMIN, BOB)).id):
        with pytest.raises(Forbidden, match="own owner only") as raised:
            await kit.tokens.create(actor, TokenRequest(name="t", user=user))
        assert raised.value.errors[0][0] == "user"
    for own in (None, "ANN@example.org", (await kit.users.show(ADMIN, ANN)).id):
        assert (await kit.tokens.create(actor, TokenRequest(name="t", user=own))).view.email == ANN
    words = set()
    for org in ("other", "nowhere"):
        with pytest.raises(NotFound) as missing:
            await kit.tokens.create(await acting(kit, reach=Reach.ACCOUNT), TokenRequest(name="t", org=org))
        words.add(str(missing.value))
    assert len(words) == 1


async def test_account_wide_tokens_come_from_the_operator_and_from_one_another(kit: Kit) -> None:
    wide = await acting(kit, reach=Reach.ACCOUNT)
    for new in (
        TokenRequest(name="t", reach=Reach.ACCOUNT),
        TokenRequest(name="t", org="team"),
        TokenRequest(name="t"),
    ):
        await kit.tokens.create(wide, new)
    for narrower in (await acting(kit), await acting(kit, org="team")):
        with pytest.raises(Forbidden):
            await kit.tokens.create(narrower, TokenRequest(name="t", reach=Reach.ACCOUNT))


async def test_what_lives_longer_or_may_more_gets_no_value_and_no_scope_from_a_token(kit: Kit) -> None:
    short = await acting(kit, expires=100.0)
    eternal = (await kit.mint(ANN, "eternal")).view.id
    wide = (await kit.mint(ANN, "wide", expires=50.0)).view.id
    scopes = ["things:read", "patgate.tokens:update"]
    narrow = await acting(kit, scopes=scopes, expires=100.0)
    mine = (await kit.tokens.create(narrow, TokenRequest(name="m", scopes=READ, expires=9.0))).view.id
    with pytest.raises(Forbidden):
        await kit.tokens.rotate(short, eternal)
    await kit.tokens.rotate(short, wide)
    with pytest.raises(Forbidden):
        await kit.tokens.rotate(narrow, wide)
    await kit.tokens.rotate(narrow, mine)
    with pytest.raises(Forbidden) as raised:
        await kit.tokens.add_scopes(narrow, mine, ["things/7:read", "things:delete"])
    assert raised.value.errors[0][0] == "scopes[1]"
    with pytest.raises(Forbidden):
        await kit.tokens.add_scopes(narrow, narrow.id, ["things:delete"])
    await kit.tokens.remove_scopes(narrow, narrow.id, ["patgate.tokens:update"])
    with pytest.raises(Forbidden):
        await kit.tokens.set_scopes(narrow, narrow.id, ["things:read", "patgate.tokens:update"])
    for token, actor in ((eternal, short), (wide, short)):
        await kit.tokens.revoke(ADMIN, token)
        for expires in (101.0, 1e9):
            with pytest.raises(Forbidden) as raised:
                await kit.tokens.regenerate(actor, token, expires=expires)
            assert raised.value.errors[0][0] == "expires"
        await kit.tokens.regenerate(actor, token, expires=100.0)


async def test_narrowing_needs_no_containment(kit: Kit) -> None:
    narrow = await acting(kit, scopes=["patgate.tokens:*"], expires=60.0)
    wide = (await kit.mint(ANN, "wide")).view.id
    assert (await kit.tokens.set_scopes(narrow, wide, READ)).view.scopes == READ
    assert (await kit.tokens.clear_scopes(narrow, wide)).view.scopes == ()
    with pytest.raises(Forbidden):
        await kit.tokens.set_scopes(narrow, wide, READ)


async def test_an_organisations_policy_is_for_its_own_tokens_and_the_deployments_for_all(kit: Kit) -> None:
    await kit.policies.set(ADMIN, "team", {"max_lifetime": 3600.0, "require_scopes": True})
    with pytest.raises(Invalid) as raised:
        await kit.mint(ANN, "t", expires=3601.0, org="team")
    assert [field for field, _ in raised.value.errors] == ["expires", "scopes"], "all at once"
    assert (await kit.mint(ANN, "t", scopes=READ, org="team")).view.expires_at == START + 3600
    assert (await kit.mint(ANN, "personal")).warnings == (NEVER_ENDS,)
    out = "it does not reach team, whose policy it breaks: max_lifetime, require_scopes"
    assert (await kit.mint(ANN, "wide", reach=Reach.ACCOUNT)).warnings == (NEVER_ENDS, out)
    kit.policy = TokenPolicy(max_lifetime=60.0, require_expiry=True)
    for where in ({}, {"reach": Reach.ACCOUNT}):
        with pytest.raises(Invalid):
            await kit.mint(ANN, "t", expires=61.0, **where)


async def test_an_organisation_counts_the_tokens_for_itself_and_the_deployment_all(kit: Kit) -> None:
    await kit.policies.set(ADMIN, "team", {"tokens_per_user": 1})
    await kit.mint(ANN, "personal")
    await kit.mint(ANN, "team", org="team")
    with pytest.raises(Conflict, match=r"\(1\)"):
        await kit.mint(ANN, "again", org="team")
    kit.policy = TokenPolicy(tokens_per_user=2)
    with pytest.raises(Conflict, match=r"\(2\)"):
        await kit.mint(ANN, "personal")


@pytest.mark.parametrize(
    ("new", "field"),
    [
        (TokenRequest(name="t", user=ANN, reach=Reach.ORG), "org"),
        (TokenRequest(name="t", user=ANN, reach=Reach.ACCOUNT, org="team"), "org"),
        (TokenRequest(name="t", user=ANN, reach=Reach.PERSONAL, org="team"), "org"),
        (TokenRequest(name="t", user=ANN, reach=Reach.ORGS), "reach"),
        (TokenRequest(name="t"), "user"),
        (TokenRequest(name="t", user=ANN, scopes=["a:b"] * 1001), "scopes"),
    ],
)
async def test_what_does_not_go_together_is_named(kit: Kit, new: TokenRequest, field: str) -> None:
    with pytest.raises(Invalid) as raised:
        await kit.tokens.create(ADMIN, new)
    assert raised.value.errors[0][0] == field
