"""Notices: each token has one for each threshold, and new ones when its expiry changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.services.tokens.expiry_notices import DAY, ExpiryNotices
from proxy.services.tokens.issuance import KeyRequest
from tests.contract.kit import ADMIN, START, Kit, opened

ANN, BOB = "ann@example.org", "bob@example.org"


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    async with opened(tmp_path) as kit:
        await kit.basics()
        yield kit


def notices(kit: Kit, *days: int) -> ExpiryNotices:
    return ExpiryNotices(kit.store, kit.clock, days or (14, 7, 1))


async def due(kit: Kit, limit: int = 100) -> list[tuple[str, int]]:
    return [(notice.token.name, notice.days) for notice in await notices(kit).due(limit)]


async def delivered(kit: Kit) -> list[tuple[str, int]]:
    """The due notices, marked as delivered."""
    found = await notices(kit).due(100)
    await notices(kit).given(found, "n")
    return [(notice.token.name, notice.days) for notice in found]


async def test_each_threshold_is_due_once(kit: Kit) -> None:
    await kit.mint(ANN, "t", expires=30 * DAY)
    days: list[tuple[float, list[tuple[str, int]]]] = []
    for hour in range(31 * 24):
        kit.clock.now = START + hour * DAY / 24
        found = await delivered(kit)
        if found:
            days.append((hour / 24, found))
    assert days == [(16.0, [("t", 14)]), (23.0, [("t", 7)]), (29.0, [("t", 1)])]


async def test_an_undelivered_notice_stays_due_under_the_same_id(kit: Kit) -> None:
    made = await kit.mint(ANN, "t", expires=20 * DAY)
    kit.clock.now = START + 10 * DAY
    (first,) = await notices(kit).due(100)
    kit.clock.now += DAY
    (again,) = await notices(kit).due(100)
    assert first.id == again.id == f"{made.view.id}.{START + 20 * DAY:.0f}.14"
    # After a week without deliveries there is one notice for the smallest threshold, not one for each.
    kit.clock.now = START + 19.5 * DAY
    assert await delivered(kit) == [("t", 1)]
    assert await due(kit) == []


async def test_a_notice_says_whose_token_ends_when_and_never_its_value(kit: Kit) -> None:
    made = await kit.mint(ANN, "t", org="team", expires=20 * DAY)
    kit.clock.now = START + 15 * DAY
    (notice,) = await notices(kit).due(100)
    assert notice.as_dict() == {
        "id": made.view.id,
        "prefix": made.view.prefix,
        "kind": "pat",
        "name": "t",
        "user_id": made.view.user_id,
        "user": ANN,
        "org_id": made.view.org_id,
        "org": "team",
        "expires_at": made.view.as_dict()["expires_at"],
        "within_days": 7,
    }
    assert made.value not in repr(notice)


async def test_a_notice_of_a_key_has_no_user(kit: Kit) -> None:
    await kit.keys.create(ADMIN, KeyRequest(name="k", org="team", role="viewer", expires=20 * DAY))
    kit.clock.now = START + 15 * DAY
    (notice,) = await notices(kit).due(100)
    assert (notice.token.kind.value, notice.as_dict()["user"], notice.as_dict()["org"]) == ("key", None, "team")


async def test_a_short_lived_token_has_no_notice(kit: Kit) -> None:
    await kit.mint(ANN, "hours", expires=DAY / 2)
    await kit.mint(ANN, "a day", expires=DAY)
    await kit.mint(ANN, "a week", expires=7 * DAY)
    await kit.mint(ANN, "forever")
    assert await due(kit) == []
    kit.clock.now += 6.5 * DAY
    assert await due(kit) == [("a week", 1)]


async def test_a_new_expiry_has_a_new_notice(kit: Kit) -> None:
    """E4: a regenerated token has a new notice; C5: a rotated one keeps its expiry and has none."""
    again = await kit.mint(ANN, "again", expires=30 * DAY)
    rotated = await kit.mint(ANN, "rotated", expires=30 * DAY)
    kit.clock.now = START + 20 * DAY
    assert sorted(await delivered(kit)) == [("again", 14), ("rotated", 14)]
    await kit.tokens.rotate(ADMIN, rotated.view.id)
    await kit.tokens.revoke(ADMIN, again.view.id)
    assert await due(kit) == []
    await kit.tokens.regenerate(ADMIN, again.view.id, expires=30 * DAY)
    assert await due(kit) == []
    kit.clock.now = START + 40 * DAY
    assert await delivered(kit) == [("again", 14)]


async def test_a_notice_of_a_former_expiry_does_not_count(kit: Kit) -> None:
    made = await kit.mint(ANN, "t", expires=15 * DAY)
    kit.clock.now = START + 5 * DAY
    found = await notices(kit).due(100)
    await kit.tokens.revoke(ADMIN, made.view.id)
    await kit.tokens.regenerate(ADMIN, made.view.id, expires=20 * DAY)
    await notices(kit).given(found, "n")
    kit.clock.now += 10 * DAY
    assert await delivered(kit) == [("t", 14)]


async def test_a_notice_that_was_delivered_meanwhile_is_not_claimed_again(kit: Kit) -> None:
    await kit.mint(ANN, "one", expires=15 * DAY)
    await kit.mint(ANN, "two", expires=15 * DAY)
    kit.clock.now = START + 5 * DAY
    found = await notices(kit).due(100)
    (first,) = await notices(kit).claim([notice for notice in found if notice.token.name == "one"], "a")
    await notices(kit).given([first], "a")
    claimed = await notices(kit).claim(found, "b")
    assert [notice.token.name for notice in claimed] == ["two"]


async def test_a_notice_of_a_former_expiry_is_not_claimed(kit: Kit) -> None:
    made = await kit.mint(ANN, "t", expires=15 * DAY)
    kit.clock.now = START + 5 * DAY
    found = await notices(kit).due(100)
    await kit.tokens.revoke(ADMIN, made.view.id)
    await kit.tokens.regenerate(ADMIN, made.view.id, expires=20 * DAY)
    assert await notices(kit).claim(found, "a") == []


async def test_a_token_that_no_longer_works_has_no_notice(kit: Kit) -> None:
    """D3: revoked, deleted and expired tokens, and those of removed owners; a suspended owner may be resumed."""
    await kit.users.add(ADMIN, BOB, "editor")
    await kit.users.add(ADMIN, "cat@example.org", "editor")
    for name, user in {"revoked": ANN, "deleted": ANN, "removed": BOB, "suspended": "cat@example.org"}.items():
        made = await kit.mint(user, name, expires=10 * DAY)
        if name == "revoked":
            await kit.tokens.revoke(ADMIN, made.view.id)
        if name == "deleted":
            await kit.tokens.delete(ADMIN, made.view.id)
    await kit.users.remove(ADMIN, BOB)
    await kit.users.suspend(ADMIN, "cat@example.org")
    kit.clock.now = START + 5 * DAY
    assert await due(kit) == [("suspended", 7)]
    assert await notices(kit).counts() == {14: 1, 7: 1, 1: 0}
    kit.clock.now = START + 10 * DAY
    assert await due(kit) == []


async def test_notices_are_ordered_by_expiry_and_limited(kit: Kit) -> None:
    for days in (9, 8, 20, 19, 18):
        await kit.mint(ANN, f"{days}", expires=days * DAY)
    kit.clock.now = START + 6.5 * DAY
    assert await due(kit, limit=2) == [("18", 14), ("19", 14), ("8", 7), ("9", 7)]
    assert await notices(kit, 14).counts() == {14: 5}


async def test_active_tokens_that_expire_within_so_many_days_are_counted(kit: Kit) -> None:
    for days in (0.5, 3, 10, 100):
        await kit.mint(ANN, f"{days}", expires=days * DAY)
    await kit.mint(ANN, "forever")
    assert await notices(kit).counts() == {14: 3, 7: 2, 1: 1}
    kit.clock.now += 3 * DAY
    assert await notices(kit).counts() == {14: 1, 7: 1, 1: 0}
