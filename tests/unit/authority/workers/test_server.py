"""The worker link over a real unix socket: answers, pushes, and peers that send invalid data or do not read."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxy.authority.grants.argon2_hasher import Argon2Hasher, HashParameters
from proxy.authority.grants.page_writer import PageWriter, open_page
from proxy.authority.grants.resolver import GrantResolver
from proxy.authority.sockets import bind_unix, peer_uid
from proxy.authority.workers.broadcast import Broadcast
from proxy.authority.workers.metrics_aggregator import Counters
from proxy.authority.workers.recorder import RequestRecorder
from proxy.authority.workers.server import CHANGES_LIMIT, IN_FLIGHT, TEXTS_AT_ONCE, LinkServer
from proxy.core.errors import ConfigurationError, DataDirBusy
from proxy.core.ipc.wire import MAX_MESSAGE, PREFIXES_AT_ONCE, Deframer, frame, grant_from_wire, refused_from_wire
from proxy.core.kinds import Kind, Reach
from proxy.core.model import OrgGrant, by_org
from proxy.core.permissions import PermissionSet
from proxy.core.reasons import Reason
from proxy.observe import metrics
from proxy.observe.snapshot import Snapshot
from tests.support.process import HANGS_SECONDS
from tests.support.users import as_another
from tests.unit.authority.memory import CACHE_KEY, TOKENS, MemoryGrants, MemoryRequests
from tests.unit.authority.waiting import until


class Worker:
    """The worker's end of a link, without any logic."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._deframer = Deframer()
        self._ready: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        self.writer.write(frame(message))

    async def receive(self) -> dict[str, Any]:
        async with asyncio.timeout(HANGS_SECONDS):
            while not self._ready:
                data = await self.reader.read(65536)
                if not data:
                    raise EOFError
                self._ready += self._deframer.feed(data)
        return self._ready.pop(0)

    async def ask(self, **message: Any) -> dict[str, Any]:
        self.send({"id": 1, **message})
        return await self.receive()

    async def hello(self, worker: int = 0, pid: int = 10, applied: int = 0) -> dict[str, Any]:
        return await self.ask(op="hello", worker=worker, pid=pid, applied=applied)


class World:
    def __init__(self, data_dir: Path, page: PageWriter) -> None:
        self.path = data_dir / "link.sock"
        self.page = page
        self.grants = MemoryGrants()
        self.counters = Counters()
        self.hasher = Argon2Hasher(HashParameters(time_cost=1, memory_kib=64), counted=lambda _: None)
        resolver = GrantResolver(self.grants, self.hasher, tokens=TOKENS, cache_key=CACHE_KEY)
        self.broadcast = Broadcast(page, counted=lambda n: self.counters.count(metrics.CHANGES, by=n))
        self.left = MemoryRequests()
        self.recorder = RequestRecorder(self.left, self.counters)
        self.server = LinkServer(
            data_dir,
            resolver=resolver,
            feed=self.grants,
            broadcast=self.broadcast,
            counters=self.counters,
            cache_key=CACHE_KEY,
            recorder=self.recorder,
        )
        self._workers: list[Worker] = []

    async def link(self) -> Worker:
        worker = Worker(*await asyncio.open_unix_connection(str(self.path)))
        self._workers.append(worker)
        return worker

    async def close(self) -> None:
        for worker in self._workers:
            worker.writer.close()
        await self.server.close()
        self.hasher.close()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        # Not tmp_path: the path of a unix socket has at most 107 bytes.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pg")))
        page = open_page(directory, store_epoch=1)
        stack.callback(page.close)
        world = World(directory, page)
        await world.server.start()
        stack.push_async_callback(world.close)
        yield world


async def test_only_our_user_can_reach_the_socket(world: World) -> None:
    status = world.path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert stat.S_ISSOCK(status.st_mode)
    left, right = socket.socketpair()
    with left, right:
        assert peer_uid(left) == os.geteuid()


