"""IP ranges of tokens: what the store keeps, what a change announces, and who may change them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.core.dependency_keys import token_key
from proxy.core.errors import Forbidden, Invalid
from proxy.core.kinds import Kind, Reach
from proxy.core.model import Actor, Grant
from proxy.core.networks import RANGES_MOST, AddressRanges
from proxy.services.tokens.issuance import KeyRequest, TokenRequest
from proxy.services.views import Created
from proxy.store.audit.queries import LogQuery, SortOrder
from tests.contract.kit import ADMIN, Kit, opened

ANN = "ann@example.org"
WIDE, NARROW = "10.0.0.0/8", "10.1.0.0/16"
AT = "10.1.2.3"


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    async with opened(tmp_path) as kit:
        await kit.basics()
        yield kit
        await kit.intact()


def at(kit: Kit, made: Created, address: str = AT) -> Actor:
    return replace(kit.acting(made), address=address)


async def ranges_of(kit: Kit, made: Created) -> AddressRanges | None:
    verdict = await kit.resolve(made.view.prefix)
    assert isinstance(verdict, Grant)
    return verdict.ranges


async def events(kit: Kit, token_id: str) -> list[tuple[str, dict[str, object]]]:
    async with kit.store.read() as rows:
        page = await rows.log.page(LogQuery(target_id=token_id), SortOrder.OLDEST, None, 100)
    return [(entry.action, dict(entry.details)) for entry in page.entries]


async def test_a_token_keeps_its_ranges_in_their_shortest_form(kit: Kit) -> None:
    made = await kit.mint(ANN, "t", ip_ranges=["fd00::/8", "10.128.0.0/9", "10.0.0.0/9", "10.0.0.7", "10.0.0.7/32"])
    assert made.view.ip_ranges == (WIDE, "fd00::/8")
    assert (await kit.tokens.show(ADMIN, made.view.id)).as_dict()["ip_ranges"] == [WIDE, "fd00::/8"]
    assert await ranges_of(kit, made) == AddressRanges.of([WIDE, "fd00::/8"])
    assert (await events(kit, made.view.id))[0][1]["ip_ranges"] == [WIDE, "fd00::/8"]


async def test_without_ranges_a_token_may_be_used_from_anywhere(kit: Kit) -> None:
    made = await kit.mint(ANN, "t")
    assert made.view.ip_ranges is None
    assert await ranges_of(kit, made) is None


async def test_an_organisations_key_may_have_ranges_too(kit: Kit) -> None:
    key = await kit.keys.create(ADMIN, KeyRequest(name="k", org="team", role="viewer", ip_ranges=[WIDE]))
    several = await kit.keys.create(ADMIN, KeyRequest(name="k", grants={"team": ["things:read"]}, ip_ranges=[NARROW]))
    assert (await ranges_of(kit, key), await ranges_of(kit, several)) == (
        AddressRanges.of([WIDE]),
        AddressRanges.of([NARROW]),
    )


@pytest.mark.parametrize(
    ("texts", "field"),
    [
        ([], "ip_ranges"),
        (["x"], "ip_ranges[0]"),
        ([WIDE, "10.0.0.1/8"], "ip_ranges[1]"),
        (["::ffff:10.0.0.0/104"], "ip_ranges[0]"),
        ([f"10.0.0.{number}" for number in range(RANGES_MOST + 1)], "ip_ranges"),
    ],
)
async def test_invalid_ranges_are_refused_with_their_place(kit: Kit, texts: list[str], field: str) -> None:
    with pytest.raises(Invalid) as made:
        await kit.mint(ANN, "t", ip_ranges=texts)
    token = await kit.mint(ANN, "t")
    with pytest.raises(Invalid) as changed:
        await kit.tokens.set_ip_ranges(ADMIN, token.view.id, texts)
    assert made.value.errors[0][0] == changed.value.errors[0][0] == field


async def test_a_change_announces_the_token_and_leaves_one_event(kit: Kit) -> None:
    made = await kit.mint(ANN, "t", ip_ranges=[WIDE])
    kit.announced.clear()
    assert (await kit.tokens.set_ip_ranges(ADMIN, made.view.id, [NARROW])).view.ip_ranges == (NARROW,)
    assert [keys for _, keys in kit.announced] == [(token_key(made.view.id),)]
    assert await ranges_of(kit, made) == AddressRanges.of([NARROW])
    # The same again is no change.
    await kit.tokens.set_ip_ranges(ADMIN, made.view.id, [NARROW, "10.1.2.3"])
    assert len(kit.announced) == 1
    assert (await kit.tokens.set_ip_ranges(ADMIN, made.view.id, None)).view.ip_ranges is None
    assert await ranges_of(kit, made) is None
    assert (await events(kit, made.view.id))[1:] == [
        ("account.pat.ip_ranges", {"prefix": made.view.prefix, "before": [WIDE], "after": [NARROW]}),
        ("account.pat.ip_ranges", {"prefix": made.view.prefix, "before": [NARROW], "after": None}),
    ]


async def test_rotation_and_regeneration_keep_the_ranges(kit: Kit) -> None:
    made = await kit.mint(ANN, "t", ip_ranges=[WIDE])
    assert (await kit.tokens.rotate(ADMIN, made.view.id)).view.ip_ranges == (WIDE,)
    await kit.tokens.revoke(ADMIN, made.view.id)
    assert (await kit.tokens.regenerate(ADMIN, made.view.id)).view.ip_ranges == (WIDE,)


async def test_a_token_gives_no_token_or_key_an_address_that_it_may_not_use(kit: Kit) -> None:
    await kit.users.add(ADMIN, "root@example.org", "admin")
    made = await kit.mint("root@example.org", "t", ip_ranges=[WIDE])
    actor = at(kit, made)
    for wanted, field in (
        (None, "ip_ranges"),
        (["192.0.2.7", NARROW], "ip_ranges[1]"),
        (["8.0.0.0/6"], "ip_ranges[0]"),
    ):
        with pytest.raises(Forbidden) as refused:
            await kit.tokens.create(actor, TokenRequest(name="n", ip_ranges=wanted))
        assert [place for place, _ in refused.value.errors] == [field]
        with pytest.raises(Forbidden):
            await kit.keys.create(actor, KeyRequest(name="k", org="team", role="viewer", ip_ranges=wanted))
    child = await kit.tokens.create(actor, TokenRequest(name="n", ip_ranges=[NARROW]))
    assert child.view.ip_ranges == (NARROW,)
    with pytest.raises(Forbidden):
        await kit.tokens.set_ip_ranges(actor, child.view.id, None)
    assert (await kit.tokens.set_ip_ranges(actor, child.view.id, [WIDE])).view.ip_ranges == (WIDE,)


async def test_a_token_narrows_itself_and_never_widens_itself(kit: Kit) -> None:
    made = await kit.mint(ANN, "t")
    assert (await kit.tokens.set_ip_ranges(at(kit, made), made.view.id, [WIDE])).view.ip_ranges == (WIDE,)
    assert (await kit.tokens.set_ip_ranges(at(kit, made), made.view.id, [NARROW])).view.ip_ranges == (NARROW,)
    for wider in ([WIDE], None, [NARROW, "192.0.2.7"]):
        with pytest.raises(Forbidden):
            await kit.tokens.set_ip_ranges(at(kit, made), made.view.id, wider)
    assert await ranges_of(kit, made) == AddressRanges.of([NARROW])


async def test_a_restricted_token_gives_no_new_value_or_scope_to_one_that_is_not(kit: Kit) -> None:
    made, other = await kit.mint(ANN, "t", ip_ranges=[WIDE]), await kit.mint(ANN, "o", scopes=["things:read"])
    with pytest.raises(Forbidden):
        await kit.tokens.rotate(at(kit, made), other.view.id)
    with pytest.raises(Forbidden):
        await kit.tokens.add_scopes(at(kit, made), other.view.id, ["things:update"])
    await kit.tokens.revoke(at(kit, made), other.view.id)
    with pytest.raises(Forbidden):
        await kit.tokens.regenerate(at(kit, made), other.view.id)


async def test_a_restricted_token_attaches_no_key_that_may_be_used_from_elsewhere(kit: Kit) -> None:
    await kit.users.add(ADMIN, "root@example.org", "admin")
    made = await kit.mint("root@example.org", "t", ip_ranges=[WIDE])
    key = await kit.keys.create(ADMIN, KeyRequest(name="k", grants={"team": ["things:read"]}))
    with pytest.raises(Forbidden):
        await kit.keys.attach(at(kit, made), key.view.id, "team", ["things:update"])
    await kit.tokens.set_ip_ranges(ADMIN, key.view.id, [NARROW])
    await kit.keys.attach(at(kit, made), key.view.id, "team", ["things:update"])


@pytest.mark.parametrize("address", ["192.0.2.7", "", "::1"])
async def test_a_restricted_token_does_nothing_from_any_other_address(kit: Kit, address: str) -> None:
    made = await kit.mint(ANN, "t", ip_ranges=[WIDE])
    with pytest.raises(Forbidden, match="may not be used from this address"):
        await kit.tokens.list(at(kit, made, address))
    with pytest.raises(Forbidden, match="may not be used from this address"):
        await kit.tokens.revoke(at(kit, made, address), made.view.id)
    assert [view.id for view in (await kit.tokens.list(at(kit, made, f"::ffff:{AT}"))).items] == [made.view.id]


async def test_a_row_without_any_range_is_used_from_nowhere(kit: Kit) -> None:
    """No service writes such a row; an empty list is nothing, and not "no restriction"."""
    row = await kit.insert(Kind.PAT, Reach.PERSONAL, user_id=(await kit.users.show(ADMIN, ANN)).id)
    async with kit.store.change(ADMIN) as change:
        await change.tokens.set_ip_ranges(row.id, [], 0.0)
        change.touched(token_key(row.id))
        change.audit("account.pat.ip_ranges", target_kind="token", target_id=row.id)
    verdict = await kit.resolve(row.prefix)
    assert isinstance(verdict, Grant) and verdict.ranges is not None
    assert not verdict.ranges.contain(AT)
