"""Housekeeping: notices are sent or retried, unused tokens end, policy violations are logged, chores continue."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from proxy.authority.housekeeping import HOUSEKEEPING, Chore, Housekeeping
from proxy.authority.webhook import Endpoint, signature
from proxy.authority.workers.metrics_aggregator import Counters
from proxy.core.errors import StoreUnavailable
from proxy.core.model import Grant
from proxy.observe import metrics
from proxy.services.audit.service import AuditService
from proxy.services.policy.model import TokenPolicy
from proxy.services.policy.service import PolicyService
from proxy.services.tokens.expiry_notices import DAY, ExpiryNotices
from proxy.store.tokens.expiring import NoticeKey
from tests.contract.kit import ADMIN, START, Kit, opened
from tests.support.process import HANGS_SECONDS
from tests.unit.authority.waiting import until

ANN = "ann@example.org"
KEY = bytes(range(32))


@dataclass
class Host:
    """A store with its services, and a webhook; notices are due on the default days."""

    kit: Kit
    endpoint: Endpoint | None = None
    counters: Counters = field(default_factory=Counters)
    audit_retention: float | None = None
    pruned: int = 0
    tidy: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def services(self) -> Host:
        return self

    @property
    def policies(self) -> PolicyService:
        return self.kit.policies

    @property
    def notices(self) -> ExpiryNotices:
        return ExpiryNotices(self.kit.store, self.kit.clock, (14, 7, 1))

    @property
    def audit(self) -> AuditService:
        return AuditService(self.kit.store, self.kit.clock)

    async def watch_audit_head(self) -> None:
        pass

    async def claim(self, names: Sequence[str], node: str, seconds: float) -> frozenset[str]:
        return await self.kit.store.claim(names, node, seconds)

    async def give_up(self, names: Sequence[str], node: str) -> None:
        await self.kit.store.give_up(names, node)

    async def prune(self) -> None:
        self.pruned += 1
        self.tidy.set()

    def counted(self, outcome: str) -> int:
        return int(self.counters.total().counters.get(metrics.NOTICES.name, {}).get((outcome,), 0))


@dataclass
class Monotonic:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Receiver:
    """A webhook receiver that answers 204, or the configured status for tokens of a name."""

    status: dict[str, int] = field(default_factory=dict)
    got: list[tuple[str, str]] = field(default_factory=list)
    """Token name and notice id of each request."""

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        name = json.loads(body)["data"]["name"]
        id_, at = request.headers["webhook-id"], int(request.headers["webhook-timestamp"])
        assert request.headers["webhook-signature"] == signature(KEY, id_, at, body)
        self.got.append((name, id_))
        return web.Response(status=self.status.get(name, self.status.get("*", 204)))

    def names(self) -> list[str]:
        """The token names of the requests since the last call."""
        names, self.got = [name for name, _ in self.got], []
        return sorted(names)


@asynccontextmanager
async def listening(receiver: Receiver) -> AsyncIterator[Endpoint]:
    app = web.Application()
    app.router.add_post("/hook", receiver.take)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield Endpoint(url=f"http://127.0.0.1:{runner.addresses[0][1]}/hook", key=KEY)
    finally:
        await runner.cleanup()


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with opened(tmp_path) as kit:
        await kit.basics()
        yield Host(kit)


async def ending(host: Host, *names: str) -> None:
    """Create tokens with a longer lifetime, and move the clock to ten days before they expire."""
    for name in names:
        host.kit.clock.now += 1
        await host.kit.mint(ANN, name, expires=20 * DAY)
    host.kit.clock.now = START + 10 * DAY


async def test_a_notice_is_sent_once_also_after_a_restart(host: Host) -> None:
    await ending(host, "one", "two")
    receiver = Receiver()
    async with listening(receiver) as host.endpoint:
        await Housekeeping(host).send_notices()
        assert receiver.names() == ["one", "two"]
        # Another authority, after a restart.
        await Housekeeping(host).send_notices()
        assert receiver.names() == []
        host.kit.clock.now = START + 14 * DAY
        await Housekeeping(host).send_notices()
        assert receiver.names() == ["one", "two"]
    assert (host.counted("sent"), host.counted("failed")) == (4, 0)


async def test_a_failed_notice_is_retried_with_growing_delays_and_the_same_id(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    await ending(host, "one")
    receiver, clock = Receiver(status={"*": 500}), Monotonic()
    keeper = Housekeeping(host, monotonic=clock)
    pauses: list[float] = []
    ids: set[str] = set()
    async with listening(receiver) as host.endpoint:
        last = clock.now
        for _ in range(60 * 8):
            await keeper.send_notices()
            if receiver.got:
                ids |= {id_ for _, id_ in receiver.got}
                pauses.append(clock.now - last)
                last = clock.now
            assert len(receiver.names()) <= 1
            clock.now += 60
        assert pauses == [0, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600, 3600, 3600, 3600]
        assert len(ids) == 1
        receiver.status = {}
        clock.now += 3600
        await keeper.send_notices()
        await keeper.send_notices()
        assert receiver.names() == ["one"]
    assert (host.counted("sent"), host.counted("failed")) == (1, 13)


async def test_a_receiver_that_is_down_gets_few_notices_in_a_turn_and_the_rest_when_it_is_up(
    host: Host,
) -> None:
    names = [f"t{number:02}" for number in range(12)]
    await ending(host, *names)
    receiver, clock = Receiver(status={"*": 503}), Monotonic()
    keeper = Housekeeping(host, monotonic=clock)
    async with listening(receiver) as host.endpoint:
        await keeper.send_notices()
        assert len(receiver.names()) == 4
        receiver.status = {}
        clock.now += 60
        await keeper.send_notices()
        assert receiver.names() == names


async def test_a_rejected_notice_does_not_block_others(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.authority.housekeeping.NOTICES_AT_ONCE", 3)
    names = [f"t{number:02}" for number in range(12)]
    await ending(host, *names)
    receiver, clock = Receiver(status=dict.fromkeys(names[:6], 400)), Monotonic()
    keeper = Housekeeping(host, monotonic=clock)
    async with listening(receiver) as host.endpoint:
        for _ in range(8):
            await keeper.send_notices()
            clock.now += 1
        assert set(receiver.names()) == set(names)


async def test_without_a_webhook_notices_are_counted_and_stay_due(host: Host) -> None:
    await ending(host, "one")
    keeper = Housekeeping(host)
    await keeper.count_expiring()
    await keeper.send_notices()
    assert keeper.expiring == {14: 1, 7: 0, 1: 0}
    assert len(await host.notices.due(10)) == 1


async def test_unused_tokens_end_and_the_audit_log_says_why(host: Host) -> None:
    kit = host.kit
    made = await kit.mint(ANN, "idle")
    kit.policy = TokenPolicy(inactive_after=DAY)
    kit.clock.now += DAY
    keeper = Housekeeping(host)
    await keeper.end_unused()
    assert not isinstance(await kit.resolve(made.view.prefix), Grant)
    async with kit.store.read() as rows:
        (event,) = await rows.log.newest(limit=1)
    assert (event.action, event.actor_id, event.details["because"]) == (
        "account.pat.expire",
        HOUSEKEEPING.id,
        "inactive",
    )
    await kit.tokens.regenerate(ADMIN, made.view.id, expires=DAY)
    await keeper.end_unused()
    assert isinstance(await kit.resolve(made.view.prefix), Grant)


async def test_policy_violations_are_logged_once_and_again_when_the_policy_changes(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = host.kit
    for number in range(3):
        await kit.mint(ANN, f"t{number}")
    said: list[int] = []

    class Log:
        def warning(self, event: str, *, count: int) -> None:
            assert "break the policy" in event
            said.append(count)

    monkeypatch.setattr("proxy.authority.housekeeping._log", Log())
    monkeypatch.setattr("proxy.authority.housekeeping.TOKENS_AT_ONCE", 1)
    monkeypatch.setattr("proxy.services.policy.service._AT_ONCE", 1)
    keeper = Housekeeping(host)

    async def turns() -> list[int]:
        said.clear()
        for _ in range(6):
            await keeper.count_breaking()
        return said

    assert await turns() == []
    kit.policy = TokenPolicy(require_expiry=True)
    assert await turns() == [3]
    assert await turns() == []
    kit.policy = TokenPolicy(require_scopes=True)
    assert await turns() == [3]
    kit.policy = TokenPolicy(max_lifetime=DAY, tokens_per_user=1, inactive_after=60.0)
    assert await turns() == [3]
    kit.policy = TokenPolicy(org_tokens_per_org=1)
    assert await turns() == []


async def test_a_chore_that_fails_runs_again_and_so_do_the_others(host: Host) -> None:
    failures: list[Exception] = [RuntimeError("a defect"), StoreUnavailable("the store is away")]
    done = asyncio.Event()

    async def fail() -> None:
        if not failures:
            done.set()
            return
        raise failures.pop()

    clock = Monotonic()
    keeper = Housekeeping(host, monotonic=clock)
    keeper._chores = (Chore(name="bad", every=0.0, work=fail), Chore(name="good", every=60.0, work=host.prune))
    for _ in range(3):
        for chore in keeper._chores:
            await keeper._do(chore)
    assert done.is_set()
    assert host.pruned == 3


async def test_every_chore_runs_soon_after_a_start(host: Host) -> None:
    keeper = asyncio.create_task(Housekeeping(host).run(), name="housekeeping")
    await asyncio.wait_for(host.tidy.wait(), HANGS_SECONDS)
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)
    assert host.pruned == 1


async def test_a_slow_receiver_delays_no_chore(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.authority.webhook.ANSWER_SECONDS", 3600.0)
    await ending(host, "one")
    asked, free = asyncio.Event(), asyncio.Event()

    class Slow(Receiver):
        async def take(self, request: web.Request) -> web.Response:
            asked.set()
            await free.wait()
            return await super().take(request)

    clock = Monotonic()
    async with listening(Slow()) as host.endpoint:
        keeper = asyncio.create_task(Housekeeping(host, monotonic=clock).run(), name="housekeeping")
        await until(lambda: asked.is_set() and host.pruned > 0)
        free.set()
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)


async def test_notices_go_to_the_current_receiver_without_the_delays_of_a_former_one(host: Host) -> None:
    names = [f"t{number:02}" for number in range(8)]
    await ending(host, *names)
    other = Receiver()

    class Replaced(Receiver):
        async def take(self, request: web.Request) -> web.Response:
            host.endpoint = second
            return await super().take(request)

    replaced, clock = Replaced(status={"*": 400}), Monotonic()
    keeper = Housekeeping(host, monotonic=clock)
    async with listening(replaced) as first, listening(other) as second:
        host.endpoint = first
        await keeper.send_notices()
        assert len(replaced.names()) == 4, "the notices that were being sent when the webhook changed"
        await keeper.send_notices()
        assert other.names() == names


async def test_a_delivered_notice_that_cannot_be_marked_is_not_sent_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ending(host, "one")
    mark, receiver = host.kit.store.mark_notified, Receiver()

    async def full(given: Sequence[NoticeKey], node: str) -> None:
        raise StoreUnavailable("the store cannot be used now because its disk is full")

    keeper = Housekeeping(host)
    async with listening(receiver) as host.endpoint:
        monkeypatch.setattr(host.kit.store, "mark_notified", full)
        for _ in range(5):
            with pytest.raises(StoreUnavailable):
                await keeper.send_notices()
        assert receiver.names() == ["one"]
        monkeypatch.setattr(host.kit.store, "mark_notified", mark)
        await keeper.send_notices()
        await Housekeeping(host).send_notices()
        assert receiver.names() == []


async def test_a_receiver_that_was_down_for_a_year_is_still_retried(host: Host) -> None:
    await ending(host, "one")
    receiver, clock = Receiver(status={"*": 500}), Monotonic()
    keeper = Housekeeping(host, monotonic=clock)
    async with listening(receiver) as host.endpoint:
        await keeper.send_notices()
        (id_,) = keeper._retries
        keeper._retries[id_] = (9000, clock.now)
        await keeper.send_notices()
        assert keeper._retries[id_] == (9001, clock.now + 3600)
