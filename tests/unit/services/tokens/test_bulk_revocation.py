"""Bulk revocation and deletion run in several transactions, so that other changes do not wait, and miss no token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.core.errors import Unauthenticated
from proxy.core.model import Actor
from proxy.services.tokens.issuance import TokenRequest
from proxy.services.views import Created
from proxy.store.audit.chain import Appended
from proxy.store.audit.log import AuditLog
from proxy.store.change import Change
from tests.contract.kit import ADMIN, Kit, opened

ANN = "ann@example.org"


@pytest.fixture
async def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kit]:
    monkeypatch.setattr("proxy.services.tokens.revocation.AT_ONCE", 3)
    async with opened(tmp_path) as kit:
        await kit.basics()
        yield kit


async def family(kit: Kit, maker: Created, size: int) -> list[Created]:
    """Create tokens with this one, every second of them through the one before."""
    made: list[Created] = []
    for number in range(size):
        kit.clock.now += 1
        parent = made[-1] if number % 2 else maker
        made.append(await kit.tokens.create(kit.acting(parent), TokenRequest(name=f"t{number}")))
    return made


async def living(kit: Kit, made: list[Created]) -> list[str]:
    return [one.view.name for one in made if (await kit.tokens.show(ADMIN, one.view.id)).status == "active"]


async def left(kit: Kit) -> list[str]:
    return [view.name for view in (await kit.tokens.list(ADMIN)).items]


async def test_revoking_descendants_takes_several_small_transactions(kit: Kit) -> None:
    root = await kit.mint(ANN, "root")
    made = await family(kit, root, 8)
    epoch = await kit.store.epoch()
    done = await kit.tokens.revoke(ADMIN, root.view.id, descendants=True)
    assert (done.warnings, await living(kit, [root, *made])) == ((), [])
    assert await kit.store.epoch() == epoch + 3
    await kit.tokens.revoke(ADMIN, root.view.id, descendants=True)
    assert await kit.store.epoch() == epoch + 3, "twice is once"


@pytest.mark.parametrize("presented", [0, 2, 7])
async def test_a_token_that_revokes_itself_with_its_descendants_ends_last(kit: Kit, presented: int) -> None:
    root = await kit.mint(ANN, "root")
    made = await family(kit, root, 8)
    actor = kit.acting([root, *made][presented])
    assert (await kit.tokens.revoke(actor, root.view.id, descendants=True)).warnings == ()
    assert await living(kit, [root, *made]) == []


async def test_all_tokens_of_an_owner_are_deleted_the_presented_one_last(kit: Kit) -> None:
    root = await kit.mint(ANN, "root")
    await family(kit, root, 8)
    assert await kit.tokens.delete_all(kit.acting(root)) == 9
    assert await left(kit) == []


async def test_a_scoped_token_deletes_all_its_descendants_although_parents_go_first(kit: Kit) -> None:
    root = await kit.mint(ANN, "root", scopes=["things:read"])
    parent, names = root, []
    for number in range(8):
        kit.clock.now += 1
        wanted = TokenRequest(name=f"t{number}", scopes=["things:read"])
        parent = await kit.tokens.create(kit.acting(parent), wanted)
        names.append(parent.view.name)
    assert await kit.tokens.delete_all(kit.acting(root), keep_current=True) == len(names)
    assert await left(kit) == ["root"]


async def test_other_changes_run_between_two_transactions(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    root = await kit.mint(ANN, "root")
    await family(kit, root, 8)
    begun = asyncio.Event()
    record = Change.record

    async def noted(change: Change, number: int, mark: bytes, log: AuditLog) -> tuple[Appended, ...]:
        begun.set()
        return await record(change, number, mark, log)

    monkeypatch.setattr(Change, "record", noted)
    deletion = asyncio.create_task(kit.tokens.delete_all(ADMIN, ANN), name="deletion")
    await begun.wait()
    await kit.roles.set(ADMIN, "other", ["things:read"])
    assert not deletion.done()
    assert await deletion == 9


async def test_the_caller_is_checked_in_each_transaction_and_a_retry_does_the_rest(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = await kit.mint(ANN, "root")
    acting = await kit.mint(ANN, "acting")
    await family(kit, root, 8)
    record, changes = Change.record, 0

    async def then_revoked(change: Change, number: int, mark: bytes, log: AuditLog) -> tuple[Appended, ...]:
        nonlocal changes
        changes += 1
        if changes == 2:
            # In the transaction of the second step, as if it came right after it.
            await change.tokens.revoke(acting.view.id, change.now)
        return await record(change, number, mark, log)

    monkeypatch.setattr(Change, "record", then_revoked)
    actor: Actor = kit.acting(acting)
    with pytest.raises(Unauthenticated):
        await kit.tokens.delete_all(actor)
    remaining = len(await left(kit))
    assert 0 < remaining < 10
    assert await kit.tokens.delete_all(ADMIN, ANN) == remaining
    assert await left(kit) == []
