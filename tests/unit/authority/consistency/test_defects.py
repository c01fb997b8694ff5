"""A node whose task dies, whose disk fails, or that must not make or migrate tables."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proxy.authority.consistency import memory
from proxy.authority.process import _until_stopped
from proxy.core.errors import AuthorityError, StoreUnavailable
from proxy.store import migrate
from proxy.store.nodes.records import Remembered
from tests.support.postgres import Postgres
from tests.support.process import HANGS_SECONDS
from tests.unit.authority.consistency.kit import page_of
from tests.unit.authority.consistency.test_nodes import Nodes, _moved, _older
from tests.unit.authority.waiting import until


@pytest.fixture
def nodes(store_url: str, postgres: Postgres, data_dir: Path) -> Nodes:
    return Nodes(store_url, data_dir, postgres)


@pytest.mark.parametrize("dies", ["the node", "the follower", "the pusher"])
async def test_an_authority_ends_if_a_task_dies_that_no_lease_may_be_held_without(nodes: Nodes, dies: str) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a defect")

    async with nodes.node("a") as a:
        membership = a._membership
        assert membership is not None
        if dies == "the node":
            membership._node._measure = broken  # type: ignore[assignment, method-assign]
        elif dies == "the follower":
            membership._follower._read = broken
        else:
            membership._broadcast.push = broken  # type: ignore[assignment, method-assign]
            await nodes.add_user(a)
        async with asyncio.timeout(HANGS_SECONDS):
            with pytest.raises(AuthorityError, match="a task of the authority has failed"):
                await _until_stopped(asyncio.Event(), a)
    with page_of(nodes.page("a")) as page:
        assert not page.has_lease()
    assert nodes.ids() == [], "nobody waits for it"


async def test_what_could_not_be_written_to_disk_is_written_at_the_next_renewal(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, failures = memory.save, [OSError(28, "No space left on device"), ValueError("a defect")]

    def failing(data_dir: Path, remembered: Remembered) -> None:
        if failures:
            raise failures.pop()
        save(data_dir, remembered)

    monkeypatch.setattr(memory, "save", failing)
    async with nodes.node("a") as a:
        await until(lambda: not failures and (nodes.page("a") / memory.FILE).exists())
        await until(lambda: memory.load(nodes.page("a")) == a._membership._node._memory)  # type: ignore[union-attr]


async def test_a_node_that_remembers_a_store_makes_no_tables_in_an_empty_database(nodes: Nodes) -> None:
    async with nodes.node("a") as a:
        await nodes.add_user(a)
    empty = nodes.postgres.create_database()
    for remembered in (True, False):
        if not remembered:
            (nodes.page("a") / memory.FILE).unlink()  # the page still has a number
        with pytest.raises(StoreUnavailable, match="the database is empty, but this node has followed a store"):
            async with nodes.node("a", url=empty):
                pass
        assert nodes.postgres.psql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", empty) == "0"
    async with nodes.node("new", url=empty):
        pass
    nodes.postgres.drop_database(empty)


async def test_a_store_is_judged_before_its_tables_are_migrated(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    migrated: list[int] = []
    async with nodes.node("a") as a:
        await nodes.add_user(a)
        number = a.epoch
    monkeypatch.setattr(migrate, "REVISIONS", (*migrate.REVISIONS, "0007"))
    monkeypatch.setattr(migrate, "_upgrade", lambda _connection: migrated.append(1))
    async with nodes.node("a"):
        assert migrated == [1], "it is the store that the node knows"
    await _moved(nodes)
    with pytest.raises(StoreUnavailable, match=r"in another database.*has not migrated them"):
        async with nodes.node("a"):
            pass
    async with nodes.node("new"):
        assert migrated == [1, 1], "this node remembers nothing"
    await _older(nodes, number - 1)
    for problem in ("lacks changes", "lacks changes"):
        with pytest.raises(StoreUnavailable, match=rf"{problem}.*has not migrated them"):
            async with nodes.node("a"):
                pass
        nodes.postgres.psql("UPDATE alembic_version SET version_num = '0005'", nodes.url)
    assert migrated == [1, 1]