async def test_hello_is_answered_with_the_epoch_and_the_cache_key(world: World) -> None:
    worker = await world.link()
    assert await worker.hello() == {"id": 1, "epoch": 1, "cache_key": CACHE_KEY.hex()}
    assert [linked.key.pid for linked in world.server.workers()] == [10]


async def test_grants_and_refusals_cross_the_link(world: World) -> None:
    token = TOKENS.mint(Kind.PAT)
    world.grants.add(token.token, await world.hasher.hash(token.token))
    worker = await world.link()
    answer = await worker.ask(op="resolve", prefixes=[token.prefix, "acme_pat_000000000000"])
    unverified, unknown = answer["found"]
    assert (answer["as_of"], grant_from_wire(unverified["grant"]).digest) == (1, None)
    assert refused_from_wire(unknown["refused"]).reason is Reason.TOKEN_UNKNOWN
    verified = await worker.ask(op="verify", prefix=token.prefix, token=token.token)
    assert grant_from_wire(verified["grant"]).digest is not None
    wrong = await worker.ask(op="verify", prefix=token.prefix, token=TOKENS.mint(Kind.PAT, token.token_id).token)
    assert refused_from_wire(wrong["refused"]).reason is Reason.TOKEN_WRONG_SECRET
    counted = world.counters.total().counters[metrics.RESOLVES.name]
    assert counted == {
        ("resolve", "grant"): 1,
        ("verify", "grant"): 1,
        ("verify", "refused"): 1,
        ("resolve", "refused"): 1,
    }


