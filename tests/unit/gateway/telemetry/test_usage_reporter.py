"""Usage reports wait for the link, are added up meanwhile, and are sent in messages of bounded size."""

from __future__ import annotations

import time
from typing import Any, Final

from proxy.authority.workers import report_parsing
from proxy.core.ipc.clock import boottime_ns
from proxy.core.ipc.wire import Deframer
from proxy.core.kinds import Kind
from proxy.core.model import Access
from proxy.core.reasons import Reason
from proxy.core.routes import Match
from proxy.gateway.exchange import Exchange
from proxy.gateway.grants.cache import CacheEntry
from proxy.gateway.phases.record import ExchangeRecorder
from proxy.gateway.telemetry.usage_reporter import EVENTS, REPORTS, SWEEPS, USES
from proxy.observe.logs import get_logger
from tests.unit.gateway.kit import IDENTITY, TOKENS, Gateway, make_grant, make_route

ROUTE: Final = make_route("/v1/{entity}/{id}", Access.TOKEN)
SOME: Final = 2 * USES + 2
"""Uses for two full messages and a third."""


class Link:
    """A link that accepts messages while it has room."""

    def __init__(self, room: int = 1_000_000, more: int = 0) -> None:
        self.room, self.more = room, more
        self.messages: list[dict[str, Any]] = []

    @property
    def has_room(self) -> bool:
        return self.room > 0

    def report(self, message: bytes) -> None:
        self.room -= 1
        (decoded,) = Deframer().feed(message)
        self.messages.append(decoded)

    async def flush(self, seconds: float) -> None:
        assert seconds > 0
        self.room += self.more

    def rows(self, op: str) -> list[Any]:
        name = "events" if op == "requests" else op
        return [row for message in self.messages if message["op"] == op for row in message[name]]


class World:
    def __init__(self) -> None:
        self.gateway = Gateway(1)
        self.recorder = ExchangeRecorder(
            [ROUTE], get_logger("test"), prefix_of=self.gateway.authenticator.prefix_of, write=lambda lines: None
        )
        self.trail = self.recorder.trail

    def entry(self) -> CacheEntry:
        return CacheEntry(make_grant(TOKENS.mint(Kind.PAT)), b"")

    def use(self, entry: CacheEntry | None, peer: str = "192.0.2.7", *, reported: Reason | None = None) -> Exchange:
        x = Exchange(self.gateway.listener.connection(peer), boottime_ns(), b"0123456789abcdef00000001")
        x.method, x.path, x.status, x.entry = b"GET", b"/v1/things/7", 200, entry
        x.match = Match(ROUTE, "things", "7", "read", None)
        x.reported = reported
        self.recorder.record(x, boottime_ns())
        return x

    def send(self, link: Link, sweeps: int = SWEEPS) -> Link:
        for _ in range(sweeps):
            self.trail.send(link)
        return link


async def test_uses_are_counted_on_the_entry_and_reported_once() -> None:
    world, before = World(), time.time()
    entry = world.entry()
    for peer in ("192.0.2.1", "192.0.2.2", "192.0.2.3"):
        world.use(entry, peer)
    link = world.send(Link())
    ((token_id, count, at, ip),) = link.rows("uses")
    assert entry.grant.prefix.endswith(f"_{token_id}")
    assert (count, ip) == (3, "192.0.2.3")
    assert before - 1 <= at <= time.time() + 1
    report_parsing.use(link.rows("uses")[0])
    assert world.send(Link()).messages == [], "nothing is reported twice"
    world.use(entry)
    ((_, count, _, _),) = world.send(Link()).rows("uses")
    assert count == 1


async def test_a_refusal_by_role_is_a_use_and_one_without_a_token_is_none() -> None:
    world = World()
    x = world.use(None)
    x.reason = Reason.NO_CREDENTIAL
    world.recorder.record(x, boottime_ns())
    assert world.send(Link()).rows("uses") == []
    x.entry, x.reason = world.entry(), Reason.ROLE_DENIES
    world.recorder.record(x, boottime_ns())
    assert len(world.send(Link()).rows("uses")) == 1


async def test_uses_are_reported_once_in_several_sweeps() -> None:
    world = World()
    entry, link = world.entry(), Link()
    for _ in range(SWEEPS):
        world.use(entry)
        world.trail.send(link)
    ((_, count, _, _),) = link.rows("uses")
    assert count == SWEEPS


async def test_nothing_is_lost_while_the_link_is_down() -> None:
    world = World()
    entry = world.entry()
    for _ in range(3):
        world.use(entry)
        world.use(entry, reported=Reason.ROLE_DENIES)
        assert world.send(Link(room=0)).messages == []
    link = world.send(Link())
    ((_, uses, _, _),) = link.rows("uses")
    ((_, _, _, _, reports, _, _, _, _),) = link.rows("reports")
    assert (uses, reports, len(link.rows("requests"))) == (6, 3, 3)


