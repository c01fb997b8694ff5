"""Several processes write one audit log and share the periodic tasks."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa

from proxy.store import tables
from proxy.store.audit.chain import LOG_ID, RETAIN, Event, Occurred
from tests.contract.kit import by_itself
from tests.contract.writers import add, request, writers
from tests.support.dialects import ON_POSTGRESQL

pytestmark = ON_POSTGRESQL


async def test_request_events_of_several_writers_are_one_chain_with_the_changes(tmp_path: Path) -> None:
    async with writers(tmp_path) as (one, two):
        await asyncio.gather(
            *(store.append_requests([request(number), request(number)]) for number in range(6) for store in (one, two)),
            *(add(store, f"{number}") for number in range(4) for store in (one, two)),
        )
        for store in (one, two):
            checked = await store.verify_audit()
            assert (checked.problem, checked.events) == (None, 24 + 8)
            assert await store.audit_tail_problem() is None
        assert one.audit_head.n == two.audit_head.n == 32, "each remembers the newest one that anybody has written"


@pytest.mark.parametrize("found_by", ["an append", "a look at the end"])
async def test_an_event_that_was_replaced_is_found_although_others_have_appended(tmp_path: Path, found_by: str) -> None:
    async with writers(tmp_path) as (one, two):
        await add(one, "a")
        await one.append_requests([request(1)])
        lost = one.audit_head
        async with by_itself(tmp_path) as connection:
            # The chain ends after the first event, as if the second had never been.
            log, chain = tables.audit_events, tables.audit_chain
            await connection.execute(log.delete().where(log.c.n == lost.n))
            first = (await connection.execute(sa.select(log.c.n, log.c.hash))).one()
            await connection.execute(chain.update().values(head_n=first.n, head_hash=first.hash))
        async with writers(tmp_path, 1) as (three,):
            # A node that starts now knows nothing of it.
            await three.append_requests([request(2), request(3)])
            assert await three.audit_tail_problem() is None
        if found_by == "an append":
            await one.append_requests([request(4)])
            assert one.audit_head.n == 4
        assert await one.audit_tail_problem() == "event 2 is another than the one that this process wrote"
        assert (await one.verify_audit()).problem == "event 2 is another than the one that this process wrote"
        assert await two.audit_tail_problem() is None
        async with one._database.snapshot() as connection:
            await one.begin_history(connection)
        assert await one.audit_tail_problem() is None, "an operator has accepted it"


async def test_retention_on_two_nodes_removes_and_records_once(tmp_path: Path) -> None:
    async with writers(tmp_path) as (one, two):
        await asyncio.gather(*(one.append_requests([request(number)]) for number in range(1, 5)))
        assert (await one.outdated_audit(100.0, 100.0)).events == 4
        retain = Occurred(
            event=Event(action=RETAIN, target_kind="log", target_id=LOG_ID, details={"through": 3, "change": 0}),
            actor=("system", "", ""),
            at=100.0,
        )
        removed = await asyncio.gather(*(store.trim_audit(3, 100, retain) for store in (one, two)))
        assert sorted(removed) == [0, 3]
        for store in (one, two):
            checked = await store.verify_audit()
            assert (checked.problem, checked.events, checked.head.n) == (None, 2, 5), "one event says what was removed"
            assert await store.audit_tail_problem() is None


async def test_a_task_is_one_nodes_until_its_claim_ends(tmp_path: Path) -> None:
    async with writers(tmp_path) as (one, two):
        claims = await asyncio.gather(
            *(store.claim(("a", "b"), node, 60.0) for store, node in ((one, "1"), (two, "2")) for _ in range(3))
        )
        assert sorted(map(len, claims)) == [0, 0, 0, 2, 2, 2], "one has both, and keeps them"
        winner, loser = ("1", "2") if claims[0] else ("2", "1")
        await one.give_up(("a",), loser)
        assert await two.claim(("a",), loser, 60.0) == frozenset()
        await one.give_up(("a",), winner)
        assert await two.claim(("a", "b"), loser, 60.0) == {"a"}
        assert await two.claim(("c",), winner, 0.0) == {"c"}
        assert await one.claim(("c",), loser, 60.0) == {"c"}, "a claim that was not renewed has ended"
