"""Waiting for the nodes: their rows are in a real PostgreSQL, the clock is the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg
import pytest

from proxy.authority.consistency.barrier import Barrier, over_after_ns
from proxy.core.errors import OutcomeUnknown
from proxy.store.nodes.records import Poll
from proxy.store.nodes.sessions import MemberPoll, NodeSession
from tests.support.postgres import Postgres
from tests.unit.authority.consistency.kit import row, sessions_of
from tests.unit.authority.waiting import until

BOUND = 2.0
OVER = over_after_ns(BOUND)


@dataclass
class Own:
    """This process: a page and the history that it follows."""

    history: str = ""
    id: str = "me"
    applied: int = 0
    bound: float = BOUND

    def saw(self, number: int) -> None:
        self.applied = max(self.applied, number)


@dataclass
class Time:
    now: int = 1_000_000_000_000

    def __call__(self) -> int:
        return self.now


@dataclass
class World:
    barrier: Barrier
    own: Own
    time: Time
    session: NodeSession
    members: MemberPoll
    url: str
    postgres: Postgres
    waits: list[asyncio.Task[None]] = field(default_factory=list)

    async def join(self, *nodes: str, renewals: int = 5) -> None:
        for node in nodes:
            await self.session.join(row(node), renewals)

    def wait(self, number: int) -> asyncio.Task[None]:
        task = asyncio.create_task(self.barrier.wait(number, self.time.now))
        self.waits.append(task)
        return task

    async def polls(self, count: int = 3) -> None:
        """Return after the barrier has polled so many times more."""
        seen = self.barrier.polls + count
        await until(lambda: self.barrier.polls >= seen)

    async def ids(self) -> set[str]:
        return {member.id for member in (await self.members.poll()).members}


@asynccontextmanager
async def opened(url: str, postgres: Postgres) -> AsyncIterator[World]:
    postgres.psql(f"UPDATE change_head SET lease_bound = {BOUND}", url)
    session, members = sessions_of(url)
    own, time = Own(), Time()
    own.history = (await session.head()).history
    barrier = Barrier(members, own, clock=time)
    world = World(barrier, own, time, session, members, url, postgres)
    try:
        yield world
    finally:
        for wait in world.waits:
            wait.cancel()
        await asyncio.gather(*world.waits, return_exceptions=True)
        await barrier.close()
        await session.close()
        await members.close()


@pytest.fixture
async def world(store_url: str, postgres: Postgres) -> AsyncIterator[World]:
    async with opened(store_url, postgres) as world:
        yield world


async def test_a_wait_ends_when_every_row_has_acknowledged(world: World) -> None:
    await world.join("a", "b")
    wait = world.wait(7)
    await world.session.acknowledge("a", 7)
    await world.polls()
    assert not wait.done()
    await world.session.acknowledge("b", 9)
    await wait
    assert world.barrier.confirmed == 7
    assert await world.ids() == {"a", "b"}


async def test_without_other_nodes_nothing_is_waited_for(world: World) -> None:
    await world.wait(7)
    await world.join("me")
    await world.wait(8)
    assert world.own.applied == 8


async def test_what_is_confirmed_needs_no_database(world: World) -> None:
    await world.wait(7)
    await world.members.close()
    await world.barrier.wait(7, 0)
    await world.barrier.wait(3, 0)


async def test_a_wait_ends_when_a_row_is_gone(world: World) -> None:
    await world.join("a")
    wait = world.wait(7)
    await world.polls()
    assert not wait.done()
    await world.session.leave(["a"])
    await wait


async def test_a_silent_node_is_waited_for_until_no_lease_can_be_left_and_then_forgotten(world: World) -> None:
    await world.join("a", "b")
    await world.session.acknowledge("b", 7)
    wait = world.wait(7)
    await world.polls()
    world.time.now += OVER - 1
    await world.polls()
    assert not wait.done()
    world.time.now += 1
    await wait
    await until(lambda: not world.barrier.polling)
    assert await world.ids() == {"b"}
    await world.session.acknowledge("b", 8)
    await world.wait(8)


async def test_a_row_is_not_deleted_before_its_last_renewal_is_a_lease_old(world: World) -> None:
    """Its lease may have begun after the change, with an acknowledgement that is still on its way."""
    await world.join("a")
    wait = world.wait(7)
    await world.polls()
    world.time.now += OVER // 2
    await world.session.renew("a", None)
    await world.polls()
    world.time.now += OVER // 2
    await wait
    await world.polls()
    await world.session.renew("a", None)
    await until(lambda: not world.barrier.polling)
    assert await world.ids() == {"a"}
    again = world.wait(8)
    await world.polls()
    assert not again.done(), "the node may serve by its last renewal"


async def test_a_renewal_that_is_being_executed_saves_its_row(world: World) -> None:
    """The row is locked by the renewal: the delete waits for it, and then finds another count."""
    await world.join("a")
    wait = world.wait(7)
    await world.polls()
    renewal = await asyncpg.connect(world.url)
    try:
        async with renewal.transaction():
            await renewal.execute("UPDATE nodes SET renewals = renewals + 1 WHERE id = 'a'")
            world.time.now += OVER
            await wait
            # The delete waits for the lock now, and nobody waits for the delete.
            await until(lambda: world.postgres.psql("SELECT count(*) FROM pg_locks WHERE NOT granted") != "0")
        await until(lambda: not world.barrier.polling)
        assert await world.ids() == {"a"}
    finally:
        await renewal.close()


TABLES = """
    CREATE TABLE change_head (id int PRIMARY KEY, n bigint, mark bytea, lease_bound float8);
    INSERT INTO change_head VALUES (1, 0, 'm', 2.0);
    CREATE TABLE changes (epoch bigint PRIMARY KEY, mark bytea);
    CREATE TABLE acknowledgements (id text PRIMARY KEY, applied bigint);
    CREATE TABLE nodes (id text PRIMARY KEY, name text, version text, protocol int, schema text, config_hash text,
                        lease float8, renewals bigint, started_at float8, renewed_at float8);
