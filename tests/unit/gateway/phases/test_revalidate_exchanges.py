"""Which exchanges are judged again and which are cut, rule by rule, with a judge that the test controls."""

from __future__ import annotations

import asyncio

import pytest

from proxy.core.ipc.clock import boottime_ns
from proxy.core.kinds import Kind
from proxy.core.model import Access
from proxy.core.reasons import Reason
from proxy.core.routes import Match
from proxy.gateway.exchange import Exchange
from proxy.gateway.grants.cache import CacheEntry
from proxy.gateway.phases.revalidate import LiveExchanges
from tests.support.process import HANGS_SECONDS
from tests.unit.gateway.kit import IDENTITY, TOKENS, make_cache, make_grant, make_route, task_runs, until


def make_entry(expires_at: float | None = None) -> CacheEntry:
    return make_cache().store(make_grant(TOKENS.mint(Kind.PAT), expires_at=expires_at), IDENTITY)


def make_exchange(entry: CacheEntry | None, *, enforce: bool = True, started: int | None = None) -> Exchange:
    x = Exchange(None, boottime_ns() if started is None else started, b"id")
    x.entry = entry
    route = make_route("/v1/{entity}", Access.TOKEN, enforce=enforce)
    x.match = Match(route, "things", None, "read", None)
    return x


def running(entry: CacheEntry) -> set[Exchange] | None:
    return entry.live


class Live:
    """Watched exchanges, with a record of judgements and cuts. ``answer`` and ``becomes`` set the judge's result."""

    def __init__(self) -> None:
        self.judged: list[Exchange] = []
        self.cut: list[tuple[Exchange, Reason]] = []
        self.answer: Reason | None = None
        self.becomes: list[CacheEntry | None] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.exchanges = LiveExchanges(judge=self._judge, cut=lambda x, reason: self.cut.append((x, reason)))

    async def _judge(self, x: Exchange) -> Reason | None:
        self.judged.append(x)
        await self.gate.wait()
        if self.becomes:
            x.entry = self.becomes.pop(0)
        return self.answer

    async def settled(self) -> None:
        await until(lambda: not self.exchanges._judging)


async def test_exchanges_without_a_grant_and_report_only_ones_are_not_watched() -> None:
    live = Live()
    bare = make_exchange(make_entry())
    bare.match = None
    entry = make_entry()
    for x in (make_exchange(None), bare, make_exchange(entry, enforce=False)):
        live.exchanges.watch(x)
    assert (len(live.exchanges), entry.live) == (0, None)


async def test_a_change_judges_only_exchanges_under_its_grant() -> None:
    live, entry, other = Live(), make_entry(), make_entry()
    mine, theirs = make_exchange(entry), make_exchange(other)
    for x in (mine, theirs, mine):
        live.exchanges.watch(x)
    live.exchanges.changed(entry)
    await live.settled()
    assert (live.judged, live.cut) == ([mine], [])
    live.answer = Reason.TOKEN_REVOKED
    live.exchanges.changed(other)
    await live.settled()
    assert live.cut == [(theirs, Reason.TOKEN_REVOKED)]


async def test_a_change_between_the_verdict_and_the_watch_is_not_missed() -> None:
    live, entry = Live(), make_entry()
    entry.changed = True
    live.answer = Reason.TOKEN_REVOKED
    x = make_exchange(entry)
    live.exchanges.watch(x)
    await live.settled()
    assert live.cut == [(x, Reason.TOKEN_REVOKED)]


async def test_a_new_configuration_judges_every_watched_and_every_earlier_exchange() -> None:
    live = Live()
    watched, late = make_exchange(make_entry()), make_exchange(make_entry())
    live.exchanges.watch(watched)
    live.exchanges.judge_all()
    live.exchanges.watch(late)
    live.exchanges.watch(make_exchange(make_entry(), started=boottime_ns() + 10**9))
    await live.settled()
    assert live.judged == [watched, late]


async def test_while_held_a_change_judges_nothing() -> None:
    live, entry = Live(), make_entry()
    live.exchanges.watch(make_exchange(entry))
    live.exchanges.held = True
    live.exchanges.changed(entry)
    await live.settled()
    assert live.judged == []
    live.exchanges.held = False
    live.exchanges.changed(entry)
    await live.settled()
    assert len(live.judged) == 1


async def test_an_ended_exchange_is_neither_judged_nor_cut_and_releases_its_grant() -> None:
    live, entry = Live(), make_entry()
    x, other = make_exchange(entry), make_exchange(entry)
    live.exchanges.watch(x)
    live.exchanges.watch(other)
    live.exchanges.forget(x)
    assert running(entry) == {other}
    live.exchanges.forget(other)
    assert running(entry) is None, "a grant that nothing runs under may be evicted"
    live.exchanges.changed(entry)
    await live.settled()
    assert live.judged == []
    # An exchange that ends while it is being judged.
    live.answer = Reason.TOKEN_REVOKED
    live.gate.clear()
    live.exchanges.watch(x)
    live.exchanges.changed(entry)
    await until(lambda: live.judged)
    live.exchanges.forget(x)
    live.gate.set()
    await live.settled()
    assert live.cut == []


async def test_an_exchange_judged_by_another_grant_belongs_to_that_one() -> None:
    live, old, new = Live(), make_entry(), make_entry()
    x = make_exchange(old)
    live.exchanges.watch(x)
    live.becomes = [new]
    live.exchanges.changed(old)
    await live.settled()
    assert (old.live, new.live, live.cut) == (set(), {x}, [])
    live.exchanges.changed(old)
    await live.settled()
    assert len(live.judged) == 1
    live.answer = Reason.SCOPE_DENIES
    live.exchanges.changed(new)
    await live.settled()
    assert live.cut == [(x, Reason.SCOPE_DENIES)]


async def test_an_exchange_is_judged_again_if_its_grant_changed_during_the_judgement() -> None:
    live, old, new, last = Live(), make_entry(), make_entry(), make_entry()
    new.changed = True
    x = make_exchange(old)
    live.exchanges.watch(x)
    live.becomes = [new, last]
    live.exchanges.changed(old)
    await live.settled()
    assert live.judged == [x, x]
    assert (new.live, last.live) == (set(), {x})


@pytest.mark.parametrize(
    ("expires_at", "now", "cut"),
    [(100.0, 99.9, False), (100.0, 100.0, True), (100.0, 100.1, True), (None, 1e12, False)],
)
async def test_an_exchange_is_cut_when_its_token_expires(expires_at: float | None, now: float, cut: bool) -> None:
    live = Live()
    x = make_exchange(make_entry(expires_at))
    live.exchanges.watch(x)
    live.exchanges.sweep(now, lease_held=True)
    assert live.cut == ([(x, Reason.TOKEN_EXPIRED)] if cut else [])


async def test_without_a_lease_every_watched_exchange_is_cut() -> None:
    live = Live()
    every = [make_exchange(make_entry(end)) for end in (None, 1.0, 1e12)]
    for x in every:
        live.exchanges.watch(x)
    live.exchanges.sweep(100.0, lease_held=False)
    assert {id(x) for x, _ in live.cut} == {id(x) for x in every}
    assert {reason for _, reason in live.cut} == {Reason.AUTHORITY_UNAVAILABLE}


async def test_closing_cancels_running_judgements() -> None:
    live, entry = Live(), make_entry()
    live.gate.clear()
    live.exchanges.watch(make_exchange(entry))
    live.exchanges.changed(entry)
    await until(lambda: live.judged)
    await asyncio.wait_for(live.exchanges.close(), HANGS_SECONDS)
    assert (live.cut, task_runs("judge again")) == ([], False)
