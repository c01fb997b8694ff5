"""Tokens: what is made, what is shown, what is refused, and that no secret is left anywhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.core.errors import Conflict, Invalid, NotFound
from proxy.core.model import Grant, RefusedGrant, TokenStatus
from proxy.core.reasons import Reason
from proxy.core.token import verify_digest
from proxy.services import paging
from proxy.services.paging import PageRequest, Remaining
from proxy.services.policy.model import TokenPolicy
from proxy.services.tokens.queries import TokenFilter
from tests.contract.kit import ADMIN, CACHE_KEY, FORMAT, START, Kit, opened

ANN = "ann@example.org"


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    async with opened(tmp_path) as kit:
        await kit.basics()
        yield kit


async def test_a_new_token_resolves_to_its_owners_role_and_its_digest(kit: Kit) -> None:
    made = await kit.mint(ANN, "laptop", scopes=["things:read"], description="two\nlines")
    parsed = FORMAT.parse(made.value)
    assert parsed is not None and (parsed.prefix, parsed.token_id) == (made.view.prefix, made.view.id)
    grant = await kit.resolve(made.view.prefix)
    assert isinstance(grant, Grant)
    assert (grant.role, grant.email, grant.token_name, grant.org_id) == ("editor", ANN, "laptop", "")
    assert grant.scopes is not None and grant.scopes.texts == ("things:read",)
    assert grant.digest is not None and verify_digest(CACHE_KEY, made.value.encode(), grant.digest)
    stored = await kit.store.token_hash(made.view.id)
    assert stored is not None and await kit.hasher.verify(stored, made.value)


async def test_a_team_token_has_the_role_of_the_membership(kit: Kit) -> None:
    made = await kit.mint(ANN, "ci", org="team")
    grant = await kit.resolve(made.view.prefix)
    assert isinstance(grant, Grant)
    assert (grant.role, grant.org_name, grant.reach.value) == ("viewer", "team", "org")
    assert made.view.as_dict()["org"] == "team"


async def test_a_prefix_of_another_brand_or_kind_is_unknown(kit: Kit) -> None:
    made = await kit.mint(ANN, "t")
    for prefix in (f"acme_key_{made.view.id}", f"evil_pat_{made.view.id}", made.view.id, "", "_"):
        verdict = await kit.resolve(prefix)
        assert isinstance(verdict, RefusedGrant)
        assert verdict.reason is Reason.TOKEN_UNKNOWN


async def test_an_expired_token_is_refused_from_the_instant_it_expires(kit: Kit) -> None:
    made = await kit.mint(ANN, "t", expires=60.0)
    kit.clock.now = START + 59.999
    assert isinstance(await kit.resolve(made.view.prefix), Grant)
    kit.clock.now = START + 60.0
    verdict = await kit.resolve(made.view.prefix)
    assert isinstance(verdict, RefusedGrant) and verdict.reason is Reason.TOKEN_EXPIRED
    assert (await kit.tokens.show(ADMIN, made.view.id)).status is TokenStatus.EXPIRED
    with pytest.raises(Conflict, match="expired"):
        await kit.tokens.rotate(ADMIN, made.view.id)


async def test_rotation_keeps_everything_but_the_value(kit: Kit) -> None:
    made = await kit.mint(ANN, "t", expires=60.0, scopes=["things:read"])
    kit.clock.now += 1
    again = await kit.tokens.rotate(ADMIN, made.view.prefix)
    assert again.value != made.value
    kept = ("id", "prefix", "name", "scopes", "expires_at", "created_at")
    assert [getattr(again.view, name) for name in kept] == [getattr(made.view, name) for name in kept]
    assert again.view.rotated_at == START + 1
    grant = await kit.resolve(made.view.prefix)
    assert isinstance(grant, Grant) and grant.digest is not None
    assert verify_digest(CACHE_KEY, again.value.encode(), grant.digest)
    assert not verify_digest(CACHE_KEY, made.value.encode(), grant.digest)


async def test_revoking_twice_is_revoking_once(kit: Kit) -> None:
    made = await kit.mint(ANN, "t")
    first = await kit.tokens.revoke(ADMIN, made.view.id)
    epoch = await kit.store.epoch()
    assert await kit.tokens.revoke(ADMIN, made.view.id) == first
    assert await kit.store.epoch() == epoch == await kit.intact()
    with pytest.raises(Conflict, match="revoked"):
        await kit.tokens.rotate(ADMIN, made.view.id)


async def test_a_deleted_token_is_unknown(kit: Kit) -> None:
    made = await kit.mint(ANN, "t")
    gone = await kit.tokens.delete(ADMIN, made.view.id)
    assert gone.view.id == made.view.id
    verdict = await kit.resolve(made.view.prefix)
    assert isinstance(verdict, RefusedGrant) and verdict.reason is Reason.TOKEN_UNKNOWN
    for verb in (kit.tokens.delete, kit.tokens.revoke, kit.tokens.rotate):
        with pytest.raises(NotFound):
            await verb(ADMIN, made.view.id)


async def test_tokens_of_nobody_and_nowhere_are_refused_clearly(kit: Kit) -> None:
    await kit.users.add(ADMIN, "bob@example.org", "viewer")
    await kit.users.add(ADMIN, "sue@example.org", "viewer")
    await kit.users.suspend(ADMIN, "sue@example.org")
    epoch = await kit.store.epoch()
    with pytest.raises(NotFound, match="no user"):
        await kit.mint("nobody@example.org", "t")
    with pytest.raises(NotFound, match="no organisation"):
        await kit.mint(ANN, "t", org="nowhere")
    with pytest.raises(Invalid, match="not a member"):
        await kit.mint("bob@example.org", "t", org="team")
    with pytest.raises(Conflict, match="suspended"):
        await kit.mint("sue@example.org", "t")
    await kit.orgs.suspend(ADMIN, "team")
    with pytest.raises(Conflict, match="organisation is suspended"):
        await kit.mint(ANN, "t", org="team")
    assert await kit.store.epoch() == epoch + 1
    assert (await kit.tokens.list(ADMIN)).items == []


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"name": " "}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"description": "\x1b[31m"}, "description"),
        ({"scopes": ["things:read", "no colon"]}, "scopes[1]"),
        ({"expires": 0.0}, "expires"),
        ({"expires": -1.0}, "expires"),
        ({"expires": float("nan")}, "expires"),
        ({"expires": float("inf")}, "expires"),
    ],
)
async def test_what_a_token_cannot_be_made_of_is_named(kit: Kit, arguments: dict[str, object], field: str) -> None:
    with pytest.raises(Invalid) as raised:
        await kit.mint(ANN, **{"name": "t", **arguments})  # type: ignore[arg-type]
    assert raised.value.errors[0][0] == field


async def test_the_policy_bounds_lifetimes(kit: Kit) -> None:
    kit.policy = TokenPolicy(max_lifetime=3600.0)
    capped = await kit.mint(ANN, "t")
    assert capped.view.expires_at == START + 3600
    assert "maximum lifetime" in capped.warnings[0]
    with pytest.raises(Invalid, match="maximum lifetime is 3600 seconds"):
        await kit.mint(ANN, "t", expires=3601.0)
    assert (await kit.mint(ANN, "t", expires=3600.0)).view.expires_at == START + 3600
    kit.policy = TokenPolicy(require_expiry=True)
    with pytest.raises(Invalid, match="requires an expiry"):
        await kit.mint(ANN, "t")


async def test_the_policy_counts_only_tokens_that_could_be_used(kit: Kit) -> None:
    kit.policy = TokenPolicy(tokens_per_user=1)
    first = await kit.mint(ANN, "t", expires=60.0)
    with pytest.raises(Conflict, match=r"\(1\)"):
        await kit.mint(ANN, "t", org="team")
    kit.clock.now += 60
    second = await kit.mint(ANN, "t")
    await kit.tokens.revoke(ADMIN, second.view.id)
    await kit.mint(ANN, "t")
    assert (await kit.tokens.show(ADMIN, first.view.id)).status is TokenStatus.EXPIRED


async def test_scopes_beyond_the_role_are_a_warning(kit: Kit) -> None:
    made = await kit.mint(ANN, "t", org="team", scopes=["things:read", "things:delete"])
    assert "things:delete" in made.warnings[-1]
    assert "things:read" not in made.warnings[-1]
    fine = await kit.mint(ANN, "t", expires=60.0, scopes=["things/7:delete"])
    assert fine.warnings == ()


async def test_lists_are_pages_that_stay_stable_while_tokens_are_added(kit: Kit) -> None:
    names = []
    for number in range(5):
        kit.clock.now += number % 2
        names.append((await kit.mint(ANN, f"t{number}")).view.id)
    first = await kit.tokens.list(ADMIN, page=PageRequest(limit=2))
    kit.clock.now += 1
    names.append((await kit.mint(ANN, "late")).view.id)
    seen = [view.id for view in first.items]
    cursor = first.next_cursor
    while cursor is not None:
        page = await kit.tokens.list(ADMIN, page=PageRequest(limit=2, cursor=cursor))
        seen += [view.id for view in page.items]
        cursor = page.next_cursor
    assert sorted(seen) == sorted(names) and len(seen) == 6


async def test_a_count_ends_at_a_bound_and_says_so(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [await kit.mint(ANN, f"t{number}") for number in range(6)]
    monkeypatch.setattr(paging, "COUNT_MOST", 3)
    found = {}
    for limit in (1, 2, 3, 6):
        page = await kit.tokens.list(kit.acting(made[0]), page=PageRequest(limit=limit, count=True))
        found[limit] = page.remaining
    assert found == {
        1: Remaining(count=3, exact=False),
        2: Remaining(count=3, exact=False),
        3: Remaining(count=3, exact=True),
        6: Remaining(count=0, exact=True),
    }
    page = await kit.tokens.list(ADMIN, page=PageRequest(limit=1, count=True))
    assert page.remaining == Remaining(count=5, exact=True)
    assert (await kit.tokens.list(ADMIN, page=PageRequest(limit=1))).remaining is None


@pytest.mark.parametrize("cursor", ["", "x", "bm8", "W10", "WzEsMl0", "é", "[" * 9, "W25hbiwgIngiXQ"])
async def test_a_cursor_of_another_list_is_invalid(kit: Kit, cursor: str) -> None:
    with pytest.raises(Invalid) as raised:
        await kit.tokens.list(ADMIN, page=PageRequest(cursor=cursor))
    assert raised.value.errors[0][0] == "cursor"


@pytest.mark.parametrize("limit", [0, -1, 1001])
async def test_a_page_has_bounds(kit: Kit, limit: int) -> None:
    with pytest.raises(Invalid):
        await kit.tokens.list(ADMIN, page=PageRequest(limit=limit))


async def test_lists_filter_by_owner_and_by_the_status_that_people_see(kit: Kit) -> None:
    await kit.users.add(ADMIN, "bob@example.org", "viewer")
    bobs = (await kit.mint("bob@example.org", "t")).view.id
    active = (await kit.mint(ANN, "t")).view.id
    expired = (await kit.mint(ANN, "t", expires=1.0)).view.id
    revoked = (await kit.mint(ANN, "t")).view.id
    await kit.tokens.revoke(ADMIN, revoked)
    kit.clock.now += 1

    async def listed(user: str | None = None, status: TokenStatus | None = None) -> set[str]:
        page = await kit.tokens.list(ADMIN, TokenFilter(user=user, status=status))
        assert status is None or {view.status for view in page.items} <= {status}
        return {view.id for view in page.items}

    assert await listed(ANN) == {active, expired, revoked}
    assert await listed(status=TokenStatus.ACTIVE) == {active, bobs}
    assert await listed(ANN, TokenStatus.EXPIRED) == {expired}
    assert await listed(status=TokenStatus.REVOKED) == {revoked}
    await kit.users.remove(ADMIN, "bob@example.org")
    assert await listed(status=TokenStatus.REVOKED) == {revoked, bobs}


async def test_no_secret_is_in_views_reprs_audit_or_the_file(kit: Kit, tmp_path: Path) -> None:
    made = await kit.mint(ANN, "t")
    again = await kit.tokens.rotate(ADMIN, made.view.id)
    async with kit.store.read() as rows:
        events = await rows.log.newest(limit=100)
        entry = await rows.tokens.get(made.view.id)
    grant = await kit.resolve(made.view.prefix)
    stored = await kit.store.token_hash(made.view.id)
    shown = repr((made, again, events, entry, grant)) + str(made.view.as_dict())
    everything = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for value in (made.value, again.value):
        secret = value.removeprefix(made.view.prefix)
        assert secret not in shown
        assert secret.encode() not in everything
    assert stored is not None and stored not in shown
    assert again.as_dict()["token"] == again.value