async def test_an_answer_that_would_not_fit_a_frame_covers_the_first_of_its_prefixes(world: World) -> None:
    token = [TOKENS.mint(Kind.PAT) for _ in range(5)]
    for one, permissions in zip(token, (TEXTS_AT_ONCE // 2, TEXTS_AT_ONCE // 2, 1, TEXTS_AT_ONCE + 1, 1), strict=True):
        grant = world.grants.add(one.token, "hash")
        many = PermissionSet.of(f"things/{n}:read" for n in range(permissions))
        world.grants.grants[one.prefix] = replace(grant, permissions=many)
    worker = await world.link()
    prefixes, answered = [one.prefix for one in token], []
    while prefixes:
        found = (await worker.ask(op="resolve", prefixes=prefixes))["found"]
        assert [one["grant"]["prefix"] for one in found] == prefixes[: len(found)]
        answered.append(len(found))
        prefixes = prefixes[len(found) :]
    assert answered == [2, 1, 1, 1]


async def test_a_grant_with_many_organisations_fits_a_frame_and_one_that_cannot_fit_closes_no_link(
    world: World,
) -> None:
    token = [TOKENS.mint(Kind.PAT) for _ in range(3)]
    made = [world.grants.add(one.token, "hash") for one in token]
    many = PermissionSet.of(f"things/{n}:read" for n in range(TEXTS_AT_ONCE))
    for grant, role in zip(made, ("viewer", "viewer", "r" * MAX_MESSAGE), strict=True):
        orgs = by_org([OrgGrant(org_id="org_a", org_name="a", role=role, permissions=many)])
        world.grants.grants[grant.prefix] = replace(grant, reach=Reach.ACCOUNT, orgs=orgs)
    worker = await world.link()
    prefixes = [one.prefix for one in token]
    (first,) = (await worker.ask(op="resolve", prefixes=prefixes))["found"]
    assert grant_from_wire(first["grant"]) == world.grants.grants[prefixes[0]]
    assert (await worker.ask(op="resolve", prefixes=prefixes[2:]))["error"] == "unavailable"
    assert len((await worker.ask(op="resolve", prefixes=prefixes[1:]))["found"]) == 1


async def test_a_commit_raises_the_page_first_and_is_then_pushed_to_every_link(world: World) -> None:
    workers = [await world.link(), await world.link()]
    for n, worker in enumerate(workers):
        await worker.hello(worker=n)
    await world.broadcast.on_commit(2, ["token:a", "user:b"])
    assert world.page.epoch == 2
    for worker in workers:
        push = {"push": "changes", "since": 1, "epoch": 2, "keys": ["token:a", "user:b"]}
        assert await worker.receive() == push
    assert world.counters.total().counters[metrics.CHANGES.name] == {(): 1}


async def test_a_commit_too_large_for_a_frame_raises_the_page_and_fails_nothing(world: World) -> None:
    worker = await world.link()
    await worker.hello()
    await world.broadcast.on_commit(2, ["k" * (MAX_MESSAGE + 1)])
    assert world.page.epoch == 2
    await world.broadcast.on_commit(3, ["token:a"])
    assert (await worker.receive())["since"] == 2


async def test_changes_are_sent_or_reset_when_too_many(world: World) -> None:
    worker = await world.link()
    world.grants.log = [(2, "token:a"), (3, "role:b")]
    world.grants.epoch = 3
    assert await worker.ask(op="changes", since=2) == {"id": 1, "epoch": 3, "keys": ["role:b"], "reset": False}
    world.grants.log = [(n + 2, f"token:{n}") for n in range(CHANGES_LIMIT + 1)]
    assert await worker.ask(op="changes", since=1) == {"id": 1, "epoch": 3, "keys": [], "reset": True}


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"op": "no such"}, "unknown_op"),
        ({"op": 7}, "unknown_op"),
        ({}, "unknown_op"),
        ({"op": "resolve"}, "invalid"),
        ({"op": "resolve", "prefixes": "x"}, "invalid"),
        ({"op": "resolve", "prefixes": []}, "invalid"),
        ({"op": "resolve", "prefixes": ["x"] * (PREFIXES_AT_ONCE + 1)}, "invalid"),
        ({"op": "resolve", "prefixes": ["x", 1]}, "invalid"),
        ({"op": "resolve", "prefixes": ["x", "x" * 2000]}, "invalid"),
        ({"op": "verify", "prefix": "x"}, "invalid"),
        ({"op": "changes", "since": "1"}, "invalid"),
        ({"op": "changes", "since": -1}, "invalid"),
        ({"op": "changes", "since": True}, "invalid"),
        ({"op": "hello", "worker": 0}, "invalid"),
    ],
)
async def test_an_invalid_message_gets_an_error_and_the_link_stays_open(
    world: World, message: dict[str, Any], error: str
) -> None:
    worker = await world.link()
    assert await worker.ask(**message) == {"id": 1, "error": error}
    assert "epoch" in await worker.hello()


async def test_a_broken_frame_closes_that_link_and_no_other(world: World) -> None:
    good, bad = await world.link(), await world.link()
    await good.hello(worker=0)
    await bad.hello(worker=1, pid=11)
    bad.writer.write(b"\x00\x00\x00\x02[]")
    with pytest.raises((EOFError, ConnectionResetError)):
        await bad.receive()
    await until(lambda: len(world.server.workers()) == 1)
    assert "as_of" in await good.ask(op="resolve", prefixes=["x"])


async def test_a_store_that_fails_is_unavailable_and_recovers(world: World) -> None:
    worker = await world.link()
    world.grants.broken = True
    assert await worker.ask(op="resolve", prefixes=["x"]) == {"id": 1, "error": "unavailable"}
    world.grants.broken = False
    assert "found" in await worker.ask(op="resolve", prefixes=["x"])


async def test_counters_are_kept_when_the_worker_dies(world: World) -> None:
    worker = await world.link()
    await worker.hello()
    hits = Snapshot(
        counters={metrics.CACHE_HITS.name: {(): 5}},
        gauges={metrics.CACHE_ENTRIES.name: {(): 9}, metrics.EPOCH_LAG.name: {(): 3}},
    )
    worker.send({"op": "counters", "snapshot": {"counters": {"nonsense": []}}})
    worker.send({"op": "counters", "snapshot": hits.to_wire()})
    await until(lambda: world.counters.total().gauge(metrics.CACHE_ENTRIES) == 9)
    assert [linked.lag for linked in world.server.workers()] == [3]
    worker.writer.close()
    await until(lambda: not world.server.workers())
    assert world.counters.total() == Snapshot(counters={metrics.CACHE_HITS.name: {(): 5}})