async def test_an_entry_that_leaves_the_cache_keeps_its_uses() -> None:
    world = World()
    cache, minted = world.gateway.cache, TOKENS.mint(Kind.PAT)
    before = cache.store(make_grant(minted), IDENTITY)
    world.use(before)
    world.use(before)
    cache.evict(minted.prefix)
    after = cache.store(make_grant(minted), IDENTITY)
    assert after is not before
    world.use(after)
    rows = world.send(Link()).rows("uses")
    assert [(row[0], row[1]) for row in rows] == [(minted.token_id, 2), (minted.token_id, 1)]


async def test_messages_are_bounded_and_stop_when_the_link_has_no_room() -> None:
    world = World()
    for _ in range(SOME):
        world.use(world.entry())
    link = world.send(Link(), 1)
    assert [len(message["uses"]) for message in link.messages] == [USES], "a full message is not waited with"
    assert [len(message["uses"]) for message in world.send(Link(), 1).messages] == [USES]
    assert world.send(Link(), 1).messages == []
    assert [len(message["uses"]) for message in world.send(Link(), 1).messages] == [2]


async def test_the_last_report_has_everything() -> None:
    world = World()
    for _ in range(SOME):
        world.use(world.entry())
    world.use(None, reported=Reason.NO_CREDENTIAL)
    link = Link()
    world.trail.send(link, last=True)
    assert (len(link.rows("uses")), len(link.rows("reports")), len(link.rows("requests"))) == (SOME, 1, 1)


async def test_the_final_reports_are_complete_though_the_link_has_room_for_few_at_a_time() -> None:
    world = World()
    for _ in range(SOME):
        world.use(world.entry())
    world.use(None, reported=Reason.NO_CREDENTIAL)
    link = Link(room=1, more=1)
    await world.trail.send_all(link, 30.0)
    assert (len(link.rows("uses")), len(link.rows("reports")), len(link.rows("requests"))) == (SOME, 1, 1)


async def test_a_link_without_room_ends_the_final_reports() -> None:
    world = World()
    world.use(world.entry())
    await world.trail.send_all(Link(room=0), 30.0)
    assert len(world.trail.touched) == 1


async def test_events_are_sent_with_every_sweep_with_the_count_of_those_left_out() -> None:
    world = World()
    x = world.use(world.entry())
    x.method = b"POST"
    for _ in range(2 * EVENTS + 1):
        world.recorder.record(x, boottime_ns())
    for _ in range(30):
        world.use(None).reason = Reason.NO_CREDENTIAL
    x.entry, x.reason = None, Reason.TOKEN_UNKNOWN
    for _ in range(30):
        world.recorder.record(x, boottime_ns())
    link = Link(room=2)
    world.trail.send(link)
    assert [(message["omitted"], len(message["events"])) for message in link.messages] == [(10, EVENTS), (0, EVENTS)]
    link = Link()
    world.trail.send(link)
    assert [(message["omitted"], len(message["events"])) for message in link.messages] == [(0, 21)]


async def test_reports_are_added_up_by_route_reason_permission_and_token() -> None:
    world = World()
    entry, stranger = world.entry(), TOKENS.mint(Kind.PAT)
    world.use(entry, reported=Reason.ROLE_DENIES)
    world.use(entry, reported=Reason.ROLE_DENIES)
    world.use(None, reported=Reason.NO_CREDENTIAL)
    x = world.use(None)
    x.authorization, x.reported = b"Bearer " + stranger.token.encode(), Reason.TOKEN_UNKNOWN
    world.recorder.record(x, boottime_ns())
    rows = world.send(Link()).rows("reports")
    for row in rows:
        report_parsing.report(row)
    token_id = entry.grant.prefix.rpartition("_")[2]
    assert [row[:5] for row in rows] == [
        ["/v1/{entity}/{id}", "role_denies", "things:read", token_id, 2],
        ["/v1/{entity}/{id}", "no_credential", "things:read", "", 1],
        ["/v1/{entity}/{id}", "token_unknown", "things:read", stranger.token_id, 1],
    ]
    assert rows[0][7:] == ["GET", "0123456789abcdef00000001"]


async def test_more_reports_than_a_message_holds_are_added_up_by_route_and_reason() -> None:
    world = World()
    for _ in range(REPORTS + 3):
        world.use(world.entry(), reported=Reason.ROLE_DENIES)
    rows = world.send(Link()).rows("reports")
    assert [(row[2], row[4]) for row in rows] == [("things:read", 1)] * REPORTS + [("", 3)]


async def test_a_client_that_presents_many_prefixes_leaves_room_for_the_reports_of_tokens() -> None:
    world = World()
    x = world.use(None)
    for _ in range(REPORTS // 2 + 4):
        x.authorization, x.reported = b"Bearer " + TOKENS.mint(Kind.PAT).token.encode(), Reason.TOKEN_UNKNOWN
        world.recorder.record(x, boottime_ns())
    world.use(world.entry(), reported=Reason.ROLE_DENIES)
    rows = world.send(Link()).rows("reports")
    assert [(row[1], row[2], row[4]) for row in rows] == [
        *[("token_unknown", "things:read", 1)] * (REPORTS // 2),
        ("token_unknown", "", 4),
        ("role_denies", "things:read", 1),
    ]
