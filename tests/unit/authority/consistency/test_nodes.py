"""Several authorities on one PostgreSQL: after an answer no node may serve without the change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from proxy.authority.consistency.membership import ACCEPTED
from proxy.authority.runtime import Authority
from proxy.core.errors import ConfigurationError, Conflict, StoreUnavailable
from proxy.core.ipc.clock import boottime_ns
from proxy.core.ipc.wire import Deframer
from proxy.services.audit.filters import AuditFilter
from tests.support.postgres import Postgres
from tests.unit.authority.consistency.kit import (
    ACTOR,
    LEASE,
    Relay,
    frozen,
    node_settings,
    other_node,
    page_of,
    set_role,
)
from tests.unit.authority.waiting import until

EMAIL = "ada@example.org"
PATIENT = 60.0
"""A lease that no test outlives: what ends before it ended for another reason."""


@dataclass
class Nodes:
    """The store's address, and a directory for the nodes' data."""

    url: str
    directory: Path
    postgres: Postgres

    @asynccontextmanager
    async def node(self, name: str, **more: Any) -> AsyncIterator[Authority]:
        url = more.pop("url", self.url)
        async with Authority(node_settings(self.directory / name, url, **more)) as authority:
            yield authority

    def page(self, name: str) -> Path:
        return self.directory / name

    async def add_user(self, authority: Authority) -> None:
        await authority.services.users.add(ACTOR, EMAIL, "editor")

    def ids(self) -> list[str]:
        return self.postgres.psql("SELECT id FROM nodes ORDER BY started_at", self.url).split()


@pytest.fixture
def nodes(store_url: str, postgres: Postgres, data_dir: Path) -> Nodes:
    return Nodes(store_url, data_dir, postgres)


async def test_a_change_is_on_every_page_when_its_call_has_answered(nodes: Nodes) -> None:
    async with nodes.node("a", lease=PATIENT) as a, nodes.node("b", lease=PATIENT) as b, nodes.node("c") as c:
        await nodes.add_user(a)
        number = 0
        for turn in range(30):
            await set_role((a, b, c)[turn % 3], "viewer" if turn % 2 else "editor")
            number = await a._store.epoch()
            assert (a.epoch, b.epoch, c.epoch) == (number,) * 3
        assert [view.self for view in await b.nodes()] == [False, True, False]
        assert {view.applied for view in await b.nodes()} == {number}
        assert await a.unready() == {"workers": "0 of 2 gateway workers are linked to the authority"}


async def test_changes_of_all_nodes_at_once_get_numbers_in_one_order(nodes: Nodes) -> None:
    async with nodes.node("a", lease=PATIENT) as a, nodes.node("b", lease=PATIENT) as b:
        for name in ("x", "y"):
            await a.services.users.add(ACTOR, f"{name}@example.org", "editor")

        async def change(node: Authority, email: str) -> None:
            for turn in range(20):
                await set_role(node, "editor" if turn % 2 else "viewer", email)

        before = a.epoch
        await asyncio.gather(change(a, "x@example.org"), change(b, "y@example.org"))
        assert a.epoch == b.epoch == before + 40
        assert (await a.services.audit.verify(ACTOR)).problem is None


async def test_keys_of_another_nodes_changes_are_pushed_without_a_gap(nodes: Nodes) -> None:
    async with nodes.node("a", lease=PATIENT) as a, nodes.node("b", lease=PATIENT) as b:
        await nodes.add_user(a)
        await until(lambda: b._link._broadcast.pushed == b.epoch)
        pushed: list[bytes] = []
        b._link._broadcast.join(object(), pushed.append)
        before = b.epoch
        for turn in range(5):
            await set_role(a, "editor" if turn % 2 else "viewer")
        await until(lambda: b._link._broadcast.pushed == before + 5)
        spans = [_push(message) for message in pushed]
        assert spans[0]["since"] == before
        for one, following in pairwise(spans):
            assert following["since"] == one["epoch"]
        assert spans[-1]["epoch"] == before + 5
        assert all(span["keys"] for span in spans)


def _push(data: bytes) -> dict[str, Any]:
    (message,) = Deframer().feed(data)
    return message


@pytest.mark.parametrize("feed", ["poll", "notify"])
async def test_changes_are_acknowledged_without_notifications(nodes: Nodes, feed: str) -> None:
    """``poll`` sends no NOTIFY; a node that listens for one reads the head by itself."""
    async with (
        nodes.node("a", lease=PATIENT, store_feed="poll") as a,
        nodes.node("b", lease=PATIENT, store_feed=feed) as b,
    ):
        await nodes.add_user(a)
        for role in ("viewer", "editor"):
            await set_role(a, role)
            assert b.epoch == a.epoch


async def test_a_node_without_its_row_joins_again_under_another_id(nodes: Nodes) -> None:
    async with nodes.node("a") as a:
        (former,) = nodes.ids()
        nodes.postgres.psql("DELETE FROM nodes", nodes.url)
        await until(lambda: [id_ for id_ in nodes.ids() if id_ != former])
        await until(lambda: a._lease.remaining() > 0)
        assert [view.id for view in await a.nodes()] == nodes.ids()
        await nodes.add_user(a)


async def test_a_stop_ends_the_lease_and_deletes_the_row(nodes: Nodes) -> None:
    async with nodes.node("a", lease=PATIENT) as a:
        async with nodes.node("b", lease=PATIENT):
            with page_of(nodes.page("b")) as page:
                assert page.has_lease()
        with page_of(nodes.page("b")) as page:
            assert not page.has_lease()
        assert len(nodes.ids()) == 1
        # Nobody waits for the node that has left: its lease would be a minute long.
        await nodes.add_user(a)


async def test_a_frozen_node_is_waited_for_and_refuses_when_it_wakes(nodes: Nodes) -> None:
    with other_node(node_settings(nodes.page("b"), nodes.url)) as process, page_of(nodes.page("b")) as page:
        async with nodes.node("a") as a:
            await nodes.add_user(a)
            assert page.has_lease()
            assert page.epoch == a.epoch
            with frozen(process):
                await set_role(a, "viewer")
                assert not page.may_serve_without(a.epoch)
                assert not page.has_lease(), "it has not heard of the change"
                await until(lambda: nodes.ids() == [a._membership.id])  # type: ignore[union-attr]
                begun = boottime_ns()
                await set_role(a, "editor")
                assert boottime_ns() - begun < LEASE * 1e9, "a node that is forgotten is not waited for"
            # It wakes: by its own clock the lease is over, until it has joined again with the changes.
            await until(page.has_lease)
            assert page.epoch >= a.epoch
            assert len(nodes.ids()) == 2


async def test_a_killed_node_is_waited_for_once(nodes: Nodes) -> None:
    async with nodes.node("a") as a:
        await nodes.add_user(a)
        with other_node(node_settings(nodes.page("b"), nodes.url)) as process, page_of(nodes.page("b")) as page:
            process.kill()
            assert page.has_lease(), "its workers may live on"
            await set_role(a, "viewer")
            assert not page.may_serve_without(a.epoch)
            await until(lambda: len(nodes.ids()) == 1)


async def test_a_revocation_that_is_repeated_waits_as_the_first_one_does(nodes: Nodes) -> None:
    with other_node(node_settings(nodes.page("b"), nodes.url)) as process, page_of(nodes.page("b")) as page:
        async with nodes.node("a") as a:
            await nodes.add_user(a)
            with frozen(process):
                number = a.epoch + 1
                first = asyncio.create_task(set_role(a, "viewer"))
                await until(lambda: a.epoch == number)
                first.cancel()
                await asyncio.gather(first, return_exceptions=True)
                await set_role(a, "viewer")
                assert a.epoch == number, "there was nothing to do"
                assert not page.may_serve_without(number)


async def test_a_read_waits_for_the_changes_that_it_shows(nodes: Nodes) -> None:
    with other_node(node_settings(nodes.page("b"), nodes.url)) as process, page_of(nodes.page("b")) as page:
        async with nodes.node("a") as a, nodes.node("c") as c:
            await nodes.add_user(a)
            with frozen(process):
                change = asyncio.create_task(set_role(a, "viewer"))
                await until(lambda: c.epoch == a.epoch and c.epoch > page.epoch)
                shown = await c.services.users.show(ACTOR, EMAIL)
                assert shown.role == "viewer"
                assert not page.may_serve_without(c.epoch)
                await change


async def test_a_node_that_is_cut_off_serves_until_its_lease_ends(nodes: Nodes) -> None:
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(Relay(nodes.url))
        a = await stack.enter_async_context(nodes.node("a"))
        b = await stack.enter_async_context(nodes.node("b", url=relay.url))
        await nodes.add_user(a)
        page = stack.enter_context(page_of(nodes.page("b")))
        relay.cut()
        assert page.has_lease(), "it serves from its cache"
        await set_role(a, "viewer")
        assert not page.may_serve_without(a.epoch)
        assert not page.has_lease()
        assert "lease" in await b.unready()
        assert page.epoch < a.epoch
        relay.mend()
        await until(page.has_lease)
        assert page.epoch >= a.epoch
        await set_role(b, "editor")
        assert a.epoch == b.epoch


async def test_changes_are_refused_while_the_store_cannot_be_reached(nodes: Nodes) -> None:
    async with AsyncExitStack() as stack:
        own = stack.enter_context(Postgres())
        a = await stack.enter_async_context(nodes.node("a", url=own.create_database()))
        await nodes.add_user(a)
        page = stack.enter_context(page_of(nodes.page("a")))
        own.stop("immediate")
        with pytest.raises(StoreUnavailable):
            await set_role(a, "viewer")
        await until(lambda: not page.has_lease())
        assert {"lease", "store"} <= (await a.unready()).keys()
        own.start()
        await until(page.has_lease)
        await set_role(a, "viewer")


async def test_a_command_without_a_gateway_waits_for_the_nodes(nodes: Nodes) -> None:
    with other_node(node_settings(nodes.page("b"), nodes.url)) as process, page_of(nodes.page("b")) as page:
        async with Authority(node_settings(nodes.page("a"), nodes.url), linked=False) as command:
            await nodes.add_user(command)
            assert page.epoch == command.epoch
            assert len(nodes.ids()) == 1, "a command is no node"
            with frozen(process):
                await set_role(command, "viewer")
                assert not page.may_serve_without(command.epoch)


async def _until_fenced(*authorities: Authority) -> None:
    await until(lambda: all(one._membership.fenced for one in authorities))  # type: ignore[union-attr]


async def _older(nodes: Nodes, number: int) -> None:
    """Put the store back to this change, as an older snapshot of the same database does."""
    # In a thread: it may have to wait for a transaction of this process.
    await asyncio.to_thread(
        nodes.postgres.psql,
        f"""
        BEGIN;
        DELETE FROM changes WHERE epoch > {number};
        UPDATE change_head SET n = {number}, mark = (SELECT mark FROM changes WHERE epoch = {number});
        COMMIT;
        """,
        nodes.url,
    )


async def test_an_older_store_is_refused_until_an_operator_accepts_it(nodes: Nodes) -> None:
    async with nodes.node("a") as a, nodes.node("b") as b:
        await nodes.add_user(a)
        with pytest.raises(Conflict, match="nothing to accept"):
            await a.accept_history(ACTOR)
        number = a.epoch
        await set_role(a, "viewer")
        seen = a.epoch
        with page_of(nodes.page("a")) as page_a, page_of(nodes.page("b")) as page_b:
            await until(lambda: b._membership._node._memory.n == seen)  # type: ignore[union-attr]
            await _older(nodes, number)
            await _until_fenced(a, b)
            assert not page_a.has_lease()
            assert not page_b.has_lease()
            assert "fenced" in await a.unready()
            with pytest.raises(StoreUnavailable, match="fenced"):
                await set_role(a, "viewer")
            await until(lambda: nodes.ids() == [])  # nobody waits for a fenced node
            await a.accept_history(ACTOR)
            await until(lambda: page_a.has_lease() and page_b.has_lease())
            assert page_a.epoch == page_b.epoch > seen, "no number means two changes"
            changes = await a._store.changes_since(seen)
            assert not changes.complete, "every cache drops everything"
            await set_role(b, "editor")
            assert a.epoch == b.epoch
            listed = (await a.services.audit.list(ACTOR, AuditFilter(action=ACCEPTED))).items
            assert [(one.entry.actor_name, one.entry.details) for one in listed] == [
                ("test", {"seen": seen, "found": number})
            ]


async def test_a_start_on_an_older_store_is_fenced_and_applies_its_roles_after_the_acceptance(nodes: Nodes) -> None:
    async with nodes.node("a") as a:
        await nodes.add_user(a)
        number = a.epoch
        await set_role(a, "viewer")
    await _older(nodes, number)
    roles = {"editor": ["things:*"], "viewer": ["things:list"]}
    async with nodes.node("a", roles=roles) as a:
        assert "fenced" in await a.unready()
        assert await a._store.epoch() == number, "nothing was written to it"
        await a.accept_history(ACTOR)
        await until(lambda: a._lease.remaining() > 0)

        await until(lambda: '["things:list"]' in nodes.postgres.psql("SELECT permissions FROM roles", nodes.url))


async def test_a_node_with_a_longer_lease_raises_the_bound_first(nodes: Nodes) -> None:
    async with nodes.node("a", lease=0.5) as a:
        assert a._lease.remaining() <= 0.5
        async with nodes.node("b", lease=3.0) as b:
            assert b._lease.remaining() > 0.5
            assert nodes.postgres.psql("SELECT lease_bound FROM change_head", nodes.url) == "3"
            assert a._lease.remaining() <= 0.5, "a node uses the shorter of its own and the bound"


async def test_a_reload_changes_the_lease(nodes: Nodes) -> None:
    async with nodes.node("a", lease=0.5) as a:
        await a.follow(node_settings(nodes.page("a"), nodes.url, lease=20.0))
        await until(lambda: a._lease.remaining() > 10)


async def test_a_shared_store_needs_a_key_that_every_node_has(nodes: Nodes) -> None:
    settings = node_settings(nodes.page("a"), nodes.url).model_copy(update={"secret_key": None})
    with pytest.raises(ConfigurationError, match="secret_key"):
        async with Authority(settings):
            pass


async def test_ids_are_new_at_each_start_also_on_a_cloned_disk(nodes: Nodes) -> None:
    async with nodes.node("a"):
        (first,) = nodes.ids()
    assert first not in (nodes.page("a") / "history.json").read_text()
    async with nodes.node("a"):
        (second,) = nodes.ids()
    assert first != second


async def _moved(nodes: Nodes) -> None:
    """Put the store to another place with everything in it: its table is another one, as in a restored dump."""
    # In a thread: it may have to wait for a transaction of this process.
    await asyncio.to_thread(
        nodes.postgres.psql,
        """
        BEGIN;
        CREATE TABLE moved (LIKE changes INCLUDING ALL);
        INSERT INTO moved SELECT * FROM changes;
        DROP TABLE changes;
        ALTER TABLE moved RENAME TO changes;
        COMMIT;
        """,
        nodes.url,
        user="patgate",
    )


async def test_a_store_in_another_place_is_refused_even_if_nothing_is_missing(nodes: Nodes) -> None:
    async with nodes.node("a") as a:
        await nodes.add_user(a)
        await _moved(nodes)
        await _until_fenced(a)
        assert a._lease.remaining() == 0
        await a.accept_history(ACTOR)
        await until(lambda: a._lease.remaining() > 0)
        await set_role(a, "viewer")
    async with nodes.node("a") as a:
        await set_role(a, "editor")


async def test_a_new_host_does_not_follow_a_store_in_another_place_either(nodes: Nodes) -> None:
    async with nodes.node("a") as a:
        await nodes.add_user(a)
    await _moved(nodes)
    async with nodes.node("new") as new:
        assert "fenced" in await new.unready()
        assert nodes.ids() == []


async def test_a_synchronous_standby_in_its_place_is_followed_by_itself(nodes: Nodes) -> None:
    async with nodes.node("a", failover="synchronous") as a, nodes.node("b", failover="synchronous") as b:
        await nodes.add_user(a)
        await _moved(nodes)
        place = nodes.postgres.psql("SELECT 'changes'::regclass::oid", nodes.url)
        await until(lambda: a._membership.history.endswith(f"/{place}"))  # type: ignore[union-attr]
        begun = boottime_ns()
        await set_role(a, "viewer")
        assert a.epoch == b.epoch
        assert boottime_ns() - begun < 30 * 1e9
        assert not a._membership.fenced  # type: ignore[union-attr]
        await until(lambda: f"/{place}" in nodes.postgres.psql("SELECT value FROM meta", nodes.url))
        listed = (await a.services.audit.list(ACTOR, AuditFilter(action=ACCEPTED))).items
        assert [one.entry.details for one in listed] == [{"by": "synchronous"}], "it is recorded once"


async def test_a_synchronous_standby_that_lacks_a_change_is_refused(nodes: Nodes) -> None:
    async with nodes.node("a", failover="synchronous") as a:
        await nodes.add_user(a)
        number = a.epoch
        await set_role(a, "viewer")
        seen = a.epoch
        await until(lambda: a._membership._node._memory.n == seen)  # type: ignore[union-attr]
        await _older(nodes, number)
        await _until_fenced(a)


async def test_no_change_is_answered_early_after_the_store_was_replaced(nodes: Nodes) -> None:
    """Rows of nodes that hold leases of the former store may be missing from the accepted one."""
    async with nodes.node("a", lease=3.0) as a:
        await nodes.add_user(a)
        await _moved(nodes)
        await _until_fenced(a)
        noticed = boottime_ns()
        await a.accept_history(ACTOR)
        assert boottime_ns() - noticed > 2.5 * 1e9
