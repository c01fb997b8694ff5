"""The pool reaches another database than the one that the node has judged: nothing of it is used, or written to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy.authority.runtime import Authority
from proxy.core.errors import StoreUnavailable
from proxy.services import derived_secrets
from proxy.settings.sources.secret import decode_key
from proxy.store.audit.chain import Event
from proxy.store.audit.request_events import RequestEvent
from proxy.store.dialects import postgresql_dsn
from proxy.store.dialects.postgresql import WRITERS, PostgresqlDatabase
from proxy.store.records import Changes
from proxy.store.store import Store
from proxy.store.tokens.usage import Use
from proxy.store.upkeep.batches import Batch
from tests.support.postgres import Postgres
from tests.unit.authority.consistency.kit import ACTOR, SECRET_KEY, node_settings, set_role
from tests.unit.authority.waiting import until

EMAIL = "ada@example.org"
WRITTEN = "SELECT (SELECT count(*) FROM chores), (SELECT count(*) FROM writers), (SELECT count(*) FROM token_usage), \
(SELECT count(*) FROM audit_events), (SELECT count(*) FROM changes), (SELECT n FROM change_head)"
EVENT = RequestEvent(
    event=Event(action="request.read", target_kind="route", target_id="t", decision_id="d"),
    prefix="",
    proven=False,
    at=1.0,
)


@dataclass
class World:
    authority: Authority
    url: str
    other: str
    postgres: Postgres

    @property
    def store(self) -> Store:
        return self.authority._store

    async def point_pool_at(self, url: str) -> None:
        """Let new pooled connections lead to this database, as a name does that now stands for another server."""
        database = self.store._database
        assert isinstance(database, PostgresqlDatabase)
        for servers in (database._servers, database._reading_servers):
            servers.address = postgresql_dsn.parse(url)
        # While nobody has a connection: one that is given back to a former pool is closed by nobody.
        async with AsyncExitStack() as idle:
            for _ in range(WRITERS):
                await idle.enter_async_context(database._writing)
                await idle.enter_async_context(database._reading)
            await database._readers.dispose()
            await database._writer.dispose()


@pytest.fixture
async def world(store_url: str, postgres: Postgres, migrated_database: str, data_dir: Path) -> AsyncIterator[World]:
    """A node that follows one database. The other has another history, and more changes."""
    other = postgres.create_database(migrated_database)
    secret = decode_key(SECRET_KEY)
    assert secret is not None
    store = await Store.open(other, key_fingerprint=derived_secrets.fingerprint(secret))
    for number in range(20):
        async with store.change(ACTOR) as change:
            change.touched(f"k{number}")
            change.audit("test.change", target_kind="test", target_id=str(number))
    await store.close()
    async with Authority(node_settings(data_dir / "a", store_url, lease=20.0)) as authority:
        await authority.services.users.add(ACTOR, EMAIL, "editor")
        yield World(authority, store_url, other, postgres)
    postgres.drop_database(other)


USES: dict[str, Callable[[World], Awaitable[object]]] = {
    "a list": lambda w: w.authority.services.users.show(ACTOR, EMAIL),
    "a refusal": lambda w: w.authority.services.users.show(ACTOR, "nobody@example.org"),
    "grants": lambda w: w.store.resolve(("t",)),
    "changes": lambda w: w.store.changes_since(0),
    "a hash": lambda w: w.store.token_hash("t"),
    "verifying the log": lambda w: w.store.verify_audit(),
    "the end of the log": lambda w: w.store.audit_tail_problem(),
    "outdated events": lambda w: w.store.outdated_audit(100.0, 100.0),
    "a change": lambda w: set_role(w.authority, "viewer"),
    "a digest": lambda w: w.store.write_digest("t", b"d", expected_hash="h"),
    "uses": lambda w: w.store.add_uses([Use(token_id="t", count=1, at=1.0, ip="")], Batch(writer="a" * 32, number=1)),
    "reports": lambda w: w.store.add_reports([], Batch(writer="a" * 32, number=1)),
    "events": lambda w: w.store.append_requests([EVENT], Batch(writer="a" * 32, number=1)),
    "trimming": lambda w: w.store.trim_audit(1, 10),
    "a claim": lambda w: w.store.claim(("c",), "n", 60.0),
    "giving a claim up": lambda w: w.store.give_up(("c",), "n"),
    "notices": lambda w: w.store.claim_notices([], "n", 60.0),
    "marking notices": lambda w: w.store.mark_notified([], "n"),
    "pruning": lambda w: w.store.prune(1.0),
    "the first history": lambda w: w.store.record_creation("x"),
}


async def test_nothing_is_read_from_a_database_that_is_not_judged_or_written_to_it(world: World) -> None:
    before, page = world.postgres.psql(WRITTEN, world.other), world.authority.epoch
    await world.point_pool_at(world.other)
    for name, use in USES.items():
        with pytest.raises(StoreUnavailable, match="replaced by another one"):
            await use(world)
            pytest.fail(f"{name} was answered")
    assert world.postgres.psql(WRITTEN, world.other) == before
    assert world.authority.epoch == page
    await world.point_pool_at(world.url)
    await set_role(world.authority, "viewer")


async def test_keys_of_a_database_that_is_not_judged_are_not_pushed(world: World) -> None:
    membership = world.authority._membership
    assert membership is not None
    follower, number = membership._follower, world.authority.epoch
    await until(lambda: follower._broadcast.pushed == number)
    asked = 0
    changes_since = follower._changes_since

    async def counted(since: int) -> Changes:
        nonlocal asked
        asked += 1
        return await changes_since(since)

    follower._changes_since = counted
    await world.point_pool_at(world.other)
    world.postgres.psql(
        f"INSERT INTO changes (epoch, touched, at, mark) VALUES ({number + 1}, '[\"k\"]', 0, 'm');"
        f"UPDATE change_head SET n = {number + 1}, mark = 'm'; NOTIFY patgate_changes",
        world.url,
    )
    await until(lambda: asked > 2)
    assert (world.authority.epoch, follower._broadcast.pushed) == (number + 1, number)
    await world.point_pool_at(world.url)
    await until(lambda: follower._broadcast.pushed == number + 1)
    assert world.authority.epoch == number + 1


async def test_an_older_state_of_the_same_database_is_no_answer(world: World) -> None:
    """Its history is the same, but it lacks what the node has seen."""
    assert world.authority.epoch > 0
    # A node that renews now sees it, too; the question is asked before that, in one step.
    world.postgres.psql("UPDATE change_head SET n = 0, mark = '\\x00'", world.url)
    with pytest.raises(StoreUnavailable, match=r"lacks changes|fenced"):
        await world.authority.services.users.show(ACTOR, EMAIL)


async def test_a_store_that_is_fenced_is_not_written_and_what_waits_is_written_once_after_it(world: World) -> None:
    authority = world.authority
    membership = authority._membership
    assert membership is not None
    number = authority.epoch
    await set_role(authority, "viewer")
    await until(lambda: membership._node._memory is not None and membership._node._memory.n == number + 1)
    # In a thread: it may have to wait for a transaction of this process.
    await asyncio.to_thread(
        world.postgres.psql,
        f"BEGIN; DELETE FROM changes WHERE epoch > {number};"
        f"UPDATE change_head SET n = {number}, mark = (SELECT mark FROM changes WHERE epoch = {number}); COMMIT",
        world.url,
    )
    membership.look()
    await until(lambda: membership.fenced)
    for name, use in USES.items():
        with pytest.raises(StoreUnavailable, match="fenced"):
            await use(world)
            pytest.fail(f"{name} was answered")
    authority.record(EVENT)
    await until(lambda: authority._recorder._failing)
    count = "SELECT count(*) FROM audit_events WHERE action = 'request.read'"
    assert world.postgres.psql(count, world.url) == "0"
    accepting = asyncio.create_task(authority.accept_history(ACTOR))
    await until(lambda: world.postgres.psql("SELECT n FROM change_head", world.url) != str(number))
    assert not accepting.done(), "it waits until no lease of the former store is left"
    with pytest.raises(StoreUnavailable, match="fenced"):
        await set_role(authority, "editor")
    await accepting
    await set_role(authority, "editor")
    await until(lambda: not authority._recorder.waiting)
    assert world.postgres.psql(count, world.url) == "1"
