"""A retry of a creation makes nothing more and shows no value again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from proxy.core.errors import Conflict, Forbidden, Invalid
from proxy.services.idempotency import KEPT, SHOWN_ONCE, IdempotencyKey
from proxy.services.tokens.issuance import KeyRequest, TokenRequest
from proxy.store import tables
from tests.contract.kit import ADMIN, Kit, opened

ANN = "ann@example.org"
NEW = TokenRequest(user=ANN, name="t")
KEY = IdempotencyKey(value="k-1", request_hash="a" * 64)


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    async with opened(tmp_path) as kit:
        await kit.basics()
        yield kit


async def test_the_same_request_makes_one_token_and_shows_its_value_once(kit: Kit) -> None:
    made = await kit.tokens.create(ADMIN, NEW, idempotency_key=KEY)
    epoch = await kit.store.epoch()
    again = await kit.tokens.create(ADMIN, NEW, idempotency_key=KEY)
    assert (again.view, again.token, again.replayed, again.warnings) == (made.view, None, True, (SHOWN_ONCE,))
    assert again.as_dict()["token"] is None and not made.replayed
    assert await kit.store.epoch() == epoch
    key = KeyRequest(name="k", org="team", role="viewer")
    one, two = [
        await kit.keys.create(ADMIN, key, idempotency_key=IdempotencyKey(value="k", request_hash="c" * 64))
        for _ in range(2)
    ]
    assert (one.view, two.token) == (two.view, None)


async def test_two_at_the_same_time_make_one(kit: Kit) -> None:
    both = await asyncio.gather(*(kit.tokens.create(ADMIN, NEW, idempotency_key=KEY) for _ in range(4)))
    assert len({made.view.id for made in both}) == 1
    assert sorted(made.replayed for made in both) == [False, True, True, True]
    assert len((await kit.tokens.list(ADMIN)).items) == 1


async def test_another_request_under_the_same_key_is_refused(kit: Kit) -> None:
    await kit.tokens.create(ADMIN, NEW, idempotency_key=KEY)
    with pytest.raises(Invalid) as raised:
        await kit.tokens.create(ADMIN, NEW, idempotency_key=IdempotencyKey(value="k-1", request_hash="b" * 64))
    assert raised.value.errors[0][0] == "Idempotency-Key"


async def test_a_key_belongs_to_the_credential_that_used_it(kit: Kit) -> None:
    ids = [(await kit.tokens.create(ADMIN, NEW, idempotency_key=KEY)).view.id]
    for name in ("one", "two"):
        actor = kit.acting(await kit.mint(ANN, name))
        ids.append((await kit.tokens.create(actor, TokenRequest(name="t"), idempotency_key=KEY)).view.id)
    assert len(set(ids)) == 3


async def test_a_key_is_forgotten_after_a_day_and_its_row_with_it(kit: Kit) -> None:
    made = await kit.tokens.create(ADMIN, NEW, idempotency_key=KEY)
    kit.clock.now += KEPT - 1
    assert (await kit.tokens.create(ADMIN, NEW, idempotency_key=KEY)).replayed
    kit.clock.now += 1
    again = await kit.tokens.create(ADMIN, NEW, idempotency_key=KEY)
    assert again.view.id != made.view.id and not again.replayed
    async with kit.store.read() as rows:
        stored = (await rows.connection.execute(sa.select(tables.idempotency))).mappings().all()
    assert [row["target_id"] for row in stored] == [again.view.id]
    text = str(stored)
    assert "k-1" not in text and again.value.removeprefix(again.view.prefix) not in text


async def test_a_refusal_is_not_remembered_and_a_deleted_token_is_not_made_again(kit: Kit) -> None:
    actor = kit.acting(await kit.mint(ANN, "scoped", scopes=["things:read"]))
    with pytest.raises(Forbidden):
        await kit.tokens.create(actor, TokenRequest(name="t"), idempotency_key=KEY)
    new = TokenRequest(name="t", scopes=["things:read"])
    made = await kit.tokens.create(actor, new, idempotency_key=KEY)
    await kit.tokens.delete(actor, made.view.id)
    with pytest.raises(Conflict, match="deleted"):
        await kit.tokens.create(actor, new, idempotency_key=KEY)


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb", "é"])
def test_what_cannot_be_a_key_is_refused(key: str) -> None:
    with pytest.raises(Invalid) as raised:
        IdempotencyKey(value=key, request_hash="")
    assert raised.value.errors[0][0] == "Idempotency-Key"