async def test_more_requests_than_places_are_all_answered(world: World) -> None:
    worker = await world.link()
    asked = 3 * IN_FLIGHT
    for n in range(asked):
        worker.send({"id": n, "op": "resolve", "prefixes": [f"p{n}"]})
    answers = [await worker.receive() for _ in range(asked)]
    assert sorted(answer["id"] for answer in answers) == list(range(asked))
    assert all(answer["found"][0]["refused"]["prefix"] == f"p{answer['id']}" for answer in answers)


async def test_a_worker_that_does_not_read_is_disconnected_and_others_are_not(world: World) -> None:
    deaf, good = await world.link(), await world.link()
    await deaf.hello(worker=0)
    await good.hello(worker=1, pid=11)
    deaf.reader._transport.pause_reading()  # type: ignore[attr-defined]
    keys = ["k" * 1000] * 4000
    for epoch in range(2, 14):
        await world.broadcast.on_commit(epoch, keys)
        assert (await good.receive())["epoch"] == epoch
    await until(lambda: [linked.key.worker for linked in world.server.workers()] == [1])


async def test_closing_the_server_ends_links_and_removes_the_socket(world: World) -> None:
    worker = await world.link()
    await worker.hello()
    await world.server.close()
    with pytest.raises(EOFError):
        await worker.receive()
    assert not world.path.exists()


def test_the_socket_of_a_dead_authority_is_replaced_and_no_other_file_is(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        path = Path(name) / "s"
        bind_unix(path).close()
        bind_unix(path).close()
        path.unlink()
        path.write_text("a file")
        with pytest.raises(DataDirBusy):
            bind_unix(path)
        assert path.read_text() == "a file"
    with pytest.raises(ConfigurationError, match="too long"):
        bind_unix(tmp_path / ("d" * 100) / "s")


async def test_reports_are_recorded_without_an_answer_and_invalid_ones_close_nothing(world: World) -> None:
    worker = await world.link()
    await worker.hello()
    worker.send({"op": "uses", "uses": [["a" * 12, 2, 1.5, "127.0.0.1"], "nonsense"]})
    worker.send({"op": "requests", "events": 3, "omitted": 4})
    worker.send({"op": "reports"})
    assert "epoch" in await worker.ask(op="changes", since=0), "the next answer is that of the next question"
    assert world.recorder.waiting == 1
    counted = world.counters.total().counters
    assert counted[metrics.AUDIT_LOST.name] == {("invalid",): 3}
    assert counted[metrics.AUDIT_OMITTED.name] == {(): 4}


async def test_the_last_reports_of_a_worker_are_recorded_when_the_authority_ends(world: World) -> None:
    worker = await world.link()
    await worker.hello()
    for number in range(200):
        worker.send({"op": "uses", "uses": [[f"{number:012d}", 1, 1.5, "127.0.0.1"]] * 50})
    await worker.writer.drain()
    await world.server.close()
    assert world.recorder.waiting == 200


async def test_a_process_of_another_user_gets_no_answer_and_closes_no_other_link(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would get the cache key and every grant, so this must hold for any mode of the socket."""
    ours = await world.link()
    await ours.hello()
    world.path.chmod(0o666)
    world.path.parent.chmod(0o711)
    stranger = socket.socket(socket.AF_UNIX)
    with as_another(monkeypatch):
        stranger.connect(str(world.path))
    worker = Worker(*await asyncio.open_unix_connection(sock=stranger))
    try:
        with pytest.raises((EOFError, ConnectionError)):
            await worker.hello(worker=1)
        assert [one.key.worker for one in world.server.workers()] == [0]
        assert "cache_key" in await ours.hello()
    finally:
        worker.writer.close()
