"""Following the head: the page first, then the acknowledgement, then the keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from proxy.authority.consistency.follower import Follower
from proxy.authority.grants.page_writer import PageWriter, open_page
from proxy.authority.workers.broadcast import Broadcast
from proxy.core.errors import StoreUnavailable
from proxy.core.ipc.wire import Deframer
from proxy.store.nodes.sessions import MemberPoll, NodeSession
from proxy.store.records import Changes
from tests.support.postgres import Postgres
from tests.unit.authority.consistency.kit import row, sessions_of
from tests.unit.authority.waiting import until


@dataclass
class World:
    follower: Follower
    session: NodeSession
    poll: MemberPoll
    page: PageWriter
    broadcast: Broadcast
    url: str
    postgres: Postgres
    history: str = ""
    replaced: int = 0
    pushed: list[tuple[int, int, Sequence[str]]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    complete: bool = True

    def head(self, number: int, *, notify: bool = True) -> None:
        self.postgres.psql(
            f"UPDATE change_head SET n = {number}; {'NOTIFY patgate_changes' if notify else ''}", self.url
        )

    async def changes_since(self, number: int) -> Changes:
        await self.gate.wait()
        now = (await self.session.head()).n
        return Changes(epoch=now, keys=(f"after {number}",) if self.complete else (), complete=self.complete)

    def push(self, data: bytes) -> None:
        (message,) = Deframer().feed(data)
        self.pushed.append((message["since"], message["epoch"], message["keys"]))

    async def applied(self) -> int:
        try:
            (member,) = (await self.poll.poll()).members
        except StoreUnavailable:
            return -1  # this connection was ended, too
        return member.applied

    async def until_applied(self, number: int) -> None:
        async with asyncio.timeout(60):
            while await self.applied() < number:  # noqa: ASYNC110 - another connection tells
                await asyncio.sleep(0.01)


@pytest.fixture
async def world(store_url: str, postgres: Postgres, tmp_path: Path) -> AsyncIterator[World]:
    session, poll = sessions_of(store_url)
    page = open_page(tmp_path, store_epoch=None)
    broadcast = Broadcast(page, counted=lambda _count: None)
    world: World

    def replaced() -> None:
        world.replaced += 1

    follower = Follower(
        session,
        page,
        broadcast,
        changes_since=lambda number: world.changes_since(number),
        history=lambda: world.history,
        replaced=replaced,
        look=0.05,
    )
    world = World(follower, session, poll, page, broadcast, store_url, postgres)
    world.gate.set()
    broadcast.join("a worker", world.push)
    world.history = (await session.head()).history
    await session.join(row("me"), 0)
    follower.joined("me", 0)
    follower.start()
    yield world
    await follower.close()
    await session.close()
    await poll.close()
    page.close()


async def test_a_change_is_acknowledged_when_the_page_has_it(world: World) -> None:
    world.head(7)
    await world.until_applied(7)
    assert world.page.epoch == 7
    world.postgres.psql(
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END';
        CREATE TRIGGER refuse BEFORE UPDATE ON acknowledgements FOR EACH ROW EXECUTE FUNCTION refuse();
        """,
        world.url,
    )
    world.head(8)
    await until(lambda: world.page.epoch == 8)
    assert await world.applied() == 7, "the page does not wait for the acknowledgement"
    world.postgres.psql("DROP TRIGGER refuse ON acknowledgements", world.url)
    await world.until_applied(8)


async def test_an_acknowledgement_does_not_wait_for_the_keys(world: World) -> None:
    world.gate.clear()
    world.head(7)
    await world.until_applied(7)
    assert world.pushed == []
    world.gate.set()
    await until(lambda: world.pushed)
    assert world.pushed == [(0, 7, ["after 0"])]


async def test_keys_are_pushed_from_the_last_pushed_number_on(world: World) -> None:
    world.head(3)
    await until(lambda: world.pushed)
    # The page is raised by others as well, and those keys must not be skipped.
    world.head(5, notify=False)
    world.follower.saw(5)
    await until(lambda: len(world.pushed) == 2)
    assert world.pushed == [(0, 3, ["after 0"]), (3, 5, ["after 3"])]


async def test_where_keys_are_unknown_the_workers_see_a_gap(world: World) -> None:
    world.complete = False
    world.head(5)
    await until(lambda: world.pushed)
    assert world.pushed == [(5, 5, [])]
    assert world.broadcast.pushed == 5


async def test_a_notification_that_was_lost_costs_a_look(world: World) -> None:
    world.head(7, notify=False)
    await world.until_applied(7)


async def test_a_forged_notification_raises_nothing(world: World) -> None:
    world.postgres.psql("NOTIFY patgate_changes, '999'", world.url)
    world.head(1)
    await world.until_applied(1)
    assert world.page.epoch == 1


async def test_another_store_raises_no_page_and_is_reported(world: World) -> None:
    world.history = "another"
    world.head(7)
    await until(lambda: world.replaced)
    world.follower.saw(0)
    assert world.page.epoch == 0
    assert await world.applied() == 0
    world.history = ""
    world.follower.saw(9)
    assert world.page.epoch == 0, "a store that is refused raises nothing"


async def test_what_the_store_has_lost_is_acknowledged_again(world: World) -> None:
    world.head(7)
    await world.until_applied(7)
    world.postgres.psql("DELETE FROM acknowledgements", world.url)
    world.follower.joined("me", (await world.session.renew("me", None)).acknowledged)
    await world.until_applied(7)


async def test_a_store_that_fails_meanwhile_is_followed_again(world: World) -> None:
    world.head(3)
    await world.until_applied(3)
    calls = 0
    changes_since = world.changes_since

    async def failing(number: int) -> Changes:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise StoreUnavailable("no")
        return await changes_since(number)

    world.changes_since = failing  # type: ignore[method-assign]
    world.postgres.terminate_backends(world.url)
    world.head(4)
    await world.until_applied(4)
    await until(lambda: world.broadcast.pushed == 4)
    assert world.pushed[-1] == (3, 4, ["after 3"])
