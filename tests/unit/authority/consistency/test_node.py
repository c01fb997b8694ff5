"""A node's own state: its row is in a real PostgreSQL, its page in a real file, and its clock is the test's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from proxy.authority.consistency import node as module
from proxy.authority.consistency.node import TRANSITIONS, Node, NodeEvent, State
from proxy.authority.grants.page_writer import PageWriter, open_page
from proxy.core.errors import StoreUnavailable
from proxy.store.nodes import history
from proxy.store.nodes.records import Acceptance, AcceptedBy, NodeRow, Remembered, StoreState
from proxy.store.nodes.sessions import NodeSession
from tests.support.postgres import Postgres
from tests.unit.authority.consistency.kit import row, sessions_of

LEASE = 2.0
NS = 1_000_000_000
START = 10**15


@dataclass
class Rest:
    """The rest of the authority: does what the node asks for, and keeps the order of it."""

    page: PageWriter
    events: list[tuple[object, ...]] = field(default_factory=list)
    fail: bool = False
    node: Node | None = None
    during: list[tuple[bool, bool]] = field(default_factory=list)
    """Whether the node refused the store, and whether it followed it, while it started over."""

    def joined(self, node: str, acknowledged: int) -> None:
        self.events.append(("joined", node, acknowledged))

    def saw(self, number: int) -> None:
        # The lease that the page has now is the one before this renewal.
        self.events.append(("saw", number, self.page.lease_until_ns))
        self.page.raise_epoch(number)

    def suspect(self) -> None:
        self.events.append(("suspect",))

    def followed(self) -> None:
        self.events.append(("followed",))

    def record(self, history: str, by: AcceptedBy) -> None:
        self.events.append(("record", history, by))

    async def start_over(self, found: str, seen: int) -> None:
        assert self.node is not None
        self.events.append(("start over", seen, self.page.lease_until_ns))
        self.during.append((bool(self.node.why), self.node.history == found))
        if self.fail:
            raise StoreUnavailable("no")

    def remember(self, remembered: Remembered) -> None:
        self.events.append(("remember", remembered.n))

    def named(self, name: str) -> list[tuple[object, ...]]:
        return [event for event in self.events if event[0] == name]


class Slow:
    """A session whose renewals do something else on the way: ``before`` they are sent, ``after`` the answer came."""

    def __init__(self, session: NodeSession) -> None:
        self._session = session
        self.on_notify = session.on_notify
        self.before: Callable[[], Awaitable[None] | None] = lambda: None
        self.after: Callable[[], Awaitable[None] | None] = lambda: None

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)

    async def join(self, row: NodeRow, first: int) -> None:
        await self._session.join(row, first)

    async def leave(self, nodes: list[str]) -> None:
        await self._session.leave(nodes)

    async def renew(self, node: str, remembered: Remembered | None) -> StoreState:
        if (work := self.before()) is not None:
            await work
        seen = await self._session.renew(node, remembered)
        if (work := self.after()) is not None:
            await work
        return seen


@dataclass
class World:
    node: Node
    rest: Rest
    session: Slow
    page: PageWriter
    url: str
    postgres: Postgres
    now: int = START
    owned: bool = True

    def sql(self, text: str) -> str:
        return self.postgres.psql(text, self.url)

    def change(self, number: int) -> None:
        """The head moves, as by a change."""
        self.sql(
            f"INSERT INTO changes (epoch, touched, at, mark) VALUES ({number}, '[]', 0, '{number}');"
            f"UPDATE change_head SET n = {number}, mark = '{number}'"
        )

    def accept(self, id_: str, by: AcceptedBy, place: str = "") -> None:
        """Add an acceptance of this place, by default that of the store."""
        text = self.sql(f"SELECT value FROM meta WHERE name = '{history.ACCEPTANCES}'")
        listed = history.decode(text or None)
        place = place or self.node.history or str(self.rest.named("record")[-1][1])
        added = history.encode([*listed, Acceptance(id=id_, history=place, by=by)])
        self.sql(
            f"DELETE FROM meta WHERE name = '{history.ACCEPTANCES}';"
            f"INSERT INTO meta VALUES ('{history.ACCEPTANCES}', '{added}')"
        )

    async def served(self) -> None:
        """Join, and record the history as the authority does."""
        await self.node.judge_store()
        self.accept("first", AcceptedBy.CREATION)
        assert await self.node.step() is NodeEvent.RENEWED
        self.rest.events.clear()

    @property
    def lease_ends(self) -> int:
        return self.page.lease_until_ns

    def rows(self) -> list[str]:
        return self.sql("SELECT id FROM nodes").split()


@pytest.fixture
async def world(store_url: str, postgres: Postgres, tmp_path: Path) -> AsyncIterator[World]:
    postgres.psql(f"UPDATE change_head SET lease_bound = {LEASE}", store_url)
    session, poll = sessions_of(store_url)
    slow = Slow(session)
    page = open_page(tmp_path, store_epoch=None)
    rest = Rest(page)
    world: World
    node = Node(
        row("", lease=LEASE),
        slow,  # type: ignore[arg-type]
        page,
        rest,
        memory=None,
        trust_standby=False,
        owned=lambda: world.owned,
        clock=lambda: world.now,
    )
    rest.node = node
    world = World(node, rest, slow, page, store_url, postgres)
    yield world
    await session.close()
    await poll.close()
    page.close()


def test_every_state_has_a_way_out_by_a_stop() -> None:
    for state in State:
        assert TRANSITIONS[state, NodeEvent.STOPPED] is State.LEAVING
    assert all(TRANSITIONS[State.LEAVING, event] is State.LEAVING for s, event in TRANSITIONS if s is State.LEAVING)
    reached = {State.JOINING}
    for _ in State:
        reached |= {to for (state, _), to in TRANSITIONS.items() if state in reached}
    assert reached == set(State)


def test_only_a_renewal_leads_to_serving() -> None:
    for (state, event), to in TRANSITIONS.items():
        if to is State.SERVING and state is not State.SERVING:
            assert event is NodeEvent.RENEWED


async def test_a_lease_begins_before_the_renewal_was_sent(world: World) -> None:
    await world.served()

    def freeze() -> None:
        world.now += 5 * NS

    world.session.after = freeze
    begun = world.now
    assert await world.node.step() is NodeEvent.RENEWED
    assert world.lease_ends == begun + int(LEASE * NS)
    assert world.node.remaining() == 0, "the process was frozen for longer than the lease"


async def test_the_page_is_raised_to_the_head_before_the_lease_is_extended(world: World) -> None:
    await world.served()
    before = world.lease_ends
    world.now += NS
    world.change(9)
    await world.node.step()
    assert world.rest.named("saw") == [("saw", 9, before)]
    assert (world.page.epoch, world.lease_ends) == (9, world.now + int(LEASE * NS))


async def test_a_row_is_committed_before_the_first_renewal(world: World) -> None:
    """A change that commits in between sees the row, and the renewal sees the change."""
    await world.node.judge_store()
    seen: list[list[str]] = []

    def commit() -> None:
        seen.append(world.rows())
        if world.node.id:
            world.change(4)

    world.session.before = commit
    await world.node.step()
    assert seen == [[world.node.id]]
    assert world.page.epoch == 4


async def test_without_a_row_there_is_no_lease_until_it_has_joined_again(world: World) -> None:
    await world.served()
    before, former = world.lease_ends, world.node.id
    world.sql("DELETE FROM nodes")
    world.now += NS
    assert await world.node.step() is NodeEvent.NO_ROW
    assert (world.node.state, world.lease_ends, world.rows()) == (State.JOINING, before, [])
    assert world.rest.named("joined")[-1] == ("joined", "", 0)
    assert await world.node.step() is NodeEvent.RENEWED
    assert world.rows() == [world.node.id]
    assert world.node.id != former


async def test_a_join_whose_answer_was_lost_leaves_no_row_behind(world: World) -> None:
    await world.node.judge_store()
    joined = world.session._session.join

    async def lost(row: NodeRow, first: int) -> None:
        await joined(row, first)
        raise StoreUnavailable("no")

    world.session.join = lost  # type: ignore[method-assign]
    assert await world.node.step() is NodeEvent.UNREACHABLE
    assert len(world.rows()) == 1
    assert world.lease_ends == 0
    world.session.join = joined  # type: ignore[method-assign]
    assert await world.node.step() is NodeEvent.RENEWED
    assert world.rows() == [world.node.id]


async def test_a_store_that_cannot_be_reached_changes_no_lease(world: World) -> None:
    await world.served()
    before = world.lease_ends

    def fail() -> None:
        raise StoreUnavailable("no")

    world.session.before = fail
    world.now += NS
    assert await world.node.step() is NodeEvent.UNREACHABLE
    assert (world.node.state, world.lease_ends) == (State.SERVING, before)


async def test_the_lease_is_the_shorter_of_the_own_and_the_bound(world: World) -> None:
    await world.served()
    world.sql("UPDATE change_head SET lease_bound = 0.5")
    await world.node.step()
    assert world.node.remaining() == 0.5
    world.sql("UPDATE change_head SET lease_bound = 60")
    await world.node.step()
    assert world.node.remaining() == LEASE


async def test_a_store_without_the_remembered_change_ends_the_lease_at_once(world: World) -> None:
    await world.served()
    world.change(5)
    await world.node.step()
    world.sql("UPDATE changes SET mark = 'another'; UPDATE change_head SET mark = 'another'")
    assert await world.node.step() is NodeEvent.UNKNOWN_STORE
    assert (world.node.state, world.lease_ends, world.rows()) == (State.FENCED, 0, [])
    assert world.node.why
    assert world.rest.named("suspect") == [("suspect",)]
    assert await world.node.step() is NodeEvent.UNKNOWN_STORE
    assert world.rest.named("suspect") == [("suspect",)]
    assert world.rows() == [], "a fenced node does not join"


async def test_a_former_store_that_is_back_ends_the_fence(world: World) -> None:
    await world.served()
    world.change(5)
    await world.node.step()
    world.sql("UPDATE change_head SET n = 4, mark = '4'")
    await world.node.step()
    assert world.node.state is State.FENCED
    world.sql("UPDATE change_head SET n = 5, mark = '5'")
    assert await world.node.step() is NodeEvent.NO_ROW
    assert world.rest.named("followed")
    assert await world.node.step() is NodeEvent.RENEWED
    assert not world.node.why


async def test_a_number_raised_while_a_renewal_was_on_its_way_is_no_loss(world: World) -> None:
    """The renewal saw the state before a change whose commit has returned to this process meanwhile."""
    await world.served()
    world.session.after = lambda: world.page.raise_epoch(world.page.epoch + 1)
    assert await world.node.step() is NodeEvent.RENEWED


async def test_an_operators_acceptance_on_another_node_ends_the_fence_and_drops_every_cache(world: World) -> None:
    await world.served()
    world.change(5)
    await world.node.step()
    world.sql("UPDATE changes SET mark = 'another'; UPDATE change_head SET mark = 'another'")
    place = world.node.history
    await world.node.step()
    world.accept("operator", AcceptedBy.OPERATOR, place)
    world.rest.fail = True
    assert await world.node.step() is NodeEvent.UNREACHABLE, "caches could not be told to drop everything"
    assert world.lease_ends == 0
    assert (world.node.state, world.node.history) == (State.FENCED, "")
    assert world.node.why, "it still refuses the store"
    world.rest.fail = False
    assert await world.node.step() is NodeEvent.ACCEPTED
    assert world.rest.named("start over")[-1] == ("start over", 5, 0)
    assert await world.node.step() in (NodeEvent.NO_ROW, NodeEvent.RENEWED)
    await world.node.step()
    assert world.node.state is State.SERVING
    assert len(world.rest.named("start over")) == 2, "once, not at each renewal"
    assert world.rest.during == [(True, False)] * 2


async def test_an_acceptance_while_it_serves_takes_the_lease_first(world: World) -> None:
    await world.served()
    world.change(5)
    await world.node.step()
    world.sql("UPDATE changes SET mark = 'another'; UPDATE change_head SET mark = 'another'")
    world.accept("operator", AcceptedBy.OPERATOR)
    assert await world.node.step() is NodeEvent.ACCEPTED
    assert world.rest.named("start over") == [("start over", 5, 0)]
    assert world.rest.named("suspect") == [("suspect",)]
    assert await world.node.step() is NodeEvent.RENEWED
    assert world.rest.named("suspect") == [("suspect",)]


async def test_an_acceptance_that_fails_while_it_serves_leaves_the_node_fenced(world: World) -> None:
    await world.served()
    world.change(5)
    await world.node.step()
    world.sql("UPDATE changes SET mark = 'another'; UPDATE change_head SET mark = 'another'")
    world.accept("operator", AcceptedBy.OPERATOR)
    world.rest.fail = True
    assert await world.node.step() is NodeEvent.UNREACHABLE
    assert (world.node.state, world.lease_ends, world.rows(), world.node.history) == (State.FENCED, 0, [], "")
    assert world.node.why
    world.rest.fail = False
    assert await world.node.step() is NodeEvent.ACCEPTED
    assert await world.node.step() is NodeEvent.RENEWED
    assert (world.node.state, world.node.why) == (State.SERVING, "")


async def test_an_acceptance_of_a_store_in_the_same_place_suspects_it_and_drops_every_cache(world: World) -> None:
    """A dump was put back in place and accepted on another node; what this node remembers is there, or forgotten."""
    await world.served()
    world.change(5)
    await world.node.step()
    world.rest.events.clear()
    world.sql("DELETE FROM changes")
    world.change(7)
    world.accept("operator", AcceptedBy.OPERATOR)
    assert await world.node.step() is NodeEvent.ACCEPTED
    assert world.rest.named("suspect") == [("suspect",)]
    assert world.rest.named("start over") == [("start over", 5, 0)]
    assert await world.node.step() is NodeEvent.RENEWED


async def test_a_node_that_remembers_nothing_suspects_a_store_that_was_accepted_meanwhile(world: World) -> None:
    await world.node.judge_store()
    world.accept("first", AcceptedBy.CREATION)
    world.accept("operator", AcceptedBy.OPERATOR)
    world.rest.events.clear()
    assert await world.node.step() is NodeEvent.RENEWED
    assert world.rest.named("suspect") == [("suspect",)]


async def test_the_nodes_own_acceptance_is_no_news(world: World) -> None:
    await world.served()
    place = world.node.history
    world.change(5)
    await world.node.step()
    world.sql("UPDATE changes SET mark = 'another'; UPDATE change_head SET mark = 'another'")
    await world.node.step()
    assert world.node.state is State.FENCED
    world.accept("operator", AcceptedBy.OPERATOR, place)
    world.node.accepted(place, "operator")
    world.rest.events.clear()
    assert await world.node.step() is NodeEvent.RENEWED
    assert world.rest.named("suspect") == world.rest.named("start over") == []


async def test_a_lost_data_directory_ends_the_lease_for_good(world: World) -> None:
    await world.served()
    world.owned = False
    await world.node.step()
    assert world.node.lost
    assert world.lease_ends == 0
    await world.node.run()


async def test_leaving_ends_the_lease_before_the_row_is_deleted(world: World) -> None:
    await world.served()
    seen: list[int] = []
    leave = world.session._session.leave

    async def watched(nodes: list[str]) -> None:
        seen.append(world.lease_ends)
        await leave(nodes)

    world.session.leave = watched  # type: ignore[method-assign]
    await world.node.leave()
    assert (seen, world.rows(), world.node.state) == ([0], [], State.LEAVING)


async def test_what_was_seen_is_remembered_when_it_is_new(world: World) -> None:
    await world.served()
    await world.node.step()
    world.change(3)
    await world.node.step()
    assert world.rest.named("remember") == [("remember", 3)]


async def test_the_databases_clock_is_measured(world: World) -> None:
    await world.served()
    assert abs(world.node.offset) < 60
    world.node._wall = lambda: 0.0
    await world.node.step()
    assert world.node.offset > 1_700_000_000


async def test_retries_come_within_a_second_and_renewals_five_times_in_a_lease(world: World) -> None:
    await world.served()
    assert world.node._pause(NodeEvent.RENEWED) == LEASE / module.RENEWALS_PER_LEASE
    for failures in (1, 5, 1000):
        world.node._failures = failures
        assert 0 < world.node._pause(NodeEvent.UNREACHABLE) <= 0.4