"""


async def test_a_lost_database_ends_the_wait_at_the_same_time() -> None:
    with Postgres() as own:
        url = own.create_database()
        own.psql(TABLES, url, user="patgate")
        async with opened(url, own) as world:
            await world.join("a")
            wait = world.wait(7)
            await world.polls()
            own.stop("immediate")
            world.time.now += OVER - 1
            await world.polls()
            assert not wait.done()
            world.time.now += 1
            await wait
            assert world.own.applied == 7


async def test_another_store_in_its_place_ends_the_wait_in_doubt(world: World) -> None:
    await world.join("a")
    wait = world.wait(7)
    await world.polls()
    world.own.history = "another"
    with pytest.raises(OutcomeUnknown):
        await wait


async def test_while_no_store_is_followed_only_time_counts(world: World) -> None:
    world.own.history = ""
    wait = world.wait(7)
    await asyncio.sleep(0)
    assert not wait.done()
    world.time.now += OVER
    await wait


async def test_after_another_store_every_former_lease_is_waited_for(world: World) -> None:
    await world.wait(7)
    world.barrier.suspect()
    wait, former = world.wait(8), world.wait(7)
    await world.polls()
    assert not wait.done()
    assert not former.done(), "what was confirmed belongs to the former store"
    world.time.now += OVER
    await asyncio.gather(wait, former)


async def test_a_caller_that_is_gone_ends_its_own_wait_only(world: World) -> None:
    await world.join("a")
    gone, other = world.wait(7), world.wait(7)
    await world.polls()
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    await world.polls()
    assert not other.done()
    await world.session.acknowledge("a", 7)
    await other


async def test_many_waits_share_one_poll_at_a_time(world: World) -> None:
    await world.join("a")
    before = world.barrier.polls
    waits = [world.wait(number) for number in range(1, 201)]
    await world.polls(2)
    assert world.barrier.polls - before < 20
    await world.session.acknowledge("a", 200)
    await asyncio.gather(*waits)


async def test_a_raised_bound_is_waited_for(world: World) -> None:
    await world.join("a")
    wait = world.wait(7)
    await world.polls()
    world.postgres.psql("UPDATE change_head SET lease_bound = 10", world.url)
    await world.polls()
    world.time.now += OVER
    await world.polls()
    assert not wait.done()
    world.time.now += over_after_ns(10.0)
    await wait


async def test_a_defect_of_the_poll_leaves_nobody_waiting_and_ends_no_later_wait(world: World) -> None:
    await world.join("b")
    poll = world.members.poll

    async def broken() -> Poll:
        raise ValueError("a defect")

    world.members.poll = broken  # type: ignore[method-assign]
    with pytest.raises(OutcomeUnknown):
        await world.wait(1)
    world.members.poll = poll  # type: ignore[method-assign]
    waiting = world.wait(1)
    await world.session.acknowledge("b", 1)
    await waiting


async def test_a_stop_leaves_nobody_waiting(world: World) -> None:
    await world.join("a")
    wait = world.wait(7)
    await world.polls()
    await world.barrier.close()
    with pytest.raises(OutcomeUnknown):
        await wait
